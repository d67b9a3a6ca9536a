//! Container engines: runc and crun from one bundle, podman and docker by their own ways.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::bundle::specification;
use super::network::{NET, Place};
use super::work::{LOAD, Work, try_out, version};
use crate::bench::program::{Call, Program, run_to_end};
use crate::bench::results::Peer;

/// The shim that keeps a container of docker's: the parent of its first process.
const KEEPER: &str =
    "awk '/^PPid:/ { print $2 }' /proc/$(docker inspect --format '{{.State.Pid}}' \"$1\")/status";

/// runc, crun, or another with the same command line.
pub(super) fn runtime(work: &Work, name: &'static str) -> Program {
    let version = version(name, &["--version"]);
    let bundles = Bundles {
        dir: work.dir().join("bundles"),
        root: work.root(),
        lent: work.lent(),
        network: work.container_network(),
    };
    let state = work.dir().join(format!("{name}-state"));
    let kept = state.clone();
    let mut next = names();
    let mut call = move |load: &[&str]| {
        let id = next();
        let bundle = bundles.find(load)?;
        let mut command = runtime_command(name, &state);
        command.arg("run").arg("--bundle").arg(bundle).arg(&id);
        let mut clean_up = runtime_command(name, &state);
        clean_up.args(["delete", "--force", &id]);
        Ok(Call { command, clean_up: Some(clean_up), keeper: None })
    };
    let peer = Peer {
        name: name.into(),
        missing: missing(work, &version, || call(&["hello"])),
        version: version.unwrap_or_default(),
        how: format!(
            "{name} run: docker's namespaces, mounts, masked paths, capabilities and system-call filter"
        ),
    };
    Program::new(peer, call).reads(work.files_of(&[name])).keeps(Ok(vec![kept]))
}

fn runtime_command(name: &str, state: &Path) -> Command {
    let mut command = Command::new(name);
    command.arg("--root").arg(state);
    command
}

/// podman, with a store of its own and the image's files as they are.
pub(super) fn podman(work: &Work) -> Program {
    let version = version("podman", &["--version"]);
    let (dir, run_root, root, lent) =
        (work.dir().to_owned(), work.short().to_owned(), work.root(), work.lent());
    let network = work.container_network();
    let podman = move |words: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(dir.join("podman")).arg("--runroot").arg(&run_root);
        // A journal or a manager of sessions needn't be there.
        command.args(["--events-backend", "none", "--cgroup-manager", "cgroupfs"]).args(words);
        command
    };
    let pid_files = work.dir().to_owned();
    let mut next = names();
    let mut call = move |load: &[&str]| {
        let id = next();
        let pid_file = pid_files.join(format!("{id}.pid"));
        let mut command = podman(&["run", "--rm", "--name", &id, "--log-driver", "none"]);
        command.arg("--conmon-pidfile").arg(&pid_file);
        command.arg("-v").arg(format!("{}:{}:ro", lent.display(), bothy_guest::protocol::LENT));
        let network = match load == NET {
            true => format!("ns:{}", network.as_ref()?),
            false => "none".into(),
        };
        command
            .args(["--network", &network, "--user", "0", "--workdir", "/", "--rootfs"])
            .arg(&root)
            .arg(LOAD);
        command.args(words(load));
        let clean_up = podman(&["rm", "--force", "--time", "0", &id]);
        // conmon keeps the container, and podman itself could be gone.
        let mut keeper = Command::new("cat");
        keeper.arg(&pid_file);
        Ok(Call { command, clean_up: Some(clean_up), keeper: Some(keeper) })
    };
    let peer = Peer {
        name: "podman".into(),
        missing: missing(work, &version, || call(&["hello"])),
        version: version.unwrap_or_default(),
        how: "podman run with its own defaults, and a network only where that is measured".into(),
    };
    let kept = vec![work.dir().join("podman"), work.short().to_owned()];
    Program::new(peer, call).reads(work.files_of(&["podman", "conmon", "crun"])).keeps(Ok(kept))
}

/// docker, with an image that is gone afterwards.
pub(super) fn docker(work: &Work) -> Program {
    // The daemon's version: without one the client alone is of no use.
    let version = version("docker", &["version", "--format", "{{.Server.Version}}"]);
    let image = format!("bothy-bench:{}", std::process::id());
    let imported = version.is_ok().then(|| import(&work.root(), &image));
    let owned = Imported { image: image.clone(), is_there: matches!(imported, Some(Ok(()))) };
    let lent = work.lent();
    let mut next = names();
    let mut call = move |load: &[&str]| {
        if load == NET {
            return Err("its networks are its own, and this one isn't among them".into());
        }
        let id = next();
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--name", &id, "--user", "0", "--workdir", "/"]);
        command.arg("-v").arg(format!("{}:{}:ro", lent.display(), bothy_guest::protocol::LENT));
        command.args(["--network", "none", "--entrypoint", LOAD, &owned.image]).args(load);
        let mut clean_up = Command::new("docker");
        clean_up.args(["rm", "--force", &id]);
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh", &id]);
        Ok(Call { command, clean_up: Some(clean_up), keeper: Some(keeper) })
    };
    let peer = Peer {
        name: "docker".into(),
        missing: match imported {
            Some(Err(why)) => Some(why),
            _ => missing(work, &version, || call(&["hello"])),
        },
        version: version.unwrap_or_default(),
        how: "docker run with its own defaults, and no network; the daemon's own memory is not counted"
            .into(),
    };
    let files = work.files_of(&["docker", "containerd-shim-runc-v2", "runc"]);
    Program::new(peer, call).reads(files).keeps(Err("its daemon keeps them".into()))
}

/// An image of docker's. It goes when this is dropped.
struct Imported {
    image: String,
    is_there: bool,
}

impl Drop for Imported {
    fn drop(&mut self) {
        if self.is_there {
            let mut command = Command::new("docker");
            command.args(["rmi", "--force", &self.image]);
            // What can't be removed is the daemon's to tell.
            let _stays = run_to_end(Call::new(command));
        }
    }
}

fn import(root: &Path, image: &str) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.args(["-c", "tar -C \"$1\" -c . | docker import - \"$2\"", "sh"]).arg(root).arg(image);
    run_to_end(Call::new(command)).map(drop)
}

/// A name for each container, which nothing else has.
fn names() -> impl FnMut() -> String {
    let mut number = 0_u64;
    move || {
        number += 1;
        format!("bothy-bench-{}-{number}", std::process::id())
    }
}

/// A load's words in a container.
fn words(load: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = load.iter().map(|word| (*word).to_owned()).collect();
    if load == NET {
        words.push(Place::Container.server());
    }
    words
}

/// Why the engine can't run a container here, if so: one is run.
fn missing(
    work: &Work,
    version: &Result<String, String>,
    call: impl FnOnce() -> Result<Call, String>,
) -> Option<String> {
    if let Err(why) = version {
        return Some(why.clone());
    }
    if let Some(why) = &work.no_root {
        return Some(why.clone());
    }
    try_out(call())
}

/// What runc and crun run: a directory for each load, made when it is first asked for.
struct Bundles {
    dir: PathBuf,
    root: PathBuf,
    lent: PathBuf,
    network: Result<String, String>,
}

impl Bundles {
    fn find(&self, load: &[&str]) -> Result<PathBuf, String> {
        let network = match load == NET {
            true => Some(self.network.as_deref().map_err(Clone::clone)?),
            false => None,
        };
        let dir = self.dir.join(load.join(" "));
        if !dir.exists() {
            let specification = specification(&self.root, &self.lent, &words(load), network).to_string();
            let write = || {
                fs::create_dir_all(&dir)?;
                symlink(&self.root, dir.join("rootfs"))?;
                fs::write(dir.join("config.json"), specification)
            };
            write().map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(dir)
    }
}
