//! Starts commands: the recipe of what happens between fork and exec.
//!
//! The child and the agent share a socket that closes when the child becomes its program. Before
//! that the child may send its terminal, and the reason if it can't go on. Nothing else of the
//! agent's reaches the program.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;

use bothy_guest::protocol::{self, Command, MAX_REPORT, ProcessId, Report, WindowSize};
use bothy_guest::spec::{Filter, Rights};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, fcntl_setfl, fstat, fstatfs};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{fchdir, ioctl_tiocsctty, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::interpreted::Interpreted;
use super::refusal::{Failing, Refusal};
use super::setup::Container;
use super::tree::{self, Tree};
use super::{capabilities, container, program, users};
use crate::sys::{self, Forked};

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
    pub(crate) messages: OwnedFd,
}

/// What a child sends before it becomes its program.
pub(crate) enum Message {
    /// None, for now.
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
    id: ProcessId,
    command: &Command,
    streams: &Streams,
    container: &Container,
    place: Place<'_>,
) -> Result<Child, Refusal> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (messages, childs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).failing("socketpair")?;
    let forked = fork(container, place).failing("cannot start a process")?;
    match forked {
        Forked::Parent { pid, pidfd } => Ok(Child { pid, pidfd, messages }),
        Forked::Child => {
            // A panic in here is no reason to end the machine.
            panic::set_hook(Box::new(|_| sys::exit_now(125)));
            let Err(refusal) = become_command(command, streams, container, place, &childs);
            if let Ok(bytes) = protocol::encode(&refusal.report(id)) {
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
            // Only what is forked from now on is in the other PID namespace, so the agent returns
            // to its own at once.
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
pub(crate) fn receive(messages: &OwnedFd) -> Message {
    let mut bytes = vec![0; MAX_REPORT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(messages, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let length = match received {
        Err(Errno::AGAIN | Errno::INTR) => return Message::Nothing,
        Err(_) => return Message::Gone,
        Ok(received) => received.bytes,
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(terminal) = fds.next()
        {
            return Message::Terminal(terminal);
        }
    }
    match protocol::receive(&mut bytes.get(..length).unwrap_or_default(), MAX_REPORT) {
        Ok(Report::NotStarted { reason, message, .. }) => Message::Refused(Refusal { reason, message }),
        _ => Message::Gone,
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
    // The agent's own value is not for its children: the kernel may kill them when memory runs out.
    // Where this isn't allowed, the agent has no other value than usual.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    // Inside of the container this can't be opened any more.
    let interpreted = Interpreted::open();
    umask(Mode::empty());
    let tree = match place {
        Place::First => {
            sys::unshare_cgroup().failing("cgroup namespace")?;
            container::enter(container)?
        }
        Place::Beside(init) => {
            join(init).failing("cannot join the container")?;
            Tree::new().failing("/")?
        }
    };
    umask(Mode::from_raw_mode(0o022));
    let accounts = |path: &str| account_file(&tree, path);
    let user = users::find(&command.user, &accounts("/etc/passwd"), &accounts("/etc/group"))?;
    let streams = match streams {
        Streams::Terminal(size) => terminal(*size, place, &user, &tree, agent).failing("terminal")?,
        Streams::Pipes { stdin, stdout, stderr } => {
            pipes(stdin.as_ref(), stdout, stderr, &user, &tree).failing("pipes")?
        }
    };
    for (number, stream) in (0..).zip(&streams) {
        sys::duplicate_to(stream.as_fd(), number).failing("standard streams")?;
    }
    for limit in &command.rights.limits {
        sys::set_limit(limit).failing(format_args!("resource limit {}", limit.resource))?;
    }
    enter_directory(&tree, &command.cwd, place)?;
    become_user(&user, &command.rights, interpreted)?;
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
fn account_file(tree: &Tree, path: &str) -> Vec<u8> {
    let mut text = Vec::new();
    // A pipe in its place must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = tree::in_root(tree.root(), path.as_bytes(), flags).map(File::from);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        let _ = file.take(MAX_ACCOUNTS).read_to_end(&mut text);
    }
    text
}

/// Makes a terminal of the container's own, sends its other side to the agent, and makes it the
/// session's.
fn terminal(
    size: WindowSize,
    place: Place<'_>,
    user: &users::User,
    tree: &Tree,
    agent: &OwnedFd,
) -> io::Result<[OwnedFd; 3]> {
    let master = tree::in_root(tree.root(), b"/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY)?;
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
        container::bind_console(tree, &slave)?;
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
    tree: &Tree,
) -> io::Result<[OwnedFd; 3]> {
    let stdin = match stdin {
        Some(stdin) => {
            give(stdin, user)?;
            stdin.try_clone()?
        }
        None => no_input(tree)?,
    };
    give(stdout, user)?;
    give(stderr, user)?;
    Ok([stdin, stdout.try_clone()?, stderr.try_clone()?])
}

/// The container's /dev/null. What runs there may have put something in its place, such as a pipe
/// that nobody writes to.
fn no_input(tree: &Tree) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = tree::in_root(tree.root(), b"/dev/null", flags)?;
    if !container::is_null(&fstat(&null)?) {
        return Err(io::Error::other("the container's /dev/null is another file"));
    }
    fcntl_setfl(&null, OFlags::empty())?;
    Ok(null)
}

/// Makes the user a stream's owner: programs open /dev/stdout, which takes a right to it.
fn give(stream: &OwnedFd, user: &users::User) -> io::Result<()> {
    Ok(fchown(stream, Some(Uid::from_raw(user.uid)), None)?)
}

/// Makes the directory the working directory. For a container's first command what is missing is
/// made, as docker does it.
fn enter_directory(tree: &Tree, cwd: &[u8], place: Place<'_>) -> Result<(), Refusal> {
    let path = tree::shown(cwd);
    if !path.is_absolute() {
        return Err(Refusal::other(format!("working directory {path:?}: not an absolute path")));
    }
    let directory = match place {
        Place::First => tree::make_directory(tree.root(), cwd),
        Place::Beside(_) => tree::in_root(tree.root(), cwd, OFlags::PATH | OFlags::DIRECTORY),
    };
    directory.and_then(|directory| Ok(fchdir(directory)?)).failing(format_args!("working directory {path:?}"))
}

/// Becomes the user, with these rights and no others.
fn become_user(user: &users::User, rights: &Rights, interpreted: Interpreted) -> Result<(), Refusal> {
    let filter = rights.seccomp.as_ref();
    // Without no_new_privs it takes a right to install a filter, which is given away below: the
    // filter must allow that. With it, the filter comes last.
    if let Some(filter) = filter.filter(|_| !rights.no_new_privileges) {
        return install(filter, interpreted).and_then(|()| set_rights(user, rights));
    }
    set_rights(user, rights)?;
    if rights.no_new_privileges {
        set_no_new_privs(true).failing("no_new_privs")?;
    }
    filter.map_or(Ok(()), |filter| install(filter, interpreted))
}

fn install(filter: &Filter, interpreted: Interpreted) -> Result<(), Refusal> {
    let interpreted = interpreted.begin();
    let installed = sys::install_filter(filter).failing("cannot install the seccomp filter");
    interpreted.end();
    installed
}

fn set_rights(user: &users::User, rights: &Rights) -> Result<(), Refusal> {
    let set = || -> io::Result<()> {
        capabilities::bound(&rights.capabilities)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_keep_capabilities(true)?;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        capabilities::set(&rights.capabilities)?;
        Ok(set_keep_capabilities(false)?)
    };
    set().failing("cannot become the user")
}
