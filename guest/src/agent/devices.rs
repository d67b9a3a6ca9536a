//! Which devices a container may use: the host's rules, as a BPF program on the container's cgroup
//! (v2), which the kernel runs at each open and each mknod. Root in a container may make any device
//! node, and without rules one of the disk, or of memory, would be a way to everything in the
//! machine.

use std::io;
use std::os::fd::AsFd;

use bothy_guest::spec::{DeviceKind, DeviceRule, access};

use super::cgroup::Cgroup;
use super::interpreted::Interpreted;
use crate::sys::{self, BpfInstruction};

/// Of `struct bpf_cgroup_dev_ctx`: access in the upper half and kind in the lower, major, minor.
const ACCESS_OFFSET: i16 = 0;
const MAJOR_OFFSET: i16 = 4;
const MINOR_OFFSET: i16 = 8;
const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;

// `BPF_LDX | BPF_MEM | BPF_W` and so on, of <linux/bpf.h>.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const SHIFT_RIGHT: u8 = 0x77;
const AND: u8 = 0x57;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Puts the rules on the container's cgroup. They are asked rarely, so that nothing is gained by
/// compiling them.
pub(crate) fn restrict(cgroup: &Cgroup, rules: &[DeviceRule]) -> io::Result<()> {
    let interpreted = Interpreted::open().begin();
    let attached = sys::attach_device_rule(cgroup.as_fd(), &program(rules));
    interpreted.end();
    attached
}

fn step(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> BpfInstruction {
    BpfInstruction { code, registers: (source << 4) | destination, offset, value }
}

/// Register 0 is the answer, 1 the context, 2 the kind, 3 the access, 4 and 5 the numbers; 6 is for
/// a rule's own sums.
fn program(rules: &[DeviceRule]) -> Vec<BpfInstruction> {
    let answer = |allow: bool| [step(MOVE, 0, 0, 0, i32::from(allow)), step(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        step(LOAD, 2, 1, ACCESS_OFFSET, 0),
        step(COPY, 3, 2, 0, 0),
        step(SHIFT_RIGHT, 3, 0, 0, 16),
        step(AND, 2, 0, 0, 0xffff),
        step(LOAD, 4, 1, MAJOR_OFFSET, 0),
        step(LOAD, 5, 1, MINOR_OFFSET, 0),
    ];
    // The last one that fits counts.
    for rule in rules.iter().rev() {
        // Each test jumps past the answer if it doesn't hold.
        let mut tests = Vec::new();
        if let Some(kind) = rule.kind {
            let kind = if kind == DeviceKind::Block { KIND_BLOCK } else { KIND_CHARACTER };
            tests.push((2, kind));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            tests.extend(number.map(|number| (register, number.cast_signed())));
        }
        let mut steps = Vec::new();
        let others = access::ALL & !rule.access;
        if others != 0 {
            steps.extend([step(COPY, 6, 3, 0, 0), step(AND, 6, 0, 0, others.cast_signed())]);
            tests.insert(0, (6, 0));
        }
        for (number, (register, value)) in tests.iter().enumerate() {
            // At most four tests stand before the two steps of the answer.
            let past = i16::try_from(tests.len() - number - 1 + answer(true).len()).unwrap_or(i16::MAX);
            steps.push(step(JUMP_UNLESS_EQUAL, *register, 0, past, *value));
        }
        steps.extend(answer(rule.allow));
        program.extend(steps);
    }
    program.extend(answer(false));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does, for what stands in its context.
    fn allowed(program: &[BpfInstruction], access: u32, kind: u32, major: i64, minor: i64) -> bool {
        let context = [i64::from(access << 16 | kind), major, minor];
        let (mut registers, mut at) = ([0_i64; 10], 0);
        loop {
            let BpfInstruction { code, registers: names, offset, value } = program[at];
            let (destination, source) = (usize::from(names & 15), usize::from(names >> 4));
            at += 1;
            match code {
                LOAD => registers[destination] = context[usize::try_from(offset).unwrap() / 4],
                MOVE => registers[destination] = value.into(),
                COPY => registers[destination] = registers[source],
                SHIFT_RIGHT => registers[destination] >>= value,
                AND => registers[destination] &= i64::from(value),
                JUMP_UNLESS_EQUAL if registers[destination] != i64::from(value) => {
                    at += usize::try_from(offset).unwrap();
                }
                JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let rule = |allow, kind, major, minor, access| DeviceRule { allow, kind, major, minor, access };
        let character = Some(DeviceKind::Character);
        let program = program(&[
            rule(false, None, None, None, access::ALL),
            rule(true, None, None, None, access::MAKE),
            rule(true, character, Some(1), Some(3), access::ALL),
            rule(true, character, Some(136), None, access::READ | access::WRITE),
            rule(false, character, Some(136), Some(7), access::WRITE),
        ]);
        let (block, character) = (1, 2);
        for (access, kind, major, minor, expected) in [
            (access::MAKE, block, 254, 0, true),
            (access::READ, block, 254, 0, false),
            (access::READ | access::WRITE, character, 1, 3, true),
            (access::READ, block, 1, 3, false),
            (access::READ, character, 1, 1, false),
            (access::READ | access::WRITE, character, 136, 5, true),
            // A rule for writing says nothing of what also reads.
            (access::READ | access::WRITE, character, 136, 7, true),
            (access::WRITE, character, 136, 7, false),
        ] {
            assert_eq!(
                allowed(&program, access, kind, major, minor),
                expected,
                "{access} {kind} {major}:{minor}"
            );
        }
        assert!(!allowed(&super::program(&[]), access::READ, character, 1, 3));
    }
}
