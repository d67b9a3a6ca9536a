//! `kill -9` at any moment of a load.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::make::{Layout, noise};
use crate::store::{Store, count};
use crate::support::signal;

/// Kills loads at moments spread evenly over the time that one takes, until so many were killed
/// before they ended.
fn kill(words: &[&str], piped: bool) {
    let store = Store::new();
    let (layout, _) = Layout::good(store.dir().join("layout"), &noise(4_000_000));
    let archive = fs::read(layout.archive()).unwrap();
    let load = || {
        let bothy = store.bothy(words);
        if piped { bothy.input(archive.clone()) } else { bothy }
    };
    let begin = Instant::now();
    load().run().code(0);
    let mut whole = begin.elapsed();
    let good = fs::read(&store.files("rootfs")[0]).unwrap();
    let (times, mut killed, mut attempts) = (u32::try_from(count(10, 100)).unwrap(), 0, 0);
    while killed < times {
        assert!(attempts < 20 * times, "only {killed} of {attempts} loads were killed before they ended");
        store.bothy(["prune", "--all"]).run().code(0);
        store.is_empty();
        let running = load().start();
        // The golden ratio spreads any number of moments evenly.
        std::thread::sleep(whole.mul_f64((f64::from(attempts) * 0.618_034).fract()));
        signal(running.pid(), libc::SIGKILL);
        let was_killed = running.wait().code == -libc::SIGKILL;
        killed += u32::from(was_killed);
        attempts += 1;
        // The machine may be busier now than before, or less.
        whole = whole.mul_f64(if was_killed { 1.02 } else { 0.9 });
        check(&store, &good);
    }
    load().run().code(0);
    check(&store, &good);
    assert_eq!((store.names().len(), store.files("rootfs").len(), store.files("tmp").len()), (1, 1, 0));
}

/// What has a name is whole, and what has none is swept.
fn check(store: &Store, good: &[u8]) {
    for image in store.images() {
        let file = store.path().join("v1/rootfs").join(image["rootfs"].as_str().unwrap());
        assert!(fs::read(&file).unwrap() == good, "{}", file.display());
    }
    for file in store.files("rootfs") {
        assert!(fs::read(&file).unwrap() == good, "{}", file.display());
    }
    // The list of images above has swept.
    assert_eq!((store.files("tmp").len(), store.files("locks").len()), (0, 0));
    assert!(Path::new(&store.path()).exists());
}

#[test]
fn a_load_from_a_layout_can_be_killed_at_any_moment() {
    kill(&["load", "layout"], false);
}

#[test]
fn a_load_from_a_pipe_can_be_killed_at_any_moment() {
    kill(&["load", "-", "--name", "piped"], true);
}

#[test]
fn what_waits_for_a_killed_load_does_the_work_itself() {
    let store = Store::new();
    let (layout, _) = Layout::good(store.dir().join("layout"), &noise(20_000_000));
    let first = store.bothy(["load", "layout"]).start();
    let second = store.bothy(["load", "layout"]).start();
    std::thread::sleep(Duration::from_millis(30));
    signal(first.pid(), libc::SIGKILL);
    drop(first.wait());
    second.wait().code(0);
    assert_eq!((store.names().len(), store.files("tmp").len()), (1, 0));
    drop(layout);
}
