//! A tap: a network interface of the host whose other end is a descriptor (kernel: Documentation/networking/tuntap.rst).
//!
//! Opened in the command's process, then handed to the VM's process as a descriptor. It never makes an interface: what
//! doesn't exist is an error, and so is what is not a tap, not ours, or taken. Closing the descriptor frees the tap; the
//! interface stays.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::{Config, offload};
use crate::virtio::core::spec::net;

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
        "tap {0} was made with multi_queue (as root: ip tuntap del dev {0} mode tap multi_queue; ip tuntap add dev {0} mode tap user $USER)"
    )]
    MultiQueue(String),
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

/// An open tap. Each packet is one `read` or one `write`, behind a header of [`net::HEADER_LEN`] bytes. It doesn't block.
#[derive(Debug)]
pub struct Tap {
    file: File,
    mtu: u16,
    uso: bool,
}

impl Tap {
    /// Opens the tap that `config` names. In the command's process.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let name = config.tap.as_str();
        let io = |call| move |source| OpenError::Io { name: name.to_owned(), call, source };
        // TUNSETIFF with the right to do so makes what is missing, in silence: look first.
        let index = interface_index(name).ok_or_else(|| OpenError::Missing(name.to_owned()))?;
        let kind = interface_kind(name).map_err(io("looking at the interface"))?;
        if kind != "a tap" {
            return Err(OpenError::NotATap { name: name.to_owned(), kind });
        }
        let file = open_tun().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => OpenError::NoTun,
            io::ErrorKind::PermissionDenied => OpenError::TunDenied,
            _ => io("opening /dev/net/tun")(source),
        })?;
        attach(&file, name).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => OpenError::Busy(name.to_owned()),
            Some(libc::EPERM) => OpenError::NotOurs(name.to_owned()),
            // The one thing that TUNSETIFF finds wrong with a tap that exists.
            Some(libc::EINVAL) => OpenError::MultiQueue(name.to_owned()),
            _ => io("TUNSETIFF")(source),
        })?;
        if interface_index(name) != Some(index) {
            // It was deleted under our hands, and this is a new one, which goes away with the descriptor.
            return Err(OpenError::Missing(name.to_owned()));
        }
        // The header is virtio 1's.
        set_header_len(&file).map_err(io("TUNSETVNETHDRSZ"))?;
        let mtu = interface_mtu(name).map_err(io("SIOCGIFMTU"))?;
        let mut tap = Self { file, mtu, uso: false };
        tap.uso = tap.set_offloads(offload::TAP_USO).is_ok();
        // Nothing is left to be computed by whoever gets a packet, until somebody says that it will.
        tap.set_offloads(0).map_err(io("TUNSETOFFLOAD"))?;
        Ok(tap)
    }

    /// The interface's MTU, as it was when it was opened.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the kernel can put many UDP datagrams into one packet (Linux 6.2).
    pub fn has_uso(&self) -> bool {
        self.uso
    }

    /// Drops what waits to be read, but for what comes meanwhile.
    pub(super) fn drop_packets(&self) {
        // An interface's queue has 500 places, unless somebody gave it more.
        const MOST: usize = 4096;
        let mut reader = &self.file;
        for _ in 0..MOST {
            // Of a packet only its beginning is copied; the rest of it goes as well.
            if reader.read(&mut [0; 64]).is_err() {
                return;
            }
        }
    }

    /// What may be left to be done by whoever reads packets (TUN_F_* of linux/if_tun.h).
    #[expect(unsafe_code, reason = "a tap ioctl")]
    pub(super) fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        done(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
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

/// TUNSETIFF: makes the descriptor the other end of the interface.
#[expect(unsafe_code, reason = "a tap ioctl")]
fn attach(file: &File, name: &str) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let ifru_flags = libc::c_short::try_from(flags).expect("the flags have 15 bits");
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags });
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives on this stack and is not used afterwards.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
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
