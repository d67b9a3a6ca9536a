//! Safe wrappers of what std and rustix lack: fork, signals, terminals, processes, descriptors.
//!
//! Together with guest memory, KVM and the rings this is where `unsafe` stands. Nothing here names
//! another room, or has a policy: what a process is for, its callers say.

pub mod command_line;
pub mod descriptors;
pub mod pages;
pub mod process;
pub mod signals;
pub mod terminal;
pub mod trace;

#[cfg(test)]
mod testing {
    use std::process::Command;

    /// Whether this test runs by itself, in a process with one thread, which is made with
    /// `variable` in its environment. In the process of all tests it runs the test so, and insists
    /// that it passes; `shell` is run before that.
    pub(super) fn is_alone(variable: &str, test: &str, shell: &str) -> bool {
        if std::env::var_os(variable).is_some() {
            return true;
        }
        let script = format!("{shell} exec \"$0\" --exact \"$1\" --test-threads=1");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).arg(std::env::current_exe().unwrap()).arg(test).env(variable, "");
        assert!(command.status().unwrap().success());
        false
    }
}
