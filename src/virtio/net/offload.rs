//! Work on packets that moves to whoever can do it best: checksums and segmentation (virtio 1.2
//! §5.1.3.1, §5.1.6).
//!
//! The header before each packet says what is left to be done. The kernel's tap speaks the same
//! header, so that what was negotiated with the driver is only told to the tap, and nothing is
//! computed here. What the driver says in a header passes if it was negotiated and is dropped if it
//! wasn't; that it fits the packet is checked by the kernel, for which a header is as foreign as
//! for us.

use crate::virtio::core::spec::net::{self, gso};

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = net::HEADER_LEN as usize;

/// The features for packets from the guest, which any tap can take.
const FROM_GUEST: u64 =
    net::F_CSUM | net::F_HOST_TSO4 | net::F_HOST_TSO6 | net::F_HOST_ECN | net::F_MRG_RXBUF;
/// Each feature for packets to the guest, and what it is for a tap (TUN_F_* of linux/if_tun.h).
const TO_GUEST: [(u64, u32); 4] = [
    (net::F_GUEST_CSUM, 0x01),
    (net::F_GUEST_TSO4, TAP_TSO4),
    (net::F_GUEST_TSO6, TAP_TSO6),
    (net::F_GUEST_ECN, TAP_ECN),
];
const TAP_TSO4: u32 = 0x02;
const TAP_TSO6: u32 = 0x04;
const TAP_ECN: u32 = 0x08;
/// The same for datagrams, which Linux has since 6.2: both or none.
const TO_GUEST_USO: [(u64, u32); 2] = [(net::F_GUEST_USO4, 0x20), (net::F_GUEST_USO6, 0x40)];
/// Features for datagrams in both directions.
const USO: u64 = net::F_HOST_USO | net::F_GUEST_USO4 | net::F_GUEST_USO6;

/// What a tap must understand before USO is offered.
pub(super) const TAP_USO: u32 = 0x01 | 0x20 | 0x40;

/// The features to offer.
pub(super) fn offered(uso: bool) -> u64 {
    let to_guest = TO_GUEST.iter().fold(0, |all, (feature, _)| all | feature);
    FROM_GUEST | to_guest | if uso { USO } else { 0 }
}

/// What was negotiated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offloads {
    features: u64,
}

impl Offloads {
    pub(super) fn new(features: u64) -> Self {
        Self { features }
    }

    fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// For TUNSETOFFLOAD: what the tap may leave undone in packets for the guest. Everything rests
    /// on checksums (§5.1.3.1).
    pub(super) fn of_tap(self) -> u32 {
        if !self.has(net::F_GUEST_CSUM) {
            return 0;
        }
        let flags = |table: &[(u64, u32)]| {
            table.iter().filter(|(feature, _)| self.has(*feature)).fold(0, |all, (_, flag)| all | flag)
        };
        let uso =
            if TO_GUEST_USO.iter().all(|(feature, _)| self.has(*feature)) { flags(&TO_GUEST_USO) } else { 0 };
        let flags = flags(&TO_GUEST);
        // The kernel takes the ECN bit only beside one of TCP's.
        let flags = if flags & (TAP_TSO4 | TAP_TSO6) == 0 { flags & !TAP_ECN } else { flags };
        flags | uso
    }

    /// Whether a packet may take several buffers.
    pub(super) fn merges_buffers(self) -> bool {
        self.has(net::F_MRG_RXBUF)
    }

    /// Whether the driver reads the headers of packets that it gets.
    pub(super) fn tells_guest(self) -> bool {
        self.has(net::F_GUEST_CSUM)
    }

    /// Whether packets for the guest may be larger than the interface's MTU.
    pub(super) fn makes_large(self) -> bool {
        self.of_tap() & !0x01 != 0
    }

    /// The header that goes to the tap, made from the driver's; `None` if that asks for what was
    /// not negotiated. Without checksums there is nothing that a driver could mean, and whatever it
    /// says is as good as nothing.
    pub(super) fn to_tap(self, header: [u8; HEADER_LEN]) -> Option<[u8; HEADER_LEN]> {
        if !self.has(net::F_CSUM) {
            return Some([0; HEADER_LEN]);
        }
        let [flags, kind, ..] = header;
        let (feature, ecn) = match kind & !gso::ECN {
            gso::NONE => (net::F_CSUM, kind & gso::ECN == 0),
            gso::TCPV4 => (net::F_HOST_TSO4, true),
            gso::TCPV6 => (net::F_HOST_TSO6, true),
            gso::UDP_L4 => (net::F_HOST_USO, kind & gso::ECN == 0),
            _ => return None,
        };
        if !self.has(feature) || !ecn || (kind & gso::ECN != 0 && !self.has(net::F_HOST_ECN)) {
            return None;
        }
        let mut header = header;
        // A driver says nothing else to a device (§5.1.6.2).
        header[0] = flags & net::HDR_F_NEEDS_CSUM;
        header[10..].fill(0);
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, kind: u8) -> [u8; HEADER_LEN] {
        [flags, kind, 54, 0, 100, 0, 34, 0, 16, 0, 9, 9]
    }

    #[test]
    fn what_was_negotiated_passes_without_what_a_driver_has_no_say_in() {
        let all = Offloads::new(u64::MAX);
        for kind in [gso::NONE, gso::TCPV4, gso::TCPV6, gso::TCPV4 | gso::ECN, gso::UDP_L4] {
            let passed = all.to_tap(header(0xff, kind)).unwrap();
            assert_eq!(passed, [1, kind, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
        }
    }

    #[test]
    fn what_was_not_negotiated_is_dropped() {
        let without = |feature: u64| Offloads::new(!feature);
        assert_eq!(without(net::F_HOST_TSO4).to_tap(header(1, gso::TCPV4)), None);
        assert_eq!(without(net::F_HOST_TSO6).to_tap(header(1, gso::TCPV6)), None);
        assert_eq!(without(net::F_HOST_ECN).to_tap(header(1, gso::TCPV6 | gso::ECN)), None);
        assert_eq!(without(net::F_HOST_USO).to_tap(header(1, gso::UDP_L4)), None);
        for kind in [2, 3, 6, 0x7f, 0xff, gso::ECN, gso::UDP_L4 | gso::ECN] {
            assert_eq!(without(0).to_tap(header(1, kind)), None, "{kind:#x}");
        }
        assert_eq!(without(net::F_CSUM).to_tap(header(1, gso::TCPV4)), Some([0; HEADER_LEN]));
    }

    #[test]
    fn a_tap_is_told_what_the_driver_takes() {
        assert_eq!(Offloads::new(0).of_tap(), 0);
        assert_eq!(Offloads::new(net::F_GUEST_TSO4).of_tap(), 0, "nothing goes without checksums");
        assert_eq!(Offloads::new(net::F_GUEST_CSUM | net::F_GUEST_ECN).of_tap(), 0x01, "beside TCP's alone");
        assert_eq!(Offloads::new(net::F_GUEST_CSUM | net::F_GUEST_TSO6).of_tap(), 0x05);
        assert_eq!(Offloads::new(net::F_GUEST_CSUM | net::F_GUEST_USO4).of_tap(), 0x01, "both or none");
        assert_eq!(Offloads::new(u64::MAX).of_tap(), 0x6f);
        assert!(!Offloads::new(net::F_GUEST_CSUM).makes_large());
    }
}
