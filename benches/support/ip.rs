//! iproute2.

use std::process::Command;

/// `ip` with these words, which must succeed.
pub(crate) fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().expect("the package iproute2 is installed");
    assert!(status.success(), "ip {words:?}: the benchmark needs the right to make a tap");
}
