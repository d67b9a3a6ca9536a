//! Sets up the machine (clock, random numbers, network) and creates containers (root, files,
//! cgroup).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use bothy_guest::protocol::{self, ContainerSetup, Upper};
use bothy_guest::spec;
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::cgroup::{Cgroup, Cgroups};
use super::interpreted::Interpreted;
use super::paths::{Paths, RUN};
use super::refusal::{Failing, Refusal};
use super::{devices, root, texts};
use crate::network::{self, Interface, Network};
use crate::{mounts, say, sys};

/// A clock that differs less is left as it is.
const CLOCK_TOLERANCE_NS: u128 = 100_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// When memory runs out the kernel writes no line about every process to the console: a container
/// with many could keep the machine busy with that.
const QUIET_OUT_OF_MEMORY: (&str, &str) = ("/proc/sys/vm/oom_dump_tasks", "0");

/// A machine that is set up, and its containers.
#[derive(Debug)]
pub(crate) struct Machine {
    cgroups: Option<Cgroups>,
    network: Network,
    containers: BTreeMap<u32, Container>,
}

/// What commands need of their container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) spec: spec::Container,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) paths: Paths,
    /// Something is mounted at [`Paths::lent`].
    pub(crate) lent: bool,
    /// The block device that takes its writes.
    scratch: Option<String>,
}

/// Does what every machine needs, whatever it will be: before the host has said what, so that it is
/// done while the connection is made, or already part of a snapshot.
pub(crate) fn prepare() -> Result<Option<Cgroups>, Refusal> {
    mounts::devices().failing("devices")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    fs::create_dir_all(RUN).failing(RUN)?;
    mount("tmpfs", RUN, "tmpfs", flags, Some(c"mode=755,size=1m")).failing("cannot mount /run")?;
    let (path, value) = QUIET_OUT_OF_MEMORY;
    // The machine does its work without.
    if let Err(error) = fs::write(path, value) {
        say!("{path}: {error}");
    }
    Interpreted::prepare();
    // Without cgroups containers run, but unbounded.
    Ok(Cgroups::make().map_err(|error| say!("no cgroups for containers: {error}")).ok())
}

impl Machine {
    /// Sets up the machine, from what [`prepare`] has made.
    pub(crate) fn set_up(machine: &protocol::Machine, cgroups: Option<Cgroups>) -> Result<Self, Refusal> {
        set_clock(machine.time_ns).failing("cannot set the clock")?;
        sys::add_entropy(&machine.seed).failing("cannot feed the random numbers")?;
        let network = network::bring_up(machine.networks.iter().map(String::as_str));
        if !network.failures.is_empty() {
            return Err(Refusal::other(network.failures.join("; ")));
        }
        if let Some(cgroups) = &cgroups {
            cgroups.bound();
        }
        Ok(Self { cgroups, network, containers: BTreeMap::new() })
    }

    /// Creates a container.
    pub(crate) fn create(&mut self, number: u32, setup: ContainerSetup) -> Result<(), Refusal> {
        if self.containers.contains_key(&number) {
            return Err(Refusal::other(format!("there is a container {number} already")));
        }
        let ContainerSetup { root, spec } = setup;
        if let Upper::Scratch(device) = &root.upper
            && self.containers.values().any(|other| other.scratch.as_ref() == Some(device))
        {
            return Err(Refusal::other(format!("{device} takes another container's writes")));
        }
        let paths = Paths::of(number);
        root::build(&root, &paths)?;
        let cgroup = self.complete(number, &spec, &paths).inspect_err(|_| root::unmount_all(&paths))?;
        let lent = root.lent.is_some();
        let scratch = match root.upper {
            Upper::Scratch(device) => Some(device),
            Upper::Memory | Upper::ReadOnly => None,
        };
        let container = Container { spec, cgroup, paths, lent, scratch };
        self.containers.insert(number, container);
        Ok(())
    }

    fn complete(
        &self,
        number: u32,
        spec: &spec::Container,
        paths: &Paths,
    ) -> Result<Option<Cgroup>, Refusal> {
        let files = paths.files();
        write_files(&files, &spec.host_name, &self.network).failing(files)?;
        let add = |cgroups: &Cgroups| cgroups.add(number);
        let cgroup = self.cgroups.as_ref().map(add).transpose().failing("cannot make a cgroup")?;
        match (&cgroup, &spec.device_rules) {
            (Some(cgroup), Some(rules)) => {
                devices::restrict(cgroup, rules).failing("cannot restrict devices")?;
            }
            // Without a cgroup nothing could hold them.
            (None, Some(_)) => return Err(Refusal::other("cannot restrict devices: there is no cgroup")),
            (_, None) => {}
        }
        Ok(cgroup)
    }

    /// The container with this number.
    pub(crate) fn container(&self, number: u32) -> Option<&Container> {
        self.containers.get(&number)
    }

    /// Unmounts what containers keep outside of memory.
    pub(crate) fn unmount_all(&self) {
        self.containers.values().for_each(|container| root::unmount_all(&container.paths));
    }
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

fn write_files(files: &str, host_name: &str, network: &Network) -> io::Result<()> {
    let addresses: Vec<IpAddr> = network
        .interfaces
        .iter()
        .flat_map(|Interface { addresses, .. }| addresses)
        .map(|ip| ip.addr)
        .collect();
    fs::create_dir_all(files)?;
    fs::write(format!("{files}/hostname"), texts::hostname(host_name))?;
    fs::write(format!("{files}/hosts"), texts::hosts(host_name, &addresses))?;
    fs::write(format!("{files}/resolv.conf"), network::resolv_conf(&network.dns))
}

#[cfg(test)]
mod tests {
    use bothy_guest::protocol::Root;

    use super::*;

    #[test]
    fn a_disk_that_takes_one_container_s_writes_takes_no_other_s() {
        let container = Container {
            spec: spec::Container::default(),
            cgroup: None,
            paths: Paths::of(1),
            lent: false,
            scratch: Some("vdb".into()),
        };
        let mut machine = Machine {
            cgroups: None,
            network: Network::default(),
            containers: BTreeMap::from([(1, container)]),
        };
        let root = Root { image: "no-such-device".into(), upper: Upper::Scratch("vdb".into()), lent: None };
        let setup = ContainerSetup { root, spec: spec::Container::default() };
        let refusal = machine.create(2, setup.clone()).unwrap_err();
        assert_eq!(refusal.message, "vdb takes another container's writes");
        let other = ContainerSetup {
            root: Root { upper: Upper::Scratch("../vdc".into()), ..setup.root },
            spec: setup.spec,
        };
        let refusal = machine.create(2, other).unwrap_err();
        assert!(refusal.message.contains("no-such-device"), "{}", refusal.message);
    }
}
