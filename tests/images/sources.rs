//! Every kind of source, from every tool that writes it: the same image gives the same file system
//! and the same configuration.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::make::{have, tool, umoci_layout, words};
use crate::store::Store;
use crate::support::{Bothy, could_not_run, is_root};

fn skopeo(dir: &Path, options: &str, to: &str) {
    words(dir, &format!("skopeo copy --quiet {options}oci:layout:app {to}"));
}

/// What `bothy images --json` has to say of the image with this name.
#[track_caller]
fn image(store: &Store, name: &str) -> Value {
    let images = store.images();
    let is_it = |image: &&Value| image["names"].as_array().unwrap().contains(&json!(name));
    images.iter().find(is_it).unwrap_or_else(|| panic!("{name} is not among {images:?}")).clone()
}

#[test]
fn one_image_in_every_form_is_built_once() {
    if !have("one_image_in_every_form_is_built_once", &["skopeo", "umoci", "zstd", "gzip", "xz", "bzip2"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    skopeo(dir, "", "oci:copy:v1");
    skopeo(dir, "--dest-compress-format zstd ", "oci:zstd:v1");
    skopeo(dir, "--format v2s2 ", "oci:docker-types:v1");
    skopeo(dir, "", "oci-archive:oci.tar:me/app:v2");
    skopeo(dir, "", "docker-archive:docker.tar:quay.io/me/app:v3");
    words(dir, "gzip --keep oci.tar");
    words(dir, "zstd --quiet docker.tar");
    words(dir, "xz --keep --threads 2 docker.tar");
    words(dir, "bzip2 --keep docker.tar");
    let digest = |layout: &str| {
        let format = "{{.Digest}}";
        tool(dir, "skopeo", ["inspect", "--format", format, &format!("oci:{layout}")]).trim().to_owned()
    };
    for (source, name, digest) in [
        ("oci:layout:app", "localhost/layout:app", Some(digest("layout:app"))),
        ("oci:copy", "localhost/copy:v1", Some(digest("copy:v1"))),
        ("./copy", "localhost/copy:v1", Some(digest("copy:v1"))),
        ("oci:zstd", "localhost/zstd:v1", Some(digest("zstd:v1"))),
        ("oci:docker-types", "localhost/docker-types:v1", None),
        ("oci-archive:oci.tar", "docker.io/me/app:v2", None),
        ("oci-archive:oci.tar:me/app:v2", "docker.io/me/app:v2", None),
        ("oci.tar", "docker.io/me/app:v2", None),
        ("oci.tar.gz", "docker.io/me/app:v2", None),
        ("docker-archive:docker.tar", "quay.io/me/app:v3", None),
        ("docker-archive:docker.tar:quay.io/me/app:v3", "quay.io/me/app:v3", None),
        ("docker.tar", "quay.io/me/app:v3", None),
        ("docker.tar.zst", "quay.io/me/app:v3", None),
        ("docker.tar.xz", "quay.io/me/app:v3", None),
        ("docker.tar.bz2", "quay.io/me/app:v3", None),
    ] {
        let said = store.load(source);
        assert!(said.starts_with(&format!("loaded {name} sha256:")), "{source}: {said}");
        let image = image(&store, name);
        if let Some(digest) = digest {
            assert_eq!(image["digest"], digest, "{source}");
        }
        assert_eq!(store.files("rootfs").len(), 1, "{source}");
        assert_eq!(image["config"], super::sources::config(), "{source}");
        assert_eq!(image["diff_ids"].as_array().unwrap().len(), 2, "{source}");
    }
    for (file, name) in [
        ("oci.tar", "docker.io/me/app:v2"),
        ("docker.tar.zst", "quay.io/me/app:v3"),
        ("docker.tar.xz", "quay.io/me/app:v3"),
        ("docker.tar.bz2", "quay.io/me/app:v3"),
    ] {
        let bytes = fs::read(dir.join(file)).unwrap();
        let piped = store.bothy(["load", "-"]).input(bytes).run().output();
        assert!(piped.starts_with(format!("loaded {name}").as_bytes()), "{file} through a pipe");
        let bothy = store.bothy(["load", "-"]).in_shell(&format!("exec \"$@\" < {file}"));
        assert!(bothy.run().output().starts_with(b"loaded "), "{file} as standard input");
    }
    let bothy = store
        .bothy(["load", "-"])
        .in_shell("cat oci.tar | { head -c 512 >/dev/null; cat oci.tar; } | \"$@\"");
    bothy.run().output();
    assert_eq!((store.files("rootfs").len(), store.files("tmp").len()), (1, 0));
}

/// What `umoci_layout` has configured.
fn config() -> Value {
    json!({
        "User": "1000:100", "Env": ["A=B", "PATH=/bin"], "Cmd": ["one", "two"], "Entrypoint": ["/entry"], "WorkingDir": "/work",
        "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Labels": {"key": "value"}, "StopSignal": "SIGINT",
    })
}

#[test]
fn buildah_s_images_are_read() {
    if !have("buildah_s_images_are_read", &["buildah"]) {
        return;
    }
    if !is_root() {
        could_not_run("buildah_s_images_are_read", "buildah needs root, or user namespaces set up for it");
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    fs::create_dir_all(dir.join("root/bin")).unwrap();
    fs::write(dir.join("root/bin/program"), "x").unwrap();
    let buildah = |line: &str| {
        words(
            dir,
            &format!("buildah --root {0}/r --runroot {0}/rr --storage-driver vfs {line}", dir.display()),
        )
    };
    let container = buildah("from scratch").trim().to_owned();
    buildah(&format!("copy {container} root /"));
    buildah(&format!(
        "config --user 7 --env K=V --cmd /bin/program --workingdir /w --port 80 --volume /v --label a=b --stop-signal 15 {container}"
    ));
    buildah(&format!("commit --quiet {container} oci-archive:oci.tar:me/app:v1"));
    buildah(&format!("commit --quiet --format docker {container} docker-archive:docker.tar:me/app:v2"));
    store.load("oci.tar");
    store.load("docker.tar");
    for (name, signal) in [("docker.io/me/app:v1", "15"), ("docker.io/me/app:v2", "15")] {
        let config = &image(&store, name)["config"];
        assert_eq!(config["Cmd"], json!(["/bin/program"]), "{name}");
        assert_eq!((&config["User"], &config["WorkingDir"]), (&json!("7"), &json!("/w")));
        assert_eq!((&config["Volumes"], &config["ExposedPorts"]), (&json!({"/v": {}}), &json!({"80": {}})));
        assert!(config["Env"].as_array().unwrap().contains(&json!("K=V")), "{config}");
        assert_eq!((&config["Labels"]["a"], &config["StopSignal"]), (&json!("b"), &json!(signal)));
    }
    assert_eq!(store.files("rootfs").len(), 1);
}

#[test]
fn an_index_of_skopeo_s_gives_the_image_for_this_platform() {
    if !have("an_index_of_skopeo_s_gives_the_image_for_this_platform", &["skopeo", "umoci"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    words(dir, "umoci config --image layout:base --tag arm --architecture arm64");
    let descriptor = |tag: &str| -> Value {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("layout/index.json")).unwrap()).unwrap();
        let name = |manifest: &Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
        index["manifests"].as_array().unwrap().iter().find(|manifest| name(manifest)).unwrap().clone()
    };
    let platform = |tag: &str, architecture: &str| {
        let mut descriptor = descriptor(tag);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let (arm, amd) = (platform("arm", "arm64"), platform("app", "amd64"));
    let layout = crate::make::Layout { dir: dir.join("layout") };
    let several = layout.document(
        "index",
        &json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [arm, amd]}),
    );
    layout.index(&[several]);
    words(dir, "skopeo copy --quiet --all oci:layout oci:copy:v1");
    store.load("copy");
    assert_eq!(image(&store, "localhost/copy:v1")["digest"], amd["digest"]);
    let refused = store.bothy(["load", "copy", "--platform", "linux/arm64"]).run().code(1);
    assert_eq!(
        refused.stderr,
        "bothy: can't load copy: images for linux/arm64 can't run here: bothy's guests are linux/amd64\n"
    );
    layout.index(&[arm]);
    store
        .bothy(["load", "layout"])
        .run()
        .code(1)
        .says("layout has no image for linux/amd64: there is only linux/arm64");
}

/// Build rules write names like `./../lib/x` into layers. GNU tar keeps them with -P.
#[test]
fn names_with_two_dots_are_cleaned_within_the_root() {
    let store = Store::new();
    let dir = store.dir();
    for (root, lib) in [("odd/in", "odd/lib"), ("clean", "clean/lib")] {
        let (root, lib) = (dir.join(root), dir.join(lib));
        fs::create_dir_all(root.join("a/q")).unwrap();
        fs::create_dir(&lib).unwrap();
        fs::write(lib.join("x"), "X").unwrap();
        fs::write(root.join("a/y"), "Y").unwrap();
        fs::hard_link(lib.join("x"), root.join("a/z")).unwrap();
    }
    let build = |root: &str, names: &str| {
        words(
            dir,
            &format!("tar -cPf layer.tar -C {root} --owner=0 --group=0 --mtime=@0 --sort=name {names}"),
        );
        let tar = fs::read(dir.join("layer.tar")).unwrap();
        let layout = crate::make::Layout::new(dir.join("layout"));
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar);
        layout.index(&[layout.image("amd64", &[crate::make::sha256(&tar)], &[layer])]);
        let store = Store::new();
        store.load(layout.dir.to_str().unwrap());
        fs::read(&store.files("rootfs")[0]).unwrap()
    };
    assert!(build("odd/in", "./../lib a/q/../y a/z") == build("clean", "lib a/y a/z"));
}

/// `umoci insert` pads no file that is the last one of its layer.
#[test]
fn a_layer_may_end_right_behind_its_last_file() {
    let store = Store::new();
    let dir = store.dir();
    let whole = crate::make::tar_of(dir, "file", &[b'X'; 27]);
    let load = |len: usize| {
        let tar = &whole[..len];
        let layout = crate::make::Layout::new(dir.join("layout"));
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", tar);
        layout.index(&[layout.image("amd64", &[crate::make::sha256(tar)], &[layer])]);
        let store = Store::new();
        let finished = store.bothy(["load", layout.dir.to_str().unwrap()]).run();
        (finished, store.files("rootfs").first().map(|path| fs::read(path).unwrap()))
    };
    let (_, expected) = load(whole.len());
    for len in [512 + 27, 512 + 28, 1024] {
        let (finished, built) = load(len);
        finished.code(0);
        assert!(built == expected, "{len}");
    }
    load(512 + 26).0.code(1).says("the archive ends in the middle of it");
    if !have("a_layer_may_end_right_behind_its_last_file", &["umoci"]) {
        return;
    }
    fs::create_dir(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/passwd"), "app:x:1000:1000::/:/bin/sh\n").unwrap();
    words(dir, "umoci init --layout inserted");
    words(dir, "umoci new --image inserted:v1");
    words(dir, "umoci insert --image inserted:v1 etc /etc");
    assert!(store.load("oci:inserted:v1").starts_with("loaded localhost/inserted:v1 "));
}

/// What else may stand beside an image in an index: other programs' entries that bothy can't use.
#[test]
fn an_index_with_odd_entries_gives_its_image() {
    let amd = json!({"os": "linux", "architecture": "amd64"});
    let sha256 = format!("sha256:{}", "a".repeat(64));
    for odd in [
        json!({"digest": sha256, "size": 5, "platform": {}}),
        json!({"digest": sha256, "platform": amd}),
        json!({"digest": format!("blake3:{}", "a".repeat(64)), "size": 5, "platform": {"os": "linux", "architecture": "arm64"}}),
        json!({"digest": sha256, "size": 5, "platform": amd, "mediaType": "application/vnd.example.sbom"}),
    ] {
        let store = Store::new();
        let layout = crate::make::Layout::new(store.dir().join("layout"));
        let mut image = layout.image("amd64", &[], &[]);
        image["platform"] = amd.clone();
        let index = layout.document("index", &json!({"schemaVersion": 2, "manifests": [odd, image]}));
        layout.index(&[index]);
        assert!(store.load("oci:layout").contains(image["digest"].as_str().unwrap()), "{odd}");
        // The same in index.json itself.
        image["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        layout.index(&[odd.clone(), image.clone()]);
        assert!(store.load("oci:layout:v1").contains("was there already"), "{odd}");
        assert!(store.load("oci:layout").contains("was there already"), "{odd}");
        // An image that somebody has named, and may miss.
        let mut named = odd.clone();
        named["annotations"] = json!({"org.opencontainers.image.ref.name": "v2"});
        if named["platform"] == amd || named["digest"] != sha256.as_str() {
            layout.index(&[named, image]);
            let finished = store.bothy(["load", "oci:layout"]).run().code(0);
            assert!(finished.stderr.contains("v2 can't be used: ") && finished.stderr.lines().count() == 1);
        }
    }
}

#[test]
fn a_directory_is_loaded_and_found_again() {
    let store = Store::new();
    fs::create_dir_all(store.dir().join("My Root/etc")).unwrap();
    let said = store.load("dir:My Root");
    assert!(said.starts_with("loaded localhost/my-root:latest sha256:"), "{said}");
    assert!(store.load("./My Root").contains("was there already"));
    fs::write(store.dir().join("My Root/etc/new"), "").unwrap();
    assert!(!store.load("dir:My Root").contains("was there already"));
}

#[test]
fn another_file_system_in_the_same_place_is_not_the_same_directory() {
    let name = "another_file_system_in_the_same_place_is_not_the_same_directory";
    if !is_root() {
        could_not_run(name, "only root may mount a file system");
        return;
    }
    if !have(name, &["mkfs.erofs"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    fs::create_dir(dir.join("root")).unwrap();
    let load = |content: &str| -> Option<String> {
        let tree = dir.join(content);
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
        // The same recipe: the same times, numbers and identity.
        let uuid = "00000000-0000-0000-0000-000000000000";
        words(dir, &format!("mkfs.erofs -T 1000000000 -U {uuid} image {content}"));
        let script =
            "exec unshare --mount sh -c 'mount -o ro,loop image root || exit 99; exec \"$@\"' sh \"$@\"";
        let finished = store.bothy(["load", "dir:root"]).in_shell(script).run();
        if finished.code == 99 {
            could_not_run(name, "EROFS can't be mounted from a file here");
            return None;
        }
        Some(String::from_utf8(finished.output()).unwrap())
    };
    let (Some(one), Some(two)) = (load("one"), load("two")) else { return };
    assert!(one != two && !two.contains("was there already"), "{one}{two}");
}

#[test]
fn the_store_is_where_the_environment_says() {
    let store = Store::new();
    fs::create_dir_all(store.dir().join("root/etc")).unwrap();
    let path = |name: &str| store.dir().join(name);
    let load = |variables: &[(&str, &Path)]| -> Bothy {
        let bothy = store.bothy(["load", "dir:root"]).env("BOTHY_STORE", "").env("XDG_DATA_HOME", "");
        variables.iter().fold(bothy, |bothy, (key, value)| bothy.env(key, value))
    };
    load(&[("XDG_DATA_HOME", &path("xdg"))]).run().code(0);
    assert!(path("xdg/bothy/v1/lock").exists());
    load(&[("HOME", &path("home")), ("XDG_DATA_HOME", Path::new("relative"))]).run().code(0);
    assert!(path("home/.local/share/bothy/v1/lock").exists() && !path("relative").exists());
    load(&[("HOME", Path::new(""))]).run().code(1).says("set BOTHY_STORE, XDG_DATA_HOME or HOME");
    load(&[("BOTHY_STORE", Path::new("/dev/null/x"))])
        .run()
        .code(1)
        .says("can't create /dev/null/x/v1/names: Not a directory");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path("xdg/bothy")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "nobody else's business");
}

#[test]
fn lists_are_tables_and_json() {
    let store = Store::new();
    assert_eq!(store.bothy(["images"]).run().output(), b"NAME  DIGEST  SIZE  CREATED  LAST USED\n");
    assert_eq!(store.images(), [Value::Null; 0]);
    fs::create_dir_all(store.dir().join("root/etc")).unwrap();
    store.load("dir:root");
    let table = String::from_utf8(store.bothy(["images"]).run().output()).unwrap();
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with("localhost/root:latest  ") && line.ends_with("  -        just now"), "{table}");
    let image = &store.images()[0];
    assert_eq!(image["platform"], "linux/amd64");
    assert!(image["last_used"].as_str().unwrap().ends_with('Z'), "{image}");
}
