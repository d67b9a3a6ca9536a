//! Proxies, as the environment names them: `https_proxy` and `http_proxy` for addresses of that
//! kind, `all_proxy` for both, `no_proxy` for those that are reached directly; in capitals as well.
//! This machine itself is never reached through a proxy.
//!
//! An entry of `no_proxy` is a domain, which stands for what is below it, too; `.DOMAIN` or
//! `*.DOMAIN`, for what is below it alone; an address; a network like `10.0.0.0/8`; each perhaps
//! with a port; or `*`. A proxy is always asked to CONNECT, even for plain HTTP.

use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

use super::address::{host, is_https, is_loopback, port};
use super::error::RegistryError;

type Setting = Option<(&'static str, String)>;

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    https: Setting,
    http: Setting,
    none_for: Vec<String>,
}

impl Proxies {
    /// `variable` looks one up.
    pub(super) fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |names: &[&'static str]| -> Setting {
            names.iter().find_map(|name| {
                let value = variable(name).filter(|value| !value.is_empty())?;
                Some((*name, value))
            })
        };
        let none_for = get(&["no_proxy", "NO_PROXY"]).map(|(_, value)| value).unwrap_or_default();
        let entries = none_for.split([',', ' ']).filter(|entry| !entry.is_empty());
        Self {
            https: get(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http: get(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            none_for: entries.map(str::to_ascii_lowercase).collect(),
        }
    }

    /// The proxy on the way to this address.
    pub(super) fn for_url(&self, url: &Uri) -> Result<Option<Proxy>, RegistryError> {
        let setting = if is_https(url) { &self.https } else { &self.http };
        let Some((variable, value)) = setting else { return Ok(None) };
        let (host, port) = (host(url), port(url));
        if is_loopback(&host) || self.none_for.iter().any(|entry| covers(entry, &host, port)) {
            return Ok(None);
        }
        let refused = || RegistryError::Proxy { variable };
        let proxy = Proxy::new(value).map_err(|_| refused())?;
        match proxy.protocol() {
            ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(Some(proxy)),
            _ => Err(refused()),
        }
    }
}

fn covers(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Some((network, len)) = entry.split_once('/') {
        return match (network.parse(), len.parse(), host.parse()) {
            (Ok(network), Ok(len), Ok(host)) => is_within(host, network, len),
            _ => false,
        };
    }
    // The colons of an IPv6 address without brackets are no port's.
    let is_address = entry.parse::<IpAddr>().is_ok();
    let (name, of_port) = match entry.rsplit_once(':') {
        Some((name, of_port)) if !is_address => (name, of_port.parse::<u16>().ok()),
        _ => (entry, None),
    };
    if of_port.is_some_and(|of_port| of_port != port) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if let (Ok(name), Ok(host)) = (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return name == host;
    }
    let (domain, itself) = match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
        Some(domain) => (domain, false),
        None => (name, true),
    };
    let below = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    !domain.is_empty() && ((itself && host == domain) || below)
}

fn is_within(host: IpAddr, network: IpAddr, len: u32) -> bool {
    // Of both kinds, from the left.
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((host, size), (network, network_size)) = (bits(host), bits(network));
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(len)).unwrap_or(0);
    size == network_size && len <= size && (host ^ network) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &'static [(&str, &str)]) -> Proxies {
        Proxies::from_env(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[track_caller]
    fn host_of(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.for_url(&url.parse().unwrap()).unwrap().map(|proxy| proxy.host().to_owned())
    }

    #[test]
    fn each_kind_of_address_has_its_proxy() {
        let both =
            proxies(&[("HTTPS_PROXY", "http://s:1"), ("http_proxy", "p:2"), ("HTTP_PROXY", "other:3")]);
        assert_eq!(host_of(&both, "https://a.example/").as_deref(), Some("s"));
        assert_eq!(host_of(&both, "http://a.example/").as_deref(), Some("p"));
        assert_eq!(host_of(&both, "https://127.0.0.1:5000/"), None, "this machine");
        let all = proxies(&[("ALL_PROXY", "http://all:1"), ("HTTPS_PROXY", "")]);
        assert_eq!(host_of(&all, "https://a.example/").as_deref(), Some("all"));
        assert_eq!(host_of(&proxies(&[]), "https://a.example/"), None);
        for value in [&[("HTTPS_PROXY", "socks5://a:1")], &[("HTTPS_PROXY", "http://user:secret@ a")]] {
            let error =
                proxies(value).for_url(&"https://a.example/".parse().unwrap()).unwrap_err().to_string();
            assert_eq!(error, "HTTPS_PROXY is not the address of an HTTP proxy");
        }
    }

    #[test]
    fn no_proxy_names_domains_addresses_networks_and_ports() {
        for (entry, host, expected) in [
            ("*", "a.example", true),
            ("a.example", "a.example", true),
            ("a.example", "x.a.example", true),
            ("a.example", "xa.example", false),
            (".a.example", "a.example", false),
            (".a.example", "x.a.example", true),
            ("*.a.example", "x.a.example", true),
            ("a.example:443", "a.example", true),
            ("a.example:5000", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/8", "a.example", false),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
            ("fd00::1", "fd00::1", true),
            ("[fd00::1]:443", "fd00::1", true),
            ("10.0.0.1", "10.0.0.1", true),
            (".", "a.example", false),
        ] {
            assert_eq!(covers(entry, host, 443), expected, "{entry} {host}");
        }
        let some = proxies(&[("https_proxy", "p:1"), ("NO_PROXY", "b.example, A.example")]);
        assert_eq!(host_of(&some, "https://x.a.example/"), None);
        assert_eq!(host_of(&some, "https://c.example/").as_deref(), Some("p"));
    }
}
