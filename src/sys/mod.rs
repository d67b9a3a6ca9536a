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
