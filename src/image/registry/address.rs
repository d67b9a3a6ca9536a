//! Addresses: where a registry is, where its answers lead, and which of it may be reached without
//! TLS.

use std::net::IpAddr;

use ureq::http::Uri;

use crate::image::reference::Reference;

/// The registry of names without one.
pub(super) const DOCKER_IO: &str = "docker.io";
/// The host that serves its images.
const DOCKER_IO_HOST: &str = "registry-1.docker.io";
/// Longest address that a registry may lead to, in bytes; those with signatures in them are long.
const MAX_LEN: usize = 16 << 10;

/// The host, and perhaps a port, to connect to.
pub(super) fn authority(reference: &Reference) -> &str {
    if reference.registry == DOCKER_IO { DOCKER_IO_HOST } else { &reference.registry }
}

/// `https://AUTHORITY/PATH`, or the same with `http`.
pub(super) fn url(https: bool, authority: &str, path: &str) -> Option<Uri> {
    format!("{}://{authority}/{path}", if https { "https" } else { "http" }).parse().ok()
}

pub(super) fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

/// Host without brackets, in lower case.
pub(super) fn host(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.to_ascii_lowercase()
}

pub(super) fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(if is_https(url) { 443 } else { 80 })
}

/// Whether both are one server: whoever may see the credentials of one may see those of the other.
pub(super) fn same_origin(one: &Uri, other: &Uri) -> bool {
    is_https(one) == is_https(other) && host(one) == host(other) && port(one) == port(other)
}

/// This machine, by name or address. No network is involved, but any local process may listen
/// there.
pub(super) fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().map_or_else(|_| is_localhost(host), |address| address.is_loopback())
}

/// A name of this machine. Never looked up (RFC 6761, 6.3), because DNS could name another machine.
pub(super) fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// An address for messages. Queries may contain signatures and user names.
pub(super) fn without_query(url: &Uri) -> String {
    let text = url.to_string();
    text.split('?').next().unwrap_or_default().to_owned()
}

/// Whether an answer from `from` may lead to `to`: never out of TLS, and without TLS only where the
/// user has allowed that.
pub(super) fn may_lead(from: &Uri, to: &Uri, insecure: bool) -> bool {
    is_https(to) || (!is_https(from) && (insecure || is_loopback(&host(to))))
}

/// An absolute address that somebody else wrote: HTTP or HTTPS, without a user and a password in
/// it.
pub(super) fn parse(text: &str) -> Option<Uri> {
    if text.len() > MAX_LEN {
        return None;
    }
    let text = text.split('#').next().unwrap_or_default();
    let url: Uri = text.parse().ok()?;
    let fits = matches!(url.scheme_str(), Some("http" | "https"))
        && url.host().is_some_and(|host| !host.is_empty())
        && url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    fits.then_some(url)
}

/// Where a `Location` leads (RFC 9110, 10.2.2), as far as registries use it: absolute, or from the
/// root of the host.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if location.starts_with("//") {
        return parse(&format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return parse(&format!("{scheme}://{authority}{location}"));
    }
    parse(location)
}

/// Host and port, as they stand in the address.
pub(super) fn host_of(url: &Uri) -> String {
    url.authority().map_or_else(|| host(url), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn docker_s_own_images_come_from_another_host() {
        let reference: Reference = "busybox".parse().unwrap();
        assert_eq!(authority(&reference), "registry-1.docker.io");
        let reference: Reference = "[::1]:5000/x".parse().unwrap();
        let url = url(false, authority(&reference), "v2/").unwrap();
        assert_eq!((host(&url).as_str(), port(&url)), ("::1", 5000));
        assert!(is_loopback(&host(&url)));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let base = at("https://a.example/x");
        assert!(same_origin(&base, &at("https://A.example:443/y")));
        for other in
            ["http://a.example/", "https://a.example:444/", "https://a.example.evil/", "https://b.example/"]
        {
            assert!(!same_origin(&base, &at(other)), "{other}");
        }
    }

    #[test]
    fn no_answer_leads_out_of_tls() {
        let (https, http) = (at("https://a.example/"), at("http://127.0.0.1:5000/"));
        assert!(may_lead(&https, &at("https://b.example/"), false));
        assert!(!may_lead(&https, &at("http://127.0.0.1/"), true));
        assert!(may_lead(&http, &at("http://localhost:1/"), false));
        assert!(!may_lead(&http, &at("http://b.example/"), false));
        assert!(may_lead(&http, &at("http://b.example/"), true));
    }

    #[test]
    fn loopback_is_known_by_name_and_address() {
        for host in ["localhost", "x.localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "notlocalhost", "128.0.0.1", "10.0.0.1", "::2", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn addresses_are_shown_without_their_queries() {
        assert_eq!(without_query(&at("https://a.example:5/x?Signature=secret&y")), "https://a.example:5/x");
        assert_eq!(without_query(&at("https://a.example/x")), "https://a.example/x");
    }

    #[test]
    fn locations_are_resolved_and_odd_ones_refused() {
        let base = at("https://a.example:5000/v2/x");
        for (location, expected) in [
            ("/v2/y?z", Some("https://a.example:5000/v2/y?z")),
            ("//b.example/y", Some("https://b.example/y")),
            ("http://b.example/y#part", Some("http://b.example/y")),
            ("https://user:word@b.example/", None),
            ("ftp://b.example/", None),
            ("file:///etc/passwd", None),
            ("y", None),
            ("", None),
        ] {
            let expected = expected.map(at);
            assert_eq!(resolve(&base, location), expected, "{location}");
        }
        assert_eq!(parse(&format!("https://a/{}", "x".repeat(MAX_LEN))), None);
    }
}
