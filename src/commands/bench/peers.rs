//! The ways to start an instance that are compared: bothy, a plain process, and container engines.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::bench::executor::{Details, Executor};
use crate::bench::program::{Call, Program};
use crate::bench::results::Peer;
use crate::cli::Engine;
use crate::guest_files::GuestFiles;

/// The image's name in the store that is made for this.
const IMAGE: &str = "localhost/bothy-bench:latest";
/// Where the load is in every instance.
const LOAD: &str = "/bothy-load";
/// Memory of each virtual machine, and of one whose load takes 256 MiB.
const MEMORY: &str = "128M";
const LARGE_MEMORY: &str = "512M";
/// What runc and crun give a container, as docker asks them to.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files that all peers use; gone when this is dropped.
pub(super) struct Work {
    dir: PathBuf,
}

impl Work {
    /// Makes the image's file system, and loads it into a store of its own.
    pub(super) fn make() -> anyhow::Result<Self> {
        let id = super::super::random_name::<6>().context("can't get random numbers")?;
        let dir = std::env::temp_dir().join(format!("bothy-bench-{id}"));
        fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let work = Self { dir };
        work.fill().with_context(|| format!("can't fill {}", work.dir.display()))?;
        work.load()?;
        Ok(work)
    }

    fn fill(&self) -> anyhow::Result<()> {
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        let root = self.root();
        for dir in ["dev", "etc", "proc", "sys"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bothy-load\n")?;
        let load = GuestFiles::find()?.read_load()?;
        fs::write(self.load_path(), load)?;
        fs::set_permissions(self.load_path(), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn load(&self) -> anyhow::Result<()> {
        let mut command = self.bothy()?();
        command.args(["load", "--name", IMAGE]).arg(format!("dir:{}", self.root().display()));
        let output = command.stdin(Stdio::null()).output().context("can't start bothy")?;
        if !output.status.success() {
            bail!("bothy load fails: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// This very program, with the store that has the image.
    fn bothy(&self) -> anyhow::Result<impl Fn() -> Command + Clone + use<>> {
        let exe = std::env::current_exe().context("can't find this program")?;
        let store = self.dir.join("store");
        Ok(move || {
            let mut command = Command::new(&exe);
            command.env("BOTHY_STORE", &store).env_remove("RUST_LOG");
            command
        })
    }

    /// Bytes on disk of all that instances may put files into: the engines' state, and what bothy has for each container.
    pub(super) fn disk(&self) -> u64 {
        disk_usage(&self.dir) + disk_usage(&super::super::run::runtime_dir())
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn load_path(&self) -> PathBuf {
        self.root().join(LOAD.trim_start_matches('/'))
    }

    /// All peers, bothy first.
    pub(super) fn peers(&self, engines: &[Engine]) -> anyhow::Result<Vec<Box<dyn Executor>>> {
        let mut peers: Vec<Box<dyn Executor>> = vec![Box::new(self.own()?), Box::new(self.process())];
        for engine in engines {
            peers.push(Box::new(self.engine(engine.name())?));
        }
        Ok(peers)
    }

    fn own(&self) -> anyhow::Result<Program> {
        let bothy = self.bothy()?;
        let peer = Peer {
            name: "bothy".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            how: format!(
                "bothy run -m {MEMORY}: a virtual machine with a kernel of its own, booted each time"
            ),
            missing: None,
        };
        let call = |timing: bool| {
            let bothy = bothy.clone();
            move |load: &[&str]| {
                let mut command = bothy();
                let memory = if load.first() == Some(&"hold") { LARGE_MEMORY } else { MEMORY };
                command.args(["run", "--pull", "never", "-m", memory]);
                if timing {
                    command.arg("--timing=json");
                }
                command.args([IMAGE, LOAD]).args(load);
                // A virtual machine goes with its command.
                Call { command, clean_up: None }
            }
        };
        Ok(Program::new(peer, call(false)).timed(call(true), read_details))
    }

    fn process(&self) -> Program {
        let path = self.load_path();
        let peer = Peer {
            name: "process".into(),
            version: String::new(),
            how: "the load itself, started on this machine".into(),
            missing: None,
        };
        Program::new(peer, move |load| {
            let mut command = Command::new(&path);
            command.args(load);
            Call { command, clean_up: None }
        })
    }

    /// runc, crun, or another with the same command line.
    fn engine(&self, name: &'static str) -> anyhow::Result<Program> {
        let version = Command::new(name).arg("--version").stdin(Stdio::null()).output();
        let (version, missing) = match &version {
            Ok(output) if output.status.success() => (first_line(&output.stdout, name), self.try_out(name)?),
            Ok(_) => (String::new(), Some(format!("{name} --version fails"))),
            Err(_) => (String::new(), Some(format!("{name} is not installed"))),
        };
        let peer = Peer {
            name: name.into(),
            version,
            how: format!(
                "{name} run: docker's namespaces, mounts, masked paths, capabilities and system-call filter"
            ),
            missing,
        };
        let (bundles, root) = (self.dir.join("bundles"), self.root());
        let state = self.dir.join(format!("{name}-state"));
        let mut number = 0_u64;
        Ok(Program::new(peer, move |load| {
            number += 1;
            let id = format!("bothy-bench-{}-{number}", std::process::id());
            // One that can't be written makes the run fail in the engine's own words.
            let bundle = bundle(&bundles, &root, load).unwrap_or_else(|_| bundles.clone());
            let mut command = engine_command(name, &state);
            command.arg("run").arg("--bundle").arg(bundle).arg(&id);
            let mut clean_up = engine_command(name, &state);
            clean_up.args(["delete", "--force", &id]);
            Call { command, clean_up: Some(clean_up) }
        }))
    }

    /// Why the engine can't run a container here, if so: one is run.
    fn try_out(&self, name: &str) -> anyhow::Result<Option<String>> {
        let bundle = bundle(&self.dir.join("bundles"), &self.root(), &["hello"])?;
        let state = self.dir.join(format!("{name}-state"));
        let mut command = engine_command(name, &state);
        command.arg("run").arg("--bundle").arg(bundle).arg(format!("bothy-bench-{}-0", std::process::id()));
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't start {name}"))?;
        Ok(match output.status.success() {
            true => None,
            false => Some(last_line(&output.stderr)),
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            log::warn!("{} stays: {error}", self.dir.display());
        }
    }
}

/// Of a directory and all below it. What can't be read, or goes meanwhile, has none.
fn disk_usage(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let entries = if metadata.is_dir() { fs::read_dir(path).ok() } else { None };
    let below: u64 = entries.into_iter().flatten().flatten().map(|entry| disk_usage(&entry.path())).sum();
    metadata.blocks() * 512 + below
}

fn engine_command(name: &str, state: &Path) -> Command {
    let mut command = Command::new(name);
    command.arg("--root").arg(state);
    command
}

fn first_line(output: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches(name).trim_start_matches(" version").trim().to_owned()
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it fails without a word")
        .trim()
        .to_owned()
}

/// The bundle of a load; made when it is first asked for.
fn bundle(bundles: &Path, root: &Path, load: &[&str]) -> std::io::Result<PathBuf> {
    let dir = bundles.join(load.join(" "));
    if !dir.exists() {
        fs::create_dir_all(&dir)?;
        symlink(root, dir.join("rootfs"))?;
        fs::write(dir.join("config.json"), specification(root, load).to_string())?;
    }
    Ok(dir)
}

/// What docker asks of a runtime for a container without a network.
fn specification(root: &Path, load: &[&str]) -> Value {
    let args: Vec<&str> = std::iter::once(LOAD).chain(load.iter().copied()).collect();
    let capabilities: Value = json!({
        "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
    });
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let device = |access: &str, rest: Value| {
        let mut rule = json!({ "allow": true, "access": access });
        if let (Some(rule), Some(rest)) = (rule.as_object_mut(), rest.as_object()) {
            rule.extend(rest.clone());
        }
        rule
    };
    let namespaces: Vec<Value> = ["mount", "network", "uts", "pid", "ipc", "cgroup"]
        .into_iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "hostname": "bench",
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench", "HOME=/"],
            "cwd": "/",
            "capabilities": capabilities,
        },
        "mounts": [
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": super::filter::filter(),
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                device("rwm", json!({ "type": "c", "major": 1, "minor": 3 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 5 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 8 })),
                device("rwm", json!({ "type": "c", "major": 1, "minor": 9 })),
                device("rwm", json!({ "type": "c", "major": 5, "minor": 0 })),
                device("m", json!({ "type": "c" })),
                device("m", json!({ "type": "b" })),
            ] },
        },
    })
}

/// What `bothy run --timing=json` says on standard error.
fn read_details(errors: &str) -> Option<Details> {
    let json: Value = serde_json::from_str(errors.get(errors.find('{')?..)?.trim()).ok()?;
    let phases = json.get("phases")?.as_array()?.iter().filter_map(|phase| {
        // One that wasn't seen has no length.
        Some((phase.get("name")?.as_str()?.to_owned(), phase.get("us")?.as_f64()? / 1e3))
    });
    let kvm = json.pointer("/exits/kvm").and_then(Value::as_array).into_iter().flatten();
    let kvm = kvm.filter_map(|pair| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.as_f64()?)));
    let user = json.pointer("/exits/user").and_then(Value::as_object).into_iter().flatten();
    let user = user
        .filter_map(|(kind, count)| Some((format!("to bothy: {}", kind.replace('_', " ")), count.as_f64()?)));
    Some(Details {
        phases: phases.collect(),
        // Among KVM's counters are sums of times.
        exits: kvm.chain(user).filter(|(name, count)| *count > 0.0 && !name.ends_with("_ns")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_from_what_run_prints() {
        let text = r#"{"phases":[{"name":"a","what":"x","us":1500},{"name":"b","what":"y","us":null}],"total_us":1500,
            "exits":{"kvm":[["exits",70],["nmi",0],["halt_wait_ns",9]],"user":{"port_io":7,"other":0}}}"#;
        let details = read_details(text).unwrap();
        assert_eq!(details.phases, [("a".to_owned(), 1.5)]);
        assert_eq!(details.exits, [("exits".to_owned(), 70.0), ("to bothy: port io".to_owned(), 7.0)]);
        assert_eq!(read_details("bothy: no"), None);
    }

    #[test]
    fn versions_and_complaints_are_one_line() {
        assert_eq!(first_line(b"runc version 1.1.5+ds1\ncommit: x\n", "runc"), "1.1.5+ds1");
        assert_eq!(first_line(b"crun version 1.8.1\n", "crun"), "1.8.1");
        assert_eq!(last_line(b"a\nb\n\n"), "b");
        assert_eq!(last_line(b""), "it fails without a word");
    }
}
