//! The command line: flags become requests. No work is done here.

mod bench;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Balloon, Console, Memory, Transport, VmConfig};
use crate::image::{Platform, Reference};
use crate::size::{self, Base, NotASize};
use crate::virtio::{blk, net, vsock};

pub use bench::{BenchArgs, Engine};
pub use run::{Network, RunArgs, SecurityOption};

const RUN_EXAMPLES: &str = "\
Examples:
  bothy run -it debian bash                              a shell in a container
  echo 6 7 | bothy run -i -e A=1 -u app app ./multiply   pipes, environment, user
  bothy run -m 1G --cpus 2 --scratch 10G dir:ROOT make   a directory as root file system";

const BOOT_EXAMPLES: &str = "\
Examples:
  bothy boot --append 'bothy.exec=\"uname -a\"'           one command, then power off
  bothy boot --disk data.img --net tap=tap0,ip=10.0.0.2/24,gw=10.0.0.1
  bothy boot --kernel bzImage --initrd initrd.img --disk root.img,ro --append root=/dev/vda";

// The groups of flags in help texts.
const CONTAINER: &str = "Container";
const IMAGE: &str = "Image";
const RESOURCES: &str = "Resources";
const NETWORK: &str = "Network";
const DEVICES: &str = "Devices";
const VM: &str = "Virtual machine";
const DEBUGGING: &str = "Debugging";

/// Boots Linux in a KVM virtual machine as quickly as a container starts.
#[derive(Debug, Parser)]
#[command(name = "bothy", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses a process's arguments.
    pub fn of_process(words: &[OsString]) -> Result<Self, clap::Error> {
        match quick(words) {
            Some(command) => Ok(Self { command }),
            None => Self::try_parse_from(words),
        }
    }
}

/// Parses the commands that are to start quickly by their own flags alone: to build those of all
/// commands takes longer than to parse them. `None` is any other command, a request for help, or
/// wrong words, of which the whole parser says what is wrong.
fn quick(words: &[OsString]) -> Option<Command> {
    fn parse<T: Args>(words: &[OsString]) -> Option<Box<T>> {
        let matches = T::augment_args(clap::Command::new("bothy")).try_get_matches_from(words).ok()?;
        T::from_arg_matches(&matches).ok().map(Box::new)
    }
    let words = words.get(1..)?;
    match words.first()?.to_str()? {
        "boot" => parse(words).map(Command::Boot),
        "run" => parse(words).map(Command::Run),
        _ => None,
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a virtual machine with its console on this terminal
    ///
    /// Without flags this boots bothy's own guest to a shell. On a terminal, Ctrl-a x ends the VM
    /// and Ctrl-a h lists the other keys. SIGTERM presses the power button; a second one, or 10
    /// seconds, kills the VM.
    ///
    /// Exit codes: 0 power-off or reset; 1 set-up failed; 2 usage error; 3 the guest's kernel
    /// panicked; 4 triple fault; 5 KVM gave up; 6 killed, because SIGTERM wasn't answered.
    #[command(after_long_help = BOOT_EXAMPLES)]
    Boot(Box<BootArgs>),
    /// Run a command of a container image in a virtual machine of its own
    ///
    /// The image comes from the store, from a registry, or from any source that `bothy load` takes.
    /// All VMs of an image share its file system. What the command writes goes to the VM's memory,
    /// and is gone with the VM. All signals go to the command; a third SIGINT or SIGTERM ends the
    /// VM.
    ///
    /// Exit codes: the command's own; 128 + N if signal N ended it; 127 there is no such command;
    /// 126 it can't be executed; 125 anything else.
    #[command(after_long_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// The same with QEMU's microvm, for `bothy bench` to compare with
    #[command(hide = true)]
    RunQemu(Box<RunArgs>),
    /// Measure virtual machines and containers side by side on this machine
    ///
    /// The same static program runs in a virtual machine of bothy's, in containers of runc and
    /// crun, and as a plain process, in turn; the report says what each costs. The image is one
    /// that bothy makes for this, and removes. Ctrl-C ends every instance and prints what there is.
    ///
    /// Exit codes: 0 there is a report, whatever it says of peers that failed; 1 there is none; 2
    /// wrong usage; 130 interrupted.
    Bench(Box<BenchArgs>),
    /// Put images into the store
    ///
    /// From directories and archives as skopeo, umoci, buildah, docker and podman write them. An
    /// image that has no name of its own gets that of its file: localhost/NAME:latest, or
    /// localhost/NAME:DIGEST where there are several. Standard output has a line for each image,
    /// and one for each name that another image had before.
    Load(LoadArgs),
    /// Pull images from registries into the store
    ///
    /// A name is completed as docker completes it, and a tag is looked up each time. Credentials
    /// are those that docker login and podman login have saved. HTTP_PROXY, HTTPS_PROXY, NO_PROXY,
    /// SSL_CERT_FILE and SSL_CERT_DIR apply.
    Pull(PullArgs),
    /// List the images in the store
    Images {
        /// Print JSON, with all that is known of each image
        #[arg(long)]
        json: bool,
    },
    /// Remove images from the store
    ///
    /// A name is removed; its image goes with its last name. What a virtual machine uses is not
    /// removed.
    Rmi {
        /// Names, or digests and the first digits of them, which remove the image with all its
        /// names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Remove images without a name, and unused data
    Prune {
        /// Also remove images with names, unless a VM uses them
        #[arg(long)]
        all: bool,
    },
    /// Check what this machine has of what bothy needs
    ///
    /// Exit code 1 if Linux guests can't run here.
    Doctor,
    /// Print a shell completion script
    ///
    /// In bash: source <(bothy completions bash), there or in ~/.bashrc. In fish: bothy completions
    /// fish | source
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Write man pages, one for each command
    Man {
        /// The directory for them, such as ~/.local/share/man/man1
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// List the programs and libraries in bothy and its guest, with sources and licences
    Licenses,
    /// Write a bothy that has the guest inside: one file, to be copied to other machines
    #[command(hide = true)]
    Pack {
        /// Where to write it.
        #[arg(value_name = "PATH")]
        out: PathBuf,
    },
}

/// Flags of `bothy load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], dir:DIR, `-` for an
    /// archive on standard input, a path, or a name, which is pulled if it isn't in the store
    #[arg(value_name = "SRC", required = true)]
    pub sources: Vec<String>,
    /// Override the image's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Reference>,
    /// Give the images no names: they can be run by their digests
    #[arg(long, conflicts_with = "name")]
    pub no_names: bool,
    /// The image for this platform, where there are several
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value = "linux/amd64")]
    pub platform: Platform,
    /// Most files and directories of an image [default: 5000000]
    #[arg(long, value_name = "N")]
    pub max_entries: Option<u64>,
    /// Most bytes of an image, of its layers together when they are uncompressed, and of an archive
    /// that is compressed or comes through a pipe
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = parse_bytes)]
    pub max_bytes: u64,
}

/// Flags of `bothy pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// [REGISTRY/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// The image for this platform, where there are several
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value = "linux/amd64")]
    pub platform: Platform,
    /// Allow plain HTTP to remote registries, and saved credentials in plain HTTP
    #[arg(long)]
    pub insecure_registry: bool,
}

/// Flags of `bothy boot`.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// Boot this kernel: a bzImage or an ELF vmlinux [default: bothy's own guest]
    #[arg(long, value_name = "PATH", help_heading = VM)]
    pub kernel: Option<PathBuf>,
    /// Set the initramfs [default: that of bothy's own guest, with its kernel]
    #[arg(long, value_name = "PATH", help_heading = VM)]
    pub initrd: Option<PathBuf>,
    /// Add text to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = VM)]
    pub append: Option<String>,
    /// Set the number of virtual CPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", help_heading = RESOURCES)]
    pub cpus: Option<u32>,
    /// Set the VM's memory, from 32M up [default: 512M]
    ///
    /// `hugepages` takes it from the host's pool of huge pages, or (`thp`, the default) from those
    /// that the kernel makes by itself. `shared` makes it a file in memory. `prefault` allocates
    /// all of it at once.
    #[arg(
        long,
        value_name = "SIZE[,hugepages=2M|1G|thp][,shared][,prefault]",
        help_heading = RESOURCES
    )]
    pub memory: Option<Memory>,
    /// Give memory that the guest doesn't need back to the host
    ///
    /// The default is on; off for memory of a pool of huge pages, and with prefault.
    #[arg(long, value_name = "SWITCH", help_heading = RESOURCES)]
    pub balloon: Option<Balloon>,
    /// Add a disk: a raw image file or a block device
    ///
    /// `ro` is read-only. `format=raw` accepts an image that looks like another format. `id` is its
    /// serial number in the guest. `queues` (1 to 64) is how many of the guest's processors can use
    /// it at once. `cache` is writeback (the default), none (bypasses this machine's page cache) or
    /// unsafe (flushed data may be lost when this machine crashes). `aio` is io_uring (the default,
    /// where this machine has it) or sync. `iops` and `bw` limit requests and bytes a second, like
    /// 500 and 100M.
    #[arg(long, value_name = "PATH[,ro][,format=raw][,id=NAME][,queues=N][,cache=KIND][,aio=KIND][,iops=N][,bw=SIZE]", value_parser = parse_disk, help_heading = DEVICES)]
    pub disk: Vec<blk::Config>,
    /// Add a network device on a tap
    ///
    /// The tap must exist, or with `tap=auto` one of the VM's own is made, which has the address
    /// `gw` and is gone with the VM. The guest's init sets the address, gateway and name server.
    /// `queues` (1 to 64) needs a tap made with multi_queue. `rate` limits each direction, like
    /// 100M bits a second.
    #[arg(long, value_name = "tap=NAME|auto[,mac=M][,queues=N][,rate=R][,ip=A/P][,gw=G][,dns=D]", value_parser = parse_net, help_heading = DEVICES)]
    pub net: Vec<net::Config>,
    /// Carry byte streams to and from the guest over Unix sockets
    ///
    /// A program that connects to PATH and sends `CONNECT P` reaches the guest's vsock port P. A
    /// guest that connects to port P of context 2 reaches the program that listens at PATH_P.
    #[arg(long, value_name = "PATH[,cid=N]", value_parser = parse_vsock, help_heading = DEVICES)]
    pub vsock: Option<vsock::Config>,
    /// Choose the guest's console [default: serial]
    ///
    /// virtio causes far fewer exits and follows the terminal's size; a serial port is there as
    /// well, for early messages. But a guest with one processor stands still while nobody reads,
    /// and Linux takes Ctrl-O there for a SysRq.
    #[arg(long, value_name = "KIND", help_heading = DEVICES)]
    pub console: Option<Console>,
    /// Choose how the guest reaches its devices
    ///
    /// pci is faster; mmio starts a little sooner and is in every kernel. The default is pci for
    /// bothy's own kernel, and mmio for another one.
    #[arg(long, value_name = "KIND", help_heading = DEVICES)]
    pub transport: Option<Transport>,
    /// Read the VM from a TOML file with the same names; flags win over it
    ///
    /// A list of devices on the command line replaces the file's list.
    #[arg(long, value_name = "FILE.toml", help_heading = VM)]
    pub config: Option<PathBuf>,
    /// Write the log to a file instead of standard error; RUST_LOG sets its level
    #[arg(long, value_name = "PATH", help_heading = DEBUGGING)]
    pub log_file: Option<PathBuf>,
    /// Print where the time went, and the exits from the guest by reason
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = DEBUGGING)]
    pub timing: Option<TimingFormat>,
    /// Boot Linux even where this host's KVM is known not to run it
    #[arg(long, help_heading = DEBUGGING)]
    pub force: bool,
}

/// How `--timing` is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimingFormat {
    /// A table on standard error.
    Text,
    /// One JSON object on standard error.
    Json,
}

/// A shell that completes words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU's
    Bash,
    /// Elvish
    Elvish,
    /// Fish
    Fish,
    /// The Z shell
    Zsh,
}

impl Shell {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Elvish => "elvish",
            Self::Fish => "fish",
            Self::Zsh => "zsh",
        }
    }
}

impl ValueEnum for Console {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Serial, Self::Virtio, Self::None]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Serial => clap::builder::PossibleValue::new("serial"),
            Self::Virtio => clap::builder::PossibleValue::new("virtio"),
            Self::None => clap::builder::PossibleValue::new("none"),
        })
    }
}

impl ValueEnum for Balloon {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::On, Self::Off]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::On => clap::builder::PossibleValue::new("on"),
            Self::Off => clap::builder::PossibleValue::new("off"),
        })
    }
}

impl ValueEnum for Transport {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Mmio, Self::Pci]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Mmio => clap::builder::PossibleValue::new("mmio"),
            Self::Pci => clap::builder::PossibleValue::new("pci"),
        })
    }
}

/// `512M`, `64G`.
fn parse_bytes(text: &str) -> Result<u64, NotASize> {
    size::parse(text, Base::Binary)
}

/// `PATH[,ro][,format=raw][,id=NAME][,queues=N][,cache=KIND][,aio=KIND][,iops=N][,bw=SIZE]`. A path
/// with a comma goes into a `--config` file.
fn parse_disk(text: &str) -> Result<blk::Config, String> {
    let mut parts = text.split(',');
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("the path is missing")?;
    let mut disk = blk::Config { path: path.into(), ..blk::Config::default() };
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => disk.read_only = true,
            Some(("format", format)) => disk.format = Some(format.parse()?),
            Some(("id", id)) => disk.id = Some(id.to_owned()),
            Some(("queues", number)) => {
                let number = number.parse().map_err(|_| format!("`{number}` is not a number of queues"))?;
                disk.queues = Some(number);
            }
            Some(("cache", kind)) => disk.cache = Some(kind.parse()?),
            Some(("aio", kind)) => disk.aio = Some(kind.parse()?),
            Some(("iops", number)) => {
                let number = number.parse().map_err(|_| format!("`{number}` is not a number of requests"))?;
                disk.iops = Some(number);
            }
            Some(("bw", bandwidth)) => disk.bw = Some(bandwidth.parse()?),
            _ => {
                return Err(format!(
                    "`{part}` is none of `ro`, `format=raw`, `id=NAME`, `queues=N`, `cache=KIND`, `aio=KIND`, `iops=N` and `bw=SIZE`"
                ));
            }
        }
    }
    Ok(disk)
}

/// `tap=NAME[,mac=M][,queues=N][,rate=R][,ip=A/P][,gw=G][,dns=D]`, in any order.
fn parse_net(text: &str) -> Result<net::Config, String> {
    let mut net = net::Config::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is no KEY=VALUE"))?;
        let address = || value.parse().map_err(|_| format!("`{value}` is not an IP address, in `{part}`"));
        match key {
            "tap" => net.backend = value.to_owned().into(),
            "queues" => {
                let number = value.parse().map_err(|_| format!("`{value}` is not a number of queues"))?;
                net.queues = Some(number);
            }
            "rate" => net.rate = Some(value.parse()?),
            "mac" => net.mac = Some(value.parse().map_err(|error| format!("{error}"))?),
            "ip" => net.ip = Some(value.parse().map_err(|error| format!("{error}"))?),
            "gw" => net.gw = Some(address()?),
            "dns" => net.dns = Some(address()?),
            _ => return Err(format!("`{key}` is none of tap, mac, queues, rate, ip, gw and dns")),
        }
    }
    if net.backend == net::Backend::default() {
        return Err("tap=NAME or tap=auto is missing".into());
    }
    Ok(net)
}

/// `PATH[,cid=N]`.
fn parse_vsock(text: &str) -> Result<vsock::Config, String> {
    let (path, rest) = text.split_once(',').map_or((text, None), |(path, rest)| (path, Some(rest)));
    if path.is_empty() {
        return Err("the path is missing".into());
    }
    let cid = rest.map(|part| {
        let cid = part.strip_prefix("cid=").ok_or_else(|| format!("`{part}` is not `cid=N`"))?;
        cid.parse().map_err(|_| format!("`{cid}` is not a context id"))
    });
    Ok(vsock::Config { path: path.into(), cid: cid.transpose()? })
}

impl BootArgs {
    /// The flags as a configuration, to be put over that of `--config`.
    pub fn to_config(&self) -> VmConfig {
        VmConfig {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            cpus: self.cpus,
            memory: self.memory,
            console: self.console,
            disk: self.disk.clone(),
            net: self.net.clone(),
            vsock: self.vsock.clone(),
            balloon: self.balloon,
            transport: self.transport,
        }
    }
}

/// What clap says of wrong words, as one line: the error and its tips, without the usage, and with
/// the way to that.
pub fn one_line(message: &str) -> String {
    let told = message.split("\nUsage:").next().unwrap_or_default();
    let lines = told
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let text = lines.collect::<Vec<_>>().join("; ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    format!("{text}; see --help")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_usage_error_is_one_line_that_names_the_flag_and_the_way_out() {
        for (words, parts) in [
            ("bothy boot --memory lots", ["--memory", "512M, 1.5G or 2T"]),
            ("bothy boot --cpus two", ["--cpus", "see --help"]),
            ("bothy boot --kernal x", ["--kernal", "--kernel"]),
            ("bothy boot --console vga", ["--console", "serial, virtio, none"]),
            ("bothy boot --disk a,rw", ["--disk", "none of `ro`"]),
            ("bothy bot", ["bot", "boot"]),
            ("bothy load", ["SRC", "see --help"]),
            ("bothy load x --platform amd64", ["--platform", "linux/amd64"]),
            ("bothy load x --name A", ["--name", "lower-case"]),
            ("bothy load x --max-bytes lots", ["--max-bytes", "like 512M"]),
            ("bothy rmi", ["NAME", "see --help"]),
        ] {
            let error = Cli::try_parse_from(words.split(' ')).unwrap_err();
            let line = one_line(&error.to_string());
            assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_default_limits_of_an_image_are_those_of_the_library() {
        let Command::Load(args) = Cli::parse_from(["bothy", "load", "x"]).command else { panic!() };
        assert_eq!(args.max_bytes, crate::image::rootfs::Limits::default().max_bytes);
        let Command::Load(args) = Cli::parse_from(["bothy", "load", "x", "--max-bytes", "5M"]).command else {
            panic!()
        };
        assert_eq!(args.max_bytes, 5 << 20);
    }

    #[test]
    fn the_quick_way_gives_what_the_whole_parser_gives() {
        for words in [
            "bothy boot",
            "bothy boot --cpus 2 -- --disk",
            "bothy boot --memory 1G --disk a,ro --disk b --timing=json --net tap=t0",
            "bothy run app",
            "bothy run -i -i --rm app",
            "bothy run -it -e A=1 -m 1G -m 64M --security-opt seccomp=x app ls -l --name x",
            "bothy run --net bridge x",
            "bothy run",
            "bothy boot --help",
            "bothy run --help",
            "bothy images",
            "bothy",
        ] {
            let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
            let whole = Cli::try_parse_from(&words);
            let both = (Cli::of_process(&words), &whole);
            match both {
                (Ok(quick), Ok(whole)) => assert_eq!(format!("{quick:?}"), format!("{whole:?}")),
                (Err(quick), Err(whole)) => assert_eq!(quick.to_string(), whole.to_string()),
                (quick, whole) => panic!("{words:?}: {quick:?}, {whole:?}"),
            }
            assert_eq!(quick(&words).is_some(), whole.is_ok() && words.get(1).is_some_and(|w| w != "images"));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_a_configuration() {
        let words =
            "bothy boot --cpus 4 --memory 1G --disk a.img,ro,id=root --disk b.img --timing --console none";
        let Command::Boot(args) = Cli::parse_from(words.split(' ')).command else { panic!() };
        let config = args.to_config();
        assert_eq!((config.cpus(), config.memory_mib(), config.disk.len()), (4, 1024, 2));
        assert_eq!(config.console(), Console::None);
        assert_eq!(args.timing, Some(TimingFormat::Text));
    }

    #[test]
    fn timing_takes_a_format_only_behind_an_equals_sign() {
        let Command::Boot(args) = Cli::parse_from(["bothy", "boot", "--timing=json"]).command else {
            panic!()
        };
        assert_eq!(args.timing, Some(TimingFormat::Json));
        assert!(Cli::try_parse_from(["bothy", "boot", "--timing", "json"]).is_err());
    }

    #[test]
    fn device_words_are_taken_apart_and_unknown_ones_refused() {
        let net = parse_net("tap=t0,mac=02:00:00:00:00:01,ip=10.0.0.2/24,gw=10.0.0.1,dns=10.0.0.1").unwrap();
        assert_eq!(
            (net.backend.to_string().as_str(), net.ip.unwrap().to_string().as_str()),
            ("t0", "10.0.0.2/24")
        );
        for text in
            ["", "mac=02:00:00:00:00:01", "tap=t0,x=1", "tap=t0,ip=10.0.0.2", "tap=t0,gw=x", "tap=t0,mac=1"]
        {
            assert!(parse_net(text).is_err(), "{text}");
        }
        let vsock = parse_vsock("a.sock,cid=7").unwrap();
        assert_eq!((vsock.path.as_path(), vsock.cid), (std::path::Path::new("a.sock"), Some(7)));
        for text in ["", ",cid=3", "a,b", "a,cid=x", "a,cid=4294967296"] {
            assert!(parse_vsock(text).is_err(), "{text}");
        }
        assert!(parse_disk("a.img,ro,id=x").unwrap().read_only);
        for text in ["", ",ro", "a.img,rw", "a.img,size=1"] {
            assert!(parse_disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_append_may_begin_with_a_dash() {
        let Command::Boot(args) = Cli::parse_from(["bothy", "boot", "--append", "-- x"]).command else {
            panic!()
        };
        assert_eq!(args.append.as_deref(), Some("-- x"));
    }
}
