//! Ways to start something: a plain process, a container engine, a hypervisor. Each is an
//! [`Executor`], so that one more is one more row.

use std::path::PathBuf;
use std::time::Duration;

use super::results::Peer;

/// One way to start a load.
pub trait Executor {
    /// What it is, and why it can't take part if so.
    fn peer(&self) -> Peer;

    /// Runs a load to its end in a new instance. The error is one line.
    fn run(&mut self, load: &[&str]) -> Result<Run, String>;

    /// Starts a load that says `ready` and stays, in a new instance.
    fn start(&mut self, load: &[&str]) -> Result<Box<dyn Instance>, String>;

    /// The files that a start of it reads.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Bytes on disk of whatever it keeps for its instances; an error, in a line, if that isn't
    /// known.
    fn kept(&self) -> Result<u64, String> {
        Ok(0)
    }

    /// Runs a load to its end, and tells what it knows of that; `None` if it knows nothing.
    fn details(&mut self, _load: &[&str]) -> Result<Option<Details>, String> {
        Ok(None)
    }
}

/// What a hypervisor knows of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Where the time went, in milliseconds, in order.
    pub phases: Vec<(String, f64)>,
    /// How often the guest was left, by reason.
    pub exits: Vec<(String, f64)>,
}

/// One run of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// From exec to the first byte of output.
    pub first_output: Duration,
    /// From exec to the end of the process that was started.
    pub exit: Duration,
    /// What the load printed.
    pub output: String,
}

/// An instance that runs. It ends when this is dropped.
pub trait Instance {
    /// What all its processes on this machine hold now.
    fn usage(&self) -> Result<Usage, String>;

    /// Memory by what it is for.
    fn parts(&self) -> Result<Parts, String>;

    /// All its processes on this machine.
    fn processes(&self) -> Result<Vec<u32>, String>;

    /// Waits until the load has printed a line that begins so, and gives the rest of the line.
    fn hear(&mut self, line: &str) -> Result<String, String>;
}

/// Memory by what it is for, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// That of a guest, if there is one: its size, and what this machine holds of it (Pss).
    pub guest: Option<(u64, u64)>,
    /// All else, by the name of the process (Pss).
    pub processes: Vec<(String, u64)>,
}

/// What processes hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Their proportional share of memory (Pss), in bytes.
    pub pss: u64,
    /// What of their resident memory others use as well, in bytes: Rss without Pss.
    pub shared: u64,
    /// How many they are.
    pub processes: usize,
    /// Their threads.
    pub threads: usize,
    /// Processor time since they began.
    pub cpu: Duration,
}
