//! The guest of the benchmark and of the tests of devices: a file system with fio, iperf3, ethtool
//! and what they need, and an init that runs them when it is told to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes the file system image, for every machine to read.
pub(crate) fn build(work: &Path) -> PathBuf {
    let (root, image) = (work.join("io-root"), work.join("io-root.erofs"));
    let _absent = fs::remove_dir_all(&root);
    for dir in ["bin", "dev", "proc", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(root.join(dir)).expect("the work directory is writable");
    }
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in ["/usr/bin/fio", "/usr/bin/iperf3", "/usr/sbin/ethtool"] {
        files.insert(program.into());
        files.extend(libraries(program));
    }
    for file in files {
        let place = root.join(file.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(place.parent().expect("below the root")).expect("there is room");
        fs::copy(&file, place).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).expect("there is room");
    let applets = run(Command::new(root.join("bin/busybox")).arg("--list"));
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a new link");
    }
    fs::write(root.join("init"), include_str!("init.sh")).expect("there is room");
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).expect("our file");
    run(Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(root.join("bin/turns"))
        .arg("benches/io/turns.c"));
    let _absent = fs::remove_file(&image);
    run(Command::new("mkfs.erofs").arg(&image).arg(&root));
    image
}

/// The shared libraries of a program, by their absolute paths, the dynamic linker among them.
fn libraries(program: &str) -> Vec<PathBuf> {
    let text = run(Command::new("ldd").arg(program));
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("these programs speak UTF-8")
}
