//! The texts that docker gives a container in place of the image's: /etc/hostname, /etc/hosts and
//! /etc/resolv.conf.

use std::fmt::Write as _;
use std::net::IpAddr;

/// What every container's /etc/hosts begins with.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// The container's own name stands for its addresses, or where it has none for the loopback's, so
/// that it is always known.
pub(crate) fn hosts(host_name: &str, addresses: &[IpAddr]) -> String {
    let mut text = HOSTS.to_owned();
    if addresses.is_empty() {
        let _ = writeln!(text, "127.0.0.1\t{host_name}");
    }
    for address in addresses {
        let _ = writeln!(text, "{address}\t{host_name}");
    }
    text
}

/// One line.
pub(crate) fn hostname(host_name: &str) -> String {
    format!("{host_name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_knows_its_own_name() {
        let text = hosts("web", &["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("\n10.0.0.2\tweb\nfd00::2\tweb\n"));
        assert!(hosts("web", &[]).ends_with("\n127.0.0.1\tweb\n"));
        assert_eq!(hostname("web"), "web\n");
    }
}
