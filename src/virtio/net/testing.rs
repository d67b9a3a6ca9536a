//! Taps for tests: real ones, each test's in a network namespace of its own, so that nothing of the
//! host's is touched.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Config;
use super::interface::{self, request};
use super::tap::{OpenError, Tap, open_tun};
use crate::virtio::core::testing::wait_until;

/// The Ethernet type that is set aside for experiments: nothing else on the wire has it.
pub(super) const ETHERTYPE: u16 = 0x88b5;

/// Runs `f` in a thread with a fresh network namespace. Where there is no right to make one, the
/// test can't run, and says so past the test harness's capture.
#[expect(unsafe_code, reason = "unshare(2)")]
pub(super) fn in_network_namespace(test: &str, f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no pointers. It concerns this thread and those that it makes.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let error = io::Error::last_os_error();
                let _ =
                    writeln!(io::stderr(), "COULD NOT RUN: {test}: no network namespace for a tap: {error}");
                return;
            }
            f();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[expect(unsafe_code, reason = "ioctls on interfaces")]
fn ioctl<T>(fd: &impl AsRawFd, call: libc::Ioctl, argument: *const T) {
    // SAFETY: each caller passes what the call takes: a pointer to a live ifreq, or a number in its
    // place.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), call, argument) };
    assert!(result >= 0, "ioctl {call:#x}: {}", io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "socket(2)")]
fn socket(domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes an interface that stays, as `ip tuntap add` does; owned by root.
pub(super) fn make(name: &str, flags: libc::c_int) {
    let tun = open_tun().unwrap();
    let ifru_flags = libc::c_short::try_from(flags | libc::IFF_NO_PI).unwrap();
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags });
    ioctl(&tun, libc::TUNSETIFF, &raw const request);
    ioctl(&tun, libc::TUNSETOWNER, std::ptr::null::<u8>());
    ioctl(&tun, libc::TUNSETPERSIST, std::ptr::without_provenance::<u8>(1));
}

/// Opens a tap that nobody has open. A child that another test forks has a copy of each descriptor
/// until it calls exec, so that a tap stays busy for a moment after it was closed.
pub(super) fn open_when_free(config: &Config) -> Tap {
    let mut tap = None;
    wait_until("a tap to be free", || {
        tap = match Tap::open(config) {
            Err(OpenError::Busy(_)) => None,
            other => Some(other.unwrap()),
        };
        tap.is_some()
    });
    tap.unwrap()
}

/// `ip link set NAME up` or `down`.
pub(super) fn set_up(name: &str, up: bool) {
    let flags = if up { libc::IFF_UP | libc::IFF_RUNNING } else { 0 };
    let ifru_flags = libc::c_short::try_from(flags).unwrap();
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags });
    ioctl(&socket(libc::AF_INET, libc::SOCK_DGRAM, 0), libc::SIOCSIFFLAGS, &raw const request);
}

/// `ip link set NAME mtu MTU`.
pub(super) fn set_mtu(name: &str, mtu: libc::c_int) {
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_mtu: mtu });
    ioctl(&socket(libc::AF_INET, libc::SOCK_DGRAM, 0), libc::SIOCSIFMTU, &raw const request);
}

/// `ip link del NAME`, whoever has it open.
pub(super) fn delete(name: &str) {
    let index = interface::index(name).unwrap();
    // struct nlmsghdr (length, type, flags, sequence, port) and struct ifinfomsg (family, type,
    // index, flags, mask).
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap();
    let mut message = 32_u32.to_ne_bytes().to_vec();
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8 + 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    let mut netlink = File::from(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE));
    netlink.write_all(&message).unwrap();
    let mut answer = [0; 256];
    let n = netlink.read(&mut answer).unwrap();
    // NLMSG_ERROR with the error behind the header, 0 for none.
    assert!(n >= 20 && answer[16..20] == [0; 4], "deleting {name}: {:?}", &answer[..n]);
}

/// The host's side of an interface: sends and receives whole frames.
pub(super) struct Wire(File);

impl Wire {
    #[expect(unsafe_code, reason = "a packet socket")]
    pub(super) fn new(name: &str) -> Self {
        let protocol = ETHERTYPE.to_be();
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol.into());
        // SAFETY: plain numbers, for which all zeros will do.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = interface::index(name).unwrap().cast_signed();
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: a live sockaddr_ll and its length.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(result, 0, "bind: {}", io::Error::last_os_error());
        Self(File::from(socket))
    }

    pub(super) fn send(&self, frame: &[u8]) {
        assert_eq!((&self.0).write(frame).unwrap(), frame.len());
    }

    /// The next frame that came from the guest, if there is one.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x1_0000];
        let n = (&self.0).read(&mut frame).ok()?;
        frame.truncate(n);
        Some(frame)
    }
}

/// A frame of the experimental type with `len` bytes of payload, which begins with `mark`.
pub(super) fn frame(mark: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 0x01]);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend((0..len).map(|i| if i == 0 { mark } else { u8::try_from(i % 251).unwrap() }));
    frame
}
