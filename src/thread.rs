//! Starting threads of the VM's process: the one place for a thread's name, for what it does first
//! (its seccomp filter, which arrives here as an opaque value) and for what happens when it panics.
//! The command's own threads only [`start`] here.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a thread does before anything else, told its own name.
type First = Arc<dyn Fn(&str) + Send + Sync>;

/// Bytes of a thread's stack. Of the usual 2 MiB the host, where it makes huge pages of all memory
/// that it can, gives a stack all at once if it happens to begin at the right address.
const STACK: usize = 512 << 10;

/// Starts a thread. `name` shows in `ps -L` and gdb, up to 15 bytes of it.
pub fn start<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

/// Starts threads of the VM's process.
#[derive(Clone, Default)]
pub struct Spawner {
    first: Option<First>,
}

impl Spawner {
    /// Every thread calls `first` with its own name before anything else.
    pub fn new(first: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { first: Some(Arc::new(first)) }
    }

    /// [Starts](start) a thread.
    ///
    /// A panic in it is our bug, and a VM with a dead thread would hang with no word of why; so the
    /// whole process aborts, after the panic hook has printed its message.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let first = self.first.clone();
        let own_name = name.to_owned();
        start(name, move || {
            let whole = || {
                if let Some(first) = first {
                    first(&own_name);
                }
                body()
            };
            catch_unwind(AssertUnwindSafe(whole)).unwrap_or_else(|_| {
                log::error!("thread {own_name} panicked: this is a bug in bothy; the VM ends here");
                std::process::abort()
            })
        })
    }
}
