//! A network of its own for the measurement, in two namespaces that nothing else of this machine is
//! in, and that are gone with the processes in them: the host's side, where the load serves and
//! virtual machines have their taps; and the containers', with one end of a veth pair.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bench::program::{Call, last_line, run_to_end};

/// The load that needs it, before it is told where the other side is.
pub(super) const NET: [&str; 1] = ["net"];
/// How a complaint begins.
const NO_NETWORK: &str = "no network can be made";
/// Where the load serves.
const PORT: u16 = 5201;
/// On the host's side; all is of a block that is for documentation, and so is nobody's.
const HOST: [&str; 3] = ["192.0.2.1", "192.0.2.5", "192.0.2.9"];
/// Makes the host's side, and serves: the load, the port, and the addresses beside bothy's tap and
/// QEMU's.
const SERVE: &str = "ip link set lo up &&
    ip tuntap add dev bothy0 mode tap && ip addr add $3/30 dev bothy0 && ip link set bothy0 up &&
    ip tuntap add dev bothy1 mode tap vnet_hdr && ip addr add $4/30 dev bothy1 && ip link set bothy1 up &&
    exec \"$1\" serve $2";
/// Makes the containers' side, from the host's: a process there, and the host's address.
const JOIN: &str = "ip link add veth0 type veth peer name eth0 netns \"$1\" &&
    ip addr add $2/30 dev veth0 && ip link set veth0 up &&
    nsenter --net=/proc/\"$1\"/ns/net sh -c 'ip link set lo up && ip addr add 192.0.2.6/30 dev eth0 && ip link set eth0 up'";

/// Two processes that keep a namespace each. They end when this is dropped.
pub(super) struct Network {
    host: Holder,
    containers: Holder,
}

/// Whose place in the network it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A process in the host's namespace.
    Host,
    /// bothy's virtual machine.
    Bothy,
    /// A container.
    Container,
    /// QEMU's virtual machine.
    Qemu,
}

impl Place {
    /// Where it reaches the load that serves.
    pub(super) fn server(self) -> String {
        let host = match self {
            Self::Host => "127.0.0.1",
            Self::Bothy => HOST[0],
            Self::Container => HOST[1],
            Self::Qemu => HOST[2],
        };
        format!("{host}:{PORT}")
    }

    /// The word of `bothy run --net`.
    pub(super) fn tap(self) -> &'static str {
        match self {
            Self::Qemu => "tap=bothy1,ip=192.0.2.10/30",
            _ => "tap=bothy0,ip=192.0.2.2/30",
        }
    }
}

impl Network {
    /// Makes it, as root. The error is one line.
    pub(super) fn make(load: &Path) -> Result<Self, String> {
        let containers = Holder::start("exec \"$1\" wait", load, &[])?;
        let host = Holder::start(SERVE, load, &[&PORT.to_string(), HOST[0], HOST[2]])?;
        let network = Self { host, containers };
        let mut join = Command::new("nsenter");
        join.arg(format!("--net={}", network.host_namespace()));
        join.args(["sh", "-c", JOIN, "sh", &network.containers.0.id().to_string(), HOST[1]]);
        run_to_end(Call::new(join)).map_err(|why| format!("{NO_NETWORK}: {why}"))?;
        Ok(network)
    }

    /// The host's side, as a file.
    pub(super) fn host_namespace(&self) -> String {
        self.host.namespace()
    }

    /// The containers' side, as a file.
    pub(super) fn container_namespace(&self) -> String {
        self.containers.namespace()
    }
}

/// A process in a network namespace of its own.
struct Holder(Child);

impl Holder {
    /// Runs a script that becomes the load, and waits until that says something.
    fn start(script: &str, load: &Path, more: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("setpriv");
        // It goes with this process, whatever ends that.
        command
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", script, "sh"])
            .arg(load)
            .args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("setpriv: {error}"))?;
        let read = child.stdout.as_mut().map(|stdout| stdout.read(&mut [0; 16]));
        if matches!(read, Some(Ok(length)) if length > 0) {
            return Ok(Self(child));
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!("{NO_NETWORK}: {}", last_line(&text).unwrap_or("no reason is given")))
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}
