//! What a user without rights can do, and is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::bad_input::{SETUP, refuses, with_kernel};
use super::namespaces::{KVM, as_nobody, can_drop_rights, can_make_networks};
use super::script::Script;
use crate::support::{file, scratch};

#[test]
fn no_kvm_and_no_right_to_it() {
    if !can_drop_rights("rights::no_kvm_and_no_right_to_it") {
        return;
    }
    let dir = with_kernel();
    let words = ["boot", "--kernel", "guest.elf"];
    let run = |dev| as_nobody(dir.path(), dev, &words);
    run("true"); // The copy of bothy is there before anything is listed.
    refuses(run("true"), dir.path(), SETUP, &["/dev/kvm", "kvm_intel", "bothy doctor"]);
    refuses(
        run("mknod -m 600 /dev/kvm c 10 232"),
        dir.path(),
        SETUP,
        &["no right", "/dev/kvm", "usermod -aG kvm"],
    );
    refuses(run("mknod -m 666 /dev/kvm c 1 3"), dir.path(), SETUP, &["KVM"]);
}

#[test]
fn files_that_this_user_has_no_right_to() {
    if !can_drop_rights("rights::files_that_this_user_has_no_right_to") {
        return;
    }
    let dir = with_kernel();
    let secret = file(dir.path(), "secret", &[0; 512]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let fixed = file(dir.path(), "fixed", &[0; 512]);
    fs::set_permissions(&fixed, fs::Permissions::from_mode(0o444)).unwrap();
    let run = |words: &[&str]| as_nobody(dir.path(), KVM, &[&["boot", "--memory", "32M"], words].concat());
    run(&[]);
    refuses(run(&["--kernel", "secret"]), dir.path(), SETUP, &["--kernel", "secret", "ermission denied"]);
    let initrd = ["--kernel", "guest.elf", "--initrd", "secret"];
    refuses(run(&initrd), dir.path(), SETUP, &["--initrd", "secret", "ermission denied"]);
    refuses(run(&["--kernel", "guest.elf", "--disk", "secret"]), dir.path(), SETUP, &["--disk", "secret"]);
    refuses(
        run(&["--kernel", "guest.elf", "--disk", "fixed"]),
        dir.path(),
        SETUP,
        &["--disk", "fixed", ",ro"],
    );
    run(&["--kernel", "guest.elf", "--disk", "fixed,ro"]).run().output();
    refuses(
        run(&["--kernel", "guest.elf", "--config", "secret"]),
        dir.path(),
        SETUP,
        &["--config", "secret"],
    );
}

#[test]
fn a_tap_of_ones_own_or_ones_group_and_no_other() {
    let test = "rights::a_tap_of_ones_own_or_ones_group_and_no_other";
    if !can_drop_rights(test) || !can_make_networks(test) {
        return;
    }
    let dir = with_kernel();
    let run = |mode: &str, owner: &str| {
        let dev = format!(
            "{KVM}; mkdir /dev/net; mknod -m {mode} /dev/net/tun c 10 200; ip tuntap add dev t0 mode tap {owner}"
        );
        as_nobody(dir.path(), &dev, &["boot", "--memory", "32M", "--kernel", "guest.elf", "--net", "tap=t0"])
    };
    for ours in ["user 65534", "group 65534"] {
        run("666", ours).run().output();
    }
    for not_ours in ["user 12345", "group 12345"] {
        refuses(run("666", not_ours), dir.path(), SETUP, &["--net", "t0", "not yours"]);
    }
    refuses(run("600", "user 65534"), dir.path(), SETUP, &["--net", "/dev/net/tun"]);
}

#[test]
fn a_user_whose_only_right_is_kvm_has_boot_console_disk_and_processors() {
    if !can_drop_rights("rights::a_user_whose_only_right_is_kvm_has_boot_console_disk_and_processors") {
        return;
    }
    let dir = scratch();
    let disk = file(dir.path(), "disk", &[7; 1024]);
    std::os::unix::fs::chown(&disk, Some(65534), Some(65534)).unwrap();
    let script = super::virtio::write_one_sector(Script::new().listen().echo(4));
    super::virtio::with_one_write(&script).write(dir.path());
    let words =
        ["boot", "--memory", "32M", "--cpus", "2", "--kernel", "guest.elf", "--disk", "disk", "--timing"];
    let finished = as_nobody(dir.path(), KVM, &words).input(*b"ping").run().code(0).says("tear-down");
    assert_eq!(finished.stdout, b"ping\0", "the echo and the status of a write");
    assert_eq!(fs::read(&disk).unwrap(), [[0x5a; 512], [7; 512]].concat());
}
