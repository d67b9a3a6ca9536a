//! BPF programs that the kernel interprets, where it can do that, instead of compiling them.
//!
//! To compile even one program takes 2 MiB, which is much of an idle machine's memory, and some
//! time of its start. What the agent loads is run rarely: the device rules at an open, and a
//! seccomp filter only for system calls whose arguments it looks at (the kernel has a table of
//! those that a filter allows in any case). Programs that the container loads by itself are
//! compiled as usual.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Whether the kernel compiles programs from now on.
const COMPILE: &str = "/proc/sys/net/core/bpf_jit_enable";

/// How programs are treated otherwise. It is read once, before anybody changes it: while a child
/// has the switch off, it isn't what the kernel began with.
static USUAL: OnceLock<Option<String>> = OnceLock::new();

fn usual() -> Option<&'static String> {
    USUAL.get_or_init(|| fs::read_to_string(COMPILE).ok()).as_ref()
}

/// The switch. It stays usable where its path no longer is.
pub(crate) struct Interpreted(Option<(File, String)>);

impl Interpreted {
    /// Reads how programs are treated. To be called before anything else here.
    pub(crate) fn prepare() {
        usual();
    }

    /// Opens the switch. On a kernel without it programs are loaded as that kernel does it.
    pub(crate) fn open() -> Self {
        let file = File::options().write(true).open(COMPILE).ok();
        Self(file.zip(usual().cloned()))
    }

    /// From now on programs are interpreted.
    pub(crate) fn begin(mut self) -> Self {
        // A kernel that compiles all of them stays as it is.
        self.0 = self.0.take().filter(|(file, _)| file.write_all_at(b"0", 0).is_ok());
        self
    }

    /// Programs are treated as before.
    pub(crate) fn end(self) {
        if let Some((file, before)) = self.0 {
            // What could be written a moment ago still can.
            let _ = file.write_all_at(before.trim().as_bytes(), 0);
        }
    }
}
