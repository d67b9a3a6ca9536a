//! Debian's minbase with python3, made by debootstrap and umoci (tests/debian-image): what its
//! programs say in a container is what they say here, in the same file system by chroot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::image::load;
use super::{needs_image, run};
use crate::guest::needs_linux;
use crate::support::could_not_run;

/// Loading takes its time in an emulated host, too.
const LIMIT: Duration = Duration::from_secs(240);

/// Run by a shell of the image's, in one container.
const SCRIPTS: [&str; 7] = [
    "cat /etc/debian_version; perl -e 'print \"$]\\n\"'; bash -c 'echo ${BASH_VERSINFO[0]}'; getent passwd www-data",
    "python3 -c 'import sys, sqlite3, ssl, json, ctypes; print(sys.version, sqlite3.sqlite_version, ssl.OPENSSL_VERSION)'",
    "python3 -c 'import hashlib, glob; print([hashlib.sha256(open(f, \"rb\").read()).hexdigest() for f in sorted(glob.glob(\"/usr/lib/python3*/*.py\"))[:40]])'",
    "python3 -c 'import multiprocessing as m; print(sum(m.Pool(3).map(abs, range(-50, 50))))'",
    "python3 -c 'import tempfile, os; f = tempfile.NamedTemporaryFile(); f.write(b\"x\" * 100000); f.flush(); print(os.stat(f.name).st_size, \"\\u00fc\")'",
    "dpkg --verify coreutils libc6 python3-minimal; dpkg -l | sha256sum",
    "find /usr/bin /etc/apt /var/lib/dpkg ! -type d -printf '%p %m %U %G %s %l\\n' | sort | sha256sum",
];

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debian-image")
}

#[test]
fn programs_of_debian_say_what_they_say_by_chroot() {
    needs_linux!();
    let image = needs_image!();
    let dir = dir();
    if !dir.join("key").exists() {
        could_not_run("run::debian", "tests/debian-image made no image");
        return;
    }
    load(image, &format!("oci:{}:python", dir.join("layout").display()), "debian");
    let script = SCRIPTS.join("\n");
    let expected = Command::new("chroot")
        .arg(dir.join("root"))
        .args(["sh", "-c", &script])
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")])
        .output()
        .expect("coreutils are installed");
    assert!(expected.status.success(), "{expected:?}");
    let here = run(image, ["debian", "sh", "-c", &script]).limit(LIMIT).run().output();
    assert_eq!(String::from_utf8_lossy(&here), String::from_utf8_lossy(&expected.stdout));
    // Its own command is python3, which takes a program from its input; it is PID 1, and a user by
    // name.
    let words = ["-i", "-u", "www-data", "debian"];
    let program = "import os\nprint(os.getpid(), os.getuid(), os.getcwd())\n";
    assert_eq!(run(image, words).input(program).run().output(), b"1 33 /\n");
}
