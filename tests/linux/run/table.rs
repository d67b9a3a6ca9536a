//! The same command lines by `bothy run` and by runc with docker's defaults: what they say and how
//! they end is the same.
//!
//! A line says how it is run, a colon, and what:
//!
//! ```text
//! sh: SCRIPT               by a shell, together with all others of this kind in one container (BOTHY_LONG=1: in one of its own)
//! own FLAGS: SCRIPT        by a shell in a container of its own, where the exit code and the two streams are that of the run
//! exec FLAGS: WORDS        without a shell, in a container of its own
//! long ...                 one of these two, with BOTHY_LONG=1 only
//! ```
//!
//! Of the flags, `-u` is what docker would tell runc in other words: `-u USER=UID:GID:GROUPS`. The
//! exit code of what can't be executed is docker's to choose, not runc's: `=CODE`. Signal 32 is the
//! C library's own; runc was seen to leave it ignored, which says nothing of docker. The limit on
//! file locks, which Linux doesn't apply, marks the processes of a run (`support::Token`).

use super::bundle::{self, HOST_NAME, PATH, Process};
use super::image::Image;
use super::{insist_on_one_line, needs_image, run};
use crate::guest::{long, needs_linux};
use crate::support::Finished;

const IN_A_SHELL: &str = r#"
sh: id; pwd; umask; echo $HOME; whoami
sh: echo pid $$; ps -o user,comm | head -2; ps -o pid | sed -n 2p
sh: hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname
sh: cat /etc/hosts; test -f /etc/resolv.conf && echo there
sh: grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs)' /proc/self/status
sh: grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status | sed s/0000000080000000/0000000000000000/
sh: grep -vE 'pending signals|locked memory|file locks' /proc/self/limits
sh: ulimit -n; ulimit -Hn; ulimit -c; ulimit -s
sh: cd /dev && ls
sh: cd /dev && stat -c '%n %F %a %u %g %t %T' *
sh: ls -l /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/core /dev/ptmx | sed 's/.*\/dev/\/dev/'
sh: echo lost >/dev/null; echo full >/dev/full; head -c 8 /dev/zero | od -An -tx1; head -c 4 /dev/urandom | wc -c
sh: echo again >/dev/stdout; echo error >/dev/stderr; cat /dev/fd/0 </etc/group; cat </dev/stdin
sh: for f in kcore keys timer_list interrupts sched_debug; do cat /proc/$f 2>/dev/null | wc -c; done; ls /sys/firmware | wc -l
sh: echo 1 >/proc/sys/kernel/panic; echo 1 >/proc/irq/default_smp_affinity; touch /proc/bus/x; touch /proc/fs/x; sysctl -w kernel.panic=1
sh: mkdir /sys/fs/cgroup/x; echo 1 >/sys/kernel/profiling; touch /sys/x; ls -d /sys/class/net/*
sh: cat /proc/self/cgroup; cat /proc/1/cgroup; ls /sys/fs/cgroup | grep -c '^cgroup.procs'
sh: awk '$5 ~ "^/(proc|dev|sys)(/(pts|shm|mqueue|fs/cgroup|sys|irq|bus|fs))?$" { print $5, $6 }' /proc/self/mountinfo | sort
sh: awk '$5 ~ "^/dev(/pts|/shm)?$" { print $5, $(NF - 2), $NF }' /proc/self/mountinfo | sed s/,inode64// | sort; awk '$5 == "/" { print $6, $(NF - 2) }' /proc/self/mountinfo
sh: awk '$5 ~ "^/etc/" { print $5 }' /proc/self/mountinfo | sort
sh: mount -t tmpfs none /mnt; mount -o remount,rw /proc/sys; umount /proc/sys; mount -o bind /etc /mnt
sh: mknod /tmp/null c 1 3 && echo x >/tmp/null && echo written; mknod /tmp/mem c 1 1 && cat /tmp/mem; mknod /tmp/disk b 254 0 && cat /tmp/disk
sh: chroot / /bin/echo in chroot; cd /tmp && mkdir -p root/bin && cp /bin/busybox root/bin && chroot root /bin/busybox ls /
sh: touch /tmp/a && chown 5:6 /tmp/a && chmod 4711 /tmp/a && stat -c '%u %g %a' /tmp/a; chown web /tmp/a && stat -c '%U %G %a' /tmp/a
sh: su web -c 'id; cat /etc/secret; kill -0 1; echo $HOME'
sh: su web -c 'touch /etc/x; touch /tmp/mine && stat -c %U /tmp/mine; mknod /tmp/web c 1 3; chown 0 /tmp/mine'
sh: hostname other; date -s 2020-01-01 >/dev/null; nice -n -5 true; dmesg -n 1
sh: unshare -m true; unshare -n true; nsenter -t 1 -m true
sh: ip -4 -o addr show lo | awk '{ print $4 }'; ls /sys/class/net; ip link set lo down; ip link add x type dummy
sh: ping -c 1 127.0.0.1 >/dev/null && echo pinged; su web -c 'ping -c 1 127.0.0.1 >/dev/null && echo pinged'
sh: timeout 9 nc -l -p 80 >/tmp/heard & for i in 1 2 3 4 5 6 7 8; do echo by port 80 | timeout 5 nc 127.0.0.1 80 2>/dev/null && break; sleep 0.5; done; wait $!; cat /tmp/heard
sh: echo x >/tmp/t && cat /tmp/t && stat -c '%a %U' /tmp /tmp/t; mkdir -p /new/dir && echo y >/new/dir/f && cat /new/dir/f; rm -r /new
sh: sleep 100 & kill -9 $!; wait $! 2>/dev/null; echo $?
sh: sleep 100 & kill $!; wait $! 2>/dev/null; echo $?; sh -c 'kill -USR1 $$'; echo $?; sh -c 'kill -HUP $$'; echo $?
sh: yes | head -1; seq 1 100000 | head -2; echo $?
sh: (sleep 0.1; echo of an orphan) & wait; trap 'echo trapped' USR1; sh -c 'kill -USR1 $PPID'; echo $?
sh: kill -TERM 1; kill -KILL 1; echo still here; cat /proc/1/comm
sh: no-such; echo $?; /bin/plain; echo $?; /dir; echo $?; no-interpreter; echo $?; script a 'b c'
sh: seq 1 20000 | md5sum; head -c 1000000 /dev/zero | tr '\0' x | wc -c; dd if=/dev/zero of=/tmp/big bs=1024k count=5 2>/dev/null; stat -c %s /tmp/big; rm /tmp/big
sh: ls /proc/self/fd | wc -l; ls -d /proc/[0-9]* | head -1; cat /proc/self/oom_score_adj
sh: cat /proc/self/uid_map; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ping_group_range
sh: ln -s /etc/passwd /tmp/l && head -1 /tmp/l; mkfifo /tmp/p && (echo through >/tmp/p & cat /tmp/p); ln /tmp/l /tmp/l2 && stat -c %h /tmp/l2
sh: awk '{ print $1, $2 }' /proc/net/dev | grep -c lo:; ls /proc/1/task | wc -l; cat /proc/self/stat | awk '{ print ($6 == 1), $7 }'
"#;

const CODES: &str = "
long own: exit 3
own: exit 255
own: echo to stdout; echo to stderr >&2; kill -9 $$; echo and on; (sleep 100; echo never) & exit 0
own: seq 1 300000; seq 1 30000 >&2; exit 9
exec: /bin/kill -9 1
exec =127: no-such-program
long exec =127: /no/such/program
exec =127: no-interpreter
exec =126: /bin/plain
exec =126: /dir
exec =126: nonsense
";

const USERS: &str = "
own -u web=1000:50:50,44,63: id; echo $HOME; pwd; cat /etc/secret; cat /srv/file; grep -E '^(Cap|Groups)' /proc/self/status; echo a >/dev/stdout; echo b >/dev/stderr; touch /x; mount -t tmpfs x /mnt; su
own -u 1000:daemon=1000:1:1: id; echo $HOME
own -u 4711=4711:0:0: id; echo $HOME; umask; touch /tmp/mine; stat -c '%u %g' /tmp/mine
long own -u 4711:4712=4711:4712:4712: id; cat /etc/passwd | wc -l
own -u root:video=0:44:44: id; grep Groups /proc/self/status
long own -u nohome=1001:1001:1001: id; echo $HOME; pwd
";

const FLAGS: &str = "
exec -e A=1 -e EMPTY= -e B=c=d -e FROM=flag -e PATH=/bin: env
long own -w /srv: pwd; echo $PWD; ls
own -w /made/new/dir: pwd; stat -c '%a %u' . ..
exec -u web=1000:50:50,44,63 -w /srv: stat -c %U:%n:%a . file /etc/secret
";

/// A line of a table.
#[derive(Clone, Debug)]
struct Line {
    /// What bothy is told before the image.
    flags: Vec<String>,
    /// The same for runc, and what is run.
    process: Process,
    /// The exit code, where it isn't runc's.
    code: Option<i32>,
}

impl Line {
    fn parse(text: &str) -> Self {
        let (how, what) = text.split_once(": ").unwrap();
        let mut how = how.split(' ');
        let args = match how.next().unwrap() {
            "sh" | "own" => ["sh", "-c", what].map(str::to_owned).to_vec(),
            _ => what.split(' ').map(str::to_owned).collect(),
        };
        let env = vec![PATH.into(), format!("HOSTNAME={HOST_NAME}"), "FROM=image".into()];
        let process = Process { args, env, cwd: "/".into(), uid: 0, gid: 0, groups: vec![0] };
        let mut line = Self { flags: vec![format!("--hostname={HOST_NAME}")], process, code: None };
        while let Some(flag) = how.next() {
            match flag.strip_prefix('=') {
                Some(code) => line.code = Some(code.parse().unwrap()),
                None => line.set(flag, how.next().unwrap()),
            }
        }
        line
    }

    fn set(&mut self, flag: &str, value: &str) {
        let process = &mut self.process;
        let mut said = value;
        match flag {
            "-u" => {
                let (user, ids) = value.split_once('=').unwrap();
                let ids: Vec<u32> = ids.split([':', ',']).map(|id| id.parse().unwrap()).collect();
                (process.uid, process.gid, process.groups) = (ids[0], ids[1], ids[2..].to_vec());
                said = user;
            }
            "-w" => process.cwd = value.into(),
            "-e" => {
                let name = &value[..=value.find('=').unwrap()];
                match process.env.iter_mut().find(|variable| variable.starts_with(name)) {
                    Some(variable) => *variable = value.into(),
                    None => process.env.push(value.into()),
                }
            }
            _ => panic!("{flag}"),
        }
        self.flags.extend([flag.to_owned(), said.to_owned()]);
    }

    /// Runs it by both, and says how they differ.
    fn differences(&self, image: &Image) -> Vec<String> {
        let (ours, theirs) = self.run(image);
        let mut found = Vec::new();
        let mut compare = |what: &str, ours: &str, theirs: &str| {
            if ours != theirs {
                found.push(format!("{:?}: {what}\n--- bothy\n{ours}\n--- runc\n{theirs}", self.process.args));
            }
        };
        compare("standard output", &text(&ours), &text(&theirs));
        match self.code {
            Some(code) => {
                assert_ne!(theirs.code, 0, "{self:?}: {}", theirs.streams());
                insist_on_one_line(&ours);
                compare("exit code", &ours.code.to_string(), &code.to_string());
            }
            None => {
                compare("exit code", &ours.code.to_string(), &theirs.code.to_string());
                compare("standard error", &ours.stderr, &theirs.stderr);
            }
        }
        found
    }

    fn run(&self, image: &Image) -> (Finished, Finished) {
        let ours = run(image, &self.flags).args(["app"]).args(&self.process.args);
        (ours.run(), bundle::run(image, &self.process))
    }
}

fn text(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.stdout).into_owned()
}

fn lines(table: &str) -> impl Iterator<Item = &str> {
    let here = |line| match str::strip_prefix(line, "long ") {
        Some(line) => Some(line).filter(|_| long()),
        None => Some(line).filter(|line| !line.is_empty()),
    };
    table.lines().filter_map(here)
}

/// Runs each line, and insists that there is no difference at all.
#[track_caller]
fn insist_on_table(image: &Image, table: &str) {
    let found: Vec<_> = lines(table).flat_map(|line| Line::parse(line).differences(image)).collect();
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n\n"));
}

/// What begins the part of a line in the output of all.
const MARK: &str = "=== line ";

/// A script that runs each in a shell of its own, and tells how that ended.
fn script_of_all(table: &str) -> String {
    let part = |(number, line): (usize, &str)| {
        let script = line.strip_prefix("sh: ").unwrap();
        format!("echo '{MARK}{number}'\n(\n{script}\n) 2>&1\necho \"exit code $?\"\n")
    };
    lines(table).enumerate().map(part).collect()
}

#[test]
fn what_a_container_sees_and_may_do_is_as_with_docker() {
    needs_linux!();
    let image = needs_image!();
    if long() {
        return insist_on_table(image, IN_A_SHELL);
    }
    let mut all = Line::parse("sh: ");
    all.process.args[2] = script_of_all(IN_A_SHELL);
    let (ours, theirs) = all.run(image);
    assert_eq!((ours.code, theirs.code), (0, 0), "{}\n{}", ours.streams(), theirs.streams());
    let (ours, theirs) = (text(&ours), text(&theirs));
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.split(MARK).collect(), theirs.split(MARK).collect());
    let mut found = Vec::new();
    for ((line, ours), theirs) in lines(IN_A_SHELL).zip(&ours[1..]).zip(&theirs[1..]) {
        if ours != theirs {
            found.push(format!("{line}\n--- bothy\n{ours}\n--- runc\n{theirs}"));
        }
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
    assert_eq!((ours.len(), theirs.len()), (lines(IN_A_SHELL).count() + 1, lines(IN_A_SHELL).count() + 1));
}

#[test]
fn exit_codes_and_streams_are_as_with_docker() {
    needs_linux!();
    insist_on_table(needs_image!(), CODES);
}

#[test]
fn users_and_groups_are_as_with_docker() {
    needs_linux!();
    insist_on_table(needs_image!(), USERS);
}

#[test]
fn environment_and_directory_are_as_with_docker() {
    needs_linux!();
    insist_on_table(needs_image!(), FLAGS);
}

#[test]
fn a_name_whose_only_file_may_not_be_executed_is_not_found_as_with_docker() {
    needs_linux!();
    let (ours, theirs) = Line::parse("exec: plain").run(needs_image!());
    // This is what docker makes 127 of.
    theirs.says("executable file not found in $PATH");
    ours.code(127).says("executable file not found in $PATH");
}
