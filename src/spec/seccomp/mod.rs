//! Seccomp profiles: docker's JSON in, a filter for the kernel out.
//!
//! ```text
//! profile     the JSON, and which of its rules hold for a container
//! compile     rules -> classic BPF, for x86-64, i386 and x32
//! syscalls    names and numbers
//! run         runs a filter, for tests and for `bothy bench`
//! ```
//!
//! A profile means what docker, runc and libseccomp make of it:
//!
//! - a rule without conditions on arguments decides for its calls, the first such rule if there are
//!   several; otherwise the rules with conditions are tried in their order, and the default action
//!   is for what none fits;
//! - conditions on different arguments must all hold; several on the same argument make each
//!   condition a rule of its own;
//! - names that aren't known are passed over: they are calls of other machines, or newer ones;
//! - a call whose number is larger than all in the profile gets ENOSYS where the default is an
//!   error, so that a C library goes on without it.
//!
//! On i386 the calls for sockets and for System V IPC also exist as numbers of socketcall(2) and
//! ipc(2), whose other arguments lie behind a pointer, which no filter can follow. A rule that
//! allows such a call allows it there, too; a condition on its arguments can't be checked.

mod compile;
mod profile;
pub mod run;
mod syscalls;
#[cfg(test)]
mod tests;

use bothy_guest::spec::Filter;

pub use profile::{Conditions, Profile, ProfileError, Rule};

/// Docker's default profile.
const DOCKER: &str = include_str!("docker.json");
/// What remains of it for `seccomp=unconfined`: the family that reaches the host is refused.
const UNCONFINED: &str = include_str!("unconfined.json");

/// What a container's processes may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// By docker's default profile.
    #[default]
    Default,
    /// By this profile.
    Profile(Box<Profile>),
    /// Anything but sockets of the family AF_VSOCK.
    Unconfined,
    /// Anything.
    Off,
}

impl Seccomp {
    /// The filter for a process with these capabilities (a bit for each).
    ///
    /// # Errors
    ///
    /// A profile that can't be compiled.
    pub fn filter(&self, capabilities: u64) -> Result<Option<Filter>, ProfileError> {
        let conditions = Conditions { capabilities, ..Conditions::default() };
        let compiled = |profile: &Profile| profile.compile(&conditions).map(Some);
        match self {
            Self::Default => compiled(&docker_profile()),
            Self::Unconfined => compiled(&own(UNCONFINED)),
            Self::Profile(profile) => compiled(profile),
            Self::Off => Ok(None),
        }
    }
}

/// Docker's default profile.
pub fn docker_profile() -> Profile {
    own(DOCKER)
}

fn own(text: &str) -> Profile {
    Profile::parse(text.as_bytes()).expect("bothy's own profiles are well-formed, which a test holds")
}
