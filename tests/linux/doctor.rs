//! `bothy doctor` where Linux guests run.

use crate::guest::needs_linux;
use crate::support::Bothy;

#[test]
fn doctor_says_that_linux_guests_can_run_here() {
    needs_linux!();
    let said = String::from_utf8(Bothy::new(["doctor"]).run().output()).unwrap();
    assert!(said.ends_with("Linux guests can run on this machine.\n"), "{said}");
    assert!(!said.contains("FATAL"), "{said}");
    for what in
        ["ok       processor: hardware virtualization", "ok       /dev/kvm", "ok       KVM API: version 12"]
    {
        assert!(said.contains(what), "no {what:?}: {said}");
    }
}
