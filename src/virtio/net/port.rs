//! The host's side of a network device: whatever gives and takes Ethernet frames. The device gets
//! it open, as a value; [`Tap`](super::Tap) makes one.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// The ports of one network device, open.
#[derive(Debug)]
pub struct Ports {
    /// One for each queue pair. The first one speaks for all.
    pub(super) ports: Vec<Arc<dyn Port>>,
    /// The largest packet, without its Ethernet header, in bytes.
    pub(super) mtu: u16,
    /// Whether many UDP datagrams can pass as one packet.
    pub(super) has_uso: bool,
}

/// One port. It doesn't block. Each packet is one `read` or one `write`, and has the header of
/// linux/virtio_net.h in front: what is left to be done with it, such as its checksum.
pub(super) trait Port: AsRawFd + Debug + Send + Sync {
    /// What may be left to be done by whoever reads packets of any port of the device (TUN_F_* of
    /// linux/if_tun.h).
    fn set_offloads(&self, flags: u32) -> io::Result<()>;

    /// Drops what waits to be read.
    fn drop_packets(&self);

    /// Whether this port gets some of the device's packets. Not for a device's only port.
    fn attach(&self, attached: bool) -> io::Result<()>;

    /// Whether an error of a read says that no packet will ever come again.
    fn is_gone(&self, error: &io::Error) -> bool;
}

impl Ports {
    /// Every descriptor of them.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.ports.iter().map(|port| port.as_raw_fd())
    }

    /// The largest packet, without its Ethernet header, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}
