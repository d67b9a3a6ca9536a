//! The word that describes one network interface on the kernel command line: the host writes it,
//! PID 1 reads it.
//!
//! `mac=52:54:00:12:34:56,ip=10.0.0.2/24,gw=10.0.0.1,dns=10.0.0.1`; everything but `mac` may be
//! missing or stand several times, and each address may be IPv4 or IPv6.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::addr::{AddrError, IpPrefix, MacAddr};

/// How one interface is to be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    pub mac: MacAddr,
    pub addresses: Vec<IpPrefix>,
    pub gateways: Vec<IpAddr>,
    pub dns: Vec<IpAddr>,
}

/// Why a word is not a [`NetConfig`]. The text names the part at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseNetError(String);

impl fmt::Display for ParseNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseNetError {}

impl From<AddrError> for ParseNetError {
    fn from(error: AddrError) -> Self {
        Self(error.to_string())
    }
}

impl FromStr for NetConfig {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let mut mac = None;
        let (mut addresses, mut gateways, mut dns) = (Vec::new(), Vec::new(), Vec::new());
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| {
                ParseNetError(format!("{part:?} is not key=value with key mac, ip, gw or dns"))
            })?;
            match key {
                "mac" if mac.is_some() => return Err(ParseNetError("mac stands twice".to_owned())),
                "mac" => mac = Some(value.parse()?),
                "ip" => addresses.push(value.parse()?),
                "gw" => gateways.push(parse_address(value)?),
                "dns" => dns.push(parse_address(value)?),
                _ => {
                    return Err(ParseNetError(format!("unknown key {key:?}, known are mac, ip, gw and dns")));
                }
            }
        }
        let mac = mac.ok_or_else(|| ParseNetError("mac is missing".to_owned()))?;
        Ok(Self { mac, addresses, gateways, dns })
    }
}

fn parse_address(text: &str) -> Result<IpAddr, ParseNetError> {
    text.parse().map_err(|_| ParseNetError(format!("{text:?} is not an IP address")))
}

/// The word's value as [`FromStr`] reads it back.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mac={}", self.mac)?;
        self.addresses.iter().try_for_each(|ip| write!(f, ",ip={ip}"))?;
        self.gateways.iter().try_for_each(|gw| write!(f, ",gw={gw}"))?;
        self.dns.iter().try_for_each(|dns| write!(f, ",dns={dns}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "mac=52:54:00:12:34:5a,ip=10.0.0.2/24,ip=fd00::2/64,gw=10.0.0.1,dns=10.0.0.1";

    #[test]
    fn a_full_word_is_read_and_written_back() {
        let config: NetConfig = FULL.parse().unwrap();
        assert_eq!(config.mac, MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x5a]));
        assert_eq!(config.addresses.len(), 2);
        assert_eq!(config.addresses[0].prefix_len, 24);
        assert_eq!(config.to_string(), FULL);
    }

    #[test]
    fn only_the_mac_is_needed() {
        let config: NetConfig = "mac=52:54:00:12:34:56".parse().unwrap();
        assert!(config.addresses.is_empty() && config.gateways.is_empty() && config.dns.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "key=value"),
            ("ip=10.0.0.2/24", "mac is missing"),
            ("mac=52:54:00:12:34", "MAC address"),
            ("mac=52:54:00:12:34:56:78", "MAC address"),
            ("mac=52:54:00:12:34:+6", "MAC address"),
            ("mac=52:54:00:12:34:56,mac=52:54:00:12:34:56", "twice"),
            ("mac=52:54:00:12:34:56,ip=10.0.0.2", "10.0.0.2"),
            ("mac=52:54:00:12:34:56,ip=10.0.0.2/33", "10.0.0.2/33"),
            ("mac=52:54:00:12:34:56,gw=router", "router"),
            ("mac=52:54:00:12:34:56,mtu=9000", "mtu"),
        ] {
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }
}
