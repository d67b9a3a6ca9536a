//! Docker's JSON (`docker run --security-opt seccomp=FILE`), and which of its rules hold for a
//! container.

use serde::Deserialize;
use thiserror::Error;

use super::syscalls::Abi;
use crate::spec::{capability, printable};

/// The kernel that a profile's `minKernel` is compared with: bothy's own.
const KERNEL: (u32, u32) = (6, 12);
/// Longest profile, in bytes: docker's default has some 20 KiB.
const MAX_LEN: usize = 4 << 20;
/// Largest number of an error that the kernel returns.
const MAX_ERRNO: u32 = 4095;

/// What is wrong with a profile.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProfileError {
    /// Not JSON, or of another shape.
    #[error("it is not a seccomp profile: {0}")]
    Json(String),
    /// Too long.
    #[error("it has more than {MAX_LEN} bytes")]
    TooLong,
    /// Something outside of the rules.
    #[error("{0}")]
    Whole(String),
    /// A rule.
    #[error("rule {number} ({names}): {what}")]
    Rule {
        /// From 1.
        number: usize,
        /// The calls that it is for.
        names: String,
        /// What is wrong.
        what: String,
    },
    /// It needs more instructions than the kernel takes.
    #[error("it has {0} instructions when it is compiled, and the kernel takes 4096: leave out rules")]
    TooLarge(usize),
}

/// For which container a profile is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// What its processes have, a bit for each.
    pub capabilities: u64,
    /// Version of its kernel.
    pub kernel: (u32, u32),
}

impl Default for Conditions {
    fn default() -> Self {
        Self { capabilities: 0, kernel: KERNEL }
    }
}

/// A profile that has been read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub(super) default: Action,
    pub(super) abis: Vec<Abi>,
    pub(super) flags: u32,
    rules: Vec<ConditionalRule>,
}

/// What happens to a call, as the filter returns it (`SECCOMP_RET_...`).
pub(super) type Action = u32;

#[derive(Clone, Debug, PartialEq, Eq)]
struct ConditionalRule {
    rule: Rule,
    includes: When,
    excludes: When,
}

/// Some calls and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Their names.
    pub names: Vec<String>,
    pub(super) action: Action,
    /// Conditions on arguments.
    pub(super) tests: Vec<Test>,
}

/// A condition on an argument, all of whose 64 bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) comparison: Comparison,
    /// Of a masked comparison, what the masked argument must be.
    pub(super) value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal, as far as the bits of the mask go.
    Masked(u64),
}

/// When a rule holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct When {
    capabilities: Vec<u32>,
    arches: Vec<String>,
    kernel: Option<(u32, u32)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<FileRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<FileTest>>,
    includes: Option<FileWhen>,
    excludes: Option<FileWhen>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileTest {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileWhen {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    ///
    /// Each names the rule, where it is about one.
    pub fn parse(text: &[u8]) -> Result<Self, ProfileError> {
        if text.len() > MAX_LEN {
            return Err(ProfileError::TooLong);
        }
        let file: File =
            serde_json::from_slice(text).map_err(|error| ProfileError::Json(error.to_string()))?;
        let default = action(&file.default_action, file.default_errno_ret).map_err(ProfileError::Whole)?;
        let abis = abis(&file)?;
        let flags = flags(file.flags.as_deref().unwrap_or_default())?;
        let rules = (1..).zip(file.syscalls.unwrap_or_default()).map(|(number, rule)| {
            let names = shown_names(&rule);
            rule.checked().map_err(|what| ProfileError::Rule { number, names, what })
        });
        Ok(Self { default, abis, flags, rules: rules.collect::<Result<_, _>>()? })
    }

    /// The rules that hold for a container, without those that change nothing.
    pub(super) fn rules(&self, conditions: &Conditions) -> Vec<&Rule> {
        let holding = self.rules.iter().filter(|rule| rule.holds(conditions)).map(|rule| &rule.rule);
        holding.filter(|rule| rule.action != self.default).collect()
    }

    /// As the runtime specification of the Open Container Initiative has it, for runc and the like.
    pub fn oci(&self, conditions: &Conditions) -> serde_json::Value {
        use serde_json::json;
        let (default, errno) = names_of(self.default);
        let abi = |abi: &Abi| match abi {
            Abi::X86_64 => "SCMP_ARCH_X86_64",
            Abi::I386 => "SCMP_ARCH_X86",
            Abi::X32 => "SCMP_ARCH_X32",
        };
        let rules = self.rules(conditions).into_iter().map(|rule| {
            let (action, errno) = names_of(rule.action);
            let args: Vec<_> = rule.tests.iter().map(Test::oci).collect();
            json!({ "names": rule.names, "action": action, "errnoRet": errno, "args": args })
        });
        json!({
            "defaultAction": default,
            "defaultErrnoRet": errno,
            "architectures": self.abis.iter().map(abi).collect::<Vec<_>>(),
            "syscalls": rules.collect::<Vec<_>>(),
        })
    }
}

fn shown_names(rule: &FileRule) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = rule.name.iter().chain(rule.names.iter().flatten()).map(String::as_str).collect();
    let mut shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        shown.push_str(", ...");
    }
    if shown.is_empty() { "without a name".into() } else { printable(&shown) }
}

fn abis(file: &File) -> Result<Vec<Abi>, ProfileError> {
    let listed = file.architectures.as_deref().unwrap_or_default();
    let map = file.arch_map.as_deref().unwrap_or_default();
    if !listed.is_empty() && !map.is_empty() {
        return Err(ProfileError::Whole(
            "both `architectures` and `archMap` are there: leave out one".into(),
        ));
    }
    let own = map.iter().find(|entry| Abi::of(&entry.architecture) == Some(Abi::X86_64));
    let own = own.and_then(|entry| entry.sub_architectures.as_deref()).unwrap_or_default();
    // Other machines' are of no interest here; this one's own is always there.
    let mut abis: Vec<Abi> = listed.iter().chain(own).filter_map(|name| Abi::of(name)).collect();
    abis.push(Abi::X86_64);
    abis.sort_unstable();
    abis.dedup();
    Ok(abis)
}

fn flags(names: &[String]) -> Result<u32, ProfileError> {
    let flag = |name: &String| {
        Ok(match name.as_str() {
            // There is one thread.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => 2,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
            _ => {
                let name = printable(name);
                return Err(ProfileError::Whole(format!("unknown flag `{name}`")));
            }
        })
    };
    names.iter().map(flag).try_fold(0, |all, flag| Ok(all | flag?))
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_ERRNO" if number <= MAX_ERRNO => libc::SECCOMP_RET_ERRNO | number,
        "SCMP_ACT_TRACE" if number <= libc::SECCOMP_RET_DATA => libc::SECCOMP_RET_TRACE | number,
        "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => return Err(format!("{number} is too large for an error")),
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY needs a listener, which bothy has not".into()),
        _ => return Err(format!("unknown action `{}`", printable(name))),
    })
}

fn names_of(action: Action) -> (&'static str, Option<u32>) {
    let data = action & libc::SECCOMP_RET_DATA;
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_KILL_PROCESS => ("SCMP_ACT_KILL_PROCESS", None),
        libc::SECCOMP_RET_TRAP => ("SCMP_ACT_TRAP", None),
        libc::SECCOMP_RET_ERRNO => ("SCMP_ACT_ERRNO", Some(data)),
        libc::SECCOMP_RET_TRACE => ("SCMP_ACT_TRACE", Some(data)),
        libc::SECCOMP_RET_LOG => ("SCMP_ACT_LOG", None),
        libc::SECCOMP_RET_ALLOW => ("SCMP_ACT_ALLOW", None),
        _ => ("SCMP_ACT_KILL", None),
    }
}

impl FileRule {
    fn checked(self) -> Result<ConditionalRule, String> {
        let names = match (self.name, self.names.unwrap_or_default()) {
            (Some(_), names) if !names.is_empty() => return Err("both `name` and `names` are there".into()),
            (Some(name), _) => vec![name],
            (None, names) if names.is_empty() => return Err("it names no system call".into()),
            (None, names) => names,
        };
        let action = action(&self.action, self.errno_ret)?;
        let tests = self.args.unwrap_or_default().into_iter().map(FileTest::checked);
        let rule = Rule { names, action, tests: tests.collect::<Result<_, _>>()? };
        let when = |when: Option<FileWhen>| when.unwrap_or_default().checked();
        Ok(ConditionalRule { rule, includes: when(self.includes)?, excludes: when(self.excludes)? })
    }
}

impl FileTest {
    fn checked(self) -> Result<Test, String> {
        let Self { index: argument, value, value_two, op } = self;
        if argument > 5 {
            return Err(format!("argument {argument}: a system call has arguments 0 to 5"));
        }
        let comparison = match op.as_str() {
            "SCMP_CMP_NE" => Comparison::NotEqual,
            "SCMP_CMP_LT" => Comparison::Less,
            "SCMP_CMP_LE" => Comparison::LessOrEqual,
            "SCMP_CMP_EQ" => Comparison::Equal,
            "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
            "SCMP_CMP_GT" => Comparison::Greater,
            "SCMP_CMP_MASKED_EQ" => {
                return Ok(Test { argument, comparison: Comparison::Masked(value), value: value_two });
            }
            _ => return Err(format!("unknown comparison `{}`", printable(&op))),
        };
        Ok(Test { argument, comparison, value })
    }
}

impl Test {
    fn oci(&self) -> serde_json::Value {
        let (op, value, second) = match self.comparison {
            Comparison::NotEqual => ("NE", self.value, 0),
            Comparison::Less => ("LT", self.value, 0),
            Comparison::LessOrEqual => ("LE", self.value, 0),
            Comparison::Equal => ("EQ", self.value, 0),
            Comparison::GreaterOrEqual => ("GE", self.value, 0),
            Comparison::Greater => ("GT", self.value, 0),
            Comparison::Masked(mask) => ("MASKED_EQ", mask, self.value),
        };
        serde_json::json!({
            "index": self.argument, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{op}"),
        })
    }
}

impl FileWhen {
    fn checked(self) -> Result<When, String> {
        let capability = |name: String| {
            capability::number(&name).ok_or_else(|| format!("unknown capability `{}`", printable(&name)))
        };
        let capabilities = self.caps.unwrap_or_default().into_iter().map(capability);
        let kernel = self.min_kernel.map(|text| {
            let version = |text: &str| {
                let (major, minor) = text.split_once('.')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            };
            let shown = printable(&text);
            version(&text).ok_or_else(|| format!("minKernel: `{shown}` is not a version such as 4.8"))
        });
        Ok(When {
            capabilities: capabilities.collect::<Result<_, _>>()?,
            arches: self.arches.unwrap_or_default(),
            kernel: kernel.transpose()?,
        })
    }
}

impl ConditionalRule {
    fn holds(&self, conditions: &Conditions) -> bool {
        let has = |capability: &u32| {
            1_u64.checked_shl(*capability).is_some_and(|bit| conditions.capabilities & bit != 0)
        };
        let here = |arch: &String| arch == "amd64";
        let (includes, excludes) = (&self.includes, &self.excludes);
        let excluded = excludes.arches.iter().any(here)
            || excludes.capabilities.iter().any(has)
            || excludes.kernel.is_some_and(|kernel| conditions.kernel >= kernel);
        let included = (includes.arches.is_empty() || includes.arches.iter().any(here))
            && includes.capabilities.iter().all(has)
            && includes.kernel.is_none_or(|kernel| conditions.kernel >= kernel);
        included && !excluded
    }
}
