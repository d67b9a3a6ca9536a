//! System calls by name.

use std::sync::OnceLock;

/// Marks a number as one of x32 (`__X32_SYSCALL_BIT`).
pub(super) const X32: u32 = 0x4000_0000;

/// What a process's system calls are numbered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Abi {
    X86_64,
    I386,
    X32,
}

impl Abi {
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::X86_64, Self::I386, Self::X32];

    /// As the kernel calls it (`AUDIT_ARCH_...`); x32 is told from x86-64 by its numbers.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
        }
    }

    /// As libseccomp calls it.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X86" => Some(Self::I386),
            "SCMP_ARCH_X32" => Some(Self::X32),
            _ => None,
        }
    }
}

/// The number of a call; `None` if there is no such call there.
pub(super) fn number(name: &str, abi: Abi) -> Option<u32> {
    static TABLE: OnceLock<Vec<Line>> = OnceLock::new();
    let table = TABLE.get_or_init(table);
    let found = table.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    table[found].1[abi as usize].map(|number| if abi == Abi::X32 { number | X32 } else { number })
}

/// A name, and its number by each [`Abi`].
type Line = (&'static str, [Option<u32>; 3]);

fn table() -> Vec<Line> {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let mut number = || words.next().and_then(|word| word.parse().ok());
        Some((name, [number(), number(), number()]))
    };
    include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#')).filter_map(line).collect()
}

/// The call that stands for another one on i386, with the number that is its first argument:
/// socketcall(2) or ipc(2).
pub(super) fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    const SOCKETCALL: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    let of_socketcall = (1..).zip(SOCKETCALL).find(|(_, call)| *call == name);
    let of_ipc = || IPC.iter().find(|(call, _)| *call == name).map(|(_, number)| ("ipc", *number));
    of_socketcall.map(|(number, _)| ("socketcall", number)).or_else(of_ipc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, [x86_64, i386, x32]) in [
            ("read", [Some(0), Some(3), Some(X32)]),
            ("socketcall", [None, Some(102), None]),
            ("socket", [Some(41), Some(359), Some(X32 | 41)]),
            ("execve", [Some(59), Some(11), Some(X32 | 520)]),
            ("clone3", [Some(435), Some(435), Some(X32 | 435)]),
            ("no_such_call", [None; 3]),
        ] {
            assert_eq!(number(name, Abi::X86_64), x86_64, "{name}");
            assert_eq!(number(name, Abi::I386), i386, "{name}");
            assert_eq!(number(name, Abi::X32), x32, "{name}");
        }
        assert!(table().is_sorted());
        assert_eq!(multiplexed("sendmmsg"), Some(("socketcall", 20)));
        assert_eq!(multiplexed("shmctl"), Some(("ipc", 24)));
        assert_eq!(multiplexed("read"), None);
    }
}
