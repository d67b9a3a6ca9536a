//! What a container is to be, as data: docker's defaults, and what a user changes of them. `bothy
//! run`, the peers of `bothy bench` and the tests' bundles take it from here; the agent does what
//! it receives ([`bothy_guest::spec`]) and adds nothing.
//!
//! ```text
//! docker       capabilities, mounts, devices, protections, limits, kernel parameters
//! seccomp      profiles in docker's JSON, and the filters made of them
//! capability   names of capabilities
//! oci          the same as the Open Container Initiative has it, for runc and crun
//! ```

pub mod capability;
pub mod docker;
pub mod oci;
pub mod seccomp;

/// A user's text for a message: short, and without control characters.
fn printable(text: &str) -> String {
    const SHOWN: usize = 100;
    text.chars().take(SHOWN).map(|c| if c.is_control() { '?' } else { c }).collect()
}
