//! A container: a VM and what runs in it, between a client and a monitor.
//!
//! - [`client`] is the process that a person started: terminal, signals, exit code;
//! - [`monitor`] is a process for each VM, forked by the client first thing: it makes the state
//!   directory, starts the VM's process, has the agent's connection, and releases all of it;
//! - [`protocol`] is what they send to each other over a `channel`, with the container's id in each
//!   message;
//! - [`session`] is a client that is attached to a command, and `streams` its standard streams;
//! - [`state_dir`] is the container's directory.
//!
//! A container is not a command, and a VM is not a container: messages name a container and a
//! process. Today a VM has one container, and its client is attached until the end.
//!
//! **Who has what.** The client reads environment, configuration and credentials, and the monitor
//! gets the few values of them that it needs as data. So neither the monitor's memory nor that of
//! the VM's process, which it forks, holds anything else of the client's. Streams are descriptors:
//! they pass from the agent's connection through the monitor to the client, and their bytes through
//! nobody. If the client dies, the monitor ends the VM; if the monitor dies, its sockets close, and
//! the VM and the client end.

pub mod carry;
mod channel;
pub mod client;
pub mod monitor;
pub mod protocol;
pub mod session;
pub mod state_dir;
mod streams;
