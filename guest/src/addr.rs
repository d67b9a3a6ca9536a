//! Ethernet and IP addresses as they are written: on the host's command line, in its configuration
//! files, and in [`crate::net::NetConfig`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddrError {
    /// Not six bytes in hexadecimal.
    Mac(String),
    /// Not an address with a prefix length that fits it.
    IpPrefix(String),
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(text) => write!(f, "{text:?} is not a MAC address such as 02:00:00:12:34:56"),
            Self::IpPrefix(text) => {
                write!(f, "{text:?} is not an address with a prefix length such as 10.0.0.2/24")
            }
        }
    }
}

impl std::error::Error for AddrError {}

impl MacAddr {
    /// Whether it can belong to one station: neither a group's nor all zeros.
    #[must_use]
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = || AddrError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            // Unlike the standard library, an address has no sign.
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = AddrError;

    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// An address and the length of its network's prefix, written `10.0.0.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpPrefix {
    /// The station's address.
    pub addr: IpAddr,
    /// Bits of it that name the network: at most 32 or 128.
    pub prefix_len: u8,
}

impl IpPrefix {
    /// Whether `other` is in the same network.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        fn same(a: u128, b: u128, bits: u32, prefix_len: u8) -> bool {
            (a ^ b).checked_shr(bits - u32::from(prefix_len)).unwrap_or(0) == 0
        }
        match (self.addr, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same(a.to_bits().into(), b.to_bits().into(), 32, self.prefix_len)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128, self.prefix_len),
            _ => false,
        }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

impl FromStr for IpPrefix {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let parse = || {
            let (addr, prefix_len) = text.split_once('/')?;
            let addr: IpAddr = addr.parse().ok()?;
            // `u8` would also take "+24".
            let prefix_len =
                prefix_len.bytes().all(|b| b.is_ascii_digit()).then(|| prefix_len.parse().ok())??;
            (prefix_len <= if addr.is_ipv4() { 32 } else { 128 }).then_some(Self { addr, prefix_len })
        };
        parse().ok_or_else(|| AddrError::IpPrefix(text.to_owned()))
    }
}

impl TryFrom<String> for IpPrefix {
    type Error = AddrError;

    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<IpPrefix> for String {
    fn from(prefix: IpPrefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_printed_as_it_was_parsed() {
        let mac: MacAddr = "52:54:00:Ab:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5", "+2:54:00:12:34:56", "x"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(AddrError::Mac(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn a_prefix_length_must_fit_its_address() {
        for good in ["10.0.0.2/24", "10.0.0.2/0", "10.0.0.2/32", "fd00::1/128"] {
            assert_eq!(good.parse::<IpPrefix>().unwrap().to_string(), good);
        }
        for bad in ["10.0.0.2", "10.0.0.2/33", "fd00::1/129", "10.0.0.2/+8", "10.0.0.2/", "/24", "10.0.0/24"]
        {
            assert_eq!(bad.parse::<IpPrefix>(), Err(AddrError::IpPrefix(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn a_network_contains_what_shares_its_prefix() {
        let net = |text: &str| text.parse::<IpPrefix>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.2/24").contains(ip("10.0.0.254")));
        assert!(!net("10.0.0.2/24").contains(ip("10.0.1.1")));
        assert!(net("10.0.0.2/0").contains(ip("192.0.2.1")));
        assert!(!net("10.0.0.2/32").contains(ip("10.0.0.3")));
        assert!(net("fd00::2/64").contains(ip("fd00::1")));
        assert!(net("fd00::2/0").contains(ip("2001:db8::1")));
        assert!(!net("10.0.0.2/0").contains(ip("fd00::1")));
    }
}
