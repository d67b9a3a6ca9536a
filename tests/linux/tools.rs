//! Programs of the host's that tests call.

use std::path::Path;
use std::process::Command;

/// A tap for several queues, up, with an address; it is gone with the value.
pub(crate) struct MultiQueueTap(&'static str);

impl MultiQueueTap {
    /// Only root can.
    #[track_caller]
    pub(crate) fn new(name: &'static str, address: &str) -> Self {
        run("ip", &["tuntap", "add", "dev", name, "mode", "tap", "multi_queue"]);
        let tap = Self(name);
        run("ip", &["addr", "add", address, "dev", name]);
        run("ip", &["link", "set", name, "up"]);
        tap
    }
}

impl Drop for MultiQueueTap {
    fn drop(&mut self) {
        // Nothing can be done about a tap that stays: the test has its result.
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}

/// Makes a static program of a C source in this directory.
#[track_caller]
pub(crate) fn compile(source: &str, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linux").join(source);
    let [source, program] = [source.as_path(), program].map(|path| path.to_str().unwrap());
    run("cc", &["-O1", "-Wall", "-static", "-o", program, source]);
}

/// Makes a static 32-bit program of a C source in this directory that needs no C library.
#[track_caller]
pub(crate) fn compile_for_32_bits(source: &str, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linux").join(source);
    let [source, program] = [source.as_path(), program].map(|path| path.to_str().unwrap());
    let kind = ["-m32", "-O1", "-Wall", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"];
    let files = ["-nostdlib", "-static", "-o", program, source];
    run("cc", &[&kind[..], &files[..]].concat());
}

/// Runs it to its end, which must be a success.
#[track_caller]
pub(crate) fn run(program: &str, words: &[&str]) {
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&said));
}
