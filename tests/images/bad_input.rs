//! A corpus of malformed images: each gives one clear line, exit code 1, and leaves nothing in the
//! store.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::make::{Layout, have, noise, sha256, tar_of, tool, words};
use crate::store::{Store, count};

#[track_caller]
fn refuses(store: &Store, source: &str, part: &str) {
    let finished = store.bothy(["load", source]).run();
    let streams = finished.streams();
    let finished = finished.code(1);
    assert!(finished.stdout.is_empty(), "{streams}");
    assert!(finished.stderr.starts_with("bothy: ") && finished.stderr.lines().count() == 1, "{streams}");
    assert!(finished.stderr.contains(part), "no {part:?}\n{streams}");
    assert!(finished.stderr.len() < 1000, "{streams}");
    for word in ["panicked", "RUST_BACKTRACE", "Os {", "Error("] {
        assert!(!finished.stderr.contains(word), "{word}\n{streams}");
    }
    store.is_empty();
}

/// Refused as a layout and as an archive of it.
#[track_caller]
fn refuses_layout(change: impl FnOnce(&Layout, &Value), part: &str) {
    let store = Store::new();
    let (layout, layer) = Layout::good(store.dir().join("layout"), b"content");
    change(&layout, &layer);
    refuses(&store, "oci:layout", part);
    layout.archive();
    refuses(&store, "oci-archive:layout.tar", part);
}

/// The image's manifest with something changed in it, and an index that says so.
fn change_manifest(layout: &Layout, change: impl FnOnce(&mut Value)) {
    let index: Value = serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    let path = layout.path(index["manifests"][0]["digest"].as_str().unwrap());
    let mut manifest = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut manifest);
    layout.index(&[layout.document("manifest", &manifest)]);
}

#[test]
fn what_is_no_image_at_all() {
    let store = Store::new();
    let write = |name: &str, content: &[u8]| fs::write(store.dir().join(name), content).unwrap();
    write("empty", b"");
    write("text", "just text\n".repeat(100).as_bytes());
    write("zeros", &[0; 10_240]);
    write("rootfs.tar", &tar_of(store.dir(), "file", b"content"));
    fs::create_dir(store.dir().join("nothing")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(store.dir().join("fifo")).status().unwrap().success());
    for (source, part) in [
        ("./empty", "is not an image: expected a directory, or a tar"),
        ("./text", "is not an image: expected a directory, or a tar"),
        ("./fifo", "is not an image: expected a directory, or a tar"),
        ("./zeros", "neither manifest.json nor index.json"),
        ("./rootfs.tar", "a root file system? unpack it and load dir:DIR"),
        ("./nothing", "neither an OCI image layout (no index.json) nor a root file system"),
        ("./gone", "can't open ./gone: No such file or directory"),
        ("gone.tar", "can't open gone.tar: No such file or directory"),
        ("gone.tar.gz", "can't open gone.tar.gz: No such file or directory"),
        ("oci:nothing", "nothing has no index.json"),
        ("oci:gone", "can't read gone: No such file or directory"),
        ("oci:text", "can't read text: Not a directory"),
        ("oci-archive:gone", "can't read gone: No such file or directory"),
        ("oci-archive:empty", "has no index.json"),
        ("oci-archive:text", "text is not a good archive: it is not a tar"),
        ("docker-archive:rootfs.tar", "rootfs.tar has no manifest.json"),
        ("dir:gone", "gone"),
        ("localhost:1/no-such-image", "can't talk to localhost:1: Connection refused"),
        ("-", "standard input is no image"),
    ] {
        refuses(&store, source, part);
    }
    for (words, part) in [
        (&["load"][..], "SRC"),
        (&["load", "Upper"], "expected lower-case letters"),
        (&["load", "https://quay.io/app"], "leave out https://: write quay.io/app"),
        (&["pull", "http://localhost:5000/app"], "leave out http://: write localhost:5000/app"),
        (&["pull", "docker.io//app"], "expected a single / between two parts of the name"),
        (&["pull", "docker.io/app/"], "expected no / at the end of the name"),
        (&["pull", "./app.tar"], "to load a file use `bothy load`"),
        (&["load", "oci:"], "expected oci:DIR[:TAG]"),
        (&["load", "docker-daemon:x"], "is not read by bothy"),
        (&["load", "x@sha256:1"], "expected 64 lower-case hexadecimal digits"),
        (&["load", "a", "b", "--name", "c"], "--name can't be given to several images"),
        (&["load", "a", "--platform", "pdp11"], "expected OS/ARCHITECTURE"),
    ] {
        let finished = store.bothy(words).run().code(2).says(part);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.streams());
    }
}

#[test]
fn blobs_that_are_not_what_was_announced() {
    let changed = |layer: &Value, layout: &Layout, change: &dyn Fn(&mut Vec<u8>)| {
        let path = layout.path(layer["digest"].as_str().unwrap());
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(path, content).unwrap();
    };
    refuses_layout(
        |layout, layer| changed(layer, layout, &|content| content[515] ^= 1),
        "is damaged: its content has the digest",
    );
    // In a tar header: nonsense on the way to the digest.
    refuses_layout(
        |layout, layer| changed(layer, layout, &|content| content[10] ^= 1),
        "is damaged: its content has the digest",
    );
    refuses_layout(
        |layout, layer| changed(layer, layout, &|content| content.push(0)),
        "is longer than the 10240 bytes",
    );
    refuses_layout(
        |layout, layer| changed(layer, layout, &|content| content.truncate(5000)),
        "has 5000 bytes instead of the 10240",
    );
    refuses_layout(|layout, layer| changed(layer, layout, &Vec::clear), "bytes instead of the 10240");
    refuses_layout(
        |layout, layer| fs::remove_file(layout.path(layer["digest"].as_str().unwrap())).unwrap(),
        "has no blobs/sha256/",
    );
    refuses_layout(
        |layout, _| change_manifest(layout, |manifest| manifest["layers"][0]["size"] = json!(1)),
        "longer than the 1 bytes",
    );
    refuses_layout(
        |layout, _| change_manifest(layout, |manifest| manifest["layers"][0]["size"] = json!(-1)),
        "malformed",
    );
    refuses_layout(
        |layout, _| change_manifest(layout, |manifest| manifest["layers"] = json!([])),
        "has 0 layers, and its configuration names 1",
    );
    refuses_layout(
        |layout, _| change_manifest(layout, |manifest| manifest["config"]["size"] = json!(1)),
        "longer than the 1 bytes",
    );
    refuses_layout(
        |layout, layer| {
            let other = sha256(b"another layer");
            layout.index(&[layout.image("amd64", &[other], std::slice::from_ref(layer))]);
        },
        "doesn't fit the image's configuration: uncompressed it is",
    );
    refuses_layout(
        |layout, layer| {
            let path = layout.path(layer["digest"].as_str().unwrap());
            layout.index(&[json!({"digest": layer["digest"], "size": fs::metadata(path).unwrap().len()})]);
        },
        "is malformed",
    );
}

#[test]
fn compressed_layers_that_are_broken_or_unknown() {
    if !have("compressed_layers_that_are_broken_or_unknown", &["gzip", "zstd", "bzip2", "xz"]) {
        return;
    }
    let load = |store: &Store, tar: &[u8], stored: &[u8], part: &str| {
        let layout = Layout::new(store.dir().join("layout"));
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", stored);
        layout.index(&[layout.image("amd64", &[sha256(tar)], &[layer])]);
        refuses(store, "layout", part);
    };
    let store = Store::new();
    let tar = tar_of(store.dir(), "file", &noise(50_000));
    for (program, suffix) in [("gzip", "gz"), ("zstd", "zst"), ("bzip2", "bz2"), ("xz", "xz")] {
        words(store.dir(), &format!("{program} -k tar-of.tar"));
        let compressed = fs::read(store.dir().join(format!("tar-of.tar.{suffix}"))).unwrap();
        let store = Store::new();
        load(&store, &tar, &compressed[..20_000], "can't be decompressed");
    }
    load(
        &store,
        &tar,
        b"\x04\x22\x4d\x18and more",
        "is compressed with lz4: expected gzip, zstd, xz, bzip2 or none",
    );
}

#[test]
fn documents_that_are_wrong_or_hostile() {
    let write = |content: &'static str| {
        move |layout: &Layout, _: &Value| fs::write(layout.dir.join("index.json"), content).unwrap()
    };
    refuses_layout(write(""), "index.json in layout");
    refuses_layout(write("[]"), "is malformed");
    refuses_layout(write("7"), "is malformed");
    refuses_layout(write("null"), "neither a clear image manifest nor a clear index");
    refuses_layout(write(r#"{"manifests":null}"#), "holds no image");
    refuses_layout(write(r#"{"manifests":[]}"#), "holds no image");
    refuses_layout(write(r#"{"schemaVersion":1,"manifests":[]}"#), "schema 1");
    refuses_layout(
        write(r#"{"manifests":[{"digest":"sha256:../../../../../../etc/passwd","size":1}]}"#),
        "is not a digest",
    );
    refuses_layout(
        write(r#"{"manifests":[{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}]}"#),
        "is not a digest",
    );
    refuses_layout(
        |layout, _| fs::write(layout.dir.join("index.json"), " ".repeat(5 << 20)).unwrap(),
        "longer than 4 MiB",
    );
    refuses_layout(
        |layout, _| fs::write(layout.dir.join("index.json"), "[".repeat(1 << 20)).unwrap(),
        "malformed",
    );
    refuses_layout(|layout, _| fs::remove_file(layout.dir.join("index.json")).unwrap(), "has no index.json");
    refuses_layout(
        |layout, _| change_manifest(layout, |manifest| manifest["manifests"] = json!([])),
        "neither a clear",
    );
    refuses_layout(
        |layout, _| {
            change_manifest(layout, |manifest| {
                manifest["layers"][0]["mediaType"] = json!("application/vnd.in-toto+json");
            });
        },
        "is not an image: its layer has the media type application/vnd.in-toto+json",
    );
    refuses_layout(
        |layout, layer| layout.index(&[layout.image("s390x", &[sha256(b"")], std::slice::from_ref(layer))]),
        "has no image for linux/amd64: there is only linux/s390x",
    );
    refuses_layout(
        |layout, layer| {
            layout.index(&[layout.image("\u{1b}[31mred", &[sha256(b"")], std::slice::from_ref(layer))]);
        },
        "there is only linux/\\u{1b}[31mred",
    );
    refuses_layout(
        |layout, _| {
            let index: Value =
                serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
            let mut inner = index["manifests"][0].clone();
            for _ in 0..10 {
                inner = layout.document("index", &json!({"schemaVersion": 2, "manifests": [inner]}));
            }
            layout.index(&[inner]);
        },
        "nested too deep",
    );
}

#[test]
fn links_and_special_files_in_a_layout() {
    let check = |replace: &dyn Fn(&Layout, &std::path::Path), part: &str| {
        let store = Store::new();
        let (layout, layer) = Layout::good(store.dir().join("layout"), b"content");
        let path = layout.path(layer["digest"].as_str().unwrap());
        fs::rename(&path, store.dir().join("outside")).unwrap();
        replace(&layout, &path);
        refuses(&store, "layout", part);
    };
    check(&|_, path| symlink("../../../outside", path).unwrap(), "leads out of layout");
    check(
        &|layout, path| symlink(layout.dir.with_file_name("outside"), path).unwrap(),
        "leads out of layout",
    );
    check(&|_, path| symlink("/dev/zero", path).unwrap(), "leads out of layout");
    check(&|_, path| fs::create_dir(path).unwrap(), "is not a regular file");
    check(&|_, path| drop(tool(std::path::Path::new("/"), "mkfifo", [path])), "is not a regular file");
    // Within the layout a link is as good as a file.
    let store = Store::new();
    let (layout, layer) = Layout::good(store.dir().join("layout"), b"content");
    let path = layout.path(layer["digest"].as_str().unwrap());
    fs::rename(&path, layout.dir.join("moved")).unwrap();
    symlink("../../moved", &path).unwrap();
    store.load("layout");
}

#[test]
fn archives_that_are_cut_off() {
    let store = Store::new();
    let (layout, _) = Layout::good(store.dir().join("layout"), &noise(20_000));
    let whole = fs::read(layout.archive()).unwrap();
    words(store.dir(), "gzip -k layout.tar");
    let zipped = fs::read(store.dir().join("layout.tar.gz")).unwrap();
    // Behind this there is nothing but zeros.
    let content = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for number in 0..count(20, 200) {
        let total = count(20, 200);
        fs::write(store.dir().join("cut.tar"), &whole[..content * number / total]).unwrap();
        refuses(&store, "oci-archive:cut.tar", "cut.tar");
        fs::write(store.dir().join("cut.tgz"), &zipped[..zipped.len() * number / total]).unwrap();
        refuses(&store, "oci-archive:cut.tgz", "cut.tgz");
    }
}

#[test]
fn any_changed_byte_is_refused_or_does_not_matter() {
    let store = Store::new();
    let (layout, _) = Layout::good(store.dir().join("layout"), b"content");
    let whole = fs::read(layout.archive()).unwrap();
    let said = store.load("oci-archive:layout.tar");
    let good = fs::read(&store.files("rootfs")[0]).unwrap();
    let content = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for number in 0..count(60, 2000) {
        store.bothy(["prune", "--all"]).run().code(0);
        let mut changed = whole.clone();
        let at = content * number / count(60, 2000);
        changed[at] ^= [1, 0x80, 0xff, 0x20][number % 4];
        fs::write(store.dir().join("changed.tar"), changed).unwrap();
        let finished = store.bothy(["load", "oci-archive:changed.tar"]).run();
        let streams = finished.streams();
        if finished.code == 0 {
            // In a tar header's time, or a JSON key that nobody reads: the image is another or the
            // same, its layer is the same.
            assert!(fs::read(&store.files("rootfs")[0]).unwrap() == good, "byte {at}: {said}\n{streams}");
        } else {
            let finished = finished.code(1);
            assert!(
                finished.stderr.starts_with("bothy: ") && finished.stderr.lines().count() == 1,
                "byte {at}: {streams}"
            );
            assert!(!finished.stderr.contains("panicked"), "byte {at}: {streams}");
            store.is_empty();
        }
    }
}
