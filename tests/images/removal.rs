//! What is removed, by name, by prune and by the size limit, and what isn't, because somebody uses
//! it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::store::Store;
use crate::support::{could_not_run, eventually, is_root};

/// A store with an image of a directory for each name.
fn with(names: &[&str]) -> Store {
    let store = Store::new();
    for name in names {
        fs::create_dir_all(store.dir().join(name).join("etc")).unwrap();
        store.load(&format!("dir:{name}"));
    }
    store
}

/// Another process that holds a lease, as a virtual machine does.
struct User(Child);

impl User {
    fn of(store: &Store) -> Self {
        let file = &store.files("rootfs")[0];
        let script = "echo locked; exec sleep 1000";
        let mut child = Command::new("flock")
            .args(["--shared", "--no-fork"])
            .arg(file)
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 7];
        std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut line).unwrap();
        Self(child)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_in_use_stays_until_its_user_is_gone() {
    let store = with(&["root"]);
    let user = User::of(&store);
    store
        .bothy(["rmi", "root"])
        .run()
        .code(1)
        .says("image root is in use by a virtual machine or by another bothy");
    assert_eq!(store.bothy(["prune", "--all"]).run().output(), b"removed 0 images, 0 B\n");
    fs::create_dir_all(store.dir().join("other/etc")).unwrap();
    // One of the two fits.
    let size = fs::metadata(&store.files("rootfs")[0]).unwrap().len();
    store.bothy(["load", "dir:other"]).env("BOTHY_STORE_LIMIT", (size + 4096).to_string()).run().code(0);
    assert_eq!(store.names(), ["localhost/other:latest", "localhost/root:latest"]);
    drop(user);
    assert!(eventually(Duration::from_secs(5), || store.bothy(["rmi", "root"]).run().code == 0));
    assert_eq!(store.files("rootfs").len(), 1);
}

#[test]
fn names_digests_and_first_digits_are_removed() {
    let store = with(&["one", "two", "three"]);
    let digest = |name: &str| -> String {
        let images = store.images();
        let image =
            images.iter().find(|image| image["names"][0] == format!("localhost/{name}:latest")).unwrap();
        image["digest"].as_str().unwrap().to_owned()
    };
    let (one, two, three) = (digest("one"), digest("two"), digest("three"));
    let said = String::from_utf8(store.bothy(["rmi", "one", &two, &three[7..19]]).run().output()).unwrap();
    let line = |name: &str, digest: &str| format!("removed localhost/{name}:latest\nremoved {digest}\n");
    assert_eq!(said, [line("one", &one), line("two", &two), line("three", &three)].concat());
    store.is_empty();
    let refused = store.bothy(["rmi", "one"]).run().code(1);
    assert_eq!(refused.stderr, "bothy: can't remove one: no image one in the store (see: bothy images)\n");
    store.bothy(["rmi"]).run().code(2);
}

#[test]
fn prune_takes_what_has_no_name() {
    let store = with(&["root"]);
    fs::write(store.dir().join("root/etc/changed"), "").unwrap();
    store.load("dir:root");
    assert_eq!(store.images().len(), 2);
    fs::write(store.path().join("v1/tmp/1-1"), "left by kill -9").unwrap();
    fs::write(store.path().join("v1/rootfs/orphan"), "left by kill -9").unwrap();
    fs::write(store.path().join("v1/blobs/orphan"), "left by kill -9").unwrap();
    let said = String::from_utf8(store.bothy(["prune"]).run().output()).unwrap();
    assert!(said.starts_with("removed 1 image, "), "{said}");
    assert_eq!(store.names(), ["localhost/root:latest"]);
    assert_eq!(
        (store.files("rootfs").len(), store.files("tmp").len(), store.files("blobs").len()),
        (1, 0, 0)
    );
    store.bothy(["prune", "--all"]).run().code(0);
    store.is_empty();
}

#[test]
fn an_image_larger_than_the_limit_is_refused_and_others_stay() {
    let store = with(&["root"]);
    fs::create_dir_all(store.dir().join("large/etc")).unwrap();
    fs::write(store.dir().join("large/etc/file"), vec![1; 1 << 20]).unwrap();
    let load = store.bothy(["load", "dir:large"]).env("BOTHY_STORE_LIMIT", "512K");
    load.run().code(1).says("large takes more on disk than BOTHY_STORE_LIMIT allows for all images together");
    assert_eq!(store.names(), ["localhost/root:latest"]);
    assert_eq!((store.files("rootfs").len(), store.files("tmp").len()), (1, 0));
}

#[test]
fn a_full_file_system_is_said_before_it_is_full() {
    let name = "a_full_file_system_is_said_before_it_is_full";
    if !is_root() {
        could_not_run(name, "only root may mount a small file system");
        return;
    }
    let store = Store::new();
    fs::create_dir_all(store.dir().join("root/etc")).unwrap();
    fs::create_dir(store.path()).unwrap();
    fs::write(store.dir().join("root/etc/file"), vec![1; 15_000_000]).unwrap();
    let load = |size: &str| {
        let script = format!(
            "exec unshare --mount sh -c 'mount -t tmpfs -o size={size} tmpfs \"$BOTHY_STORE\" && exec \"$@\"' sh \"$@\""
        );
        store.bothy(["load", "dir:root"]).in_shell(&script).run()
    };
    load("32M").code(0);
    load("15010000").code(1).says("stay free");
}

#[test]
fn the_limit_must_be_a_size() {
    let store = with(&["root"]);
    for limit in ["lots", "1.5.5G", "-1"] {
        store
            .bothy(["images"])
            .env("BOTHY_STORE_LIMIT", limit)
            .run()
            .code(1)
            .says("is not a size: expected a number and a unit");
    }
    for limit in ["20G", "1.5g", "1073741824"] {
        store.bothy(["images"]).env("BOTHY_STORE_LIMIT", limit).run().code(0);
    }
}
