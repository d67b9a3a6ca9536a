//! Virtual machines, and the load as a process: bothy's, QEMU's, and neither.

use std::process::Command;

use serde_json::Value;

use super::network::{NET, Place};
use super::work::{LOAD, Work, program_files, try_out, version};
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
        how: format!(
            "bothy run: a virtual machine with a kernel of its own, booted each time; one processor, {MEMORY} ({LARGE_MEMORY} for what takes memory or files)"
        ),
        missing: None,
    };
    Program::new(peer, call(work, Place::Bothy, &[]))
        .timed(call(work, Place::Bothy, &["--timing=json"]), read_details)
        .reads(work.bothy_files())
        .keeps(Ok(work.bothy_keeps()))
        .with_guest(&work.lent_image())
}

/// QEMU's, with all that bothy's has.
pub(super) fn qemu(work: &Work) -> Program {
    const PROGRAM: &str = "qemu-system-x86_64";
    let version = version(PROGRAM, &["--version"]);
    let missing = match &version {
        Ok(_) => try_out(call(work, Place::Qemu, &[])(&["hello"])),
        Err(why) => Some(why.clone()),
    };
    let peer = Peer {
        name: "qemu".into(),
        version: version.unwrap_or_default(),
        how:
            "QEMU's microvm with as much of all, and bothy's kernel, initramfs, image and agent (vhost-vsock)"
                .into(),
        missing,
    };
    let mut files = work.bothy_files();
    files.extend(program_files(PROGRAM.as_ref()));
    Program::new(peer, call(work, Place::Qemu, &[]))
        .reads(files)
        .keeps(Ok(work.bothy_keeps()))
        .with_guest(&work.lent_image())
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
    let network = work.host_network();
    let files = vec![path.clone()];
    Program::new(peer, move |load| {
        let mut command;
        if load == NET {
            command = enter(network.as_ref()?);
            command.arg(&path).args(load).arg(Place::Host.server());
        } else {
            command = Command::new(&path);
            command.args(load);
        }
        command.current_dir(&dir);
        Ok(Call::new(command))
    })
    .reads(files)
}

/// How `bothy run` is called for a load.
fn call(
    work: &Work,
    place: Place,
    flags: &'static [&'static str],
) -> impl FnMut(&[&str]) -> Result<Call, String> + 'static {
    let (bothy, image, lent) = (work.bothy(), work.image_word().to_owned(), work.lent_image());
    let network = work.host_network();
    move |load| {
        let mut command = bothy();
        if load == NET {
            let bothy = command;
            command = enter(network.as_ref()?);
            command.arg(bothy.get_program());
            // The environment is that of the program which it becomes.
            command.envs(bothy.get_envs().filter_map(|(key, value)| Some((key, value?))));
        }
        let is_large = ["hold", "disk"].iter().any(|large| load.first() == Some(large));
        let memory = if is_large { LARGE_MEMORY } else { MEMORY };
        command.arg(if place == Place::Qemu { "run-qemu" } else { "run" });
        command.args(["--pull", "never", "-m", memory, "-u", "0", "-w", "/"]).args(flags);
        command.arg("--lend").arg(&lent).args(["--entrypoint", LOAD]);
        if load == ["disk"] {
            command.args(["--scratch", SCRATCH]);
        }
        if load == NET {
            command.args(["--net", place.tap()]);
        }
        command.arg(&image).args(load);
        if load == NET {
            command.arg(place.server());
        }
        // A virtual machine goes with its command.
        Ok(Call::new(command))
    }
}

/// A command in a network namespace.
pub(super) fn enter(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={namespace}"));
    command
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
