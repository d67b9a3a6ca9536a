//! Where the agent keeps what it makes for a container.

/// The container's root.
pub(crate) const ROOT: &str = "/run/root";
/// What the host lends.
pub(crate) const LENT: &str = "/run/lent";
/// The container's own /etc/hostname, /etc/hosts and /etc/resolv.conf.
pub(crate) const FILES: &str = "/run/files";
/// Name below [`FILES`], and path in the container.
pub(crate) const OWN_FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];
