//! Starts commands: the recipe of what happens between fork and exec.
//!
//! The child and the agent share a socket that closes when the child becomes its program. Before that the child may send its terminal, and the
//! reason if it can't go on. Nothing else of the agent's reaches the program.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::path::Path;

use bothy_guest::protocol::{self, Command, MAX_REPORT, Report, WindowSize};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, fstatfs, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Resource, Rlimit, chdir, ioctl_tiocsctty, setrlimit, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::refusal::{Failing, Refusal};
use super::setup::Container;
use super::{capabilities, container, program, users};
use crate::sys::{self, Forked};

/// Of open files, as docker's: what Linux allows at most.
const OPEN_FILES: u64 = 1 << 20;
/// An image's passwd or group file may have so many bytes.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: u64 = 0x1cd1;

/// The command's side of its standard streams.
pub(crate) enum Streams {
    /// Without an input it reads /dev/null.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal, which the child makes and sends.
    Terminal(WindowSize),
}

/// Which command it is.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// PID 1 of the container's namespaces.
    First,
    /// It joins those of this process.
    Beside(BorrowedFd<'a>),
}

/// A child on its way to its program.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Gives what [`receive`] reads.
    pub(crate) news: OwnedFd,
}

/// What a child says before it becomes its program.
pub(crate) enum News {
    /// Nothing, for now.
    Nothing,
    /// It has this terminal, the side that isn't the program's.
    Terminal(OwnedFd),
    /// It can't go on.
    Refused(Refusal),
    /// It has become its program, or is gone.
    Gone,
}

/// Forks.
pub(crate) fn start(
    command: &Command,
    streams: &Streams,
    container: &Container,
    place: Place<'_>,
) -> Result<Child, Refusal> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (news, childs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).failing("socketpair")?;
    let forked = fork(container, place).failing("cannot start a process")?;
    match forked {
        Forked::Parent { pid, pidfd } => Ok(Child { pid, pidfd, news }),
        Forked::Child => {
            // A panic in here is no reason to end the machine.
            panic::set_hook(Box::new(|_| sys::exit_now(125)));
            let Err(refusal) = become_command(command, streams, container, place, &childs);
            if let Ok(bytes) = protocol::encode(&refusal.report(0)) {
                let _ = send(&childs, &bytes, None);
            }
            sys::exit_now(125)
        }
    }
}

fn fork(container: &Container, place: Place<'_>) -> io::Result<Forked> {
    let cgroup = container.cgroup.as_ref().map(AsFd::as_fd);
    match place {
        Place::First => sys::fork_into(
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
            cgroup,
        ),
        Place::Beside(init) => {
            // Only what is forked from now on is in the other PID namespace, so the agent returns to its own at once.
            let own = File::open("/proc/self/ns/pid")?;
            move_into_thread_name_spaces(init, ThreadNameSpaceType::PROCESS_ID)?;
            let forked = sys::fork_into(0, cgroup);
            if !matches!(forked, Ok(Forked::Child)) {
                move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            }
            forked
        }
    }
}

/// What the child has said by now. Does not wait.
pub(crate) fn receive(news: &OwnedFd) -> News {
    let mut bytes = vec![0; MAX_REPORT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(news, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let length = match received {
        Err(Errno::AGAIN | Errno::INTR) => return News::Nothing,
        Err(_) => return News::Gone,
        Ok(received) => received.bytes,
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(terminal) = fds.next()
        {
            return News::Terminal(terminal);
        }
    }
    match protocol::receive(&mut bytes.get(..length).unwrap_or_default(), MAX_REPORT) {
        Ok(Report::NotStarted { reason, message, .. }) => News::Refused(Refusal { reason, message }),
        _ => News::Gone,
    }
}

fn send(to: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The child's way from fork to exec.
fn become_command(
    command: &Command,
    streams: &Streams,
    container: &Container,
    place: Place<'_>,
    agent: &OwnedFd,
) -> Result<Infallible, Refusal> {
    setsid().failing("setsid")?;
    sys::default_signals().failing("signals")?;
    // The agent's own value is not for its children: the kernel may kill them when memory runs out. Where this isn't allowed, the agent
    // has no other value than usual.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    umask(Mode::empty());
    match place {
        Place::First => {
            sys::unshare_cgroup().failing("cgroup namespace")?;
            container::enter(container)?;
        }
        Place::Beside(init) => join(init).failing("cannot join the container")?,
    }
    umask(Mode::from_raw_mode(0o022));
    let user = users::find(&command.user, &account_file("/etc/passwd"), &account_file("/etc/group"))?;
    let streams = match streams {
        Streams::Terminal(size) => terminal(*size, place, &user, agent).failing("terminal")?,
        Streams::Pipes { stdin, stdout, stderr } => {
            pipes(stdin.as_ref(), stdout, stderr, &user).failing("pipes")?
        }
    };
    for (number, stream) in (0..).zip(&streams) {
        sys::duplicate_to(stream.as_fd(), number).failing("standard streams")?;
    }
    limits();
    enter_directory(&command.cwd)?;
    drop_privileges(&user, container.privileged).failing("cannot become the user")?;
    let mut env = command.env.clone();
    if program::variable(&env, "HOME").is_none_or(<[u8]>::is_empty) {
        env.retain(|entry| !entry.starts_with(b"HOME="));
        env.push([b"HOME=", user.home.as_slice()].concat());
    }
    sys::close_on_exec_from(3).failing("descriptors")?;
    Err(program::become_program(&command.args, &env))
}

fn join(init: BorrowedFd<'_>) -> io::Result<()> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    Ok(move_into_thread_name_spaces(init, all)?)
}

/// What the image says of users or groups; nothing if it has no such file.
fn account_file(path: &str) -> Vec<u8> {
    let mut text = Vec::new();
    // A pipe in its place must not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        let _ = file.take(MAX_ACCOUNTS).read_to_end(&mut text);
    }
    text
}

/// Makes a terminal of the container's own, sends its other side to the agent, and makes it the session's.
fn terminal(
    size: WindowSize,
    place: Place<'_>,
    user: &users::User,
    agent: &OwnedFd,
) -> io::Result<[OwnedFd; 3]> {
    let master = open("/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // What runs in a container may have put something else there.
    if u64::try_from(fstatfs(&master)?.f_type).ok() != Some(DEVPTS) {
        return Err(io::Error::other("/dev/pts/ptmx is no terminal"));
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size)?;
    give(&slave, user)?;
    if matches!(place, Place::First) {
        let name = ptsname(&master, Vec::new())?;
        container::bind_console(Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())))?;
    }
    ioctl_tiocsctty(&slave)?;
    send(agent, b"t", Some(master.as_fd()))?;
    Ok([slave.try_clone()?, slave.try_clone()?, slave])
}

fn pipes(
    stdin: Option<&OwnedFd>,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
    user: &users::User,
) -> io::Result<[OwnedFd; 3]> {
    let stdin = match stdin {
        Some(stdin) => {
            give(stdin, user)?;
            stdin.try_clone()?
        }
        None => open("/dev/null", OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?,
    };
    give(stdout, user)?;
    give(stderr, user)?;
    Ok([stdin, stdout.try_clone()?, stderr.try_clone()?])
}

/// Makes the user a stream's owner: programs open /dev/stdout, which takes a right to it.
fn give(stream: &OwnedFd, user: &users::User) -> io::Result<()> {
    Ok(fchown(stream, Some(Uid::from_raw(user.uid)), None)?)
}

fn limits() {
    let open_files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    let unlimited = Rlimit { current: None, maximum: None };
    for (resource, limit) in
        [(Resource::Nofile, open_files), (Resource::Nproc, unlimited), (Resource::Core, unlimited)]
    {
        // A kernel that doesn't allow it has a lower limit of its own.
        let _ = setrlimit(resource, limit);
    }
}

fn enter_directory(cwd: &[u8]) -> Result<(), Refusal> {
    let path = Path::new(std::ffi::OsStr::from_bytes(cwd));
    if !path.is_absolute() {
        return Err(Refusal::other(format!("working directory {path:?}: not an absolute path")));
    }
    match chdir(path) {
        Err(Errno::NOENT) => container::make_directory(path).and_then(|()| Ok(chdir(path)?)),
        result => result.map_err(io::Error::from),
    }
    .failing(format_args!("working directory {path:?}"))
}

fn drop_privileges(user: &users::User, privileged: bool) -> io::Result<()> {
    if !privileged {
        capabilities::bound()?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    // The kernel takes all capabilities away from those who aren't root any more.
    set_thread_res_uid(uid, uid, uid)?;
    if user.uid == 0 && !privileged {
        capabilities::keep()?;
    }
    Ok(())
}
