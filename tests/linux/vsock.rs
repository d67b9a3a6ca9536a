//! Byte streams between a guest and the host.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::guest::{Guest, Vm, long, needs_linux, noise};
use crate::support::{self, Bothy, scratch};
use crate::tools::compile;

/// Longer than a boot and its work take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest with the program of `vsock.c` as `vsock`, and its socket in `dir`.
fn guest(dir: &Path) -> Guest {
    let program = dir.join("vsock");
    compile("vsock.c", &program);
    let mut word = OsString::from(dir.join("socket"));
    word.push(",cid=42");
    Guest::new().file("bin", "vsock", &std::fs::read(program).unwrap()).args(["--vsock".into(), word])
}

fn service(dir: &Path, port: u32) -> UnixListener {
    UnixListener::bind(dir.join(format!("socket_{port}"))).unwrap()
}

/// A connection to a port of the guest's, once it has answered.
fn call(dir: &Path, port: u32) -> UnixStream {
    let stream = UnixStream::connect(dir.join("socket")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(&stream, "CONNECT {port}").unwrap();
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        (&stream).read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK "), "{:?}", String::from_utf8_lossy(&answer));
    stream
}

/// Sends everything and returns everything that comes back.
fn exchange(mut stream: UnixStream, content: &[u8]) -> Vec<u8> {
    let mut back = Vec::new();
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(content).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut back).unwrap();
    });
    back
}

#[test]
fn a_guest_calls_the_host_and_bytes_pass_both_ways_exactly() {
    needs_linux!();
    let dir = scratch();
    let content = noise(if long() { 64 << 20 } else { 4 << 20 }, 5);
    let host = service(dir.path(), 7);
    let sent = content.clone();
    let thread = thread::spawn(move || exchange(host.accept().unwrap().0, &sent));
    let script = "
        cat /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/*/device >/dev/null && echo driver=yes
        head -c 3000000 /dev/urandom >/tmp/file
        vsock connect 7 </tmp/file >/tmp/back
        echo sent=$(sha256sum </tmp/file) got=$(sha256sum </tmp/back)
        vsock connect 8 </dev/null || echo refused=yes";
    let console = guest(dir.path()).script(script).run();
    console.says("driver", "yes");
    console.says("refused", "yes");
    let got = thread.join().unwrap();
    assert_eq!(got.len(), 3_000_000);
    let sums = console.value("sent");
    assert!(sums.contains(&sum(&content)), "what the guest received: {sums}");
    assert!(sums.starts_with(&sum(&got)), "what the host received: {sums}");
    assert!(!dir.path().join("socket").exists(), "the socket is left behind");
}

fn sum(content: &[u8]) -> String {
    let dir = scratch();
    let path = support::file(dir.path(), "content", content);
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// A guest that serves so many connections on port 52. It stays until it is told that everything
/// has arrived: what its kernel hasn't sent when it powers off is lost, as with any network.
fn serving(dir: &Path, count: usize) -> Vm {
    let script = format!("vsock serve 52 {count} && echo served=yes; read -r word");
    let mut vm = guest(dir).change(Bothy::open_input).script(script).start();
    vm.wait_for("serving=yes\r\n");
    vm
}

#[test]
fn the_host_calls_a_guest_with_many_connections_at_once() {
    needs_linux!();
    let dir = scratch();
    let count = if long() { 400 } else { 100 };
    let mut vm = serving(dir.path(), count);
    // All are open before the first one says anything.
    let streams: Vec<UnixStream> = (0..count).map(|_| call(dir.path(), 52)).collect();
    let wrong: Vec<String> = thread::scope(|scope| {
        let exchanges: Vec<_> = (0..)
            .zip(streams)
            .map(|(number, stream)| {
                let content = noise(20_000, number);
                scope.spawn(move || {
                    let back = exchange(stream, &content);
                    (back != content).then(|| format!("{number}: {} bytes came back", back.len()))
                })
            })
            .collect();
        exchanges.into_iter().filter_map(|exchange| exchange.join().unwrap()).collect()
    });
    vm.running.type_in(b"done\n");
    let console = vm.ends_with(0);
    console.insist(wrong.is_empty(), &wrong.join(", "));
    console.says("served", "yes");
}

#[test]
fn a_host_that_does_not_read_stops_its_own_stream_and_no_other() {
    needs_linux!();
    let dir = scratch();
    let mut vm = serving(dir.path(), 2);
    let stalled = call(dir.path(), 52);
    // More than all buffers on the way hold, there and back: the writer stands still until somebody
    // reads.
    let content = noise(4 << 20, 9);
    let sent = content.clone();
    let mut writer = stalled.try_clone().unwrap();
    let thread = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    thread::sleep(Duration::from_secs(2));
    assert!(!thread.is_finished());
    let other = noise(300_000, 10);
    assert!(exchange(call(dir.path(), 52), &other) == other);
    let mut back = Vec::new();
    BufReader::new(stalled).read_to_end(&mut back).unwrap();
    assert!(back == content);
    thread.join().unwrap();
    vm.running.type_in(b"done\n");
    vm.ends_with(0).says("served", "yes");
}

#[test]
fn a_guest_that_nobody_listens_in_refuses_and_one_that_ends_closes() {
    needs_linux!();
    let dir = scratch();
    let host = service(dir.path(), 7);
    let thread = thread::spawn(move || {
        let mut lines = BufReader::new(host.accept().unwrap().0).lines();
        let first = lines.next().unwrap().unwrap();
        (first, lines.next().is_none())
    });
    let vm =
        guest(dir.path()).script("(echo hello; sleep 2) | vsock connect 7 & sleep 1; poweroff -f").start();
    assert_eq!(thread.join().unwrap(), ("hello".to_owned(), true), "a line, and then the end");
    vm.ends_with(0);

    let mut vm = guest(dir.path()).script("echo up=yes; sleep 3").start();
    vm.wait_for("up=yes");
    let mut stream = UnixStream::connect(dir.path().join("socket")).unwrap();
    stream.write_all(b"CONNECT 99\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "nobody listens at port 99");
    vm.ends_with(0);
}
