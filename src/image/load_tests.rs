use super::super::descriptor::Platform;
use super::super::rootfs::Limits;
use super::super::testing::{Parts, bzip2, chain, file, gzip, named, tar, xz, zstd};
use super::*;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

struct Setting {
    dir: tempfile::TempDir,
    store: Store,
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("store"), None).unwrap();
        Self { dir, store }
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().into()
    }

    fn load(&self, source: &str, name: Option<&str>) -> Result<Vec<Loaded>, String> {
        let naming = name.map_or(Naming::Source, |name| Naming::Only(name.parse().unwrap()));
        let options = LoadOptions { naming, platform: Platform::native(), limits: Limits::default() };
        let source: Source = source.parse().map_err(|error| chain(&error))?;
        let mut all = Vec::new();
        let loaded = load(&self.store, &source, &options, &(), &mut |loaded| all.push(loaded));
        loaded.map(|()| all).map_err(|error| chain(&error))
    }

    /// Nothing but empty directories and the lock.
    fn is_empty(&self) -> bool {
        ["names", "images", "rootfs", "blobs", "tmp"]
            .iter()
            .all(|part| fs::read_dir(self.dir.path().join("store/v1").join(part)).unwrap().next().is_none())
    }
}

fn image(parts: &mut Parts, stored: fn(&[u8]) -> Vec<u8>) -> serde_json::Value {
    let layers = [tar(&[file("a", &[1; 300_000])]), tar(&[file("b", b"b")])];
    parts.image("amd64", &layers.map(|layer| (stored(&layer), layer)))
}

#[test]
fn the_same_layers_are_built_once_however_they_are_stored() {
    let setting = Setting::new();
    let mut first = None;
    for (number, stored) in [<[u8]>::to_vec, gzip, zstd, xz, bzip2].into_iter().enumerate() {
        let mut parts = Parts::default();
        let image = image(&mut parts, stored);
        parts.index(&[named(image, "v1")]);
        let dir = setting.dir.path().join(format!("l{number}"));
        parts.write_to(&dir);
        let archive = parts.to_tar();
        let sources = [
            format!("oci:{}", dir.display()),
            setting.write("a.tar", &archive),
            setting.write("a.tgz", &gzip(&archive)),
            setting.write("a.zst", &zstd(&archive)),
            setting.write("a.txz", &xz(&archive)),
            setting.write("a.tar.bz2", &bzip2(&archive)),
        ];
        for source in sources {
            let loaded = setting.load(&source, None).unwrap().remove(0);
            assert_eq!(loaded.built, first.is_none(), "{source}");
            assert_eq!(loaded.names[0].tag.as_deref(), Some("v1"));
            let path = loaded.lease.path().to_owned();
            assert_eq!(*first.get_or_insert_with(|| path.clone()), path);
        }
    }
    assert_eq!(setting.store.images().unwrap().len(), 5, "five manifests");
}

#[test]
fn nothing_is_left_of_an_image_that_lies() {
    type Change = fn(&mut Parts, &str);
    let changes: [(&str, Change); 4] = [
        ("is damaged", |parts, path| parts.0.get_mut(path).unwrap()[600] ^= 1),
        ("has no blobs/", |parts, path| drop(parts.0.remove(path))),
        ("longer than the", |parts, path| parts.0.get_mut(path).unwrap().extend([0; 512])),
        ("bytes instead of the", |parts, path| parts.0.get_mut(path).unwrap().truncate(1024)),
    ];
    for (part, change) in changes {
        let setting = Setting::new();
        let mut parts = Parts::default();
        let image = image(&mut parts, <[u8]>::to_vec);
        parts.index(&[image]);
        let layer = Digest::of(&tar(&[file("b", b"b")])).blob_path();
        change(&mut parts, &layer);
        let message = setting.load(&setting.write("a.tar", &parts.to_tar()), None).unwrap_err();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
        assert!(setting.is_empty(), "{part}");
    }
    // The manifest is right about the blob, and the configuration wrong about what is in it.
    let setting = Setting::new();
    let mut parts = Parts::default();
    let layer = tar(&[file("b", b"b")]);
    let image = parts.image("amd64", &[(gzip(&layer), tar(&[file("c", b"c")]))]);
    parts.index(&[image]);
    let message = setting.load(&setting.write("a.tar", &parts.to_tar()), None).unwrap_err();
    assert!(message.contains("doesn't fit the image's configuration"), "{message}");
    assert!(setting.is_empty());
}

#[test]
fn names_come_from_the_option_the_source_or_the_file() {
    let setting = Setting::new();
    let mut parts = Parts::default();
    let image = image(&mut parts, gzip);
    parts.index(&[named(image.clone(), "quay.io/me/app:v1")]);
    let full = setting.write("full.tar", &parts.to_tar());
    parts.index(std::slice::from_ref(&image));
    let bare = setting.write("bare.tar", &parts.to_tar());
    parts.index(&[named(image.clone(), "v1"), named(image, "v2")]);
    let two = setting.write("two.tar", &parts.to_tar());
    let name = |source: &str, name| setting.load(source, name).map(|loaded| loaded[0].names[0].to_string());
    assert_eq!(name(&full, None).unwrap(), "quay.io/me/app:v1");
    assert_eq!(name(&full, Some("mine")).unwrap(), "docker.io/library/mine:latest");
    assert_eq!(name(&bare, None).unwrap(), "localhost/bare:latest");
    assert_eq!(setting.load(&two, None).unwrap().len(), 2);
    assert!(name(&two, Some("mine")).unwrap_err().contains("holds 2 images"));
    assert_eq!(
        name(&format!("oci-archive:{two}:v2"), Some("mine")).unwrap(),
        "docker.io/library/mine:latest"
    );
}

/// An archive of images without names, each of a layer of its own.
fn nameless(count: u8) -> Vec<u8> {
    let mut parts = Parts::default();
    let image = |parts: &mut Parts, n| {
        let layer = tar(&[file("n", &[n])]);
        parts.image("amd64", &[(layer.clone(), layer)])
    };
    let images: Vec<_> = (0..count).map(|n| image(&mut parts, n)).collect();
    parts.index(&images).to_tar()
}

#[test]
fn images_without_names_do_not_take_each_other_s() {
    let setting = Setting::new();
    let several = setting.write("several.tar", &nameless(3));
    let names: Vec<_> =
        setting.load(&several, None).unwrap().iter().map(|loaded| loaded.names[0].to_string()).collect();
    let digests: Vec<_> =
        setting.store.images().unwrap().iter().map(|summary| summary.digest.clone()).collect();
    assert_eq!(digests.len(), 3);
    for digest in &digests {
        assert!(names.contains(&format!("localhost/several:{}", digest.short())), "{names:?}");
    }
    let one = setting.load(&format!("oci-archive:{several}:@1"), None).unwrap().remove(0);
    assert_eq!(one.names[0].to_string(), "localhost/several:latest");
    // One that is called `latest` by its maker keeps that.
    let mut parts = Parts::default();
    let (first, second) = (image(&mut parts, gzip), image(&mut parts, zstd));
    parts.index(&[named(first, "latest"), second]);
    let loaded = setting.load(&setting.write("mixed.tar", &parts.to_tar()), None).unwrap();
    assert_eq!(loaded[0].names[0].to_string(), "localhost/mixed:latest");
    assert_eq!(loaded[1].names[0].to_string(), format!("localhost/mixed:{}", loaded[1].image.digest.short()));
}

#[test]
fn of_several_images_only_the_one_that_was_just_loaded_is_leased() {
    let setting = Setting::new();
    let source: Source = setting.write("several.tar", &nameless(3)).parse().unwrap();
    let options =
        LoadOptions { naming: Naming::Source, platform: Platform::native(), limits: Limits::default() };
    let mut removed = Vec::new();
    let mut each = |_leased: Loaded| removed.push(setting.store.prune(true).unwrap().images);
    load(&setting.store, &source, &options, &(), &mut each).unwrap();
    assert_eq!(removed, [0, 1, 1]);
}

#[test]
fn an_image_that_is_larger_than_the_whole_store_may_be_is_refused() {
    let mut setting = Setting::new();
    let small = setting.write("small.tar", &nameless(1));
    setting.load(&small, None).unwrap();
    setting.store = Store::at(&setting.dir.path().join("store"), Some(100_000)).unwrap();
    let mut parts = Parts::default();
    let image = image(&mut parts, gzip);
    parts.index(&[named(image, "v1")]);
    let large = setting.write("large.tar", &parts.to_tar());
    let part = "localhost/large:v1 takes more on disk than BOTHY_STORE_LIMIT allows for all images together, 100000 bytes";
    assert_eq!(setting.load(&large, None).unwrap_err(), part);
    let root = setting.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), vec![1; 200_000]).unwrap();
    assert!(
        setting.load(&format!("dir:{}", root.display()), None).unwrap_err().contains("BOTHY_STORE_LIMIT")
    );
    assert_eq!(setting.store.images().unwrap().len(), 1, "what was there is there");
}

#[test]
fn layers_that_can_not_fit_are_not_read() {
    let setting = Setting::new();
    let mut parts = Parts::default();
    let image = image(&mut parts, <[u8]>::to_vec);
    parts.index(&[image]);
    let source = setting.write("a.tar", &parts.to_tar()).parse().unwrap();
    let limits = Limits { max_bytes: 300_000, ..Limits::default() };
    let options = LoadOptions { naming: Naming::Source, platform: Platform::native(), limits };
    struct Read(AtomicU64);
    impl Progress for Read {
        fn begin(&self, _what: &str, _bytes: Option<u64>) {}
        fn advance(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
        fn end(&self) {}
    }
    let read = Read(AtomicU64::new(0));
    let error = load(&setting.store, &source, &options, &read, &mut drop).unwrap_err().to_string();
    assert!(error.contains("bytes, and an image may have 300000 (--max-bytes)"), "{error}");
    assert_eq!(read.0.into_inner(), 0);
    assert!(setting.is_empty());
}

#[test]
fn a_layer_of_another_length_is_not_read() {
    let mut parts = Parts::default();
    let image = image(&mut parts, gzip);
    parts.index(&[image]);
    let layer = Digest::of(&gzip(&tar(&[file("b", b"b")]))).blob_path();
    // Behind the compressed data, where no decoder looks.
    parts.0.get_mut(&layer).unwrap().push(0);
    let setting = Setting::new();
    let message = setting.load(&setting.write("a.tar", &parts.to_tar()), None).unwrap_err();
    assert!(message.contains("is longer than the"), "{message}");
}

#[test]
fn a_directory_is_an_image_until_it_changes() {
    let setting = Setting::new();
    let root = setting.dir.path().join("Root");
    fs::create_dir_all(root.join("etc")).unwrap();
    let source = format!("dir:{}", root.display());
    let first = setting.load(&source, None).unwrap().remove(0);
    let again = setting.load(&source, None).unwrap().remove(0);
    assert!(first.built && !again.built && first.image == again.image);
    assert_eq!(first.names[0].to_string(), "localhost/root:latest");
    fs::write(root.join("etc/new"), "new").unwrap();
    let changed = setting.load(&source, None).unwrap().remove(0);
    assert!(changed.built && changed.image.digest != first.image.digest);
    assert!(setting.load("dir:/no/such", None).unwrap_err().contains("/no/such"));
}

#[test]
fn what_can_not_be_loaded_is_said_in_a_line() {
    let setting = Setting::new();
    let other = setting.write("other.tar", &tar(&[file("bin/sh", b"")]));
    let cut = setting.write("cut.tgz", &gzip(&tar(&[file("a", &[7; 9000])]))[..60]);
    let lz4 = setting.write("a.tar.lz4", b"\x04\x22\x4d\x18and more");
    for (source, part) in [
        (other.as_str(), "neither manifest.json nor index.json"),
        (&lz4, "a.tar.lz4 is compressed with lz4: expected gzip, zstd, xz, bzip2 or none"),
        (&format!("oci-archive:{other}"), "has no index.json"),
        (&format!("docker-archive:{other}"), "has no manifest.json"),
        (&cut, "can't read"),
        ("oci:/no/such", "can't read /no/such: No such file"),
        ("oci-archive:/no/such", "can't read /no/such: No such file"),
        ("localhost:1/busybox-is-not-here", "can't talk to localhost:1: Connection refused"),
    ] {
        let message = setting.load(source, None).unwrap_err();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
        assert!(message.matches("a.tar.lz4").count() < 2, "{message}");
    }
    let foreign = LoadOptions {
        naming: Naming::Source,
        platform: "linux/arm64".parse().unwrap(),
        limits: Limits::default(),
    };
    let error = load(&setting.store, &"oci:x".parse().unwrap(), &foreign, &(), &mut drop).unwrap_err();
    assert!(error.to_string().contains("linux/arm64 can't run here"), "{error}");
    let small = Limits { max_bytes: 5000, ..Limits::default() };
    let options = LoadOptions { naming: Naming::Source, platform: Platform::native(), limits: small };
    let bomb = setting.write("bomb.tgz", &gzip(&tar(&[file("a", &[0; 1 << 20])])));
    let error = load(&setting.store, &bomb.parse().unwrap(), &options, &(), &mut drop).unwrap_err();
    assert!(error.to_string().contains("more than 5000 bytes"), "{error}");
    assert!(setting.is_empty());
}
