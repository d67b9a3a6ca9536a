//! bothy: a type-2 hypervisor for containers, on Linux' KVM.
//!
//! ```text
//! main -> cli -> commands -> { container, bench, launch, image, spec, report }
//! container -> { launch, vmm, agent }    (the processes of a container: client and monitor)
//! launch -> { vmm, guest_files }         (opens what a VM is made of)
//! vmm -> { config, vcpu, boot, snapshot } -> { virtio devices, devices } -> virtio::core -> bus -> memory
//! { vmm, vcpu } -> kvm -> memory         (nobody else names kvm, but for `bothy doctor`)
//! bench -> spec                          (the filters of processes are run as those that bothy makes)
//! image -> store
//! store, agent, snapshot, spec           (name only themselves)
//! bounded_log, outcome, timeline, poll, random, sink, size, sys, thread (small, and used by all of the above)
//! ```
//!
//! A module uses only what stands to its right or below, and siblings don't see each other;
//! `tests/layering.rs` holds that. What is particular to x86-64 stays in `boot`, `vcpu` and
//! `memory::layout`.

// These panic where nobody reads.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod agent;
pub mod bench;
pub mod boot;
pub mod bounded_log;
pub mod bus;
pub mod cli;
pub mod commands;
pub mod config;
pub mod container;
pub mod devices;
pub mod guest_files;
pub mod image;
pub mod kvm;
pub mod launch;
pub mod memory;
pub mod outcome;
pub mod poll;
pub mod random;
pub mod report;
pub mod sink;
pub mod size;
pub mod snapshot;
pub mod spec;
pub mod store;
pub mod sys;
pub mod thread;
pub mod timeline;
pub mod unix_socket;
pub mod vcpu;
pub mod virtio;
pub mod vmm;
