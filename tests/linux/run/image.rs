//! The image of these tests: busybox, accounts, a few files that are not programs, and the program
//! `inside`. umoci makes it, once for all tests of this process.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::features;
use crate::guest::guest_dir;
use crate::support::{Bothy, could_not_run, installed, is_root};
use crate::tools::compile;

/// What must be installed.
const TOOLS: [&str; 5] = ["umoci", "runc", "cc", "busybox", "setfattr"];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
web:x:1000:50:Web:/srv:/bin/sh
nohome:x:1001:1001::/not/there:/bin/sh
";
const GROUP: &str = "root:x:0:
daemon:x:1:
www:x:50:
video:x:44:web
audio:x:63:web,daemon
nohome:x:1001:
";

/// The image, everywhere that it is.
#[derive(Debug)]
pub(super) struct Image {
    /// Everything else is below it.
    pub(super) dir: PathBuf,
    /// An OCI layout with the tags `app` and `entry`.
    pub(super) layout: PathBuf,
    /// The file system, as umoci unpacks it.
    pub(super) root: PathBuf,
    /// bothy's store, which has both images.
    pub(super) store: PathBuf,
    /// For `XDG_RUNTIME_DIR`.
    pub(super) runtime: PathBuf,
    /// bothy's own guest.
    pub(super) guest: PathBuf,
}

static IMAGE: OnceLock<Image> = OnceLock::new();

/// The image; says what is missing if it can't be made.
pub(super) fn get(test: &str) -> Option<&'static Image> {
    if !is_root() {
        could_not_run(test, "umoci and runc need root");
        return None;
    }
    if let Some(tool) = TOOLS.iter().find(|tool| !installed(tool)) {
        could_not_run(test, &format!("{tool} is not installed"));
        return None;
    }
    Some(IMAGE.get_or_init(make))
}

/// A static has no destructor, so this is what removes it.
extern "C" fn remove() {
    if let Some(image) = IMAGE.get() {
        let _ = fs::remove_dir_all(&image.dir);
    }
}

fn make() -> Image {
    #[expect(unsafe_code, reason = "std has no atexit")]
    // SAFETY: the function is one for the whole time, and doesn't unwind: what it calls returns its
    // errors.
    unsafe {
        libc::atexit(remove);
    }
    let dir = tempfile::Builder::new().prefix("bothy-test-").tempdir().unwrap().keep();
    for name in ["runtime", "bundles"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    words(&dir, "umoci init --layout layout");
    words(&dir, "umoci new --image layout:app");
    words(&dir, "umoci unpack --image layout:app first");
    fill(&dir.join("first/rootfs"));
    words(&dir, "umoci repack --image layout:app first");
    words(&dir, "umoci config --image layout:app --config.env FROM=image --config.cmd sh");
    let entry = "umoci config --image layout:app --tag entry --config.entrypoint /bin/echo --config.entrypoint entry \
         --config.cmd cmd --config.user web:video --config.workingdir /srv --config.env FROM=entry --config.env A=b=c";
    words(&dir, entry);
    words(&dir, "umoci unpack --image layout:app unpacked");
    let image = Image {
        layout: dir.join("layout"),
        root: dir.join("unpacked/rootfs"),
        store: dir.join("store"),
        runtime: dir.join("runtime"),
        guest: guest_dir(),
        dir,
    };
    for tag in ["app", "entry"] {
        load(&image, &format!("oci:{}:{tag}", image.layout.display()), tag);
    }
    image
}

/// `bothy load --name NAME SOURCE`.
pub(super) fn load(image: &Image, source: &str, name: &str) {
    Bothy::new(["load", "--name", name, source]).env("BOTHY_STORE", &image.store).run().code(0);
}

fn fill(root: &Path) {
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("srv", 0o755),
        ("tmp", 0o1777),
        ("mnt", 0o755),
        ("dir", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
    ] {
        fs::create_dir(root.join(path)).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(root.join("srv"), Some(1000), Some(50)).unwrap();
    busybox(root);
    let inside = root.join("bin/inside");
    compile("run/inside.c", &inside);
    features::compile(&root.join("bin"));
    for (path, content, mode) in [
        ("etc/passwd", PASSWD, 0o644),
        ("etc/group", GROUP, 0o644),
        ("etc/secret", "root's\n", 0o600),
        ("bin/script", "#!/bin/sh\necho script \"$0\" \"$@\"\n", 0o755),
        ("bin/no-interpreter", "#!/no/such/program\n", 0o755),
        ("bin/plain", "#!/bin/sh\n", 0o644),
        ("bin/nonsense", "\x01nonsense\n", 0o755),
        ("srv/file", "of web\n", 0o640),
    ] {
        fs::write(root.join(path), content).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(root.join("srv/file"), Some(1000), Some(50)).unwrap();
}

fn busybox(root: &Path) {
    let path =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(path, root.join("bin/busybox")).unwrap();
    for applet in words(root, &format!("{path} --list")).lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// Runs the words of a line in `dir` and gives their output. It must succeed.
pub(super) fn words(dir: &Path, line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
