//! What docker makes of an image's root before a container starts in it: the agent does the same
//! (`guest/src/agent/root.rs` and its tests).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::engine::Docker;
use crate::needs_docker;
use crate::support::scratch;

/// An image `name` of busybox and what `fill` adds.
fn import(docker: &Docker, name: &str, fill: impl FnOnce(&Path)) {
    let dir = scratch();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "stat", "readlink", "cat", "grep", "pwd"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fill(&root);
    let tar = dir.path().join("root.tar");
    let made = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".").status().unwrap();
    assert!(made.success());
    docker.run(["import", tar.to_str().unwrap(), name]);
}

const SHOW: &str = "stat -c '%n %F' /proc /sys /dev /etc; readlink /etc/mtab; grep -c ' / ' /etc/mtab; stat -c %F /etc/hosts";
const USUAL: &str =
    "/proc directory\n/sys directory\n/dev directory\n/etc directory\n/proc/mounts\n1\nregular file\n";

#[test]
fn what_is_no_directory_is_replaced_by_one() {
    let docker = needs_docker!();
    import(docker, "links", |root| {
        for name in ["proc", "sys", "dev", "etc"] {
            symlink(format!("elsewhere/{name}"), root.join(name)).unwrap();
        }
    });
    import(docker, "files", |root| {
        for name in ["proc", "sys", "dev", "etc"] {
            fs::write(root.join(name), "file").unwrap();
        }
    });
    import(docker, "missing", |_| ());
    for image in ["links", "files", "missing"] {
        let output = docker.run(["run", "--rm", "--network=none", image, "sh", "-c", SHOW]);
        assert_eq!(output, USUAL, "{image}");
    }
}

#[test]
fn a_working_directory_is_made_through_links_and_cleaned() {
    let docker = needs_docker!();
    import(docker, "ways", |root| {
        fs::create_dir(root.join("data")).unwrap();
        symlink("/data/missing", root.join("dang")).unwrap();
    });
    for (cwd, found) in
        [("/dang", "/data/missing"), ("/a/x/../c/./d/", "/a/c/d"), ("/dang/sub", "/data/missing/sub")]
    {
        let output = docker.run(["run", "--rm", "--network=none", "-w", cwd, "ways", "sh", "-c", "pwd -P"]);
        assert_eq!(output, format!("{found}\n"), "{cwd}");
    }
}
