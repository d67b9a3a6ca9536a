//! The real `bothy` and Linux guests: its own, and the kernels that Debian ships.
//!
//! They need a KVM that runs Linux. On a machine that has none they run in the emulated host:
//! `CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="tests/host/run --timeout 1500 --" cargo test
//! --release --test linux`. The guest is that of `target/guest`, Debian's kernels are those of
//! `target/debian-kernels`. A test that can't run here says so (`COULD NOT RUN`). BOTHY_LONG=1
//! raises the counts.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod archive;
mod guest;
mod mounted_disk;
mod pty;
mod tap;
mod tools;

mod balloon;
mod bench;
mod console;
mod debug;
mod devices;
mod disks;
mod doctor;
mod ends;
mod images;
mod kernels;
mod many;
mod memory;
mod network;
mod packed;
mod processors;
mod rights;
mod run;
mod terminal;
mod timing;
mod transports;
mod vsock;
