//! Runs `bothy` in namespaces of its own: with a network that is not the machine's, or as a user
//! without rights. Nothing of the machine's own changes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Bothy, could_not_run, is_root};

/// Runs `words` in a network namespace of its own, in which `before` was done and `after` is done.
pub(crate) fn in_network(before: &str, after: &str, words: &[&str]) -> Bothy {
    let inner = format!("{before}; \"$@\"; code=$?; {after}; exit $code");
    let inner = inner.replace('\'', "'\\''");
    Bothy::new(["boot"]).args(words).in_shell(&format!("exec unshare -n sh -c '{inner}' sh \"$@\""))
}

pub(crate) fn can_make_networks(test: &str) -> bool {
    if !is_root() {
        could_not_run(test, "a network namespace and a tap take root");
        return false;
    }
    let script = "unshare -n ip tuntap add dev t0 mode tap";
    let status =
        std::process::Command::new("sh").args(["-c", script]).stderr(std::process::Stdio::null()).status();
    let can = status.is_ok_and(|status| status.success());
    if !can {
        could_not_run(
            test,
            "`unshare -n ip tuntap add dev t0 mode tap` fails here (iproute2, CAP_NET_ADMIN, /dev/net/tun)",
        );
    }
    can
}

/// Runs a copy of `bothy` as a user without rights, in a mount namespace whose /dev has this
/// script's files alone.
pub(crate) fn as_nobody(dir: &Path, dev: &str, words: &[&str]) -> Bothy {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.join("bothy");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_bothy"), &copy).unwrap();
    }
    let inner = format!(
        "set -e; mount -t tmpfs -o mode=755 tmpfs /dev; mknod -m 666 /dev/null c 1 3; {dev}; \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --no-new-privs \"$@\""
    );
    let script = format!("exec unshare -m -n sh -c '{inner}' sh \"$@\"");
    Bothy::program(copy, words.iter().map(OsStr::new)).in_shell(&script).current_dir(dir)
}

/// /dev/kvm for everybody.
pub(crate) const KVM: &str = "mknod -m 666 /dev/kvm c 10 232";

pub(crate) fn can_drop_rights(test: &str) -> bool {
    if !is_root() {
        could_not_run(test, "to become another user takes root");
        return false;
    }
    let script = "unshare -m -n sh -c 'mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && : > /dev/null && \
                  setpriv --reuid 65534 --regid 65534 --clear-groups true'";
    let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        could_not_run(test, &format!("no mount namespace with a /dev of its own here: {why}"));
    }
    output.status.success()
}
