//! The file system that `bothy load` makes of an image, as a guest's kernel sees it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{Guest, needs_linux, noise};
use crate::support::{Bothy, scratch};

/// Names, kinds and modes, owners, times; for all but directories also links and sizes; and what is
/// in them.
const LIST: &str = "
    export LC_ALL=C
    find . | sort | while read -r name; do stat -c '%n|%f|%u|%g|%Y' \"$name\"; done
    find . ! -type d | sort | while read -r name; do stat -c '%n|%h|%s' \"$name\"; done
    find . -type l | sort | while read -r name; do echo \"$name|$(readlink \"$name\")\"; done
    find . -type f | sort | while read -r name; do echo \"$name|$(sha256sum < \"$name\")\"; done";

/// A root file system with something of everything that needs no right to make, and owners where we
/// may.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for part in ["bin", "empty", "deep/er/and/deeper"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    for (number, len) in [0, 1, 100, 2048, 4095, 4096, 4097, 1 << 20, 3_000_001].into_iter().enumerate() {
        fs::write(root.join(format!("bin/of-{len}")), noise(len, number as u64)).unwrap();
    }
    for number in 0..300 {
        fs::write(root.join(format!("deep/file-{number}")), format!("{number}")).unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 20 << 20).unwrap();
    fs::set_permissions(root.join("bin/of-100"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("bin/of-4097"), root.join("deep/linked")).unwrap();
    symlink("../bin/of-1", root.join("deep/symbolic")).unwrap();
    if root.metadata().unwrap().uid() == 0 {
        chown(root.join("bin/of-4096"), Some(100_000), Some(70_000)).unwrap();
    }
    root
}

#[test]
fn a_guest_sees_the_file_system_of_an_image_as_it_was() {
    needs_linux!();
    let dir = scratch();
    let (root, store) = (root(dir.path()), dir.path().join("store"));
    let load = Bothy::new(["load", "--name", "test", &format!("dir:{}", root.display())]);
    load.env("BOTHY_STORE", &store).run().code(0);
    let mut files = fs::read_dir(store.join("v1/rootfs")).unwrap().map(|entry| entry.unwrap().path());
    let (image, None) = (files.next().unwrap(), files.next()) else { panic!("more than one file system") };

    let output = Command::new("sh").args(["-ec", LIST]).current_dir(&root).output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    assert!(expected.lines().count() > 900, "{expected}");
    let script = format!("mount -t erofs -o ro /dev/vda /mnt; cd /mnt; echo begin=yes; {LIST}; echo end=yes");
    let console = Guest::new().disk(&image, ",ro").script(script).run();
    let (_, listed) = console.text.split_once("begin=yes\n").unwrap();
    let (listed, _) = listed.split_once("end=yes\n").unwrap();
    for (seen, made) in listed.lines().zip(expected.lines()) {
        console.insist(seen == made, &format!("{seen} instead of {made}"));
    }
    assert_eq!(listed.lines().count(), expected.lines().count());
}
