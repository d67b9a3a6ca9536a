//! The packet header of virtio-vsock (virtio 1.2 §5.10.6): 44 bytes, little-endian, before the
//! payload of each packet.

use crate::virtio::core::spec::vsock;

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = vsock::HEADER_LEN as usize;

/// What a packet is for (§5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Rst,
            Self::Shutdown,
            Self::Rw,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// A connection, by the ports of its two ends; the context ids are always the guest's and the
/// host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A header as the guest sent it. Nothing is checked but what the types say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) ports: Ports,
    pub(super) len: u32,
    pub(super) kind: u16,
    /// `None`: a number that stands for nothing.
    pub(super) op: Option<Op>,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Received {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u16_at = |at: usize| u16::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            ports: Ports { guest: u32_at(16), host: u32_at(20) },
            len: u32_at(24),
            kind: u16_at(28),
            op: Op::from_number(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

/// A header on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) ports: Ports,
    pub(super) op: Op,
    pub(super) len: u32,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Sent {
    /// A packet that says all it has to say by its kind.
    pub(super) fn bare(ports: Ports, op: Op) -> Self {
        Self { ports, op, len: 0, flags: 0, buf_alloc: 0, fwd_cnt: 0 }
    }

    pub(super) fn bytes(&self, guest_cid: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &vsock::HOST_CID.to_le_bytes());
        put(8, &guest_cid.to_le_bytes());
        put(16, &self.ports.host.to_le_bytes());
        put(20, &self.ports.guest.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &vsock::TYPE_STREAM.to_le_bytes());
        put(30, &(self.op as u16).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_fields_where_the_specification_has_them() {
        let ports = Ports { guest: 0x0102_0304, host: 0x0506_0708 };
        let sent = Sent { ports, op: Op::Rw, len: 9, flags: 10, buf_alloc: 11, fwd_cnt: 12 };
        let bytes = sent.bytes(3);
        assert_eq!(bytes[..16], [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[24..32], [9, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[32..], [10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0]);
        let seen = Received::parse(&bytes);
        assert_eq!((seen.src_cid, seen.dst_cid, seen.op), (2, 3, Some(Op::Rw)));
        assert_eq!(seen.ports, Ports { guest: ports.host, host: ports.guest }, "seen from the other side");
        assert_eq!((seen.len, seen.kind, seen.flags, seen.buf_alloc, seen.fwd_cnt), (9, 1, 10, 11, 12));
    }

    #[test]
    fn a_number_that_is_no_operation_is_none() {
        for number in [0, 8, u16::MAX] {
            assert_eq!(Op::from_number(number), None);
        }
    }
}
