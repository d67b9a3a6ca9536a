//! What a container is to be, as plain data. The host decides all of it; the agent does what it
//! receives and adds no policy of its own.
//!
//! Paths are absolute paths in the container. Numbers are those of Linux on x86-64.

use serde::{Deserialize, Serialize};

/// What all processes of a container share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Of the UTS namespace, and in /etc/hostname and /etc/hosts.
    pub host_name: String,
    /// File systems of the kernel's, in the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Device nodes, made on one of `mounts`.
    pub devices: Vec<Device>,
    /// Symbolic links, made on one of `mounts`.
    pub links: Vec<Link>,
    /// Applied when everything is mounted. Later ones may lie below earlier ones.
    pub protections: Vec<Protection>,
    /// Written before the container can see them.
    pub sysctls: Vec<Sysctl>,
    /// Which devices its processes may use: the last rule that fits counts, and what none fits is
    /// refused. `None` allows all.
    pub device_rules: Option<Vec<DeviceRule>>,
}

/// A new instance of one of the kernel's file systems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where. On an earlier mount the directory is made if it is missing; in the container's root
    /// it must be a directory.
    pub target: String,
    /// As `mount -t` takes it.
    pub kind: String,
    /// `KEY=VALUE` or `KEY`, with commas between them.
    pub options: String,
    /// Of [`attribute`].
    pub attributes: u32,
    /// A kernel without this file system is no error.
    pub optional: bool,
}

/// `MOUNT_ATTR_...` of mount_setattr(2).
pub mod attribute {
    /// Nothing can be written.
    pub const READ_ONLY: u32 = 0x1;
    /// No set-user-ID bit counts.
    pub const NO_SUID: u32 = 0x2;
    /// No device node can be opened.
    pub const NO_DEV: u32 = 0x4;
    /// No program can be executed.
    pub const NO_EXEC: u32 = 0x8;
    /// Each access sets the time of access.
    pub const STRICT_ATIME: u32 = 0x20;
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where.
    pub path: String,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
}

/// A symbolic link. One that is there already stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where.
    pub path: String,
    /// What it names.
    pub target: String,
}

/// A path that the container may not use, or not write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Which path.
    pub path: String,
    /// How.
    pub how: Protect,
    /// A kernel may lack this path: if it is missing there is nothing to protect.
    pub optional: bool,
}

/// How a path is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protect {
    /// Covered: a file by /dev/null, a directory by an empty one.
    Mask,
    /// Read-only, with all that is mounted below it.
    ReadOnly,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// As sysctl(8) names it, such as `vm.max_map_count`.
    pub name: String,
    /// What is written there.
    pub value: String,
    /// A kernel without it is no error.
    pub optional: bool,
}

/// Which devices may be used, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Or refuses.
    pub allow: bool,
    /// Character or block devices; `None` is both.
    pub kind: Option<DeviceKind>,
    /// `None` is any.
    pub major: Option<u32>,
    /// `None` is any.
    pub minor: Option<u32>,
    /// A sum of [`access`].
    pub access: u32,
}

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Disks and the like.
    Block,
    /// All others.
    Character,
}

/// `BPF_DEVCG_ACC_...`: what can be done with a device.
pub mod access {
    /// Make a node of it.
    pub const MAKE: u32 = 1;
    /// Open it for reading.
    pub const READ: u32 = 2;
    /// Open it for writing.
    pub const WRITE: u32 = 4;
    /// Anything.
    pub const ALL: u32 = MAKE | READ | WRITE;
}

/// What one process of a container may do. Its children inherit it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Of the user that it begins as; what the kernel takes from a user that isn't root is taken
    /// when its program starts.
    pub capabilities: Capabilities,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// No program can gain rights by its file's bits.
    pub no_new_privileges: bool,
    /// The system calls that it may make; `None` is all.
    pub seccomp: Option<Filter>,
}

/// The five sets of capabilities(7), a bit for each capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What it and its children can ever have.
    pub bounding: u64,
    /// What counts.
    pub effective: u64,
    /// What it can make effective.
    pub permitted: u64,
    /// What programs with such a file capability keep.
    pub inheritable: u64,
    /// What all programs keep.
    pub ambient: u64,
}

/// A resource limit. Where the kernel allows no such increase the limit becomes as high as it
/// allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `RLIMIT_...`.
    pub resource: u32,
    /// `u64::MAX` is none.
    pub soft: u64,
    /// `u64::MAX` is none.
    pub hard: u64,
}

/// A seccomp filter: classic BPF over `struct seccomp_data`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_...`.
    pub flags: u32,
    /// At most 4096, as many as the kernel takes.
    pub program: Vec<Instruction>,
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions to pass over if the condition holds.
    pub jump_true: u8,
    /// How many if it doesn't.
    pub jump_false: u8,
    /// The operand.
    pub value: u32,
}
