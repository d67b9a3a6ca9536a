//! Rules into classic BPF (`Documentation/userspace-api/seccomp_filter.rst` of the kernel).
//!
//! For each way to number calls the filter has a tree of comparisons: ranges of numbers that are
//! treated alike are leaves. Calls with conditions on arguments have a few instructions more at
//! their leaf.

use std::collections::BTreeMap;

use bothy_guest::spec::{Filter, Instruction};

use super::profile::{Action, Comparison, Conditions, Profile, ProfileError, Rule, Test};
use super::syscalls::{Abi, X32, multiplexed, number};

/// What the kernel takes (`BPF_MAXINSNS`).
const MAX_LEN: usize = 4096;
/// Where things stand in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// A call of a kind that the profile doesn't have ends its thread, as with libseccomp.
const FOREIGN: Action = libc::SECCOMP_RET_KILL_THREAD;

/// A profile, and those of its rules that hold.
struct Program<'a> {
    profile: &'a Profile,
    rules: Vec<&'a Rule>,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Always(Action),
    /// The first alternative whose tests all hold, or else the default.
    First(Vec<(Vec<Test>, Action)>),
}

impl Profile {
    /// The filter for a container.
    ///
    /// # Errors
    ///
    /// A profile that is too large.
    pub fn compile(&self, conditions: &Conditions) -> Result<Filter, ProfileError> {
        compile(&Program { profile: self, rules: self.rules(conditions) })
    }
}

fn compile(program: &Program<'_>) -> Result<Filter, ProfileError> {
    let has = |abi: Abi| program.profile.abis.contains(&abi);
    let part = |abi: Abi| ranges(&program.verdicts(abi), program.default_of(abi), abi);
    // x32's numbers follow behind x86-64's, in the same tree.
    let mut native = part(Abi::X86_64);
    native.retain(|(first, _)| *first < X32);
    native.extend(if has(Abi::X32) { part(Abi::X32) } else { vec![(X32, Verdict::Always(FOREIGN))] });
    let native = tree(&native, program.profile.default);
    let foreign = if has(Abi::I386) { tree(&part(Abi::I386), program.profile.default) } else { Vec::new() };
    let load_number = load(NUMBER);
    let mut all = vec![load(ARCH)];
    for (abi, part) in [(Abi::X86_64, native), (Abi::I386, foreign)] {
        if part.is_empty() {
            continue;
        }
        // Parts are longer than a condition can jump.
        all.push(jump(libc::BPF_JEQ, abi.audit(), 1, 0));
        all.push(always(part.len() + 1));
        all.push(load_number);
        all.extend(part);
    }
    all.push(answer(FOREIGN));
    if all.len() > MAX_LEN {
        return Err(ProfileError::TooLarge(all.len()));
    }
    Ok(Filter { flags: program.profile.flags, program: all })
}

impl Program<'_> {
    /// What happens to each call that a rule names.
    fn verdicts(&self, abi: Abi) -> BTreeMap<u32, Verdict> {
        let mut verdicts = BTreeMap::new();
        for rule in &self.rules {
            for name in &rule.names {
                if let Some(number) = number(name, abi) {
                    add(&mut verdicts, number, rule.alternatives(), rule.action);
                }
                if abi == Abi::I386
                    && let Some((call, kind)) = multiplexed(name)
                    && let Some(number) = number(call, abi)
                {
                    let test = Test { argument: 0, comparison: Comparison::Equal, value: kind };
                    add(&mut verdicts, number, vec![vec![test]], rule.action);
                }
            }
        }
        verdicts
    }

    /// What happens to all other calls, up to the largest that is named; and to those behind it.
    fn default_of(&self, abi: Abi) -> (Action, Action) {
        let default = self.profile.default;
        let is_error = default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
        let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
        let has_any = self.rules.iter().flat_map(|rule| &rule.names).any(|name| number(name, abi).is_some());
        (default, if is_error && has_any { missing } else { default })
    }
}

impl Rule {
    /// The sets of tests of which one must hold. Two tests of one argument can't both be meant.
    fn alternatives(&self) -> Vec<Vec<Test>> {
        let mut arguments: Vec<u32> = self.tests.iter().map(|test| test.argument).collect();
        arguments.sort_unstable();
        if arguments.windows(2).any(|pair| pair[0] == pair[1]) {
            self.tests.iter().map(|test| vec![*test]).collect()
        } else {
            vec![self.tests.clone()]
        }
    }
}

fn add(verdicts: &mut BTreeMap<u32, Verdict>, number: u32, alternatives: Vec<Vec<Test>>, action: Action) {
    let verdict = verdicts.entry(number).or_insert_with(|| Verdict::First(Vec::new()));
    let Verdict::First(known) = verdict else { return };
    if alternatives.iter().any(Vec::is_empty) {
        *verdict = Verdict::Always(action);
    } else {
        known.extend(alternatives.into_iter().map(|tests| (tests, action)));
    }
}

/// The first number of each range, from the smallest that the calls of this kind have, and what
/// happens in it.
fn ranges(
    verdicts: &BTreeMap<u32, Verdict>,
    (default, behind): (Action, Action),
    abi: Abi,
) -> Vec<(u32, Verdict)> {
    let first = if abi == Abi::X32 { X32 } else { 0 };
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |first: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((first, verdict));
        }
    };
    let mut next = first;
    for (number, verdict) in verdicts {
        if *number > next {
            push(next, Verdict::Always(default));
        }
        push(*number, verdict.clone());
        next = number + 1;
    }
    push(next, Verdict::Always(behind));
    ranges
}

/// Finds the range that the number lies in.
fn tree(ranges: &[(u32, Verdict)], default: Action) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [(_, Verdict::Always(action))] => vec![answer(*action)],
        [(_, Verdict::First(alternatives))] => {
            let mut steps: Vec<Instruction> =
                alternatives.iter().flat_map(|(tests, action)| alternative(tests, *action)).collect();
            steps.push(answer(default));
            steps
        }
        ranges => {
            let (below, from) = ranges.split_at(ranges.len() / 2);
            let (first, below, from) = (from[0].0, tree(below, default), tree(from, default));
            let mut steps = match u8::try_from(below.len()) {
                Ok(past) => vec![jump(libc::BPF_JGE, first, past, 0)],
                Err(_) => vec![jump(libc::BPF_JGE, first, 0, 1), always(below.len())],
            };
            steps.extend(below);
            steps.extend(from);
            steps
        }
    }
}

/// Answers if all tests hold, and otherwise goes on behind itself.
fn alternative(tests: &[Test], action: Action) -> Vec<Instruction> {
    let mut steps = vec![answer(action)];
    // From the end, so that each knows how far it is to what comes behind.
    for test in tests.iter().rev() {
        let failed = steps.len();
        let mut with = test.steps(failed);
        with.extend(steps);
        steps = with;
    }
    steps
}

impl Test {
    /// Goes on behind itself if the test holds, and otherwise jumps `failed` instructions further.
    fn steps(&self, failed: usize) -> Vec<Instruction> {
        // A rule has six tests at most, of six instructions each.
        let failed = u8::try_from(failed).unwrap_or(u8::MAX);
        let (low, high) = halves(self.value);
        // x86 is little-endian.
        let at = ARGUMENTS + 8 * self.argument;
        let (load_low, load_high) = (load(at), load(at + 4));
        match self.comparison {
            Comparison::Equal => vec![
                load_high,
                jump(libc::BPF_JEQ, high, 0, failed + 2),
                load_low,
                jump(libc::BPF_JEQ, low, 0, failed),
            ],
            Comparison::NotEqual => vec![
                load_high,
                jump(libc::BPF_JEQ, high, 0, 2),
                load_low,
                jump(libc::BPF_JEQ, low, failed, 0),
            ],
            Comparison::Masked(mask) => {
                let (mask_low, mask_high) = halves(mask);
                vec![
                    load_high,
                    and(mask_high),
                    jump(libc::BPF_JEQ, high, 0, failed + 3),
                    load_low,
                    and(mask_low),
                    jump(libc::BPF_JEQ, low, 0, failed),
                ]
            }
            Comparison::Greater | Comparison::GreaterOrEqual => {
                let last = if self.comparison == Comparison::Greater { libc::BPF_JGT } else { libc::BPF_JGE };
                vec![
                    load_high,
                    jump(libc::BPF_JGT, high, 3, 0),
                    jump(libc::BPF_JEQ, high, 0, failed + 2),
                    load_low,
                    jump(last, low, 0, failed),
                ]
            }
            Comparison::Less | Comparison::LessOrEqual => {
                let last = if self.comparison == Comparison::Less { libc::BPF_JGE } else { libc::BPF_JGT };
                vec![
                    load_high,
                    jump(libc::BPF_JGT, high, failed + 3, 0),
                    jump(libc::BPF_JEQ, high, 0, 2),
                    load_low,
                    jump(last, low, failed, 0),
                ]
            }
        }
    }
}

/// The lower and the upper half.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

fn step(code: u32, value: u32) -> Instruction {
    Instruction { code: u16::try_from(code).unwrap_or(u16::MAX), value, ..Instruction::default() }
}

fn load(offset: u32) -> Instruction {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn and(mask: u32) -> Instruction {
    step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask)
}

fn answer(action: Action) -> Instruction {
    step(libc::BPF_RET | libc::BPF_K, action)
}

/// Jumps so many instructions further if the condition holds, or so many if not.
fn jump(condition: u32, value: u32, holds: u8, fails: u8) -> Instruction {
    let step = step(libc::BPF_JMP | condition | libc::BPF_K, value);
    Instruction { jump_true: holds, jump_false: fails, ..step }
}

fn always(past: usize) -> Instruction {
    // A filter that is so long is refused.
    step(libc::BPF_JMP | libc::BPF_JA, u32::try_from(past).unwrap_or(u32::MAX))
}
