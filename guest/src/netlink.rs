//! Just enough rtnetlink (`man 7 rtnetlink`) to bring interfaces up and give them addresses and
//! routes: one message format for IPv4 and IPv6, and no external program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::addr::IpPrefix;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The host chose the address: nobody else can have it, so there is nothing to detect and to wait
/// for.
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const HEADER_BYTES: usize = 16;

/// A conversation with the kernel; each method is one request and waits for its answer.
pub struct Netlink {
    socket: File,
}

impl Netlink {
    /// With the kernel of the thread's network namespace.
    pub fn open() -> io::Result<Self> {
        // The family's first protocol, 0, is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket: socket.into() })
    }

    /// Brings the interface up.
    pub fn set_up(&mut self, interface: u32) -> io::Result<()> {
        let up = libc::IFF_UP.cast_unsigned();
        // struct ifinfomsg: family, padding, type, index, flags, which flags to change.
        let mut body = vec![0; 4];
        body.extend(interface.to_ne_bytes());
        body.extend(up.to_ne_bytes());
        body.extend(up.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Gives the interface an address; the kernel adds the route to its network.
    pub fn add_address(&mut self, interface: u32, ip: IpPrefix) -> io::Result<()> {
        let flags = if ip.addr.is_ipv6() { IFA_F_NODAD } else { 0 };
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut body = vec![family(ip.addr), ip.prefix_len, flags, RT_SCOPE_UNIVERSE];
        body.extend(interface.to_ne_bytes());
        put_attribute(&mut body, IFA_LOCAL, &octets(ip.addr));
        put_attribute(&mut body, IFA_ADDRESS, &octets(ip.addr));
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Sends everything that no other route covers to the gateway.
    pub fn add_default_route(&mut self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        let mut body = route_body(family(gateway), 0, RT_SCOPE_UNIVERSE);
        put_attribute(&mut body, RTA_GATEWAY, &octets(gateway));
        put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Says that a single address is a direct neighbour, for a gateway outside the interface's own
    /// networks.
    pub fn add_neighbour_route(&mut self, interface: u32, neighbour: IpAddr) -> io::Result<()> {
        let bits = if neighbour.is_ipv4() { 32 } else { 128 };
        let mut body = route_body(family(neighbour), bits, RT_SCOPE_LINK);
        put_attribute(&mut body, RTA_DST, &octets(neighbour));
        put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.socket.write_all(&message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)?)?;
        let mut answer = [0; 1024];
        let length = self.socket.read(&mut answer)?;
        parse_answer(answer.get(..length).unwrap_or_default())
    }
}

fn family(address: IpAddr) -> u8 {
    // AF_INET and AF_INET6 of <linux/socket.h>; the message has one byte for them.
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `struct rtmsg`: family, destination and source prefix, TOS, table, protocol, scope, type, flags.
fn route_body(family: u8, destination_bits: u8, scope: u8) -> Vec<u8> {
    let mut body = vec![family, destination_bits, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST];
    body.extend([0; 4]);
    body
}

/// `struct nlmsghdr` (length, type, flags, sequence, port) and the body. Bodies here are always
/// whole words.
fn message(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len().saturating_add(HEADER_BYTES)).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(body.len().saturating_add(HEADER_BYTES));
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

/// `struct rtattr` (length, type) and its value, which is a whole number of words for every
/// attribute used here.
fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length =
        u16::try_from(value.len().saturating_add(4)).expect("addresses and indexes have at most 16 bytes");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// An answer is `NLMSG_ERROR` with a negative errno, or 0 for success.
fn parse_answer(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("malformed netlink answer");
    let kind =
        answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(malformed)?;
    let error =
        answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).ok_or_else(malformed)?;
    match (kind, error) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_starts_with_its_whole_length() {
        let message = message(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK, &[7; 8]).unwrap();
        assert_eq!(message[..8], [24, 0, 0, 0, 20, 0, 5, 0]);
        assert_eq!(message.len(), 24);
    }

    #[test]
    fn an_attribute_counts_its_own_header() {
        let mut body = Vec::new();
        put_attribute(&mut body, IFA_LOCAL, &[10, 0, 0, 2]);
        assert_eq!(body, [8, 0, 2, 0, 10, 0, 0, 2]);
    }

    #[test]
    fn an_answer_of_zero_is_success_and_others_are_an_errno() {
        let answer = |errno: i32| {
            let mut answer = message(NLMSG_ERROR, 0, &errno.to_ne_bytes()).unwrap();
            answer.extend([0; 16]);
            answer
        };
        assert!(parse_answer(&answer(0)).is_ok());
        assert_eq!(parse_answer(&answer(-17)).unwrap_err().raw_os_error(), Some(17));
        assert!(parse_answer(&[0; 4]).is_err());
        assert!(parse_answer(&answer(i32::MIN)).is_err());
    }
}
