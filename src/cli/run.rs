//! The flags of `bothy run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{TimingFormat, parse_net};
use crate::config::{Balloon, Memory, MemorySize, Transport};
use crate::image::{Platform, Policy};
use crate::virtio::net;

/// Flags of `bothy run`. One that is given twice counts as it was given last, as with docker.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal of its own
    #[arg(short, long)]
    pub tty: bool,
    /// What the running container is called, once at a time [default: 12 random digits]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Set an environment variable; without a value it gets the one that it has here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<OsString>,
    /// Read environment variables from a file, a line each; lines that begin with # are comments
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// The working directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// The user, by name or number [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this in place of the image's entry point; its default command then doesn't count
    #[arg(long, value_name = "CMD")]
    pub entrypoint: Option<OsString>,
    /// The container's host name [default: 12 random digits]
    #[arg(long, value_name = "HOST")]
    pub hostname: Option<String>,
    /// Give all capabilities and devices, and neither mask nor filter anything
    #[arg(long)]
    pub privileged: bool,
    /// Set what the container may do: seccomp=FILE (a profile in docker's JSON), seccomp=builtin
    /// (docker's default), seccomp=unconfined, no-new-privileges[:true|false],
    /// systempaths=unconfined
    #[arg(long, value_name = "OPTION", value_parser = parse_security)]
    pub security_opt: Vec<SecurityOption>,
    /// Set a parameter of the guest's kernel, any that /proc/sys has
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_sysctl)]
    pub sysctl: Vec<(String, String)>,
    /// Virtual CPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// The virtual machine's memory, from 32M up, and what it is made of
    #[arg(
        short,
        long,
        value_name = "SIZE[,hugepages=2M|1G|thp][,shared][,prefault]",
        default_value = "512M"
    )]
    pub memory: Memory,
    /// Write to a disk of this size and not to the virtual machine's memory; it is gone with the
    /// virtual machine
    #[arg(long, value_name = "SIZE", conflicts_with = "read_only")]
    pub scratch: Option<MemorySize>,
    /// Make the container's file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// A network device on a tap that exists, or (`tap=auto`) on one of the virtual machine's own,
    /// which has the address `gw`, if there is one, and is gone with it; or none
    #[arg(long, value_name = "none|tap=NAME|auto[,mac=M][,queues=N][,rate=R][,ip=A/P][,gw=G][,dns=D]", default_value = "none", value_parser = parse_network)]
    pub net: Network,
    /// Whether memory that the guest doesn't need goes back to the host [default: on; off for
    /// memory of a pool of huge pages, and with prefault]
    #[arg(long, value_name = "SWITCH")]
    pub balloon: Option<Balloon>,
    /// How the guest reaches its devices: pci is faster, mmio starts a little sooner and is there
    /// in every kernel [default: pci for bothy's own kernel, mmio for another one]
    #[arg(long, value_name = "KIND")]
    pub transport: Option<Transport>,
    /// Another kernel than bothy's own
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Print where the time went, and the exits from the guest by reason
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub timing: Option<TimingFormat>,
    /// How long the guest may take until its agent answers, and then until the command runs, in
    /// seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub agent_timeout: Duration,
    /// When to get the image from its registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: Policy,
    /// The image for this platform, where there are several
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value = "linux/amd64")]
    pub platform: Platform,
    /// Allow plain HTTP to remote registries, and saved credentials in plain HTTP
    #[arg(long)]
    pub insecure_registry: bool,
    /// Show this file system image (EROFS) to the container at /.bothy, read-only: what `bothy
    /// bench` runs
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "read_only")]
    pub lend: Option<PathBuf>,
    /// Write the virtual machine to this file as soon as its agent is there, and go on
    #[arg(long, value_name = "FILE", hide = true)]
    pub snapshot: Option<PathBuf>,
    /// Go on from what --snapshot has written of a virtual machine of the same image, processors,
    /// memory and devices, instead of booting
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "snapshot")]
    pub from: Option<PathBuf>,
    /// The image, by name or as `bothy load` takes it, and the command to run in place of its own
    #[arg(value_name = "IMAGE [COMMAND [ARG...]]", required = true, trailing_var_arg = true)]
    pub words: Vec<OsString>,
}

/// A word of `--security-opt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecurityOption {
    /// A seccomp profile in a file.
    Profile(PathBuf),
    /// Docker's default profile.
    Builtin,
    /// Nearly no filter.
    Unconfined,
    /// Whether programs can't gain rights.
    NoNewPrivileges(bool),
    /// Nothing of /proc and /sys is masked or read-only.
    SystemPaths,
    /// Something is turned off that isn't there.
    Nothing,
}

/// The container's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Only `lo`.
    None,
    /// A device on a tap.
    Tap(net::Config),
}

impl ValueEnum for Policy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Missing, Self::Always, Self::Never]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Missing => PossibleValue::new("missing").help("If it isn't in the store"),
            Self::Always => PossibleValue::new("always")
                .help("Every time, because the name may lead to another image now"),
            Self::Never => PossibleValue::new("never").help("Never: it must be in the store"),
        })
    }
}

fn parse_security(text: &str) -> Result<SecurityOption, String> {
    let unknown = || {
        format!(
            "`{text}`: expected seccomp=FILE, seccomp=builtin, seccomp=unconfined, no-new-privileges[:true|false] or \
                systempaths=unconfined"
        )
    };
    let (key, value) = match text.find(['=', ':']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    match (key, value) {
        ("seccomp", Some("unconfined")) => Ok(SecurityOption::Unconfined),
        ("seccomp", Some("builtin")) => Ok(SecurityOption::Builtin),
        ("seccomp", Some(path)) if !path.is_empty() => Ok(SecurityOption::Profile(path.into())),
        ("no-new-privileges", None) => Ok(SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges", Some(value)) => {
            value.parse().map(SecurityOption::NoNewPrivileges).map_err(|_| unknown())
        }
        ("systempaths", Some("unconfined")) => Ok(SecurityOption::SystemPaths),
        // Neither is there to be turned off.
        ("apparmor", Some("unconfined")) | ("label", Some("disable")) => Ok(SecurityOption::Nothing),
        ("apparmor" | "label", _) => {
            Err(format!("`{text}`: the guest's kernel has neither AppArmor nor SELinux; leave it out"))
        }
        _ => Err(unknown()),
    }
}

fn parse_sysctl(text: &str) -> Result<(String, String), String> {
    let is_part = |part: &str| !part.is_empty() && part != "..";
    let is_name = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
            && name.split('/').all(is_part)
            && name.split('.').all(|part| !part.is_empty())
    };
    match text.split_once('=') {
        Some((name, value)) if is_name(name) => Ok((name.into(), value.into())),
        Some((name, _)) => {
            Err(format!("`{name}` is not the name of a kernel parameter, like vm.max_map_count"))
        }
        None => Err(format!("`{text}`: expected NAME=VALUE")),
    }
}

fn parse_network(text: &str) -> Result<Network, String> {
    if text == "none" { Ok(Network::None) } else { parse_net(text).map(Network::Tap) }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| format!("`{text}` is not a number of seconds"))?;
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(words: &str) -> RunArgs {
        match Cli::try_parse_from(words.split(' ')).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_stands_behind_the_image_belongs_to_the_command() {
        let args = parse("bothy run -i --net none busybox ls -l --name x -t");
        assert_eq!(args.words, ["busybox", "ls", "-l", "--name", "x", "-t"]);
        assert!(args.interactive && !args.tty && args.name.is_none());
        assert_eq!((args.net, args.cpus, args.pull), (Network::None, 1, Policy::Missing));
    }

    #[test]
    fn short_flags_may_be_joined_and_taps_described() {
        let args = parse("bothy run -it -m 128M -e A=1 -e B --net tap=t0,ip=10.0.0.2/24 x");
        assert!(args.interactive && args.tty);
        assert_eq!(args.env, ["A=1", "B"]);
        assert!(matches!(args.net, Network::Tap(net) if net.backend.to_string() == "t0"));
    }

    #[test]
    fn a_flag_that_is_given_twice_counts_as_given_last_and_lists_grow() {
        let args = parse("bothy run -i -i -m 1G -m 64M -e A=1 -e B=2 x y");
        assert_eq!((String::from(args.memory).as_str(), args.env.len(), args.words.len()), ("64M", 2, 2));
    }

    #[test]
    fn security_options_and_parameters_are_read_as_docker_reads_them() {
        let args = parse(
            "bothy run --security-opt seccomp=a/b.json --security-opt seccomp:unconfined --security-opt no-new-privileges:false \
                --security-opt systempaths=unconfined --security-opt label=disable \
                --sysctl net.core.somaxconn=5 --sysctl net/ipv4/conf/eth0.1/forwarding=1 --sysctl kernel.domainname= x",
        );
        let profile = SecurityOption::Profile("a/b.json".into());
        let expected = [
            profile,
            SecurityOption::Unconfined,
            SecurityOption::NoNewPrivileges(false),
            SecurityOption::SystemPaths,
            SecurityOption::Nothing,
        ];
        assert_eq!(args.security_opt, expected);
        let names: Vec<&str> = args.sysctl.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["net.core.somaxconn", "net/ipv4/conf/eth0.1/forwarding", "kernel.domainname"]);
    }

    #[test]
    fn an_image_is_needed_and_nonsense_refused() {
        for words in [
            "bothy run",
            "bothy run -i",
            "bothy run --net bridge x",
            "bothy run --pull sometimes x",
            "bothy run --agent-timeout 0 x",
            "bothy run --security-opt seccomp= x",
            "bothy run --security-opt no-new-privileges:perhaps x",
            "bothy run --security-opt apparmor=docker-default x",
            "bothy run --security-opt seccomp x",
            "bothy run --sysctl kernel x",
            "bothy run --sysctl ../../x=1 x",
            "bothy run --sysctl net/../x=1 x",
            "bothy run --sysctl =1 x",
            "bothy run --sysctl kernel..x=1 x",
        ] {
            assert!(Cli::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
