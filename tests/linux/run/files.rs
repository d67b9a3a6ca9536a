//! Every file of an image as its container sees it, and as umoci unpacks it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::image::{load, words};
use super::{bothy, needs_image, run};
use crate::guest::{needs_linux, noise};
use crate::support::scratch;

/// A file capability (`cap_net_raw+ep`), as `struct vfs_cap_data`.
const CAPABILITY: &str = "0x0100000200200000000000000000000000000000";
/// What the container has of its own.
const OWN: [&str; 7] =
    ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"];

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The first layer.
fn lower(root: &Path, inside: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "a", "gone/deep", "opaque/deep", "of web", "sticky"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(inside, root.join("bin/inside")).unwrap();
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "gone/deep/file", "opaque/deep/file"] {
        fs::write(root.join(name), name).unwrap();
    }
    for (number, name) in
        ["one", "two", "three", "four", "setuid", "setgid", "capable"].into_iter().enumerate()
    {
        fs::write(root.join("a").join(name), noise(5000 * number, number as u64)).unwrap();
    }
    fs::write(root.join("big"), noise(3_000_001, 9)).unwrap();
    fs::hard_link(root.join("a/two"), root.join("a/two again")).unwrap();
    fs::hard_link(root.join("a/two"), root.join("bin/two far away")).unwrap();
    symlink("../a/one", root.join("bin/dangling later")).unwrap();
    symlink("x".repeat(300), root.join("long link")).unwrap();
    words(root, "mkfifo pipe");
    words(root, "mknod node c 1 3");
    words(root, "mknod disk b 254 7");
    chown(root.join("of web"), Some(1000), Some(50)).unwrap();
    chown(root.join("a/three"), Some(100_000), Some(70_000)).unwrap();
    chown(root.join("a/setgid"), Some(0), Some(44)).unwrap();
    std::os::unix::fs::lchown(root.join("long link"), Some(7), Some(8)).unwrap();
    for (name, bits) in
        [("a/setuid", 0o4755), ("a/setgid", 0o2751), ("sticky", 0o1777), ("a/four", 0), ("of web", 0o750)]
    {
        mode(&root.join(name), bits);
    }
    words(root, &format!("setfattr -n security.capability -v {CAPABILITY} a/capable"));
}

/// What the second layer changes: whiteouts, a directory made anew, a link to a file below, another
/// mode, a file in place of a directory.
fn upper(root: &Path) {
    fs::remove_file(root.join("a/one")).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "new").unwrap();
    fs::hard_link(root.join("a/three"), root.join("three again")).unwrap();
    mode(&root.join("big"), 0o600);
    fs::remove_dir(root.join("sticky")).unwrap();
    fs::write(root.join("sticky"), "a file now").unwrap();
}

#[test]
fn a_container_sees_each_file_as_umoci_unpacks_it() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let inside = image.root.join("bin/inside");
    words(dir.path(), "umoci init --layout layout");
    words(dir.path(), "umoci new --image layout:two");
    words(dir.path(), "umoci unpack --image layout:two bundle");
    lower(&dir.path().join("bundle/rootfs"), &inside);
    words(dir.path(), "umoci repack --refresh-bundle --image layout:two bundle");
    upper(&dir.path().join("bundle/rootfs"));
    words(dir.path(), "umoci repack --image layout:two bundle");
    words(dir.path(), "umoci unpack --image layout:two final");
    load(image, &format!("oci:{}:two", dir.path().join("layout").display()), "files");

    let list = format!("{} list final/rootfs {}", inside.display(), OWN.join(" "));
    let expected = words(dir.path(), &list);
    for part in ["security.capability=01000002", "100000:70000", " 104755 ", "links=3", " 1,3", "-> ../a/one"]
    {
        assert!(expected.contains(part), "no {part} in\n{expected}");
    }
    for gone in ["/a/one ", "/gone", "/opaque/deep"] {
        assert!(!expected.contains(gone), "{gone} in\n{expected}");
    }
    for flags in [&["--read-only"][..], &[]] {
        let finished = run(image, flags).args(["files", "/bin/inside", "list", "/"]).args(OWN).run();
        let seen = String::from_utf8(finished.output()).unwrap();
        for (seen, made) in seen.lines().zip(expected.lines()) {
            // As with docker, mount points and files of the container's own are made in these two.
            let has_new_time = ["/ ", "/etc "].iter().any(|path| made.starts_with(path));
            let known = |line: &str| match line.rsplit_once(' ') {
                Some((rest, _time)) if has_new_time => rest.to_owned(),
                _ => line.to_owned(),
            };
            assert_eq!(known(seen), known(made), "with {flags:?}");
        }
        assert_eq!(seen.lines().count(), expected.lines().count(), "{seen}");
    }
    bothy(image, "rmi").args(["files"]).run().code(0);
}
