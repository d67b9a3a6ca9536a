//! Debian's docker, on this machine: its daemons in namespaces of their own, one set for all tests
//! of this process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use crate::support::{could_not_run, installed, is_root};

/// What must be installed.
const TOOLS: [&str; 5] = ["/usr/sbin/dockerd", "/usr/bin/docker", "containerd", "unshare", "busybox"];

/// The name of the image of all tests: busybox and its applets.
pub(crate) const IMAGE: &str = "busybox";

pub(crate) struct Docker {
    dir: PathBuf,
    daemons: Child,
}

static DOCKER: OnceLock<Docker> = OnceLock::new();

/// Docker; says what is missing if it can't run here.
pub(crate) fn get(test: &str) -> Option<&'static Docker> {
    if !is_root() {
        could_not_run(test, "dockerd needs root");
        return None;
    }
    if let Some(tool) = TOOLS.iter().find(|tool| !installed(tool) && !Path::new(tool).exists()) {
        could_not_run(test, &format!("{tool} is not installed"));
        return None;
    }
    Some(DOCKER.get_or_init(Docker::start))
}

/// A static has no destructor, so this is what ends the daemons.
extern "C" fn end() {
    if let Some(docker) = DOCKER.get() {
        crate::support::signal(docker.daemons.id(), libc::SIGKILL);
        let _ = fs::remove_dir_all(&docker.dir);
    }
}

impl Docker {
    fn start() -> Self {
        #[expect(unsafe_code, reason = "std has no atexit")]
        // SAFETY: the function is one for the whole time.
        unsafe {
            libc::atexit(end);
        }
        let dir = tempfile::Builder::new().prefix("bothy-docker-").tempdir().unwrap().keep();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docker/start");
        let mut daemons = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(script)
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(daemons.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "docker does not start");
        let docker = Self { dir, daemons };
        docker.import();
        docker
    }

    fn import(&self) {
        let root = self.dir.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        let list = Command::new("busybox").arg("--list").output().unwrap();
        for name in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        let tar = self.dir.join("root.tar");
        let made = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".").status().unwrap();
        assert!(made.success());
        self.run(["import", tar.to_str().unwrap(), IMAGE]);
    }

    /// `docker WORDS...`
    pub(crate) fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command.env("DOCKER_HOST", format!("unix://{}/docker.sock", self.dir.display())).args(words);
        command.env("DOCKER_CONFIG", self.dir.join("config")).stdin(Stdio::null());
        command
    }

    /// `docker WORDS...`, which must succeed; gives its output.
    #[track_caller]
    pub(crate) fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        let mut command = self.command(words);
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }
}
