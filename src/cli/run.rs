//! The flags of `bothy run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{CONTAINER, DEBUGGING, IMAGE, NETWORK, RESOURCES, TimingFormat, VM, parse_net};
use crate::config::{Balloon, Memory, MemorySize, Transport};
use crate::image::{Platform, Policy};
use crate::virtio::net;

/// Flags of `bothy run`. One that is given twice counts as it was given last, as with docker.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// Pass standard input to the command
    #[arg(short, long, help_heading = CONTAINER)]
    pub interactive: bool,
    /// Give the command a terminal of its own
    #[arg(short, long, help_heading = CONTAINER)]
    pub tty: bool,
    /// Name the running container [default: 12 random digits]
    #[arg(long, value_name = "NAME", help_heading = CONTAINER)]
    pub name: Option<String>,
    /// Set an environment variable
    ///
    /// Without a value the variable gets the value that it has here.
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = CONTAINER)]
    pub env: Vec<OsString>,
    /// Read environment variables from a file
    ///
    /// One variable a line. Lines that begin with # are comments.
    #[arg(long, value_name = "FILE", help_heading = CONTAINER)]
    pub env_file: Vec<PathBuf>,
    /// Set the working directory [default: the image's]
    #[arg(short, long, value_name = "DIR", help_heading = CONTAINER)]
    pub workdir: Option<OsString>,
    /// Set the user, by name or number [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = CONTAINER)]
    pub user: Option<String>,
    /// Run this program instead of the image's entry point
    ///
    /// The image's default command is then not used.
    #[arg(long, value_name = "CMD", help_heading = CONTAINER)]
    pub entrypoint: Option<OsString>,
    /// Set the container's host name [default: 12 random digits]
    #[arg(long, value_name = "HOST", help_heading = CONTAINER)]
    pub hostname: Option<String>,
    /// Make the container's file system read-only
    #[arg(long, help_heading = CONTAINER)]
    pub read_only: bool,
    /// Give all capabilities and devices, mask and filter nothing
    #[arg(long, help_heading = CONTAINER)]
    pub privileged: bool,
    /// Set what the container may do
    ///
    /// seccomp=FILE (a profile in docker's JSON), seccomp=builtin (docker's default),
    /// seccomp=unconfined, no-new-privileges[:true|false], systempaths=unconfined.
    #[arg(long, value_name = "OPTION", value_parser = parse_security, help_heading = CONTAINER)]
    pub security_opt: Vec<SecurityOption>,
    /// Set a parameter of the guest's kernel
    ///
    /// Any parameter below /proc/sys of the container.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_sysctl, help_heading = CONTAINER)]
    pub sysctl: Vec<(String, String)>,
    /// Say when to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing", help_heading = IMAGE)]
    pub pull: Policy,
    /// Choose the image for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value = "linux/amd64", help_heading = IMAGE)]
    pub platform: Platform,
    /// Allow plain HTTP to remote registries, and saved credentials in plain HTTP
    #[arg(long, help_heading = IMAGE)]
    pub insecure_registry: bool,
    /// Set the number of virtual CPUs, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = RESOURCES)]
    pub cpus: u32,
    /// Set the VM's memory, from 32M up
    ///
    /// `hugepages` takes it from the host's pool of huge pages, or (`thp`, the default) from those
    /// that the kernel makes by itself. `shared` makes it a file in memory. `prefault` allocates
    /// all of it at once.
    #[arg(
        short,
        long,
        value_name = "SIZE[,hugepages=2M|1G|thp][,shared][,prefault]",
        default_value = "512M",
        help_heading = RESOURCES
    )]
    pub memory: Memory,
    /// Write to a disk of this size instead of the VM's memory
    ///
    /// The disk is gone with the VM.
    #[arg(long, value_name = "SIZE", conflicts_with = "read_only", help_heading = RESOURCES)]
    pub scratch: Option<MemorySize>,
    /// Give memory that the guest doesn't need back to the host
    ///
    /// The default is on; off for memory of a pool of huge pages, and with prefault.
    #[arg(long, value_name = "SWITCH", help_heading = RESOURCES)]
    pub balloon: Option<Balloon>,
    /// Add a network device on a tap, or none
    ///
    /// The tap must exist, or with `tap=auto` one of the VM's own is made, which has the address
    /// `gw` and is gone with the VM.
    #[arg(long, value_name = "none|tap=NAME|auto[,mac=M][,queues=N][,rate=R][,ip=A/P][,gw=G][,dns=D]", default_value = "none", value_parser = parse_network, help_heading = NETWORK)]
    pub net: Network,
    /// Boot another kernel than bothy's own
    #[arg(long, value_name = "PATH", help_heading = VM)]
    pub kernel: Option<PathBuf>,
    /// Choose how the guest reaches its devices
    ///
    /// pci is faster; mmio starts a little sooner and is in every kernel. The default is pci for
    /// bothy's own kernel, and mmio for another one.
    #[arg(long, value_name = "KIND", help_heading = VM)]
    pub transport: Option<Transport>,
    /// Limit the wait for the guest's agent, and then for the command's start, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds, help_heading = VM)]
    pub agent_timeout: Duration,
    /// Print where the time went, and the exits from the guest by reason
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = DEBUGGING)]
    pub timing: Option<TimingFormat>,
    /// Show this file system image (EROFS) to the container at /.bothy, read-only: what `bothy
    /// bench` runs
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "read_only")]
    pub lend: Option<PathBuf>,
    /// Write the VM to this file as soon as its agent has connected, and go on
    #[arg(long, value_name = "FILE", hide = true)]
    pub snapshot: Option<PathBuf>,
    /// Resume what --snapshot has written of a VM of the same image, processors, memory and
    /// devices, instead of booting
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "snapshot")]
    pub from: Option<PathBuf>,
    /// The image, by name or as `bothy load` takes it, and the command to run instead of its
    /// default
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
            Self::Missing => PossibleValue::new("missing").help("If the image isn't in the store"),
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
