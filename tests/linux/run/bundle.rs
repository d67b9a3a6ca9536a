//! The image run by runc, with what docker gives a container that has no network: capabilities,
//! masked and read-only paths, mounts, namespaces, limits, devices, system-call filter. It is what
//! bothy sends its agent, as runc wants to have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bothy::spec::seccomp::{Conditions, docker_profile};
use bothy::spec::{docker, oci};
use bothy_guest::spec::Capabilities;
use serde_json::{Value, json};

use super::image::{Image, words};
use crate::support::{Bothy, Finished};

/// For docker's container of the name `box`.
pub(super) const HOST_NAME: &str = "box";
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const LIMIT: Duration = Duration::from_secs(60);
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\tbox\n";

/// What is run.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Runs it in a container of its own.
pub(super) fn run(image: &Image, process: &Process) -> Finished {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let id = format!("bothy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let bundle = image.dir.join("bundles").join(&id);
    for name in ["rootfs", "upper", "work"] {
        fs::create_dir_all(bundle.join(name)).unwrap();
    }
    for (name, text) in [("hostname", "box\n"), ("hosts", HOSTS), ("resolv.conf", "")] {
        fs::write(bundle.join(name), text).unwrap();
    }
    fs::write(bundle.join("config.json"), config(&bundle, process).to_string()).unwrap();
    let root = Mounted::new(image, &bundle);
    let state = image.dir.join("runc");
    let runc = Bothy::program(
        "runc",
        [Path::new("--root"), &state, Path::new("run"), Path::new("--bundle"), &bundle],
    );
    let finished = runc.args([&id]).limit(LIMIT).run();
    drop(root);
    fs::remove_dir_all(bundle).unwrap();
    finished
}

/// An overlay above the image, which is unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Image, bundle: &Path) -> Self {
        let (lower, dir) = (image.root.display(), bundle.display());
        let options = format!("lowerdir={lower},upperdir={dir}/upper,workdir={dir}/work");
        words(bundle, &format!("mount -t overlay -o {options} overlay rootfs"));
        Self(bundle.join("rootfs"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        words(Path::new("/"), &format!("umount {}", self.0.display()));
    }
}

fn config(bundle: &Path, process: &Process) -> Value {
    let Process { args, env, cwd, uid, gid, groups } = process;
    let container = docker::container(HOST_NAME, false, &[]);
    let rights = docker::rights(false, false, None);
    let capabilities = rights.capabilities;
    let kept = if *uid == 0 { capabilities.effective } else { 0 };
    let conditions = Conditions { capabilities: capabilities.bounding, ..Conditions::default() };
    let mut mounts = oci::mounts(&container);
    for name in ["hostname", "hosts", "resolv.conf"] {
        let source = bundle.join(name);
        let destination = format!("/etc/{name}");
        mounts.push(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]}));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": args, "env": env, "cwd": cwd,
            "capabilities": oci::capabilities(&Capabilities { effective: kept, permitted: kept, ..capabilities }),
            "rlimits": oci::limits(&rights),
        },
        "root": {"path": "rootfs"},
        "hostname": HOST_NAME,
        "mounts": mounts,
        "linux": oci::linux(&container, None, Some(&docker_profile().oci(&conditions))),
    })
}
