//! What the command's process and the VM's process say to each other.
//!
//! From the command: single bytes ([`Order`]). From the VM: one [`Report`] as JSON when it has ended or failed to start,
//! and then the end of the stream. A VM that dies without a report is told by the stream's end alone.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::timeline::Times;

/// What the command wants of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Ask the guest to power off.
    PressPowerButton = b'p',
    /// End at once, as the user wishes.
    Quit = b'q',
    /// End at once, because the guest didn't answer.
    Kill = b'k',
}

impl Order {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::PressPowerButton, Self::Quit, Self::Kill].into_iter().find(|order| *order as u8 == byte)
    }
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The VM couldn't be made: the chain of reasons.
    Failed(Vec<String>),
    /// The VM ran and ended.
    Ended {
        /// Why.
        outcome: Outcome,
        /// When each step happened.
        times: Times,
        /// Exits by reason, if they were asked for.
        exits: Option<Exits>,
    },
}

/// How often the guest was left, over all vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// KVM's own counters by name, in KVM's order; empty where the host's KVM has none.
    pub kvm: Vec<(String, u64)>,
    /// Exits that reached user space.
    pub user: UserExits,
}

/// Exits that reached user space, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserExits {
    /// Port I/O.
    pub port_io: u64,
    /// Memory-mapped I/O.
    pub mmio: u64,
    /// Signals and requests to run again.
    pub interrupted: u64,
    /// Anything else.
    pub other: u64,
}

impl Report {
    pub(super) fn send(&self, socket: &mut UnixStream) -> io::Result<()> {
        socket.write_all(&serde_json::to_vec(self)?)
    }

    /// Reads the report; `None` if the VM's process died without one.
    pub fn receive(socket: &mut UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        match socket.read_to_end(&mut bytes) {
            // It ended without having read our last order; what it said before that has arrived.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            done => drop(done?),
        }
        if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&bytes)?)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let (mut vm, mut command) = UnixStream::pair().unwrap();
        Report::Failed(vec!["a".into(), "b".into()]).send(&mut vm).unwrap();
        drop(vm);
        let Some(Report::Failed(chain)) = Report::receive(&mut command).unwrap() else { panic!() };
        assert_eq!(chain, ["a", "b"]);
    }

    #[test]
    fn a_vm_that_dies_silently_is_no_report() {
        let (vm, mut command) = UnixStream::pair().unwrap();
        drop(vm);
        assert!(Report::receive(&mut command).unwrap().is_none());
    }

    #[test]
    fn a_vm_that_ends_with_an_order_unread_is_still_heard() {
        for report in [true, false] {
            let (mut vm, mut command) = UnixStream::pair().unwrap();
            command.write_all(&[Order::PressPowerButton as u8]).unwrap();
            if report {
                Report::Failed(vec!["a".into()]).send(&mut vm).unwrap();
            }
            drop(vm);
            assert_eq!(Report::receive(&mut command).unwrap().is_some(), report);
        }
    }

    #[test]
    fn every_order_is_understood_and_nothing_else() {
        for order in [Order::PressPowerButton, Order::Quit, Order::Kill] {
            assert_eq!(Order::from_byte(order as u8), Some(order));
        }
        assert_eq!(Order::from_byte(0), None);
    }
}
