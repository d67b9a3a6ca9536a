//! The flags of `bothy run`, where images come from, and several virtual machines at once.

use std::time::Duration;

use super::image::words;
use super::{bothy, insist_on_one_line, needs_image, run, shell};
use crate::guest::{long, needs_linux, needs_root};
use crate::support::{Running, file, installed, scratch};

#[test]
fn several_vms_of_one_image_run_at_once_and_it_stays_while_they_do() {
    needs_linux!();
    let image = needs_image!();
    // A store of its own: other tests need theirs as it is.
    let dir = scratch();
    let store = dir.path().join("store");
    let with_store = |command: &str| bothy(image, command).env("BOTHY_STORE", &store);
    let source = format!("oci:{}:app", image.layout.display());
    with_store("load").args(["--name=own", &source]).run().code(0);
    let count = if long() { 8 } else { 2 };
    let script = "echo $HOSTNAME >/tmp/name; echo ready; read -r word; echo \"$word $(cat /tmp/name)\"";
    let start = |number: usize| {
        let words = [format!("--name=vm{number}"), format!("--hostname=host{number}"), "-m128M".into()];
        let command = with_store("run").args(words).args(["-i", "own", "sh", "-c", script]).open_input();
        command.limit(Duration::from_secs(150)).start()
    };
    let mut vms: Vec<Running> = (0..count).map(start).collect();
    vms.iter_mut().for_each(|vm| vm.wait_for(b"ready"));

    let taken = with_store("run").args(["--name=vm0", "own", "true"]).run().code(125).says("vm0");
    insist_on_one_line(&taken);
    with_store("rmi").args(["own"]).run().code(1).says("in use");
    with_store("prune").args(["--all"]).run().code(0);

    for (number, vm) in vms.iter_mut().enumerate() {
        vm.type_in(format!("word{number}\n").as_bytes());
    }
    for (number, vm) in vms.into_iter().enumerate() {
        assert_eq!(vm.wait().output(), format!("ready\nword{number} host{number}\n").into_bytes());
    }
    with_store("rmi").args(["own"]).run().code(0);
    with_store("run").args(["--pull=never", "own", "true"]).run().code(125).says("own");
}

#[test]
fn a_read_only_root_refuses_writes_and_dev_does_not() {
    needs_linux!();
    let script = "touch /x /tmp/x /etc/x; rm /bin/script; mkdir /srv/y; echo $?
        echo x >/dev/shm/x && cat /dev/shm/x; echo $HOME; hostname";
    let finished = shell(needs_image!(), &["--read-only", "--hostname=ro"], script).run().code(0);
    assert_eq!(finished.stdout, b"1\nx\n/root\nro\n");
    assert_eq!(finished.stderr.matches("Read-only file system").count(), 5, "{}", finished.stderr);
}

#[test]
fn a_container_reaches_its_host_by_a_tap_of_its_own() {
    needs_linux!();
    needs_root!("make a tap");
    let script = "ip -o -4 addr show dev eth0 | awk '{ print $4 }'; ping -c 2 -W 20 10.77.5.1 >/dev/null && echo reached";
    let net = "--net=tap=auto,ip=10.77.5.2/24,gw=10.77.5.1";
    let finished = shell(needs_image!(), &[net], script).run().code(0);
    assert_eq!(finished.stdout, b"10.77.5.2/24\nreached\n", "{}", finished.stderr);
}

#[test]
fn memory_processors_directory_and_environment_are_those_of_the_flags() {
    needs_linux!();
    let dir = scratch();
    let list = file(dir.path(), "env", b"# no\nA=of the file\nHERE\n\nB=1\n");
    let script = "nproc; awk '/MemTotal/ { print ($2 > 30000 && $2 <= 65536) }' /proc/meminfo
        pwd; echo $A $B $HERE; env | grep -c '^#'";
    let list = format!("--env-file={}", list.display());
    let flags = ["-m", "64M", "--cpus=4", "-w", "/made/here", "-e", "B=2", &list];
    let finished = shell(needs_image!(), &flags, script).env("HERE", "inherited").run().code(1);
    let text = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(text, "4\n1\n/made/here\nof the file 2 inherited\n0\n");
}

#[test]
fn images_come_from_layouts_archives_and_directories_as_well() {
    needs_linux!();
    let image = needs_image!();
    let entry = format!("oci:{}:entry", image.layout.display());
    assert_eq!(run(image, [&entry]).run().output(), b"entry cmd\n");
    let root = format!("dir:{}", image.root.display());
    assert_eq!(run(image, [&root, "script", "of dir"]).run().output(), b"script /bin/script of dir\n");
    // What says no command can't be run without one.
    insist_on_one_line(&run(image, [&root]).run().code(125));
    if !installed("skopeo") {
        return crate::support::could_not_run(
            "run::flags::images_come_from_layouts_archives_and_directories_as_well",
            "skopeo is not installed",
        );
    }
    let dir = scratch();
    words(
        dir.path(),
        &format!("skopeo copy {entry} docker-archive:{}/entry.tar:entry:v1", dir.path().display()),
    );
    let archive = format!("docker-archive:{}/entry.tar", dir.path().display());
    let finished = run(image, ["--entrypoint=sh", &archive, "-c", "id -u; pwd; echo $FROM $A; exit 3"]).run();
    assert_eq!(finished.code(3).stdout, b"1000\n/srv\nentry b=c\n");
}

#[test]
fn an_entry_point_is_put_before_the_words_and_may_be_replaced() {
    needs_linux!();
    let image = needs_image!();
    assert_eq!(run(image, ["entry", "more", "words"]).run().output(), b"entry more words\n");
    assert_eq!(
        run(image, ["--entrypoint=id", "entry"]).run().output(),
        b"uid=1000(web) gid=44(video) groups=44(video)\n"
    );
}

#[test]
fn a_privileged_command_may_do_what_the_kernel_allows() {
    needs_linux!();
    let script = "mount -t tmpfs none /mnt && echo mounted; sysctl -w kernel.panic=0 >/dev/null && echo set
        test -b /dev/vda && echo disk; hostname other && hostname; grep -c 000000a80425fb /proc/self/status";
    let finished = shell(needs_image!(), &["--privileged"], script).run().code(1);
    assert_eq!(
        String::from_utf8_lossy(&finished.stdout),
        "mounted\nset\ndisk\nother\n0\n",
        "{}",
        finished.stderr
    );
}

#[test]
fn a_scratch_disk_takes_more_than_the_memory_and_is_gone_with_its_vm() {
    needs_linux!();
    let script = "awk '$2 == \"/\" { print $3 }' /proc/mounts; df -m / | awk 'END { print ($2 > 200 && $2 <= 256) }'
        dd if=/dev/zero bs=1024k count=120 2>/dev/null | tr '\\0' x >/fill; stat -c %s /fill; cat /fill | tr -d x | wc -c
        rm /bin/script && ls /bin/script 2>/dev/null; cat /new 2>/dev/null; echo new >/new";
    let finished = shell(needs_image!(), &["-m64M", "--scratch=256M"], script).run();
    assert_eq!(String::from_utf8_lossy(&finished.output()), "overlay\n1\n125829120\n0\n");
}

#[test]
fn of_a_flag_that_is_said_twice_the_last_counts_as_with_docker() {
    needs_linux!();
    let words = ["-m1G", "-m64M", "--hostname=one", "--hostname=two", "app", "hostname"];
    assert_eq!(run(needs_image!(), words).run().output(), b"two\n");
}
