//! A machine without a machine: the agent as PID 1 of namespaces, a Unix socket in place of vsock,
//! and a loop device with an image of busybox.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio as ProcessStdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bothy::spec::docker;
use bothy::spec::seccomp::Seccomp;
use bothy_guest::protocol::{
    self, Command, ContainerSetup, ExitStatus, MAX_REPORT, Opening, ProcessId, Report, Request, Root, Stdio,
    Token, Upper,
};
use bothy_guest::spec::Container;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// One machine at a time: its cgroup has a fixed name.
static ONE: Mutex<()> = Mutex::new(());

pub struct Machine {
    agent: Child,
    pub control: UnixStream,
    arrivals: Receiver<(Opening, UnixStream)>,
    waiting: HashMap<[u8; 16], UnixStream>,
    devices: Vec<String>,
    next_token: u8,
    privileged: bool,
    _directory: TempDir,
    _one: MutexGuard<'static, ()>,
}

/// A command's pipes, at the host's end.
pub struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

/// What a test begins with: returns from it, with a loud line, where machines of this kind can't be
/// made.
macro_rules! needs_machine {
    () => {
        fn name() {}
        if !crate::machine::can_run(std::any::type_name_of_val(&name).trim_end_matches("::name")) {
            return;
        }
    };
}
pub(crate) use needs_machine;

/// Whether machines of this kind can be made here; says for this test why not.
pub fn can_run(test: &str) -> bool {
    let missing = if !is_root() {
        "the agent's tests need root"
    } else if !["/bin/busybox", "/usr/bin/mkfs.erofs", "/usr/sbin/mkfs.ext4"]
        .iter()
        .all(|path| Path::new(path).exists())
    {
        "the agent's tests need busybox-static, erofs-utils and e2fsprogs"
    } else if !Path::new("/dev/loop-control").exists() {
        "the agent's tests need loop devices"
    } else {
        return true;
    };
    could_not_run(test, missing);
    false
}

/// Says so past the test harness, which keeps what passing tests print to itself.
pub fn could_not_run(test: &str, reason: &str) {
    io::stderr().write_all(format!("COULD NOT RUN: {test}: {reason}\n").as_bytes()).unwrap();
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// A process of the first container.
pub const fn id(process: u32) -> ProcessId {
    ProcessId { container: 1, process }
}

/// Fills a directory with what an image has.
pub type Fill = fn(&Path) -> io::Result<()>;

fn run(program: &str, args: &[&str]) -> String {
    let output = Process::new(program).args(args).stderr(ProcessStdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn busybox(root: &Path) -> io::Result<()> {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in run("/bin/busybox", &["--list"]).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\naudio:x:29:web\n")
}

fn loop_device(file: &Path) -> String {
    let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
    device.strip_prefix("/dev/").unwrap().to_owned()
}

pub struct Options {
    pub fill: Fill,
    pub upper: Kind,
    pub privileged: bool,
    pub root_from_image: bool,
    /// Lends a file system with a file `file` in it.
    pub lend: bool,
    /// Changes what the host sends of the container.
    pub change: fn(&mut Container),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ReadOnly,
    Memory,
    Scratch,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fill: |_| Ok(()),
            upper: Kind::Memory,
            privileged: false,
            root_from_image: true,
            lend: false,
            change: |_| (),
        }
    }
}

impl Machine {
    /// With the usual image, set up.
    pub fn new() -> Self {
        Self::with(&Options::default())
    }

    pub fn with(options: &Options) -> Self {
        let one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let (tree, image) = (directory.path().join("tree"), directory.path().join("image"));
        fs::create_dir(&tree).unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
        if options.root_from_image {
            busybox(&tree).unwrap();
        }
        (options.fill)(&tree).unwrap();
        run("mkfs.erofs", &["--quiet", image.to_str().unwrap(), tree.to_str().unwrap()]);
        let mut devices = vec![loop_device(&image)];
        let upper = match options.upper {
            Kind::ReadOnly => Upper::ReadOnly,
            Kind::Memory => Upper::Memory,
            Kind::Scratch => {
                let scratch = directory.path().join("scratch");
                fs::File::create(&scratch).unwrap().set_len(16 << 20).unwrap();
                run("mkfs.ext4", &["-q", "-E", "resize=65536", scratch.to_str().unwrap()]);
                fs::File::options().write(true).open(&scratch).unwrap().set_len(64 << 20).unwrap();
                devices.push(loop_device(&scratch));
                Upper::Scratch(devices[1].clone())
            }
        };
        let lent = options.lend.then(|| {
            let (tree, image) = (directory.path().join("lent"), directory.path().join("lent.image"));
            fs::create_dir(&tree).unwrap();
            fs::write(tree.join("file"), "lent\n").unwrap();
            run("mkfs.erofs", &["--quiet", image.to_str().unwrap(), tree.to_str().unwrap()]);
            loop_device(&image)
        });
        devices.extend(lent.clone());
        let mut machine = Self::start(directory, devices, one);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut container = docker::container("bothy-test", options.privileged, &[]);
        // The network is the test's own; other parameters belong to this whole machine.
        container.sysctls.retain(|sysctl| sysctl.name.starts_with("net."));
        (options.change)(&mut container);
        machine.send(&Request::Machine(Box::new(protocol::Machine {
            time_ns: u64::try_from(time.as_nanos()).unwrap(),
            seed: [7; 32],
            networks: Vec::new(),
        })));
        assert_eq!(machine.report(), Report::Ready);
        machine.privileged = options.privileged;
        let root = Root { image: machine.image(), upper, lent };
        assert_eq!(machine.create(1, root, container), Report::Created { container: 1 });
        machine
    }

    /// The block device with the image.
    pub fn image(&self) -> String {
        self.devices[0].clone()
    }

    /// Creates a container, and returns the answer.
    pub fn create(&mut self, container: u32, root: Root, spec: Container) -> Report {
        let setup = Box::new(ContainerSetup { root, spec });
        self.send(&Request::Create { container, setup });
        self.report()
    }

    fn start(directory: TempDir, devices: Vec<String>, one: MutexGuard<'static, ()>) -> Self {
        let path = directory.path().join("host");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = Process::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc"])
            .arg(env!("CARGO_BIN_EXE_bothy-guest"))
            .arg("--agent-at")
            .arg(&path)
            .stdin(ProcessStdio::null())
            .spawn()
            .unwrap();
        let (sender, arrivals) = channel();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let opening = match protocol::receive(&mut stream, MAX_REPORT) {
                    Ok(opening) => opening,
                    Err(_) => continue,
                };
                if sender.send((opening, stream)).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self {
            agent,
            control: UnixStream::pair().unwrap().0,
            arrivals,
            waiting: HashMap::new(),
            devices,
            next_token: 1,
            privileged: false,
            _directory: directory,
            _one: one,
        };
        machine.accept_control();
        machine
    }

    /// Waits for the agent's next hello.
    pub fn accept_control(&mut self) {
        loop {
            match self.arrivals.recv_timeout(PATIENCE).expect("the agent dials") {
                (Opening::Control(hello), stream) => {
                    assert_eq!(hello.version, protocol::VERSION);
                    assert!(hello.uptime_us > 0);
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    self.control = stream;
                    return;
                }
                (Opening::Stream(token), stream) => drop(self.waiting.insert(token.0, stream)),
            }
        }
    }

    pub fn send(&mut self, request: &Request) {
        protocol::send(&mut self.control, request).unwrap();
    }

    pub fn report(&mut self) -> Report {
        protocol::receive(&mut self.control, MAX_REPORT).unwrap()
    }

    pub fn token(&mut self) -> Token {
        self.next_token += 1;
        Token([self.next_token; 16])
    }

    /// The connection that said this token.
    pub fn stream(&mut self, token: Token) -> UnixStream {
        loop {
            if let Some(stream) = self.waiting.remove(&token.0) {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            match self.arrivals.recv_timeout(PATIENCE).expect("the stream's connection") {
                (Opening::Stream(token), stream) => drop(self.waiting.insert(token.0, stream)),
                (Opening::Control(_), _) => panic!("a second control connection"),
            }
        }
    }

    /// What the host sends of a command.
    pub fn command(&self, args: &[&str], stdio: Stdio) -> Command {
        let privileged = self.privileged;
        let seccomp = if privileged { Seccomp::Off } else { Seccomp::Default };
        Command {
            args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/bin".to_vec()],
            cwd: b"/".to_vec(),
            user: String::new(),
            rights: docker::rights(
                privileged,
                false,
                seccomp.filter(docker::default_capabilities()).unwrap(),
            ),
            stdio,
        }
    }

    /// Sends a command; its streams are there when this returns.
    pub fn run(&mut self, id: ProcessId, args: &[&str], change: impl FnOnce(&mut Command)) -> Streams {
        self.run_with(id, args, false, change)
    }

    pub fn run_with(
        &mut self,
        id: ProcessId,
        args: &[&str],
        stdin: bool,
        change: impl FnOnce(&mut Command),
    ) -> Streams {
        let (stdin, stdout, stderr) = (stdin.then(|| self.token()), self.token(), self.token());
        let mut command = self.command(args, Stdio::Pipes { stdin, stdout, stderr });
        change(&mut command);
        self.send(&Request::Run { id, command: Box::new(command) });
        Streams {
            stdin: stdin.map(|token| self.stream(token)),
            stdout: self.stream(stdout),
            stderr: self.stream(stderr),
        }
    }

    /// Runs a command to its end: how it ended, and both outputs.
    pub fn finish(
        &mut self,
        id: ProcessId,
        args: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> (ExitStatus, String) {
        let mut streams = self.run(id, args, change);
        assert_eq!(self.report(), Report::Started { id });
        let mut output = text(&mut streams.stdout);
        output.push_str(&text(&mut streams.stderr));
        match self.report() {
            Report::Ended { id: ended, status } if ended == id => (status, output),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a script in the container's shell, as the first command.
    pub fn sh(&mut self, script: &str) -> String {
        let (status, output) = self.finish(id(1), &["sh", "-c", script], |_| ());
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        output
    }

    /// Asks for the machine's end and waits for it.
    pub fn power_off(&mut self) {
        self.send(&Request::PowerOff);
        self.wait_for_end();
    }

    pub fn wait_for_end(&mut self) {
        for _ in 0..2000 {
            if self.agent.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the agent still runs");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // unshare takes PID 1 with it, and with it everything else in there.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        for device in &self.devices {
            let _ = Process::new("losetup").arg("--detach").arg(format!("/dev/{device}")).status();
        }
        for hierarchy in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let parent = Path::new(hierarchy).join("containers");
            for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

pub fn text(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads until this has come.
pub fn read_until(stream: &mut UnixStream, what: &str) -> String {
    let mut got = String::new();
    let mut piece = [0; 4096];
    while !got.contains(what) {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => panic!("{what:?} does not come, but {got:?}"),
            Ok(length) => got.push_str(&String::from_utf8_lossy(&piece[..length])),
        }
    }
    got
}

pub fn write(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}
