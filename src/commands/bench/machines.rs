//! Virtual machines, and the load as a process: bothy's, QEMU's, and neither.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::network::Place;
use super::work::{LOAD, Work, last_line, program_files};
use crate::bench::executor::Details;
use crate::bench::program::{Call, Program};
use crate::bench::results::Peer;

/// Memory of each virtual machine, and of one whose load takes much of it.
const MEMORY: &str = "128M";
const LARGE_MEMORY: &str = "512M";
/// The disk of a load that writes files.
const SCRATCH: &str = "256M";

/// bothy's own.
pub(super) fn own(work: &Work) -> Program {
    let peer = Peer {
        name: "bothy".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        how: format!("bothy run -m {MEMORY}: a virtual machine with a kernel of its own, booted each time"),
        missing: None,
    };
    Program::new(peer, call(work, Place::Bothy, &[]))
        .timed(call(work, Place::Bothy, &["--timing=json"]), read_details)
        .reads(work.bothy_files())
        .with_guest()
}

/// QEMU's, with all that bothy's has.
pub(super) fn qemu(work: &Work) -> Program {
    const PROGRAM: &str = "qemu-system-x86_64";
    let version = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    let (version, missing) = match &version {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let words = text.lines().next().unwrap_or_default().trim_start_matches("QEMU emulator version ");
            (words.to_owned(), try_out(work))
        }
        Ok(_) => (String::new(), Some(format!("{PROGRAM} --version fails"))),
        Err(_) => (String::new(), Some("QEMU is not installed".into())),
    };
    let peer = Peer {
        name: "qemu".into(),
        version,
        how: format!(
            "QEMU's microvm, -m {MEMORY}, with bothy's kernel, initramfs, image and agent (vhost-vsock)"
        ),
        missing,
    };
    let mut files = work.bothy_files();
    files.extend(program_files(PROGRAM.as_ref()));
    Program::new(peer, call(work, Place::Qemu, &["--vmm=qemu"])).reads(files).with_guest()
}

/// The load itself.
pub(super) fn process(work: &Work) -> Program {
    let peer = Peer {
        name: "process".into(),
        version: String::new(),
        how: "the load itself, started on this machine".into(),
        missing: None,
    };
    let (path, dir) = (work.load(), work.dir().to_owned());
    let namespace = work.network.as_ref().map(|network| network.host_namespace()).ok();
    let files = vec![path.clone()];
    Program::new(peer, move |load| {
        let mut command = match (load, &namespace) {
            (["net"], Some(namespace)) => {
                let mut command = enter(namespace);
                command.arg(&path).arg("net").arg(Place::Host.server());
                command
            }
            _ => {
                let mut command = Command::new(&path);
                command.args(load);
                command
            }
        };
        command.current_dir(&dir);
        Call::new(command)
    })
    .reads(files)
}

/// How `bothy run` is called for a load.
fn call(work: &Work, place: Place, flags: &'static [&'static str]) -> impl FnMut(&[&str]) -> Call + 'static {
    let (bothy, image, lent) = (work.bothy(), work.image_word().to_owned(), work.lent_image());
    let namespace = work.network.as_ref().map(|network| network.host_namespace()).ok();
    move |load| {
        let own = bothy();
        let has_network = load == ["net"] && namespace.is_some();
        let mut command = match &namespace {
            // The environment is that of the program which it becomes.
            Some(namespace) if has_network => {
                let mut command = enter(namespace);
                command.arg(own.get_program());
                command.envs(own.get_envs().filter_map(|(key, value)| Some((key, value?))));
                command
            }
            _ => own,
        };
        let memory = if ["hold", "disk"].iter().any(|large| load.first() == Some(large)) {
            LARGE_MEMORY
        } else {
            MEMORY
        };
        command.args(["run", "--pull", "never", "-m", memory, "-u", "0", "-w", "/"]).args(flags);
        command.arg("--lend").arg(&lent).args(["--entrypoint", LOAD]);
        if load == ["disk"] {
            command.args(["--scratch", SCRATCH]);
        }
        if has_network {
            command.args(["--net", place.tap()]);
        }
        command.arg(&image).args(load);
        if has_network {
            command.arg(place.server());
        }
        // A virtual machine goes with its command.
        Call::new(command)
    }
}

/// A command in a network namespace.
pub(super) fn enter(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={namespace}"));
    command
}

/// Why QEMU can't run an instance here, if so: one is run.
fn try_out(work: &Work) -> Option<String> {
    let mut command = call(work, Place::Qemu, &["--vmm=qemu"])(&["hello"]).command;
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(last_line(&output.stderr)),
        Err(error) => Some(error.to_string()),
    }
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
}
