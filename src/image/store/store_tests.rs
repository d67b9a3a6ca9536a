use super::super::config::RunConfig;
use super::super::descriptor::Platform;
use super::super::digest::Digest;
use super::super::reference::Reference;
use super::super::testing::chain;
use super::*;
use std::fs;
use std::io::Write;
use std::time::{Duration, SystemTime};

fn store(limit: Option<u64>) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path(), limit).unwrap();
    (dir, store)
}

fn key(name: &str) -> RootfsKey {
    RootfsKey::of_layers([&Digest::of(name.as_bytes())])
}

/// Makes a file system of `len` bytes and an image of it.
fn add(store: &Store, name: &str, len: usize) -> (Image, ImageLease) {
    let write = |mut file: &File| -> Result<(), StoreError> {
        file.write_all(&vec![7; len]).map_err(|error| FileError::new("write", Path::new(name))(error).into())
    };
    let (lease, _) = store.rootfs(&key(name), write).unwrap();
    let image = Image {
        digest: Digest::of(name.as_bytes()),
        digest_of: DigestOf::Manifest,
        platform: Platform::native(),
        created: None,
        config: RunConfig::default(),
        diff_ids: vec![],
        rootfs: key(name).as_str().into(),
        indexes: Vec::new(),
    };
    store.add(&image, &[reference(name)]).unwrap();
    (image, lease)
}

fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

fn names(store: &Store) -> Vec<String> {
    store.images().unwrap().into_iter().flat_map(|summary| summary.names).collect()
}

fn count(store: &Store, part: Part) -> usize {
    store.files.list(part).unwrap().len()
}

#[test]
fn an_image_is_found_by_its_name_and_digest() {
    let (_dir, store) = store(None);
    let (image, _lease) = add(&store, "localhost/app", 10);
    let digest = image.digest.to_string();
    let whole = format!("anything@{digest}");
    for text in
        ["localhost/app", "localhost/app:latest", "app", &whole, &digest, &digest[..19], image.digest.short()]
    {
        let (found, lease) = store.look_up(text, Scope::Local).unwrap().unwrap();
        assert_eq!(found, image, "{text}");
        assert_eq!(lease.file().metadata().unwrap().len(), 10);
    }
    for text in ["other", "app:v2", "quay.io/app", "sha512:0000", "0000"] {
        assert!(store.look_up(text, Scope::Local).unwrap().is_none(), "{text}");
    }
    for (text, is_there) in [("localhost/app", true), (&whole, true), ("app", false), (&digest, false)] {
        assert_eq!(store.find(&reference(text)).unwrap().is_some(), is_there, "exactly {text}");
    }
    // Where a registry may be asked a short name is the registry's, and a few digits, which anybody
    // can choose, mean nothing.
    for (text, is_there) in [
        ("app", false),
        ("localhost/app", true),
        (image.digest.short(), true),
        (&image.digest.short()[..11], false),
        (&digest[..18], false),
    ] {
        assert_eq!(store.look_up(text, Scope::Exact).unwrap().is_some(), is_there, "exactly {text}");
    }
    // docker.io's own comes before the local one.
    let (hub, _lease) = add(&store, "app", 10);
    assert_eq!(store.look_up("app", Scope::Local).unwrap().unwrap().0, hub);
}

#[test]
fn a_full_name_means_nothing_else() {
    let (_dir, store) = store(None);
    let (image, _) = add(&store, "localhost/app", 10);
    let digits = image.digest.short();
    for text in [
        "docker.io/library/app",
        "docker.io/app:latest",
        "library/app",
        &format!("docker.io/library/{digits}"),
        &format!("library/{digits}"),
        &format!("localhost/{digits}"),
        &format!("localhost/app@{digits}"),
    ] {
        assert!(store.look_up(text, Scope::Local).unwrap().is_none(), "{text}");
        assert!(matches!(store.remove_image(text), Err(StoreError::Unknown(_))), "{text}");
    }
    assert_eq!(store.remove_image("app").unwrap()[0], "localhost/app:latest");
}

#[test]
fn a_configuration_is_not_taken_for_a_manifest() {
    let (_dir, store) = store(None);
    let (image, lease) = add(&store, "pinned", 10);
    drop(lease);
    let (_, lease) = add(&store, "another", 10);
    let other = Image {
        digest_of: DigestOf::Config,
        rootfs: key("another").as_str().into(),
        created: Some("now".into()),
        ..image.clone()
    };
    // What is both a manifest and a configuration, and has the same digest as either.
    store.add(&other, &[reference("evil")]).unwrap();
    drop(lease);
    let pinned = format!("pinned@{}", image.digest);
    assert_eq!(store.find(&reference(&pinned)).unwrap().unwrap().0, image);
    assert_eq!(store.look_up("pinned", Scope::Local).unwrap().unwrap().0, image);
    assert_eq!(store.look_up("evil", Scope::Local).unwrap().unwrap().0, other);
    assert!(matches!(store.look_up(image.digest.short(), Scope::Local), Err(StoreError::Several { .. })));
    assert_eq!(names(&store).len(), 3);
    assert_eq!(store.remove_image("evil").unwrap().len(), 2);
    assert_eq!(store.look_up(image.digest.short(), Scope::Local).unwrap().unwrap().0, image);
    for of in [DigestOf::Config, DigestOf::Directory] {
        let only = Image { digest_of: of, digest: Digest::of(b"only"), ..image.clone() };
        store.add(&only, &[reference("only")]).unwrap();
        assert_eq!(store.look_up(only.digest.short(), Scope::Local).unwrap().unwrap().0, only);
        assert!(store.find(&reference(&format!("x@{}", only.digest))).unwrap().is_none());
        assert_eq!(
            store.remove_image("only").unwrap(),
            ["docker.io/library/only:latest".to_owned(), only.digest.to_string()]
        );
    }
}

#[test]
fn the_key_of_a_file_system_is_never_a_path() {
    let (dir, store) = store(None);
    let (image, _) = add(&store, "app", 10);
    let outside = dir.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    for key in
        ["../../outside", outside.to_str().unwrap(), "", &image.rootfs[1..], &image.rootfs.to_uppercase()]
    {
        let mut record = serde_json::to_value(&image).unwrap();
        record["rootfs"] = key.into();
        let file = format!("sha256-{}", image.digest.hex());
        store.files.write(IMAGES, &file, record.to_string().as_bytes()).unwrap();
        assert!(store.look_up("app", Scope::Local).unwrap().is_none(), "{key}");
        assert!(store.images().unwrap().is_empty());
        store.prune(true).unwrap();
        assert!(outside.exists(), "{key}");
        add(&store, "app", 10);
    }
}

#[test]
fn an_image_is_found_by_the_indexes_that_have_led_to_it() {
    let (_dir, store) = store(None);
    let (image, _lease) = add(&store, "one", 10);
    let indexes = [Digest::of(b"first"), Digest::of(b"second")];
    for index in &indexes {
        store.add(&Image { indexes: vec![index.clone()], ..image.clone() }, &[]).unwrap();
    }
    // Somebody loads it from a file.
    store.add(&image, &[]).unwrap();
    for index in &indexes {
        let found = store.find(&reference(&format!("any@{index}"))).unwrap().unwrap().0;
        assert_eq!((found.digest, found.indexes.len()), (image.digest.clone(), 2));
    }
    assert!(store.find(&reference(&format!("any@{}", Digest::of(b"third")))).unwrap().is_none());
}

#[test]
fn a_name_moves_to_the_image_that_was_loaded_last() {
    let (_dir, store) = store(None);
    let (old, _) = add(&store, "old", 10);
    let (new, _) = add(&store, "new", 10);
    store.add(&new, &[reference("old")]).unwrap();
    assert_eq!(store.find(&reference("old")).unwrap().unwrap().0, new);
    let unnamed: Vec<_> =
        store.images().unwrap().into_iter().filter(|summary| summary.names.is_empty()).collect();
    assert_eq!(unnamed.len(), 1);
    assert_eq!(store.image(&unnamed[0]).unwrap().unwrap(), old);
    let pruned = store.prune(false).unwrap();
    assert_eq!((pruned.images, count(&store, ROOTFS)), (1, 1));
}

#[test]
fn removing_takes_the_image_with_its_last_name() {
    let (_dir, store) = store(None);
    let (image, lease) = add(&store, "one", 10);
    store.add(&image, &[reference("two")]).unwrap();
    drop(lease);
    assert_eq!(store.remove_image("one").unwrap(), ["docker.io/library/one:latest"]);
    assert_eq!(count(&store, ROOTFS), 1);
    assert_eq!(
        store.remove_image("two").unwrap(),
        ["docker.io/library/two:latest".to_owned(), image.digest.to_string()]
    );
    for part in [NAMES, IMAGES, ROOTFS, Part("tmp")] {
        assert_eq!(count(&store, part), 0, "{part:?}");
    }
    assert!(matches!(store.remove_image("two"), Err(StoreError::Unknown(_))));
    assert!(matches!(store.remove_image("../../x"), Err(StoreError::Unknown(_))));
}

#[test]
fn removing_by_digits_takes_all_names() {
    let (_dir, store) = store(None);
    let (image, _) = add(&store, "one", 10);
    store.add(&image, &[reference("two")]).unwrap();
    assert!(matches!(store.remove_image("abc"), Err(StoreError::Unknown(_))), "too few digits");
    assert_eq!(store.remove_image(image.digest.short()).unwrap().len(), 3);
    let (image, _) = add(&store, "three", 10);
    assert_eq!(store.remove_image(&image.digest.to_string()).unwrap().len(), 2);
    assert_eq!(names(&store), [""; 0]);
    for number in 0..300 {
        store.files.write(IMAGES, &format!("sha256-abcd{number:060}"), b"{}").unwrap();
    }
    let message = store.remove_image("abcd").unwrap_err().to_string();
    assert!(message.contains("abcd is the beginning of several") && message.len() < 400, "{message}");
}

#[test]
fn what_is_leased_is_never_removed() {
    let (_dir, store) = store(Some(0));
    let (_image, lease) = add(&store, "used", 10_000);
    assert!(matches!(store.remove_image("used"), Err(StoreError::InUse(_))));
    assert_eq!(store.prune(true).unwrap(), Pruned::default());
    assert_eq!(
        names(&store),
        ["docker.io/library/used:latest"],
        "the limit of nothing hasn't removed it either"
    );
    // Another process's copy of the descriptor counts as well.
    let copy = std::os::fd::OwnedFd::try_clone(&lease.into_fd()).unwrap();
    assert!(matches!(store.remove_image("used"), Err(StoreError::InUse(_))));
    drop(copy);
    assert_eq!(store.prune(true).unwrap().images, 1);
    assert_eq!(count(&store, ROOTFS), 0);
}

#[test]
fn two_images_of_the_same_layers_share_their_file_system() {
    let (_dir, store) = store(None);
    let (image, _) = add(&store, "one", 10);
    let other = Image { digest: Digest::of(b"other"), ..image };
    store.add(&other, &[reference("other")]).unwrap();
    store.remove_image("one").unwrap();
    assert!(store.find(&reference("other")).unwrap().is_some());
    store.remove_image("other").unwrap();
    assert_eq!(count(&store, ROOTFS), 0);
}

#[test]
fn makers_and_removers_at_once_leave_a_good_store() {
    let (_dir, store) = store(None);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..25 {
                    match worker {
                        0 | 1 => {
                            let (_, lease) = add(store, "contested", 5000);
                            assert_eq!(lease.file().metadata().unwrap().len(), 5000);
                            assert!(lease.path().exists(), "round {round}");
                        }
                        2 => drop(store.prune(true).unwrap()),
                        _ => match store.remove_image("contested") {
                            Ok(_) | Err(StoreError::Unknown(_) | StoreError::InUse(_)) => {}
                            Err(error) => panic!("{error}"),
                        },
                    }
                }
            });
        }
    });
    add(&store, "contested", 5000);
    assert!(store.find(&reference("contested")).unwrap().is_some());
    assert_eq!(count(&store, Part("tmp")), 0);
}

#[test]
fn the_limit_removes_what_was_used_longest_ago() {
    let (dir, _) = store(None);
    let store = Store::at(dir.path(), Some(25_000)).unwrap();
    for (age, name) in [(30, "old"), (10, "new"), (20, "middle")] {
        let (image, lease) = add(&store, name, 8192);
        drop(lease);
        let file = File::options().write(true).open(store.files.path(ROOTFS, &image.rootfs)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age * 1000)).unwrap();
    }
    assert_eq!(names(&store).len(), 3, "24 KiB fit");
    let (_, lease) = add(&store, "newest", 8192);
    let full = |name: &str| format!("docker.io/library/{name}:latest");
    assert_eq!(names(&store), [full("middle"), full("new"), full("newest")]);
    // To use one makes it young, and an orphan is removed like anything else.
    drop(store.look_up("middle", Scope::Local).unwrap().unwrap());
    store.rootfs(&key("orphan"), |_| Ok::<(), StoreError>(())).unwrap();
    add(&store, "fifth", 8192);
    assert_eq!(names(&store), [full("fifth"), full("middle"), full("newest")]);
    drop(lease);
}

#[test]
fn blobs_are_verified_and_fetched_once() {
    let (_dir, store) = store(None);
    let digest = Digest::of(b"blob");
    let get = |bytes: &'static [u8], len| store.blob(&digest, len, || Ok(bytes));
    for (bytes, len, part) in [
        (&b"blub"[..], None, "is damaged"),
        (b"blob", Some(3), "longer than the 3"),
        (b"blo", Some(4), "has 3 bytes"),
        (b"", None, "is damaged"),
    ] {
        let message = chain(&get(bytes, len).unwrap_err());
        assert!(message.contains(part), "{message}");
        assert_eq!((count(&store, BLOBS), count(&store, Part("tmp"))), (0, 0));
    }
    let lease = get(b"blob", Some(4)).unwrap();
    assert_eq!(fs::read(get(b"not asked for", None).unwrap().path()).unwrap(), b"blob");
    assert_eq!(store.prune(true).unwrap().bytes, 0, "leased");
    drop(lease);
    store.prune(false).unwrap();
    assert_eq!(count(&store, BLOBS), 0);
}

#[test]
fn damage_by_another_hand_is_passed_over_and_pruned() {
    let (_dir, store) = store(None);
    let (image, lease) = add(&store, "good", 10);
    store.files.write(IMAGES, "sha256-junk", b"{").unwrap();
    store.files.write(NAMES, "junk", b"\xff").unwrap();
    let (lost, _) = add(&store, "lost", 10);
    store.files.remove(ROOTFS, &lost.rootfs).unwrap();
    assert_eq!(store.images().unwrap().len(), 2);
    assert!(
        store.find(&reference("lost")).unwrap().is_none(),
        "without its file system it must be loaded again"
    );
    store.prune(false).unwrap();
    assert_eq!((count(&store, IMAGES), count(&store, NAMES)), (2, 2));
    assert_eq!(store.remove_image("lost").unwrap().len(), 2);
    drop(lease);
    assert_eq!(store.remove_image("good").unwrap()[1], image.digest.to_string());
}

#[test]
fn a_place_that_can_not_be_used_is_an_error() {
    let message = chain(&Store::at(Path::new("/dev/null/x"), None).unwrap_err());
    assert!(message.starts_with("can't create /dev/null/x/v1/names: "), "{message}");
}
