//! The agent's own binary with containers of busybox, in namespaces of the test's machine and
//! without a VM.

#![expect(unreachable_pub, reason = "the modules of a test are seen by nobody else")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod containers;
mod hostile;
mod inside;
mod machine;
mod rights;
mod several;
