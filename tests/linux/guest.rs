//! Booting a guest that runs a script, and reading what it says.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tempfile::TempDir;

use crate::archive::Archive;
use crate::support::{self, Bothy, Finished, Running};

/// How long a boot and what it is for may take: an emulated host that does other things besides is
/// slow.
const LIMIT: Duration = Duration::from_secs(150);
/// Names the directory of the guest's files.
pub(crate) const GUEST_DIR_VARIABLE: &str = "BOTHY_GUEST_DIR";

/// Held by every test while it runs, and for writing by one that must have the machine for itself.
static MACHINE: RwLock<()> = RwLock::new(());

/// Whether to run the full counts.
pub(crate) fn long() -> bool {
    std::env::var_os("BOTHY_LONG").is_some_and(|value| value == "1")
}

/// The repository's `target`.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target")
}

/// Where bothy's own guest is.
pub(crate) fn guest_dir() -> PathBuf {
    target().join("guest")
}

/// Says what is missing and gives `None` where Linux guests can't run; otherwise what a test holds
/// while it runs.
pub(crate) fn linux_runs(test: &str) -> Option<RwLockReadGuard<'static, ()>> {
    can_run(test).then(|| MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// As [`linux_runs`], for a test during which no other may run.
pub(crate) fn linux_runs_alone(test: &str) -> Option<RwLockWriteGuard<'static, ()>> {
    can_run(test).then(|| MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Looked up here and not by `bothy doctor`, so that its mistakes fail a test.
fn can_run(test: &str) -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let reason = if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        "the processor has neither vmx nor svm; run it in tests/host/run"
    } else if !Path::new("/dev/kvm").exists() {
        "there is no /dev/kvm"
    } else if !guest_dir().join("manifest.json").exists() {
        "bothy's own guest is not there: make guest"
    } else {
        return true;
    };
    support::could_not_run(test.trim_end_matches("::name"), reason);
    false
}

/// What a test begins with: returns from it, with a loud line, where Linux guests can't run.
macro_rules! needs_linux {
    () => {
        needs_linux!(linux_runs)
    };
    (alone) => {
        needs_linux!(linux_runs_alone)
    };
    ($check:ident) => {
        fn name() {}
        let Some(_machine) = $crate::guest::$check(std::any::type_name_of_val(&name)) else { return };
    };
}
pub(crate) use needs_linux;

/// Returns from a test, with a loud line, where it isn't run by root, who alone can do what it
/// needs.
macro_rules! needs_root {
    ($what:literal) => {
        fn test() {}
        if !$crate::support::is_root() {
            let test = std::any::type_name_of_val(&test).trim_end_matches("::test");
            $crate::support::could_not_run(test, concat!("only root can ", $what));
            return;
        }
    };
}
pub(crate) use needs_root;

/// A VM that is to be booted.
pub(crate) struct Guest {
    bothy: Bothy,
    dir: TempDir,
    append: Vec<String>,
    script: Option<String>,
    modules: Option<PathBuf>,
    files: Archive,
}

impl Guest {
    /// bothy's own guest, with a shell.
    pub(crate) fn new() -> Self {
        let bothy = Bothy::new(["boot"]).env(GUEST_DIR_VARIABLE, guest_dir()).limit(LIMIT);
        Self {
            bothy,
            dir: support::scratch(),
            append: Vec::new(),
            script: None,
            modules: None,
            files: Archive::default(),
        }
    }

    /// Another kernel with our initramfs; it is told to be as quiet as our own.
    pub(crate) fn with_kernel(kernel: &Path) -> Self {
        let guest = Self::new().args([OsStr::new("--kernel"), kernel.as_os_str()]).append("quiet");
        guest.script("true")
    }

    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.change(|bothy| bothy.args(args))
    }

    /// `--disk PATH,MORE...`
    pub(crate) fn disk(self, path: &Path, more: &str) -> Self {
        self.args(["--disk".to_owned(), format!("{}{more}", path.display())])
    }

    pub(crate) fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// The shell script that it runs in place of a shell; it ends at the first command that fails.
    pub(crate) fn script(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// A program beside the script.
    pub(crate) fn file(mut self, dir: &str, name: &str, content: &[u8]) -> Self {
        self.files = self.files.file(dir, name, content);
        self
    }

    /// An archive with modules, for a kernel that needs some.
    pub(crate) fn modules(mut self, archive: PathBuf) -> Self {
        self.modules = Some(archive);
        self
    }

    /// Changes how the command is run.
    pub(crate) fn change(self, change: impl FnOnce(Bothy) -> Bothy) -> Self {
        Self { bothy: change(self.bothy), ..self }
    }

    /// The command, and the directory that must live as long as it starts.
    pub(crate) fn into_command(mut self) -> (Bothy, TempDir) {
        let mut bothy = self.bothy;
        if let Some(script) = self.script {
            let mut initrd = fs::read(guest_dir().join("initramfs.cpio")).expect("the guest is built");
            if let Some(modules) = self.modules {
                initrd.resize(initrd.len().next_multiple_of(4), 0);
                initrd.extend(fs::read(modules).expect("the kernel's modules can be read"));
            }
            initrd.resize(initrd.len().next_multiple_of(4), 0);
            initrd.extend(self.files.file("etc/bothy", "script", script.as_bytes()).finish());
            let path = support::file(self.dir.path(), "initrd", &initrd);
            bothy = bothy.args([OsStr::new("--initrd"), path.as_os_str()]);
            self.append.push(r#"bothy.exec="sh -e /etc/bothy/script""#.to_owned());
        }
        if !self.append.is_empty() {
            bothy = bothy.args(["--append".to_owned(), self.append.join(" ")]);
        }
        (bothy, self.dir)
    }

    pub(crate) fn start(self) -> Vm {
        let (bothy, dir) = self.into_command();
        Vm { running: bothy.start(), _dir: dir }
    }

    /// Runs it to its end and insists on the exit code.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Console {
        self.start().ends_with(code)
    }

    /// Runs it to its end, which must be a power-off after a script that succeeded.
    #[track_caller]
    pub(crate) fn run(self) -> Console {
        let console = self.ends_with(0);
        console.insist(console.text.contains("bothy: exit status 0"), "the script failed");
        console
    }
}

/// A VM that runs.
pub(crate) struct Vm {
    pub(crate) running: Running,
    _dir: TempDir,
}

impl Vm {
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.running.wait_for(text.as_bytes());
    }

    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Console {
        let console = Console::of(self.running.wait());
        console.insist(
            console.finished.code == code,
            &format!("exit code {} instead of {code}", console.finished.code),
        );
        console
    }
}

/// What a guest said, after its end.
pub(crate) struct Console {
    pub(crate) text: String,
    pub(crate) finished: Finished,
}

impl Console {
    pub(crate) fn of(finished: Finished) -> Self {
        Self { text: String::from_utf8_lossy(&finished.stdout).replace('\r', ""), finished }
    }

    /// Fails with everything that the guest said, unless `holds`.
    #[track_caller]
    pub(crate) fn insist(&self, holds: bool, what: &str) {
        assert!(holds, "{what}\n--- console\n{}\n--- standard error\n{}", self.text, self.finished.stderr);
    }

    /// The values of all lines `KEY=VALUE`.
    pub(crate) fn values(&self, key: &str) -> Vec<&str> {
        let values = self.text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.map(str::trim_end).collect()
    }

    /// The value of the only line `KEY=VALUE`.
    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> &str {
        let values = self.values(key);
        self.insist(values.len() == 1, &format!("{} lines {key}=", values.len()));
        values[0]
    }

    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        let value = self.value(key);
        self.insist(value.parse::<u64>().is_ok(), &format!("{key} is no number"));
        value.parse().expect("it was tried")
    }

    /// Insists on the line `KEY=VALUE`.
    #[track_caller]
    pub(crate) fn says(&self, key: &str, value: &str) {
        let found = self.value(key);
        self.insist(found == value, &format!("{key} is {found:?} instead of {value:?}"));
    }
}

/// Bytes without a pattern that a mistake could repeat, and the same each time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(len).collect()
}

/// Makes a file of zeros.
pub(crate) fn blank(dir: &Path, name: &str, mib: u64) -> PathBuf {
    let path = dir.join(name);
    fs::File::create(&path)
        .and_then(|file| file.set_len(mib << 20))
        .expect("the scratch directory can be written");
    path
}
