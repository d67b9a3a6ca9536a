//! A tap, as an administrator would make one with `ip tuntap add`, and the host's side of it.
#![expect(unsafe_code, reason = "std has neither interface ioctls nor raw sockets")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::mem;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A persistent tap that is up and has an address; it is gone with the value.
pub(crate) struct Tap {
    name: String,
}

impl Tap {
    /// Makes the tap with this address and a /24 behind it.
    pub(crate) fn new(name: &str, address: Ipv4Addr) -> io::Result<Self> {
        let file = attached(name)?;
        ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, std::ptr::without_provenance_mut(1))?;
        let tap = Self { name: name.to_owned() };
        let socket = socket(libc::SOCK_DGRAM, 0)?;
        let mut request = request(name);
        for (number, address) in
            [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
        {
            // SAFETY: a sockaddr_in is as large as the sockaddr of the union and has its family
            // first.
            unsafe {
                let to = (&raw mut request.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>();
                to.write_unaligned(socket_address(address));
            }
            ioctl(socket.as_raw_fd(), number, (&raw mut request).cast())?;
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, (&raw mut request).cast())?;
        Ok(tap)
    }

    /// As root on a Linux with tun this works; what else is in the way is for the test to say.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing can be done about a tap that stays: the test has its result.
        let _ = attached(&self.name)
            .and_then(|file| ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, std::ptr::null_mut()));
    }
}

/// Sends everything back that callers send to `address`, for as long as the test's process lives.
/// Returns the port.
///
/// It reads on however much hasn't been taken back: busybox' nc, which writes and doesn't read
/// meanwhile, would otherwise wait for it, and it for nc.
pub(crate) fn echo(address: Ipv4Addr) -> io::Result<u16> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    let serve = |stream: TcpStream| {
        let (sender, receiver) = mpsc::channel::<Vec<u8>>();
        // Who hangs up early finds that out by itself: so here and below, a connection that breaks
        // is only an end.
        if let Ok(mut out) = stream.try_clone() {
            thread::spawn(move || {
                let _ended = receiver.iter().try_for_each(|bytes| out.write_all(&bytes));
                out.shutdown(Shutdown::Write)
            });
        }
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = (&stream).read(&mut buffer)
                && sender.send(buffer[..count].to_vec()).is_ok()
            {}
        });
    };
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    Ok(port)
}

/// Whether `address` answers a ping within `limit`. Needs root.
pub(crate) fn answers_ping(address: Ipv4Addr, limit: Duration) -> io::Result<bool> {
    let socket = socket(libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    let second = libc::timeval { tv_sec: 1, tv_usec: 0 };
    // SAFETY: the option's value is a timeval of the length that is given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const second).cast(),
            length_of::<libc::timeval>(),
        );
    }
    let deadline = Instant::now() + limit;
    let to = socket_address(address);
    while Instant::now() < deadline {
        // Echo request: type 8, code 0, checksum, identifier, sequence number.
        let echo: [u8; 8] = [8, 0, 0xa5, 0xfd, 0x12, 0x01, 0x40, 0x01];
        // SAFETY: the pointers and lengths are those of `echo` and `to`.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                echo.as_ptr().cast(),
                echo.len(),
                0,
                (&raw const to).cast(),
                length_of::<libc::sockaddr_in>(),
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut packet = [0; 256];
        // SAFETY: the call writes within `packet`.
        let len = unsafe { libc::recv(socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        // An IPv4 header of 20 bytes with the sender at 12, then the reply: type 0, and our
        // identifier.
        if len >= 28 && packet[12..16] == address.octets() && packet[20] == 0 && packet[24..28] == echo[4..8]
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn attached(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    ioctl(file.as_raw_fd(), libc::TUNSETIFF, (&raw mut request).cast())?;
    Ok(file)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("a small number"),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    }
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(mem::size_of::<T>()).expect("a small structure")
}

fn socket(kind: libc::c_int, protocol: libc::c_int) -> io::Result<File> {
    // SAFETY: the call touches no memory.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else has the descriptor.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn ioctl(fd: RawFd, number: libc::c_ulong, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: the callers give what their ioctl takes: an ifreq, or a number in the pointer's
    // place.
    if unsafe { libc::ioctl(fd, number, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
