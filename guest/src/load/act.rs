//! Thirty things that programs do, always the same and in the same order, for somebody outside who
//! watches which system calls of the host they come to.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::say;
use crate::work::{self, fork, wait_for};

/// Where the files of it are, in the working directory.
const DIR: &str = "bothy-load.acts";

type Act = fn(&Path) -> io::Result<()>;

/// In this order: later ones use what earlier ones leave.
const ACTS: [Act; 30] = [
    |_| fs::read("/proc/self/status").map(drop),
    |_| fs::read_dir("/proc")?.try_for_each(|entry| entry.map(drop)),
    |_| fs::metadata("/").map(drop),
    |dir| fs::create_dir(dir),
    |dir| fs::write(dir.join("file"), [b'x'; 10_000]),
    |dir| fs::read(dir.join("file")).map(drop),
    |dir| File::options().append(true).open(dir.join("file"))?.write_all(b"more"),
    |dir| File::options().write(true).open(dir.join("file"))?.sync_all(),
    |dir| File::options().write(true).open(dir.join("file"))?.set_len(5000),
    |dir| {
        let mut file = File::open(dir.join("file"))?;
        file.seek(SeekFrom::Start(1000))?;
        file.read_exact(&mut [0; 100])
    },
    |dir| fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600)),
    |dir| Ok(flock(File::open(dir.join("file"))?, FlockOperation::LockExclusive)?),
    |dir| fs::hard_link(dir.join("file"), dir.join("link")),
    |dir| symlink("file", dir.join("symlink")),
    |dir| fs::read_link(dir.join("symlink")).map(drop),
    |dir| fs::rename(dir.join("link"), dir.join("renamed")),
    |dir| fs::copy(dir.join("file"), dir.join("copy")).map(drop),
    |dir| fs::remove_file(dir.join("copy")),
    |_| work::faults(256),
    |_| {
        let (mut reader, mut writer) = io::pipe()?;
        writer.write_all(b"x")?;
        reader.read_exact(&mut [0])
    },
    |_| {
        let (mut one, mut other) = UnixStream::pair()?;
        one.write_all(b"x")?;
        other.read_exact(&mut [0])
    },
    |dir| {
        let listener = UnixListener::bind(dir.join("socket"))?;
        UnixStream::connect(dir.join("socket"))?.write_all(b"x")?;
        listener.accept()?.0.read_exact(&mut [0])
    },
    |_| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        TcpStream::connect(listener.local_addr()?)?.write_all(b"x")?;
        listener.accept()?.0.read_exact(&mut [0])
    },
    |_| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.send_to(b"x", socket.local_addr()?)?;
        socket.recv_from(&mut [0]).map(drop)
    },
    |_| wait_for(fork(|| true)?),
    |_| {
        let itself = std::env::current_exe()?;
        Command::new(itself).arg("hello").stdout(Stdio::null()).status().map(drop)
    },
    |_| thread::spawn(|| black_box(1)).join().map(drop).map_err(|_| io::Error::other("a thread failed")),
    |_| {
        thread::sleep(Duration::from_millis(1));
        SystemTime::now().elapsed().map(drop).map_err(io::Error::other)
    },
    |_| File::open("/dev/urandom")?.read_exact(&mut [0; 64]),
    |dir| fs::remove_dir_all(dir),
];

/// Waits until somebody watches, and says at the end how many of them could be done.
pub(crate) fn act(wait: Duration) -> io::Result<()> {
    say("ready")?;
    thread::sleep(wait);
    let done = ACTS.iter().filter(|act| act(Path::new(DIR)).is_ok()).count();
    say(format_args!("done={done}"))?;
    crate::sleep_for_ever()
}
