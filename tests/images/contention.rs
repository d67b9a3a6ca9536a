//! Several bothy processes in one store at once.

use std::fs;

use crate::make::{Layout, noise};
use crate::store::{Store, count};

#[test]
fn loads_at_once_do_the_work_once() {
    for round in 0..count(3, 20) {
        let store = Store::new();
        let (layout, _) = Layout::good(store.dir().join("layout"), &noise(5_000_000));
        let archive = fs::read(layout.archive()).unwrap();
        let file = || store.bothy(["load", "layout"]).start();
        let pipe = || store.bothy(["load", "-", "--name", "piped"]).input(archive.clone()).start();
        let running = [file(), pipe(), file(), pipe()];
        let said: Vec<String> =
            running.into_iter().map(|running| String::from_utf8(running.wait().output()).unwrap()).collect();
        let built = said.iter().filter(|said| !said.contains("was there already")).count();
        assert_eq!(built, 1, "round {round}: {said:?}");
        assert_eq!(store.names(), ["docker.io/library/piped:latest", "localhost/layout:latest"]);
        assert_eq!(
            (store.files("rootfs").len(), store.files("tmp").len(), store.files("locks").len()),
            (1, 0, 0)
        );
    }
}

#[test]
fn loads_and_removals_at_once_leave_a_whole_store() {
    let store = Store::new();
    Layout::good(store.dir().join("layout"), &noise(500_000));
    for _ in 0..count(15, 150) {
        let loads = [store.bothy(["load", "layout"]).start(), store.bothy(["load", "layout"]).start()];
        let rmi = store.bothy(["rmi", "localhost/layout"]).start();
        let prune = store.bothy(["prune", "--all"]).start();
        for load in loads {
            load.wait().output();
        }
        let rmi = rmi.wait();
        if rmi.code != 0 {
            let known = ["no image localhost/layout", "is in use"];
            let rmi = rmi.code(1);
            assert!(known.iter().any(|part| rmi.stderr.contains(part)), "{}", rmi.streams());
        }
        prune.wait().output();
        let images = store.images();
        assert!(images.len() <= 1 && store.files("rootfs").len() <= images.len(), "{images:?}");
        assert!(
            images.iter().all(|image| image["size"].as_u64() > Some(0)),
            "a file system without its image: {images:?}"
        );
        assert_eq!(store.files("tmp").len(), 0);
    }
    store.load("layout");
    assert_eq!(store.names(), ["localhost/layout:latest"]);
}
