//! A tap: a network interface of the host whose other end is a descriptor (kernel:
//! Documentation/networking/tuntap.rst).
//!
//! Opened in the monitor's process, then handed to the VM's process as a descriptor. An interface
//! that is named is never made: what doesn't exist is an error, and so is what is not a tap, not
//! ours, or taken. Closing the descriptor frees the tap; the interface stays. One of the VM's own
//! is made, which takes CAP_NET_ADMIN: it is up, has the address that the guest has for its gateway
//! (if it has one), and is gone with the descriptor. Packets get no further than this host unless
//! it forwards them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bothy_guest::addr::IpPrefix;
use bothy_guest::netlink::Netlink;
use thiserror::Error;

use super::interface::{self, done, request};
use super::port::{Port, Ports};
use super::{Backend, Config, offload};
use crate::virtio::core::spec::net;

/// What the kernel makes a name of that is free.
const NAMES: &str = "bothy%d";

/// Why a tap can't be used. One line each, with the way out.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No interface of that name.
    #[error("tap {0} does not exist (create it with: ip tuntap add dev {0} mode tap user $USER)")]
    Missing(String),
    /// An interface, but another kind of one.
    #[error("{name} is {kind}, not a tap (create one with: ip tuntap add dev NAME mode tap user $USER)")]
    NotATap { name: String, kind: String },
    /// Another program, or another VM, has it open.
    #[error("tap {0} is busy: another program has it open (each VM needs a tap of its own)")]
    Busy(String),
    /// It belongs to another user.
    #[error(
        "tap {0} is not yours (as root: ip tuntap del dev {0} mode tap; ip tuntap add dev {0} mode tap user $USER)"
    )]
    NotOurs(String),
    /// A tap for several queues, which takes another way of opening.
    #[error(
        "tap {0} was made with multi_queue: say queues=N with N from 2 up, or make it anew (as root: ip tuntap del dev {0} mode tap multi_queue; ip tuntap add dev {0} mode tap user $USER)"
    )]
    MultiQueue(String),
    /// A tap for one queue, and several are wanted.
    #[error(
        "tap {0} was made without multi_queue, so that queues= can only be 1 (as root: ip tuntap del dev {0} mode tap; ip tuntap add dev {0} mode tap multi_queue user $USER)"
    )]
    SingleQueue(String),
    /// No right to make one.
    #[error(
        "no right to make a tap: tap=auto takes CAP_NET_ADMIN (or have one made, as root: ip tuntap add dev NAME mode tap user $USER)"
    )]
    NoRight,
    /// No /dev/net/tun.
    #[error("there is no /dev/net/tun (as root: modprobe tun)")]
    NoTun,
    /// No right to /dev/net/tun.
    #[error("no right to open /dev/net/tun (as root: chmod 666 /dev/net/tun)")]
    TunDenied,
    /// Anything else.
    #[error("tap {name}: {call} failed")]
    Io { name: String, call: &'static str, source: io::Error },
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    mtu: u16,
    uso: bool,
}

/// A queue of an open tap.
#[derive(Debug)]
struct TapQueue(File);

impl Tap {
    /// Opens the tap that `config` names, or makes one. In the monitor's process.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        match &config.backend {
            Backend::Tap(name) => Self::existing(name, config),
            Backend::OwnTap => Self::make(config),
        }
    }

    fn existing(name: &str, config: &Config) -> Result<Self, OpenError> {
        let io = |call| move |source| OpenError::Io { name: name.to_owned(), call, source };
        // TUNSETIFF with the right to do so makes what is missing, in silence: look first.
        let index = interface::index(name).ok_or_else(|| OpenError::Missing(name.to_owned()))?;
        let kind = interface::kind(name).map_err(io("looking at the interface"))?;
        if kind != "a tap" {
            return Err(OpenError::NotATap { name: name.to_owned(), kind });
        }
        let several = config.queues() > 1;
        // The kernel lets anybody have one more queue: each program would get some of the packets.
        // While the interface is down nobody can tell.
        if several && interface::has_link(name).map_err(io("looking for its link"))? {
            return Err(OpenError::Busy(name.to_owned()));
        }
        let open = |_| {
            let file = tun(name)?;
            attach(&file, name, several).map_err(|source| match source.raw_os_error() {
                // For one of several queues: there are as many as there can be.
                Some(libc::EBUSY | libc::E2BIG) => OpenError::Busy(name.to_owned()),
                Some(libc::EPERM) => OpenError::NotOurs(name.to_owned()),
                // The one thing that TUNSETIFF finds wrong with a tap that exists.
                Some(libc::EINVAL) if several => OpenError::SingleQueue(name.to_owned()),
                Some(libc::EINVAL) => OpenError::MultiQueue(name.to_owned()),
                _ => io("TUNSETIFF")(source),
            })?;
            Ok(TapQueue(file))
        };
        let queues = (0..config.queues()).map(open).collect::<Result<Vec<_>, _>>()?;
        if interface::index(name) != Some(index) {
            // It was deleted under our hands, and this is a new one, which goes away with the
            // descriptor.
            return Err(OpenError::Missing(name.to_owned()));
        }
        Self::with_queues(name.to_owned(), queues)
    }

    fn make(config: &Config) -> Result<Self, OpenError> {
        let io = |call| move |source| OpenError::Io { name: NAMES.to_owned(), call, source };
        let no_right = |call| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM) => OpenError::NoRight,
                _ => io(call)(source),
            }
        };
        let several = config.queues() > 1;
        let first = tun(NAMES)?;
        let name = attach(&first, NAMES, several).map_err(no_right("TUNSETIFF"))?;
        let mut queues = vec![TapQueue(first)];
        for _ in 1..config.queues() {
            let next = tun(NAMES)?;
            attach(&next, &name, several).map_err(io("TUNSETIFF"))?;
            queues.push(TapQueue(next));
        }
        let index = interface::index(&name).ok_or_else(|| OpenError::Missing(name.clone()))?;
        let mut netlink = Netlink::open().map_err(io("rtnetlink"))?;
        if let (Some(ip), Some(gw)) = (config.ip, config.gw) {
            let address = IpPrefix { addr: gw, prefix_len: ip.prefix_len };
            netlink.add_address(index, address).map_err(no_right("giving it an address"))?;
        }
        netlink.set_up(index).map_err(no_right("bringing it up"))?;
        Self::with_queues(name, queues)
    }

    /// From queues that are all attached.
    fn with_queues(name: String, queues: Vec<TapQueue>) -> Result<Self, OpenError> {
        let io = |call| {
            let name = name.clone();
            move |source| OpenError::Io { name, call, source }
        };
        // Until the driver says how many it uses, it uses one.
        for queue in &queues[1..] {
            queue.attach(false).map_err(io("TUNSETQUEUE"))?;
        }
        let first = &queues[0];
        // The header is virtio 1's.
        set_header_len(&first.0).map_err(io("TUNSETVNETHDRSZ"))?;
        let mtu = interface::mtu(&name).map_err(io("SIOCGIFMTU"))?;
        let uso = first.set_offloads(offload::TAP_USO).is_ok();
        // Nothing is left to be computed by whoever gets a packet, until somebody says that it
        // will.
        first.set_offloads(0).map_err(io("TUNSETOFFLOAD"))?;
        Ok(Self { name, queues, mtu, uso })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its queues as ports of a device, of which only the first is attached; with the interface's
    /// MTU, as it was when it was opened. The kernel may put many UDP datagrams into one packet
    /// (Linux 6.2).
    pub fn into_ports(self) -> Ports {
        let ports = self.queues.into_iter().map(|queue| Arc::new(queue) as Arc<dyn Port>).collect();
        Ports { ports, mtu: self.mtu, has_uso: self.uso }
    }
}

impl Port for TapQueue {
    /// But for what comes meanwhile.
    fn drop_packets(&self) {
        // An interface's queue has 500 places, unless somebody gave it more.
        const MOST: usize = 4096;
        let mut reader = &self.0;
        for _ in 0..MOST {
            // Of a packet only its beginning is copied; the rest of it goes as well.
            if reader.read(&mut [0; 64]).is_err() {
                return;
            }
        }
    }

    #[expect(unsafe_code, reason = "a tap ioctl")]
    fn attach(&self, attached: bool) -> io::Result<()> {
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let ifru_flags = libc::c_short::try_from(flag).expect("the flags have 15 bits");
        let request = request("", libc::__c_anonymous_ifr_ifru { ifru_flags });
        // SAFETY: TUNSETQUEUE reads one ifreq, which lives on this stack.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }

    #[expect(unsafe_code, reason = "a tap ioctl")]
    fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }

    /// The interface was deleted.
    fn is_gone(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EBADFD)
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that is no tap yet.
fn tun(name: &str) -> Result<File, OpenError> {
    open_tun().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NoTun,
        io::ErrorKind::PermissionDenied => OpenError::TunDenied,
        _ => OpenError::Io { name: name.to_owned(), call: "opening /dev/net/tun", source },
    })
}

pub(super) fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// TUNSETIFF: makes the descriptor the other end of the interface, or one of several. Returns the
/// interface's name: a `%d` in `name` stands for any number that is free.
#[expect(unsafe_code, reason = "a tap ioctl")]
fn attach(file: &File, name: &str, one_of_several: bool) -> io::Result<String> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    flags |= if one_of_several { libc::IFF_MULTI_QUEUE } else { 0 };
    let ifru_flags = libc::c_short::try_from(flags).expect("the flags have 15 bits");
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags });
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives on this stack.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    Ok(name.map(|byte| char::from(byte.cast_unsigned())).collect())
}

#[expect(unsafe_code, reason = "a tap ioctl")]
fn set_header_len(file: &File) -> io::Result<()> {
    let len = net::HEADER_LEN.cast_signed();
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives on this stack.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
