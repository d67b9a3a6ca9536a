//! Files that all peers use, in a directory that is gone afterwards: the load, the image, what
//! containers have of it, and bothy itself as it is measured.
//!
//! bothy is a copy with its guest's files beside it: what an instance holds of the program is then
//! its own, and not shared with the one that measures; and QEMU starts the very same kernel and
//! initramfs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::mount::{UnmountFlags, unmount};

use super::network::Network;
use crate::bench::program::{Call, last_line, run_to_end};
use crate::commands::run;
use crate::container::state_dir::runtime_dir;
use crate::guest_files::{DIR_VARIABLE, GuestFiles};
use crate::image::rootfs::{self, Limits};
use crate::image::{ImageLease, LoadOptions, Naming, Platform, Policy, PullOptions};
use crate::random;

/// The name of the image that is made here, in a store of its own.
const IMAGE: &str = "localhost/bothy-bench:latest";
/// Of an image's number, to name it. One of 64 would be taken for a name that isn't one.
const DIGITS: usize = 32;
/// Where the load is in every instance: outside of the image.
pub(super) const LOAD: &str = "/.bothy/load";

/// The directory, and what is kept as long as it is.
pub(super) struct Work {
    dir: Dir,
    short: Dir,
    image: Image,
    /// Why containers can't have the image.
    pub(super) no_root: Option<String>,
    /// For loads that use it, or why there is none.
    network: Result<Network, String>,
}

/// What runs in every instance.
pub(super) struct Image {
    /// For `bothy run`.
    word: String,
    /// For a report.
    description: String,
    /// Its file system.
    lease: ImageLease,
}

impl Work {
    /// Makes everything for an image; without one there is one of nothing but an /etc/passwd.
    pub(super) fn make(image: Option<Image>, with_network: bool) -> anyhow::Result<Self> {
        let id = random::name::<6>().context("can't get random numbers")?;
        // As for scratch disks: /tmp may be in memory, and files in there can't be out of the page
        // cache.
        let base = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let base = base.canonicalize().with_context(|| format!("can't use {}", base.display()))?;
        let dir = Dir::make(base.join(format!("bothy-bench-{id}")))?;
        let short = Dir::make(Path::new("/tmp").join(format!("bothy-bench-{id}-run")))?;
        fill(&dir.0).with_context(|| format!("can't fill {}", dir.0.display()))?;
        let (image, no_root) = match image {
            Some(image) => {
                let no_root = unpack(image.lease.path(), &dir.0.join("root")).err();
                (image, no_root)
            }
            None => (own(&dir.0)?, None),
        };
        let network = match with_network {
            true => Network::make(&dir.0.join("serve")),
            false => Err("no network was asked for".into()),
        };
        Ok(Self { dir, short, image, no_root, network })
    }

    /// What runs, for a report.
    pub(super) fn image(&self) -> &str {
        &self.image.description
    }

    /// The word for the image, for [`Work::bothy`].
    pub(super) fn image_word(&self) -> &str {
        &self.image.word
    }

    /// bothy, as it is measured.
    pub(super) fn bothy(&self) -> impl Fn() -> Command + Clone + use<> {
        let dir = self.dir.0.clone();
        let has_store = dir.join("store").is_dir();
        move || {
            let mut command = Command::new(dir.join("bothy"));
            command.env(DIR_VARIABLE, dir.join("guest")).env_remove("RUST_LOG");
            if has_store {
                command.env("BOTHY_STORE", dir.join("store"));
            }
            command
        }
    }

    /// What bothy reads when it starts a virtual machine.
    pub(super) fn bothy_files(&self) -> Vec<PathBuf> {
        let mut files = program_files(&self.dir.0.join("bothy"));
        files.extend(["guest/vmlinux", "guest/agent.cpio", "lent.erofs"].map(|name| self.dir.0.join(name)));
        files.push(self.image.lease.path().to_owned());
        files
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// A directory whose path is short: podman takes no more than 50 characters for what it has
    /// while containers run.
    pub(super) fn short(&self) -> &Path {
        &self.short.0
    }

    /// The file system image that has nothing but the load.
    pub(super) fn lent_image(&self) -> PathBuf {
        self.dir.0.join("lent.erofs")
    }

    /// The directory that has nothing but the load.
    pub(super) fn lent(&self) -> PathBuf {
        self.dir.0.join("lent")
    }

    /// The load, for whoever runs on this machine itself.
    pub(super) fn load(&self) -> PathBuf {
        self.dir.0.join("lent/load")
    }

    /// The image's files, for containers.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.0.join("root")
    }

    /// The host's side of the network, or why there is none.
    pub(super) fn host_network(&self) -> Result<String, String> {
        self.network.as_ref().map(Network::host_namespace).map_err(Clone::clone)
    }

    /// The containers' side of the network, or why there is none.
    pub(super) fn container_network(&self) -> Result<String, String> {
        self.network.as_ref().map(Network::container_namespace).map_err(Clone::clone)
    }

    /// The files that a start of these programs with the load reads.
    pub(super) fn files_of(&self, programs: &[&str]) -> Vec<PathBuf> {
        let programs = programs.iter().flat_map(|name| program_files(name.as_ref()));
        programs.chain([self.load()]).collect()
    }

    /// Where bothy keeps something for each instance.
    pub(super) fn bothy_keeps(&self) -> Vec<PathBuf> {
        vec![runtime_dir(), self.dir.0.join("store")]
    }
}

/// Removes the directory when it is dropped.
struct Dir(PathBuf);

impl Dir {
    fn make(path: PathBuf) -> anyhow::Result<Self> {
        let mode = fs::Permissions::from_mode(0o700);
        let make = || fs::create_dir(&path).and_then(|()| fs::set_permissions(&path, mode));
        make().with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Whatever an engine has mounted there goes first: what lies behind a mount may be somebody
    /// else's.
    fn remove(&self) -> std::io::Result<()> {
        for path in mounts_below(&fs::read("/proc/self/mountinfo")?, &self.0).iter().rev() {
            unmount(path, UnmountFlags::DETACH)?;
        }
        fs::remove_dir_all(&self.0)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!("{} stays: {error}", self.0.display());
        }
    }
}

/// What is mounted in a directory, in the order in which it was.
fn mounts_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points
        .map(|point| PathBuf::from(OsString::from_vec(unescaped(point))))
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// As the kernel writes names: a backslash and three octal digits stand for a byte that would end
/// the word.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let digits =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn fill(dir: &Path) -> anyhow::Result<()> {
    for name in ["lent", "guest", "root"] {
        fs::create_dir(dir.join(name))?;
    }
    let exe = std::env::current_exe().context("can't find this program")?;
    fs::copy(exe, dir.join("bothy"))?;
    let guest = GuestFiles::find()?;
    guest.unpack(&dir.join("guest"))?;
    fs::copy(dir.join("guest/load"), dir.join("lent/load"))?;
    fs::set_permissions(dir.join("lent/load"), fs::Permissions::from_mode(0o755))?;
    // The network's own processes run another file: one that is mapped stays in memory, and is
    // shared.
    fs::copy(dir.join("lent/load"), dir.join("serve"))?;
    let lent = File::options().read(true).write(true).create_new(true).open(dir.join("lent.erofs"))?;
    rootfs::build_from_dir(&dir.join("lent"), &lent, &Limits::default())?;
    Ok(())
}

/// The image that is made here: what a container needs to have, and nothing else.
fn own(dir: &Path) -> anyhow::Result<Image> {
    let root = dir.join("root");
    for name in ["dev", "etc", "proc", "sys"] {
        fs::create_dir(root.join(name)).context("can't make an image")?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").context("can't make an image")?;
    let store = crate::image::Store::at(&dir.join("store"), None).context("can't make a store")?;
    let mut found = None;
    let options = LoadOptions {
        naming: Naming::Only(IMAGE.parse().context("the image's name")?),
        platform: Platform::native(),
        limits: Limits::default(),
    };
    let source = crate::image::Source::Dir(root);
    crate::image::load(&store, &source, &options, &Silent, &mut |loaded| found = Some(loaded.lease))
        .context("can't load the image")?;
    let lease = found.context("the image has no file system")?;
    Ok(Image { word: IMAGE.into(), description: "an image with nothing in it".into(), lease })
}

/// The image that the user names: from the user's store, where it stays.
pub(super) fn given(text: &str) -> anyhow::Result<Image> {
    let load =
        LoadOptions { naming: Naming::Source, platform: Platform::native(), limits: Limits::default() };
    let options = PullOptions { policy: Policy::Missing, insecure: false, load };
    let (image, lease) = run::image::find(text.as_ref(), &options)?;
    // The number's first digits find it in the store, whatever it was called.
    let word = image.digest.hex()[..DIGITS].to_owned();
    Ok(Image { word, description: text.to_owned(), lease })
}

/// Copies what is in a file system image into a directory, as root: containers have their files so.
/// The mount is in a namespace of its own, and goes with it.
fn unpack(image: &Path, root: &Path) -> Result<(), String> {
    const SCRIPT: &str = "mount -t erofs -o ro,loop \"$1\" /mnt && cp -a /mnt/. \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]).args([image, root]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("unshare: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("the image can't be unpacked: {}", last_line(&text).unwrap_or("no reason is given")))
        }
    }
}

/// A program's file, and the libraries that it is linked with.
pub(super) fn program_files(program: &Path) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    let Some(found) = found else { return Vec::new() };
    let output = Command::new("ldd").arg(&found).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut files: Vec<PathBuf> = std::iter::once(found).chain(libraries).collect();
    files.retain(|path| path.is_file());
    files
}

/// Why an instance can't run here, if so: one is run.
pub(super) fn try_out(call: Result<Call, String>) -> Option<String> {
    call.and_then(run_to_end).err()
}

/// What a program says of itself, or why there is nothing to say.
pub(super) fn version(name: &str, words: &[&str]) -> Result<String, String> {
    if program_files(name.as_ref()).is_empty() {
        return Err(format!("{name} is not installed"));
    }
    let mut command = Command::new(name);
    command.args(words);
    run_to_end(Call::new(command)).map(|text| short(&text, name))
}

/// Its first line, without words that say nothing.
fn short(text: &str, name: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim_start_matches(name);
    line.trim_start_matches("QEMU emulator").trim_start_matches(" version").trim().to_owned()
}

/// Nobody watches.
struct Silent;

impl crate::image::Progress for Silent {
    fn begin(&self, _what: &str, _bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_short() {
        assert_eq!(short("runc version 1.1.5+ds1\ncommit: x\n", "runc"), "1.1.5+ds1");
        assert_eq!(short("podman version 4.3.1\n", "podman"), "4.3.1");
        assert_eq!(short("24.0.5\n", "docker"), "24.0.5");
        let qemu = "QEMU emulator version 10.0.2 (Debian 1)\nCopyright x\n";
        assert_eq!(short(qemu, "qemu-system-x86_64"), "10.0.2 (Debian 1)");
    }

    #[test]
    fn mounts_are_found_below_a_directory_alone() {
        let text = "22 1 0:21 / /proc rw - proc proc rw\n30 1 0:5 / /var/tmp/b/podman/overlay rw - tmpfs x rw\n31 30 0:6 / /var/tmp/b/podman/overlay/1 rw - x x rw\n\
            32 1 0:7 / /var/tmp/bc rw - x x rw\n33 1 0:7 / /var/tmp/b/a\\040b rw - x x rw\n";
        let found = mounts_below(text.as_bytes(), Path::new("/var/tmp/b"));
        assert_eq!(
            found,
            ["/var/tmp/b/podman/overlay", "/var/tmp/b/podman/overlay/1", "/var/tmp/b/a b"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_program_is_found_with_its_libraries() {
        let files = program_files(Path::new("sh"));
        assert!(
            files[0].ends_with("sh") && files.iter().any(|path| path.to_string_lossy().contains("libc.so")),
            "{files:?}"
        );
        assert!(program_files(Path::new("no-such-program")).is_empty());
    }
}
