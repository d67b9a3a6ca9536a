//! What the kernel says of a network interface: by sockets, which see the thread's own network
//! namespace; /sys may show another.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Its number; `None` if there is none of that name.
#[expect(unsafe_code, reason = "if_nametoindex(3) has no wrapper among our crates")]
pub(super) fn index(name: &str) -> Option<u32> {
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
pub(super) fn mtu(name: &str) -> io::Result<u16> {
    let socket = any_socket()?;
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 });
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which lives on this stack.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the call has filled in the MTU.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
}

/// "a tap", "a tun" or "an interface of driver X", by what the driver says of itself
/// (ETHTOOL_GDRVINFO, which needs no rights).
pub(super) fn kind(name: &str) -> io::Result<String> {
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
    const ETHTOOL_GDRVINFO: u32 = 3;

    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 64],
    };
    if let Err(error) = ethtool(name, &mut info) {
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

/// Whether it is up and there is somebody at its other end (ETHTOOL_GLINK, which needs no rights).
pub(super) fn has_link(name: &str) -> io::Result<bool> {
    /// `struct ethtool_value` of linux/ethtool.h.
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    const ETHTOOL_GLINK: u32 = 10;

    let mut link = Value { cmd: ETHTOOL_GLINK, data: 0 };
    ethtool(name, &mut link)?;
    Ok(link.data != 0)
}

/// Has the driver fill in a command's structure, which must be the one of its number, its first
/// field.
#[expect(unsafe_code, reason = "an ethtool ioctl")]
fn ethtool<T>(name: &str, command: &mut T) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = any_socket()?;
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut *command).cast() };
    let mut request = request(name, data);
    // SAFETY: SIOCETHTOOL takes an ifreq whose data points to the command's structure; both live
    // through the call. Of the commands above the kernel fills in no more than that structure of
    // its own has, which is what they are declared with.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })
}

/// What an ioctl returned.
pub(super) fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
