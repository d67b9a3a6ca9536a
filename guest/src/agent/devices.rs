//! Which devices a container may open: docker's rule. Root in a container may make any device node, and without this rule one of the disk, or of
//! memory, would be a way to everything in the machine.
//!
//! With cgroup v2 the rule is a BPF program on the container's cgroup, which the kernel runs at each open and each mknod.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use super::cgroup::Cgroup;
use crate::sys::{self, BpfInstruction};

/// Memory devices (null and the like), terminals in general, and pseudo-terminals.
const MEMORY: i32 = 1;
const TERMINALS: i32 = 5;
const PSEUDO_TERMINALS: i32 = 136;
/// null, zero, full, random and urandom.
const MEMORY_MINORS: [i32; 5] = [3, 5, 7, 8, 9];
/// tty, console and ptmx.
const TERMINAL_MINORS: [i32; 3] = [0, 1, 2];

/// Of `struct bpf_cgroup_dev_ctx`: access in the upper half and kind in the lower, major, minor.
const ACCESS_OFFSET: i16 = 0;
const MAJOR_OFFSET: i16 = 4;
const MINOR_OFFSET: i16 = 8;
const ACCESS_MKNOD: i32 = 1;
const KIND_CHARACTER: i32 = 2;

// `BPF_LDX | BPF_MEM | BPF_W` and so on, of <linux/bpf.h>.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const SHIFT_RIGHT: u8 = 0x77;
const AND: u8 = 0x57;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Whether the kernel compiles programs from now on.
const COMPILE: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Puts the rule on the container's cgroup.
///
/// It is interpreted, where the kernel can do that: to compile even one program takes 2 MiB, which is much of an idle machine's memory, and some
/// time of its start; and the rule is asked rarely. The container's own programs (seccomp filters above all) are compiled.
pub(crate) fn restrict(cgroup: &Cgroup) -> io::Result<()> {
    let before = fs::read_to_string(COMPILE).unwrap_or_default();
    // A kernel that compiles all of them, or none, stays as it is.
    let interpreted = fs::write(COMPILE, "0").is_ok();
    let attached = sys::attach_device_rule(cgroup.as_fd(), &rule());
    if interpreted {
        fs::write(COMPILE, before.trim())?;
    }
    attached
}

fn rule() -> Vec<BpfInstruction> {
    // Register 1 is the context, 2 to 5 are ours, 0 is the answer: 1 allows, 0 forbids.
    let step = |code, destination: u8, source: u8, offset, value| BpfInstruction {
        code,
        registers: (source << 4) | destination,
        offset,
        value,
    };
    let answer = |value| [step(MOVE, 0, 0, 0, value), step(EXIT, 0, 0, 0, 0)];
    let mut rule = vec![
        step(LOAD, 2, 1, ACCESS_OFFSET, 0),
        step(COPY, 3, 2, 0, 0),
        step(SHIFT_RIGHT, 3, 0, 0, 16),
        step(AND, 2, 0, 0, 0xffff),
        step(LOAD, 4, 1, MAJOR_OFFSET, 0),
        step(LOAD, 5, 1, MINOR_OFFSET, 0),
        // Nodes may be made; opening them is another matter.
        step(JUMP_UNLESS_EQUAL, 3, 0, 2, ACCESS_MKNOD),
    ];
    rule.extend(answer(1));
    rule.push(step(JUMP_IF_EQUAL, 2, 0, 2, KIND_CHARACTER));
    rule.extend(answer(0));
    rule.push(step(JUMP_UNLESS_EQUAL, 4, 0, 2, PSEUDO_TERMINALS));
    rule.extend(answer(1));
    for (major, minors) in [(MEMORY, &MEMORY_MINORS[..]), (TERMINALS, &TERMINAL_MINORS[..])] {
        for minor in minors {
            rule.push(step(JUMP_UNLESS_EQUAL, 4, 0, 3, major));
            rule.push(step(JUMP_UNLESS_EQUAL, 5, 0, 2, *minor));
            rule.extend(answer(1));
        }
    }
    rule.extend(answer(0));
    rule
}
