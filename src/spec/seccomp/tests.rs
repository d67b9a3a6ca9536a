use super::run::{Call, I386, X86_64, run};
use super::syscalls::{Abi, X32, number};
use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.unsigned_abs()
}

fn profile(text: &str) -> Profile {
    Profile::parse(text.as_bytes()).unwrap()
}

/// A filter, to be asked.
struct Asked(Filter);

impl Asked {
    fn of(text: &str) -> Self {
        Self(profile(text).compile(&Conditions::default()).unwrap())
    }

    fn docker(capabilities: u64) -> Self {
        Self(Seccomp::Default.filter(capabilities).unwrap().unwrap())
    }

    fn call(&self, name: &str, abi: Abi, arguments: &[u64]) -> u32 {
        let mut call = Call { number: number(name, abi).unwrap(), arch: abi.audit(), ..Call::default() };
        call.arguments[..arguments.len()].copy_from_slice(arguments);
        self.answer(&call)
    }

    fn native(&self, name: &str, arguments: &[u64]) -> u32 {
        self.call(name, Abi::X86_64, arguments)
    }

    fn answer(&self, call: &Call) -> u32 {
        run(&self.0.program, call).expect("a filter that the kernel takes")
    }
}

const DEFAULT: u64 = 0xa804_25fb;
const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn docker_s_profile_allows_and_refuses_what_docker_does() {
    let filter = Asked::docker(DEFAULT);
    for abi in Abi::ALL {
        for (name, expected) in [
            ("read", ALLOW),
            ("execve", ALLOW),
            ("ptrace", ALLOW),
            ("chroot", ALLOW),
            ("mount", errno(libc::EPERM)),
            ("unshare", errno(libc::EPERM)),
            ("bpf", errno(libc::EPERM)),
            ("keyctl", errno(libc::EPERM)),
            ("io_uring_setup", errno(libc::EPERM)),
            ("clone3", errno(libc::ENOSYS)),
            ("clone", ALLOW),
            ("socket", ALLOW),
        ] {
            assert_eq!(filter.call(name, abi, &[]), expected, "{name} {abi:?}");
        }
        // The kernel takes 32 bits of it, the filter sees 64.
        for upper in [1_u64 << 32, u64::MAX << 32] {
            for family in [38, 40] {
                assert_eq!(filter.call("socket", abi, &[upper | family]), errno(1), "{family} {abi:?}");
            }
        }
        for (family, expected) in
            [(1, ALLOW), (37, ALLOW), (38, errno(1)), (39, ALLOW), (40, errno(1)), (41, ALLOW)]
        {
            assert_eq!(filter.call("socket", abi, &[family]), expected, "family {family} {abi:?}");
        }
        assert_eq!(filter.call("clone", abi, &[0x1000_0000]), errno(1), "a user namespace, {abi:?}");
        assert_eq!(filter.call("personality", abi, &[0x20008]), ALLOW);
        assert_eq!(filter.call("personality", abi, &[1]), errno(1));
    }
    // What isn't known yet is missing.
    assert_eq!(filter.answer(&Call::native(2000)), errno(libc::ENOSYS));
    assert_eq!(filter.answer(&Call { number: 2000, arch: I386, ..Call::default() }), errno(libc::ENOSYS));
    // Another machine's.
    assert_eq!(filter.answer(&Call { number: 0, arch: 0x4000_0028, ..Call::default() }), KILL);
    assert!(filter.0.program.len() < 1500, "{}", filter.0.program.len());
}

#[test]
fn docker_s_profile_depends_on_capabilities() {
    let filter = Asked::docker(DEFAULT | SYS_ADMIN);
    for name in ["mount", "unshare", "clone3", "setns"] {
        assert_eq!(filter.native(name, &[0x1000_0000]), ALLOW, "{name}");
    }
    assert_eq!(filter.native("clone", &[0x1000_0000]), ALLOW);
    assert_eq!(Asked::docker(0).native("chroot", &[]), errno(1));
}

#[test]
fn unconfined_leaves_all_but_sockets_to_the_host() {
    let filter = Asked(Seccomp::Unconfined.filter(DEFAULT).unwrap().unwrap());
    for abi in Abi::ALL {
        for family in [40, (1 << 32) | 40, (u64::MAX << 32) | 40] {
            assert_eq!(filter.call("socket", abi, &[family]), errno(1));
        }
        assert_eq!(filter.call("socket", abi, &[38]), ALLOW);
        assert_eq!(filter.call("mount", abi, &[]), ALLOW);
    }
    assert_eq!(filter.answer(&Call::native(2000)), ALLOW);
    assert_eq!(Seccomp::Off.filter(u64::MAX).unwrap(), None);
}

/// What each comparison makes of values around the halves of a number.
#[test]
fn comparisons_look_at_all_64_bits() {
    let values = [0, 1, 4, 5, 6, 0xffff_ffff, 1 << 32, (1 << 32) | 5, (5 << 32) | 5, (5 << 32) | 6, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let holds: [(&str, Holds); 6] = [
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("EQ", |a, b| a == b),
        ("GE", |a, b| a >= b),
        ("GT", |a, b| a > b),
    ];
    for value in values {
        for (name, expected) in holds {
            let filter = Asked::of(&format!(
                r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                    "args": [{{"index": 3, "value": {value}, "op": "SCMP_CMP_{name}"}}]}}]}}"#
            ));
            for argument in values {
                let answer = filter.native("read", &[9, 9, 9, argument, 9, 9]);
                assert_eq!(answer == ALLOW, expected(argument, value), "{argument:#x} {name} {value:#x}");
            }
        }
        let filter = Asked::of(&format!(
            r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 5, "value": 21474836485, "valueTwo": {value}, "op": "SCMP_CMP_MASKED_EQ"}}]}}]}}"#
        ));
        for argument in values {
            let answer = filter.native("read", &[0, 0, 0, 0, 0, argument]);
            assert_eq!(answer == ALLOW, argument & 21_474_836_485 == value, "{argument:#x} {value:#x}");
        }
    }
}

#[test]
fn conditions_must_all_hold_and_those_on_one_argument_are_alternatives() {
    let filter = Asked::of(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_NE"},
                {"index": 2, "value": 3, "op": "SCMP_CMP_GT"}]},
            {"names": ["write"], "action": "SCMP_ACT_LOG", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    for (arguments, expected) in
        [([1, 1, 4], libc::SECCOMP_RET_TRAP), ([0, 1, 4], ALLOW), ([1, 2, 4], ALLOW), ([1, 1, 3], ALLOW)]
    {
        assert_eq!(filter.native("read", &arguments), expected, "{arguments:?}");
    }
    for (argument, expected) in [(1, libc::SECCOMP_RET_LOG), (5, libc::SECCOMP_RET_LOG), (2, ALLOW)] {
        assert_eq!(filter.native("write", &[argument]), expected);
    }
}

#[test]
fn a_rule_without_conditions_decides_and_the_others_are_tried_in_order() {
    let rule =
        |action: &str, args: &str| format!(r#"{{"names": ["read"], "action": "SCMP_ACT_{action}"{args}}}"#);
    let one = r#", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]"#;
    let filter = |rules: &[String]| {
        Asked::of(&format!(r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{}]}}"#, rules.join(",")))
    };
    let decided = filter(&[rule("TRAP", one), rule("ALLOW", ""), rule("LOG", ""), rule("LOG", one)]);
    assert_eq!(decided.native("read", &[1]), ALLOW);
    let ordered = filter(&[rule("TRAP", one), rule("LOG", one)]);
    assert_eq!(ordered.native("read", &[1]), libc::SECCOMP_RET_TRAP);
    assert_eq!(ordered.native("read", &[2]), KILL);
    // As runc does: a rule that says what the default says anyway is none.
    let skipped = filter(&[rule("KILL", ""), rule("ALLOW", "")]);
    assert_eq!(skipped.native("read", &[]), ALLOW);
}

#[test]
fn machines_that_a_profile_does_not_name_are_foreign() {
    let rules = r#""syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]"#;
    let native = Asked::of(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {rules}}}"#));
    assert_eq!(native.native("read", &[]), ALLOW);
    assert_eq!(native.native("open_tree", &[]), errno(libc::ENOSYS), "larger than all in the profile");
    assert_eq!(native.call("read", Abi::I386, &[]), KILL);
    assert_eq!(native.call("read", Abi::X32, &[]), KILL);
    let arm = r#""archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]"#;
    let two = Asked::of(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {arm}, {rules}}}"#));
    assert_eq!(two.call("read", Abi::I386, &[]), ALLOW);
    assert_eq!(two.answer(&Call { number: X32, arch: X86_64, ..Call::default() }), KILL);
}

#[test]
fn calls_of_i386_are_allowed_by_both_of_their_numbers() {
    let filter = Asked::of(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {"names": ["socket", "shmget"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(filter.call("socket", Abi::I386, &[]), ALLOW);
    assert_eq!(filter.call("socketcall", Abi::I386, &[1]), ALLOW);
    assert_eq!(filter.call("socketcall", Abi::I386, &[2]), errno(1));
    assert_eq!(filter.call("ipc", Abi::I386, &[23]), ALLOW);
}

#[test]
fn actions_have_their_numbers_and_errors_theirs() {
    let rule = |action: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{{"name": "read", "action": "SCMP_ACT_{action}"}}]}}"#
        )
    };
    for (action, expected) in [
        ("KILL", KILL),
        ("KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
        ("TRAP", libc::SECCOMP_RET_TRAP),
        (r#"ERRNO", "errnoRet": 13, "comment": ""#, errno(13)),
        (r#"TRACE", "errnoRet": 7, "comment": ""#, libc::SECCOMP_RET_TRACE | 7),
        ("LOG", libc::SECCOMP_RET_LOG),
        ("ERRNO", errno(1)),
    ] {
        let filter = Asked::of(&rule(action));
        assert_eq!((filter.native("read", &[]), filter.0.flags), (expected, 2), "{action}");
    }
}

#[test]
fn what_is_wrong_with_a_profile_is_said_with_its_rule() {
    let rule = |rule: &str| {
        format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"name": "a"}}, {rule}]}}"#)
    };
    let good =
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG"}, "#;
    for (text, expected) in [
        ("[1]".to_owned(), "it is not a seccomp profile: invalid type"),
        ("{".to_owned(), "it is not a seccomp profile: EOF"),
        (rule("{}"), "it is not a seccomp profile: missing field `action`"),
        (r#"{"defaultAction": "SCMP_ACT_FOO"}"#.to_owned(), "unknown action `SCMP_ACT_FOO`"),
        (
            r#"{"defaultAction": "SCMP_ACT_LOG", "flags": ["X"]}"#.to_owned(),
            "unknown flag `X`",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_ARM"}]}"#.to_owned(),
            "both `architectures` and `archMap` are there",
        ),
        (
            format!(r#"{good}{{"names": ["b", "c", "d", "e"], "action": "SCMP_ACT_NOTIFY"}}]}}"#),
            "rule 2 (b, c, d, ...): SCMP_ACT_NOTIFY needs a listener",
        ),
        (
            format!(r#"{good}{{"names": ["b"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}}]}}"#),
            "rule 2 (b): 4096 is too large for an error",
        ),
        (
            format!(r#"{good}{{"names": ["b"], "action": "SCMP_ACT_LOG", "args": [{{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}}]}}]}}"#),
            "rule 2 (b): argument 6: a system call has arguments 0 to 5",
        ),
        (
            format!(r#"{good}{{"names": ["b"], "action": "SCMP_ACT_LOG", "args": [{{"index": 5, "value": 1, "op": "EQ"}}]}}]}}"#),
            "rule 2 (b): unknown comparison `EQ`",
        ),
        (format!(r#"{good}{{"action": "SCMP_ACT_LOG"}}]}}"#), "rule 2 (without a name): it names no system call"),
        (
            format!(r#"{good}{{"name": "b", "names": ["c"], "action": "SCMP_ACT_LOG"}}]}}"#),
            "rule 2 (b, c): both `name` and `names` are there",
        ),
        (
            format!(r#"{good}{{"name": "b", "action": "SCMP_ACT_LOG", "includes": {{"caps": ["CAP_X"]}}}}]}}"#),
            "rule 2 (b): unknown capability `CAP_X`",
        ),
        (
            format!(r#"{good}{{"name": "b", "action": "SCMP_ACT_LOG", "excludes": {{"minKernel": "new"}}}}]}}"#),
            "rule 2 (b): minKernel: `new` is not a version such as 4.8",
        ),
    ] {
        let error = Profile::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert_eq!(Profile::parse(&vec![b' '; (4 << 20) + 1]).unwrap_err(), ProfileError::TooLong);
}

#[test]
fn rules_hold_for_the_kernel_and_the_machine_that_they_are_for() {
    let text = r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [
        {"name": "read", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.12", "arches": ["amd64", "arm64"]}},
        {"name": "write", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.13"}},
        {"name": "open", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
        {"name": "close", "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {"name": "stat", "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.0"}},
        {"name": "lseek", "action": "SCMP_ACT_ALLOW", "includes": null, "excludes": {}, "args": null}]}"#;
    let filter = Asked::of(text);
    let allowed: Vec<&str> = ["read", "write", "open", "close", "stat", "lseek"]
        .into_iter()
        .filter(|name| filter.native(name, &[]) == ALLOW)
        .collect();
    assert_eq!(allowed, ["read", "lseek"]);
}

#[test]
fn a_profile_that_is_too_large_for_the_kernel_is_refused() {
    let rule = |value| {
        format!(
            r#"{{"name": "read", "action": "SCMP_ACT_LOG", "args": [{{"index": 0, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#
        )
    };
    let rules: Vec<String> = (0..900).map(rule).collect();
    let text = format!(r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{}]}}"#, rules.join(","));
    let error = profile(&text).compile(&Conditions::default()).unwrap_err();
    assert!(matches!(error, ProfileError::TooLarge(_)), "{error}");
    // Long jumps are within the limit.
    let text = format!(r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{}]}}"#, rules[..700].join(","));
    let filter = Asked::of(&text);
    assert_eq!(filter.native("read", &[699]), libc::SECCOMP_RET_LOG);
    assert_eq!(filter.native("read", &[700]), KILL);
    assert_eq!(filter.native("write", &[699]), KILL);
}

#[test]
fn the_names_of_docker_s_profile_are_known_and_dangerous_ones_not_among_them() {
    let conditions = Conditions { capabilities: DEFAULT, ..Conditions::default() };
    let oci = docker_profile().oci(&conditions);
    assert_eq!(oci["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(
        oci["architectures"],
        serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    );
    let rules = oci["syscalls"].as_array().unwrap();
    let names: Vec<&str> = rules
        .iter()
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(names.len() > 350);
    for name in &names {
        assert!(Abi::ALL.iter().any(|abi| number(name, *abi).is_some()), "{name}");
    }
    for dangerous in
        ["mount", "kexec_load", "init_module", "unshare", "setns", "reboot", "keyctl", "userfaultfd"]
    {
        assert!(!names.contains(&dangerous), "{dangerous}");
    }
}
