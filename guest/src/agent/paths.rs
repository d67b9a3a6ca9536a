//! Where the agent keeps what it makes for a container.

/// The agent's own directory, a file system in memory.
pub(crate) const RUN: &str = "/run";

/// The container's own /etc/hostname, /etc/hosts and /etc/resolv.conf: name below [`Paths::files`],
/// and path in the container.
pub(crate) const OWN_FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// The paths of one container.
#[derive(Clone, Debug)]
pub(crate) struct Paths(String);

impl Paths {
    pub(crate) fn of(container: u32) -> Self {
        Self(format!("{RUN}/containers/{container}"))
    }

    /// The image's file system.
    pub(crate) fn image(&self) -> String {
        self.below("image")
    }

    /// The file system that takes writes.
    pub(crate) fn upper(&self) -> String {
        self.below("upper")
    }

    /// The container's root.
    pub(crate) fn root(&self) -> String {
        self.below("root")
    }

    /// The file system that the host lends.
    pub(crate) fn lent(&self) -> String {
        self.below("lent")
    }

    /// The files of [`OWN_FILES`].
    pub(crate) fn files(&self) -> String {
        self.below("files")
    }

    fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}
