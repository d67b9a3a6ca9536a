//! What a container's processes may do: system calls, capabilities, limits, kernel parameters.

use std::fs;

use bothy::spec::docker;
use bothy::spec::seccomp::{Conditions, Profile, Seccomp};
use bothy_guest::protocol::{Command, ExitStatus, NotStarted, Report};
use bothy_guest::spec::{Container, Limit, Sysctl};

use crate::machine::{Machine, Options, id, needs_machine};

/// Runs a script with these rights.
fn run(change: impl FnOnce(&mut Command), script: &str) -> String {
    let (status, output) = Machine::new().finish(id(1), &["sh", "-c", script], change);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    output
}

fn with(seccomp: &Seccomp) -> impl FnOnce(&mut Command) {
    let filter = seccomp.filter(docker::default_capabilities()).unwrap();
    move |command| command.rights.seccomp = filter
}

const SHOW: &str = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -s '\\t' ' '";
const NAMESPACES: &str =
    "unshare -U true 2>/dev/null && echo user namespace; unshare -m true 2>/dev/null && echo mounts; true";

#[test]
fn a_command_has_docker_s_filter_and_makes_no_namespaces() {
    needs_machine!();
    assert_eq!(run(|_| (), &format!("{SHOW}; {NAMESPACES}")), "NoNewPrivs: 0\nSeccomp: 2\n");
    let output = run(with(&Seccomp::Unconfined), &format!("{SHOW}; {NAMESPACES}"));
    assert_eq!(output, "NoNewPrivs: 0\nSeccomp: 2\nuser namespace\n");
    let output = run(with(&Seccomp::Off), &format!("{SHOW}; {NAMESPACES}"));
    assert_eq!(output, "NoNewPrivs: 0\nSeccomp: 0\nuser namespace\n");
}

#[test]
fn a_filter_is_the_user_s_too_and_with_no_new_privileges() {
    needs_machine!();
    let change = |command: &mut Command| {
        command.user = "web".into();
        command.rights.no_new_privileges = true;
    };
    assert_eq!(run(change, &format!("{SHOW}; {NAMESPACES}; id -u")), "NoNewPrivs: 1\nSeccomp: 2\n1000\n");
}

#[test]
fn a_profile_of_the_user_s_decides_by_arguments_and_action() {
    needs_machine!();
    let profile = Profile::parse(
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    let seccomp = Seccomp::Profile(Box::new(profile.unwrap()));
    let output = run(with(&seccomp), "mkdir /x 2>&1; sh -c 'kill -0 $$; kill -USR1 $$' 2>/dev/null; echo $?");
    assert!(
        output.starts_with("mkdir: can't create directory '/x': No space left on device\n159\n"),
        "{output}"
    );
}

#[test]
fn a_filter_that_forbids_the_way_to_the_program_is_told() {
    needs_machine!();
    let profile = Profile::parse(
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#,
    )
    .unwrap();
    let mut machine = Machine::new();
    let filter = profile.compile(&Conditions::default()).unwrap();
    let _streams = machine.run(id(1), &["/bin/true"], |command| command.rights.seccomp = Some(filter));
    let message = r#"exec: "/bin/true": permission denied"#.into();
    assert_eq!(
        machine.report(),
        Report::NotStarted { id: id(1), reason: NotStarted::NotExecutable, message }
    );
}

#[test]
fn capabilities_and_limits_are_those_that_the_host_sends() {
    needs_machine!();
    let change = |command: &mut Command| {
        let capabilities = &mut command.rights.capabilities;
        (capabilities.bounding, capabilities.permitted) = (0x2c00, 0x2400);
        (capabilities.effective, capabilities.inheritable, capabilities.ambient) = (0x2400, 0x400, 0x400);
        let limit = |resource, soft, hard| Limit { resource, soft, hard };
        command.rights.limits = vec![limit(libc::RLIMIT_NOFILE, 100, 200), limit(libc::RLIMIT_CORE, 0, 0)];
    };
    let show = "grep ^Cap /proc/self/status | tr -s '\\t' ' '; ulimit -n; ulimit -Hn; ulimit -c";
    let root = "CapInh: 0000000000000400\nCapPrm: 0000000000002c00\nCapEff: 0000000000002c00\nCapBnd: 0000000000002c00\n\
        CapAmb: 0000000000000400\n100\n200\n0\n";
    assert_eq!(run(change, show), root);
    let as_web = |command: &mut Command| {
        change(command);
        command.user = "web".into();
    };
    let web = "CapInh: 0000000000000400\nCapPrm: 0000000000000400\nCapEff: 0000000000000400\nCapBnd: 0000000000002c00\n\
        CapAmb: 0000000000000400\n100\n200\n0\n";
    assert_eq!(run(as_web, show), web);
}

#[test]
fn kernel_parameters_are_set_in_the_container_s_namespaces() {
    needs_machine!();
    // Of the network and of IPC: others belong to this whole machine.
    let options = Options {
        change: |container| {
            container.sysctls =
                [("net/ipv4/ip_default_ttl", "77"), ("kernel.msgmax", "12345"), ("no.such", "1")]
                    .map(|(name, value)| Sysctl {
                        name: name.into(),
                        value: value.into(),
                        optional: name == "no.such",
                    })
                    .into();
        },
        ..Options::default()
    };
    let before = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    let output = Machine::with(&options).sh("cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax");
    assert_eq!(output, "77\n12345\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), before);

    for (change, expected) in [
        (
            (|container| {
                container.sysctls =
                    vec![Sysctl { name: "vm.no_such".into(), value: "1".into(), optional: false }];
            }) as fn(&mut Container),
            "sysctl vm.no_such: the guest's kernel has no such parameter",
        ),
        (
            |container| {
                container.sysctls = vec![Sysctl {
                    name: "net.ipv4.ip_default_ttl".into(),
                    value: "no".into(),
                    optional: false,
                }];
            },
            "sysctl net.ipv4.ip_default_ttl=no: Invalid argument (os error 22)",
        ),
    ] {
        let mut machine = Machine::with(&Options { change, ..Options::default() });
        let _streams = machine.run(id(1), &["true"], |_| ());
        let message = expected.into();
        assert_eq!(machine.report(), Report::NotStarted { id: id(1), reason: NotStarted::Other, message });
    }
}
