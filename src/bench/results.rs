//! What a benchmark found: plain data, which is what `--json` writes and `--from` reads. Every
//! sample is in it, so any report can be drawn again.

use serde::{Deserialize, Serialize};

/// Number of this shape of the file.
pub const VERSION: u32 = 1;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// Version of the bothy that measured.
    pub bothy: String,
    /// When it began, as RFC 3339 has it.
    pub started: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether it was told to stop before its end.
    pub interrupted: bool,
    /// What ran in every instance.
    pub image: String,
    /// Runs of each peer, where a measurement is repeated.
    pub runs: usize,
    /// Where it was measured.
    pub host: Host,
    /// What was compared, in the order of all tables. The first is bothy.
    pub peers: Vec<Peer>,
    /// Figures.
    pub measures: Vec<Measure>,
    /// Where the time of a start goes.
    pub phases: Vec<Phases>,
    /// How often guests are left.
    #[serde(default)]
    pub exits: Vec<Exits>,
    /// What the memory of an idle instance is for.
    #[serde(default)]
    pub stacks: Vec<Stack>,
    /// How memory goes with the number of instances.
    pub curves: Vec<Curve>,
    /// What shows inside an instance.
    pub facts: Vec<Fact>,
}

/// The machine and its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// As /proc/cpuinfo calls it.
    pub processor: String,
    /// Logical ones.
    pub processors: usize,
    /// All of it, in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the distribution.
    pub system: String,
    /// What this machine itself runs on: `none` on bare hardware.
    pub virtualization: String,
    /// Whether its instructions are emulated, so that only ratios count.
    pub emulated: bool,
    /// What chooses the processors' frequency; `-` where nothing does.
    pub governor: String,
    /// Load average over a minute, before and after.
    pub load: [f64; 2],
}

/// A way to start something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// What it is called in every table.
    pub name: String,
    /// Its version, as it says itself.
    pub version: String,
    /// How it runs the load.
    pub how: String,
    /// Why it could not take part.
    pub missing: Option<String>,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Time to start.
    Startup,
    /// What an idle instance costs.
    Memory,
    /// How many fit.
    Density,
    /// Arithmetic.
    Cpu,
    /// What passes through a kernel.
    Syscall,
    /// Files.
    Disk,
    /// Bytes by TCP.
    Net,
    /// What shows inside.
    Isolation,
}

impl Section {
    /// In the order in which they are measured.
    pub const ALL: [Self; 8] = [
        Self::Startup,
        Self::Memory,
        Self::Density,
        Self::Cpu,
        Self::Syscall,
        Self::Disk,
        Self::Net,
        Self::Isolation,
    ];

    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Memory => "memory",
            Self::Density => "density",
            Self::Cpu => "cpu",
            Self::Syscall => "syscall",
            Self::Disk => "disk",
            Self::Net => "net",
            Self::Isolation => "isolation",
        }
    }

    /// What is said of containers that this section looks into.
    pub fn claim(self) -> &'static str {
        match self {
            Self::Startup => "Containers start faster.",
            Self::Memory => "A container has virtually no overhead; a virtual machine has its own system.",
            Self::Density => "More containers than virtual machines fit on a host.",
            Self::Cpu => "The processor runs a container's instructions directly.",
            Self::Syscall => "A virtual machine's instructions pass through a hypervisor.",
            Self::Disk => "A container's files are the host's; a virtual machine's pass through a device.",
            Self::Net => "A container's packets stay in one kernel; a virtual machine's pass through two.",
            Self::Isolation => "Containers share one kernel; each virtual machine has its own.",
        }
    }
}

/// A figure of each peer. Less is better in all of them but those of [`Unit::more_is_better`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Where it belongs.
    pub section: Section,
    /// Its name for programs.
    pub id: String,
    /// What it is.
    pub label: String,
    /// What its numbers are in.
    pub unit: Unit,
    /// What has to be known to read them.
    #[serde(default)]
    pub note: Option<String>,
    /// One for each peer, in their order.
    pub rows: Vec<Row>,
}

/// What numbers are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Time.
    Milliseconds,
    /// Time.
    Nanoseconds,
    /// Memory.
    Mebibytes,
    /// Files.
    Kibibytes,
    /// Bytes that pass, of which more are better.
    MebibytesPerSecond,
    /// A share.
    Percent,
    /// Processes, threads.
    Count,
    /// Instances, of which more are better.
    Instances,
    /// A rate, of which more is better.
    PerSecond,
}

impl Unit {
    /// Behind a number.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::Mebibytes => "MiB",
            Self::Kibibytes => "KiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::Percent => "%",
            Self::Count | Self::Instances => "",
            Self::PerSecond => "/s",
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::Instances | Self::MebibytesPerSecond)
    }
}

/// What one peer has of a measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub peer: String,
    /// As they came; none is thrown away.
    pub samples: Vec<f64>,
    /// Why there are no more of them.
    pub failure: Option<String>,
}

/// The phases of one peer's start, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Its name.
    pub peer: String,
    /// Name and length of each, in order, by run.
    pub steps: Vec<(String, Vec<f64>)>,
}

/// How often a peer's guest is left while it runs arithmetic, its start included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exits {
    /// The peer's name.
    pub peer: String,
    /// Reason, as KVM's statistics call it, and how often a second.
    pub per_second: Vec<(String, f64)>,
}

/// What the memory of a peer's idle instance is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    /// The peer's name.
    pub peer: String,
    /// Name and MiB (Pss) of each part.
    pub parts: Vec<(String, f64)>,
}

/// Instances that run at once, and what they take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The peer's name.
    pub peer: String,
    /// For each instance that was started: seconds since the first began, and by how many MiB
    /// MemAvailable has fallen.
    pub points: Vec<(f64, f64)>,
    /// Why no more were started.
    pub end: String,
}

/// One thing that shows inside each peer's instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub label: String,
    /// What shows, for each peer, in their order.
    pub values: Vec<String>,
}
