//! As a user whose only right is /dev/kvm.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::guest::{GUEST_DIR_VARIABLE, Guest, blank, guest_dir, needs_linux};
use crate::support::{self, Bothy, could_not_run};

const NOBODY: u32 = 65534;

#[test]
fn a_user_with_no_right_but_dev_kvm_boots_a_guest_with_a_disk() {
    needs_linux!();
    let name = "a_user_with_no_right_but_dev_kvm_boots_a_guest_with_a_disk";
    if !support::is_root() {
        return could_not_run(name, "only root can become somebody else");
    }
    if !support::installed("setpriv") {
        return could_not_run(name, "setpriv is not installed: apt-get install util-linux");
    }
    let kvm = fs::metadata("/dev/kvm").unwrap();
    let groups = if kvm.mode() & 0o006 == 0o006 {
        "--clear-groups".to_owned()
    } else if kvm.mode() & 0o060 == 0o060 && kvm.gid() != 0 {
        format!("--groups={}", kvm.gid())
    } else if Path::new("/run/emulated-host").exists() {
        // A machine that is thrown away.
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
        "--clear-groups".to_owned()
    } else {
        return could_not_run(name, "/dev/kvm belongs to root alone");
    };
    let dir = support::scratch();
    let disk = blank(dir.path(), "disk", 4);
    std::os::unix::fs::chown(&disk, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Copies, since the repository may lie in a directory that others can't enter.
    fs::copy(env!("CARGO_BIN_EXE_bothy"), dir.path().join("bothy")).unwrap();
    let guest = dir.path().join("guest");
    fs::create_dir(&guest).unwrap();
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(guest_dir()).unwrap() {
        let entry = entry.unwrap();
        let copy = guest.join(entry.file_name());
        fs::copy(entry.path(), &copy).unwrap();
        fs::set_permissions(copy, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let script = format!(
        "shift; cd {dir}; export {GUEST_DIR_VARIABLE}={dir}/guest; exec setpriv --reuid {NOBODY} \
         --regid {NOBODY} {groups} --inh-caps=-all --bounding-set=-all ./bothy \"$@\"",
        dir = dir.path().display()
    );
    let append = "bothy.exec=\"echo written >/dev/vda; echo rng=$(head -c 9 /dev/hwrng | wc -c)\"";
    let (bothy, dir2) =
        Guest::new().disk(&disk, "").append(append).args(["--cpus", "2", "--timing"]).into_command();
    let console = crate::guest::Console::of(bothy.in_shell(&script).run());
    drop(dir2);
    console.insist(console.finished.code == 0, &format!("exit code {}", console.finished.code));
    console.says("rng", "9");
    assert!(fs::read(&disk).unwrap().starts_with(b"written\n"));

    // And it has no rights that this machine's other files would show: the disk of somebody else is
    // refused.
    let other = blank(dir.path(), "other", 1);
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let (bothy, _dir) = Guest::new().disk(&other, "").into_command();
    let finished: support::Finished = Bothy::in_shell(bothy, &script).run();
    finished.code(1).says("--disk");
}
