//! A virtual machine that is written to a file, and others that go on from there: each is one of
//! its own.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::image::Image;
use super::{insist_on_one_line, needs_image, run, shell};
use crate::guest::{needs_linux, noise};
use crate::support::scratch;

/// What no two machines have in common, a line each; then the time, and how often the kernel has
/// said that it has another generation ID.
const WHO: &str = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; hostname; date +%s; dmesg | grep -c 'virtual machine fork'";

fn make(image: &Image, file: &Path, flags: &[&str]) {
    let path = file.to_str().unwrap();
    let finished = shell(image, &[&["--snapshot", path], flags].concat(), "echo made; exit 3").run();
    assert_eq!(finished.code(3).stdout, b"made\n", "the machine that is written goes on");
}

#[test]
fn machines_go_on_from_one_snapshot_and_are_each_their_own() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let file = dir.path().join("snapshot");
    for flags in
        [&["-m128M", "--privileged"][..], &["-m128M", "--privileged", "--cpus=2", "--transport=mmio"]]
    {
        make(image, &file, flags);
        let before = fs::read(&file).unwrap();
        let flags = [&["--from", file.to_str().unwrap()], flags].concat();
        // Two at once, and one after them.
        let pair = [(); 2].map(|()| shell(image, &flags, WHO).start());
        let mut said = pair.map(|running| running.wait().output()).to_vec();
        said.push(shell(image, &flags, WHO).run().output());
        let said: Vec<String> = said.into_iter().map(|text| String::from_utf8(text).unwrap()).collect();
        for line in 0..3 {
            let own: HashSet<&str> = said.iter().map(|text| text.lines().nth(line).unwrap()).collect();
            assert_eq!(own.len(), said.len(), "{said:?}");
        }
        for text in &said {
            let [time, forks] = [3, 4].map(|line| text.lines().nth(line).unwrap().parse::<u64>().unwrap());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!(now.abs_diff(time) < 120, "{text}");
            assert_eq!(forks, 1, "the kernel hears that its generation ID is another one: {text}");
        }
        assert!(fs::read(&file).unwrap() == before, "nothing that a machine writes reaches the snapshot");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_machine_from_a_snapshot_has_disks_streams_and_memory_like_any_other() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let file = dir.path().join("snapshot");
    let flags = ["-m128M", "--scratch=64M", "--cpus=2"];
    make(image, &file, &flags);
    let from = [&["-i", "--from", file.to_str().unwrap()], &flags[..]].concat();
    let content = noise(4 << 20, 11);
    // The memory that it takes and frees is more than it had in use when it was written.
    let script = "cat >/file; head -c 60000000 /dev/zero | tail -c 50000000 | wc -c >&2; cat /file; exit 5";
    let finished = shell(image, &from, script).input(content.clone()).run();
    assert_eq!(finished.stderr.trim(), "50000000");
    assert!(finished.code(5).stdout == content);
    // Signals end it as they end others.
    let mut running = shell(image, &from, "echo up; sleep 60").start();
    running.wait_for(b"up");
    running.signal(libc::SIGKILL);
    running.wait();
}

#[test]
fn what_is_no_snapshot_of_such_a_machine_is_refused() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let file = dir.path().join("snapshot");
    let path = file.to_str().unwrap();
    make(image, &file, &["-m128M"]);
    let refused = |flags: &[&str], name: &str, why: &str| {
        let finished = run(image, ["--from", path]).args(flags).args([name, "true"]).run();
        assert!(finished.stderr.contains(why), "{why}: {}", finished.streams());
        insist_on_one_line(&finished);
        finished.code(125);
    };
    refused(&["-m256M"], "app", "another kind of VM");
    refused(&["-m128M", "--cpus=2"], "app", "another kind of VM");
    refused(&["-m128M", "--scratch=64M"], "app", "another kind of VM");
    let other = scratch();
    fs::write(other.path().join("file"), "of another image").unwrap();
    refused(&["-m128M"], &format!("dir:{}", other.path().display()), "another kind of VM");
    let again = shell(image, &["-m128M", "--snapshot", path], "true").run();
    assert!(again.stderr.contains("exists"), "{}", again.streams());
    again.code(125);
    let len = fs::metadata(&file).unwrap().len();
    let opened = fs::File::options().read(true).write(true).open(&file).unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, 300).unwrap();
    opened.write_all_at(&[byte[0] ^ 1], 300).unwrap();
    refused(&["-m128M"], "app", "damaged");
    opened.write_all_at(&byte, 300).unwrap();
    opened.set_len(len - 1).unwrap();
    refused(&["-m128M"], "app", "damaged");
    opened.set_len(len).unwrap();
    run(image, ["--from", path, "-m128M", "app", "true"]).run().code(0);
    opened.set_len(10).unwrap();
    refused(&["-m128M"], "app", "no snapshot");
}
