//! What the guest is to be: clock, random numbers, network, the container's root, and the files that belong to this container.

use std::fs;
use std::io;
use std::net::IpAddr;

use bothy_guest::protocol::Setup;
use bothy_guest::spec;
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::cgroup::Cgroup;
use super::paths::FILES;
use super::refusal::{Failing, Refusal};
use super::{devices, root, texts};
use crate::network::{self, Interface, Network};
use crate::{mounts, say, sys};

/// Where the agent keeps its mount points and files.
const RUN: &str = "/run";
/// A clock that differs less is left as it is.
const CLOCK_TOLERANCE_NS: u128 = 100_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// When memory runs out the kernel writes no line about every process to the console: a container with many could keep the machine busy with
/// that.
const QUIET_OUT_OF_MEMORY: (&str, &str) = ("/proc/sys/vm/oom_dump_tasks", "0");

/// What commands need of a machine that is set up.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) spec: spec::Container,
    pub(crate) cgroup: Option<Cgroup>,
    /// Something is mounted at [`LENT`](super::paths::LENT).
    pub(crate) lent: bool,
}

/// Does what every machine needs, whatever it will be: before the host has said what, so that it is done while the connection is made, or
/// already part of a snapshot.
pub(crate) fn prepare() -> Result<Option<Cgroup>, Refusal> {
    mounts::devices().failing("devices")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    fs::create_dir_all(RUN).failing(RUN)?;
    mount("tmpfs", RUN, "tmpfs", flags, Some(c"mode=755,size=1m")).failing("cannot mount /run")?;
    let (path, value) = QUIET_OUT_OF_MEMORY;
    // The machine does its work without.
    if let Err(error) = fs::write(path, value) {
        say!("{path}: {error}");
    }
    // Without it the container runs, but unbounded.
    Ok(Cgroup::make().map_err(|error| say!("no cgroup for the container: {error}")).ok())
}

/// Makes the machine what the host says, from what [`prepare`] has made.
pub(crate) fn set_up(setup: Setup, cgroup: Option<Cgroup>) -> Result<Container, Refusal> {
    set_clock(setup.time_ns).failing("cannot set the clock")?;
    sys::add_entropy(&setup.seed).failing("cannot feed the random numbers")?;
    root::build(&setup.root)?;
    let network = network::bring_up(setup.networks.iter().map(String::as_str));
    if !network.failures.is_empty() {
        return Err(Refusal::other(network.failures.join("; ")));
    }
    let Setup { root, container: spec, .. } = setup;
    write_files(&spec.host_name, &network).failing(FILES)?;
    if let Some(cgroup) = &cgroup {
        cgroup.bound();
    }
    match (&cgroup, &spec.device_rules) {
        (Some(cgroup), Some(rules)) => {
            devices::restrict(cgroup, rules).failing("cannot restrict devices")?;
        }
        // Without a cgroup nothing could hold them.
        (None, Some(_)) => return Err(Refusal::other("cannot restrict devices: there is no cgroup")),
        (_, None) => {}
    }
    Ok(Container { spec, cgroup, lent: root.lent.is_some() })
}

fn set_clock(time_ns: u64) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = i128::from(now.tv_sec) * i128::from(NS_PER_SECOND) + i128::from(now.tv_nsec);
    if now_ns.abs_diff(time_ns.into()) < CLOCK_TOLERANCE_NS {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(time_ns / NS_PER_SECOND).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(time_ns % NS_PER_SECOND).map_err(io::Error::other)?,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn write_files(host_name: &str, network: &Network) -> io::Result<()> {
    let addresses: Vec<IpAddr> = network
        .interfaces
        .iter()
        .flat_map(|Interface { addresses, .. }| addresses)
        .map(|ip| ip.addr)
        .collect();
    fs::create_dir_all(FILES)?;
    fs::write(format!("{FILES}/hostname"), texts::hostname(host_name))?;
    fs::write(format!("{FILES}/hosts"), texts::hosts(host_name, &addresses))?;
    fs::write(format!("{FILES}/resolv.conf"), network::resolv_conf(&network.dns))
}
