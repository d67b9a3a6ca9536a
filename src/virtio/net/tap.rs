//! A tap: a network interface of the host whose other end is a descriptor (kernel: Documentation/networking/tuntap.rst).
//!
//! Opened in the command's process, then handed to the VM's process as a descriptor. An interface that is named is never made: what
//! doesn't exist is an error, and so is what is not a tap, not ours, or taken. Closing the descriptor frees the tap; the
//! interface stays. [`AUTO`] in a name's place makes one, which takes CAP_NET_ADMIN: it is up, has the address that the guest has for its
//! gateway (if it has one), and is gone with the descriptor. Packets get no further than this host unless it forwards them.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use bothy_guest::addr::IpPrefix;
use bothy_guest::netlink::Netlink;
use thiserror::Error;

use super::{Config, offload};
use crate::virtio::core::spec::net;

/// In place of a name: a tap of the VM's own.
pub const AUTO: &str = "auto";
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

/// A queue of an open tap. Each packet is one `read` or one `write`, behind a header of [`net::HEADER_LEN`] bytes. It doesn't block.
#[derive(Debug)]
pub(super) struct TapQueue(File);

impl Tap {
    /// Opens the tap that `config` names, or makes one. In the command's process.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        if config.tap == AUTO { Self::make(config) } else { Self::existing(config) }
    }

    fn existing(config: &Config) -> Result<Self, OpenError> {
        let name = config.tap.as_str();
        let io = |call| move |source| OpenError::Io { name: name.to_owned(), call, source };
        // TUNSETIFF with the right to do so makes what is missing, in silence: look first.
        let index = interface_index(name).ok_or_else(|| OpenError::Missing(name.to_owned()))?;
        let kind = interface_kind(name).map_err(io("looking at the interface"))?;
        if kind != "a tap" {
            return Err(OpenError::NotATap { name: name.to_owned(), kind });
        }
        let several = config.queues() > 1;
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
        if interface_index(name) != Some(index) {
            // It was deleted under our hands, and this is a new one, which goes away with the descriptor.
            return Err(OpenError::Missing(name.to_owned()));
        }
        Self::with_queues(name.to_owned(), queues)
    }

    fn make(config: &Config) -> Result<Self, OpenError> {
        let io = |call| move |source| OpenError::Io { name: AUTO.to_owned(), call, source };
        let no_right = |call| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM) => OpenError::NoRight,
                _ => io(call)(source),
            }
        };
        let several = config.queues() > 1;
        let first = tun(AUTO)?;
        let name = attach(&first, NAMES, several).map_err(no_right("TUNSETIFF"))?;
        let mut queues = vec![TapQueue(first)];
        for _ in 1..config.queues() {
            let next = tun(AUTO)?;
            attach(&next, &name, several).map_err(io("TUNSETIFF"))?;
            queues.push(TapQueue(next));
        }
        let index = interface_index(&name).ok_or_else(|| OpenError::Missing(name.clone()))?;
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
        let mtu = interface_mtu(&name).map_err(io("SIOCGIFMTU"))?;
        let uso = first.set_offloads(offload::TAP_USO).is_ok();
        // Nothing is left to be computed by whoever gets a packet, until somebody says that it will.
        first.set_offloads(0).map_err(io("TUNSETOFFLOAD"))?;
        Ok(Self { name, queues, mtu, uso })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every descriptor of it.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.queues.iter().map(AsRawFd::as_raw_fd)
    }

    /// Its queues, of which only the first is attached.
    pub(super) fn into_queues(self) -> Vec<TapQueue> {
        self.queues
    }

    /// The interface's MTU, as it was when it was opened.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the kernel can put many UDP datagrams into one packet (Linux 6.2).
    pub fn has_uso(&self) -> bool {
        self.uso
    }
}

impl TapQueue {
    /// Drops what waits to be read, but for what comes meanwhile.
    pub(super) fn drop_packets(&self) {
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

    /// Whether this queue gets some of the interface's packets. Not for the only queue of a tap.
    #[expect(unsafe_code, reason = "a tap ioctl")]
    pub(super) fn attach(&self, attached: bool) -> io::Result<()> {
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let ifru_flags = libc::c_short::try_from(flag).expect("the flags have 15 bits");
        let request = request("", libc::__c_anonymous_ifr_ifru { ifru_flags });
        // SAFETY: TUNSETQUEUE reads one ifreq, which lives on this stack.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }

    /// What may be left to be done by whoever reads packets of any queue (TUN_F_* of linux/if_tun.h).
    #[expect(unsafe_code, reason = "a tap ioctl")]
    pub(super) fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
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

/// In the thread's own network namespace, which is why it doesn't look into /sys.
#[expect(unsafe_code, reason = "if_nametoindex(3) has no wrapper among our crates")]
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a NUL-terminated string that lives through the call.
    Some(unsafe { libc::if_nametoindex(name.as_ptr()) }).filter(|index| *index != 0)
}

/// An interface request for `name`, which is shorter than IFNAMSIZ.
pub(super) fn request(name: &str, ifr_ifru: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // The last byte stays 0 whatever the name.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// Something to ask the kernel about interfaces with.
#[expect(unsafe_code, reason = "socket(2)")]
fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a new descriptor or -1.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Bytes of the largest packet without its Ethernet header. A tap has no more than 65521.
#[expect(unsafe_code, reason = "an ioctl on an interface")]
fn interface_mtu(name: &str) -> io::Result<u16> {
    let socket = any_socket()?;
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 });
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which lives on this stack.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the call has filled in the MTU.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
}

/// "a tap", "a tun" or "an interface of driver X", by what the driver says of itself (ETHTOOL_GDRVINFO, which needs no rights).
#[expect(unsafe_code, reason = "an ethtool ioctl")]
fn interface_kind(name: &str) -> io::Result<String> {
    /// `struct ethtool_drvinfo` of linux/ethtool.h.
    #[repr(C)]
    struct DriverInfo {
        cmd: u32,
        driver: [u8; 32],
        version: [u8; 32],
        firmware: [u8; 32],
        bus: [u8; 32],
        rest: [u8; 64],
    }
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const ETHTOOL_GDRVINFO: u32 = 3;

    let socket = any_socket()?;
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 64],
    };
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() };
    let mut request = request(name, data);
    // SAFETY: SIOCETHTOOL takes an ifreq whose data points to the command's structure, and both live on this stack. The kernel
    // fills in `sizeof(struct ethtool_drvinfo)`, 196 bytes, which is what `DriverInfo` has.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        let error = io::Error::last_os_error();
        // Loopback has no driver to ask.
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Ok("an interface of another kind".to_owned())
        } else {
            Err(error)
        };
    }
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or(&[])).into_owned();
    Ok(match (text(&info.driver).as_str(), text(&info.bus).as_str()) {
        ("tun", "tap") => "a tap".to_owned(),
        ("tun", _) => "a tun".to_owned(),
        (driver, _) => format!("an interface of kind {driver}"),
    })
}

/// TUNSETIFF: makes the descriptor the other end of the interface, or one of several. Returns the interface's name: a `%d` in `name`
/// stands for any number that is free.
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

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
