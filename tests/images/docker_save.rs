//! Archives as `docker save` writes them: up to version 24, from 25 on, and some of its
//! peculiarities.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::make::{Layout, have, sha256, tar_of, tool_bytes, words};
use crate::store::Store;

struct Saved {
    dir: PathBuf,
    layers: Vec<Vec<u8>>,
    config: String,
}

impl Saved {
    fn new(dir: &Path) -> Self {
        let layers = vec![tar_of(dir, "one", b"1"), tar_of(dir, "two", b"2"), tar_of(dir, "one", b"1")];
        let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": null},
            "created": "2023-05-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let out = dir.join("saved");
        fs::create_dir_all(&out).unwrap();
        Self { dir: out, layers, config: config.to_string() }
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn manifest(&self, images: &Value) {
        self.write("manifest.json", images.to_string().as_bytes());
    }

    /// Docker's order: directories first, manifest.json near the end.
    fn pack(&self) {
        words(self.dir.parent().unwrap(), "tar -cf saved.tar -C saved .");
    }
}

/// A directory for each layer; one that is there twice is a link (docker 1.10 to 24).
#[test]
fn archives_of_docker_up_to_24() {
    let store = Store::new();
    let saved = Saved::new(store.dir());
    for (number, layer) in saved.layers.iter().take(2).enumerate() {
        saved.write(&format!("{number}/layer.tar"), layer);
        saved.write(&format!("{number}/VERSION"), b"1.0");
        saved.write(&format!("{number}/json"), b"{}");
    }
    fs::create_dir(saved.dir.join("2")).unwrap();
    std::os::unix::fs::symlink("../0/layer.tar", saved.dir.join("2/layer.tar")).unwrap();
    let config = format!("{}.json", &sha256(saved.config.as_bytes())[7..]);
    saved.write(&config, saved.config.as_bytes());
    saved.write("repositories", br#"{"app":{"v1":"0"}}"#);
    let layers = json!(["0/layer.tar", "1/layer.tar", "2/layer.tar"]);
    saved.manifest(&json!([
        {"Config": config, "RepoTags": ["app:v1", "quay.io/app:v2"], "Layers": layers},
        {"Config": config, "RepoTags": null, "Layers": layers},
    ]));
    saved.pack();
    let said = store.load("saved.tar");
    let digest = sha256(saved.config.as_bytes());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("loaded docker.io/library/app:v1 quay.io/app:v2 {digest}"));
    // Without a name it is called like its file.
    assert_eq!(
        lines[1],
        format!("loaded localhost/saved:latest {digest} (its file system was there already)")
    );
    assert_eq!(store.images().len(), 1);
    assert_eq!(store.images()[0]["created"], "2023-05-01T00:00:00Z");
    let bytes = fs::read(store.dir().join("saved.tar")).unwrap();
    let said = store.bothy(["load", "-"]).input(bytes).run().output();
    assert!(
        String::from_utf8(said).unwrap().contains("loaded <none> sha256:"),
        "through a pipe there is no file"
    );
    store
        .bothy(["load", "docker-archive:saved.tar:app:v9"])
        .run()
        .code(1)
        .says("has no image app:v9: there are docker.io/library/app:v1, quay.io/app:v2");
}

/// An image `FROM scratch`: its lists are null, and there is no layer in the archive.
#[test]
fn an_image_without_layers_is_loaded() {
    let store = Store::new();
    let mut saved = Saved::new(store.dir());
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"], "Env": null},
        "history": null, "rootfs": {"type": "layers", "diff_ids": null}});
    saved.config = config.to_string();
    let path = format!("{}.json", &sha256(saved.config.as_bytes())[7..]);
    saved.write(&path, saved.config.as_bytes());
    saved.manifest(&json!([{"Config": path, "RepoTags": ["scratch:v1"], "Layers": null}]));
    saved.pack();
    assert!(store.load("saved.tar").starts_with("loaded docker.io/library/scratch:v1 sha256:"));
    let layout = Layout::new(store.dir().join("layout"));
    let config = layout.blob("application/vnd.oci.image.config.v1+json", saved.config.as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": null, "annotations": null});
    layout.index(&[layout.document("manifest", &manifest)]);
    assert!(store.load("oci:layout").contains("was there already"), "no layers either");
}

/// Docker takes layers in an archive that are compressed, whatever they are called.
#[test]
fn layers_in_an_archive_may_be_compressed() {
    if !have("layers_in_an_archive_may_be_compressed", &["gzip", "zstd", "bzip2", "xz"]) {
        return;
    }
    let store = Store::new();
    let saved = Saved::new(store.dir());
    saved.write("config.json", saved.config.as_bytes());
    let layers = json!(["0/layer.tar", "1/layer.tar", "2/layer.tar"]);
    saved.manifest(&json!([{"Config": "config.json", "RepoTags": ["app:v1"], "Layers": layers}]));
    for (number, layer) in saved.layers.iter().enumerate() {
        saved.write(&format!("{number}/layer.tar"), layer);
    }
    saved.pack();
    store.load("saved.tar");
    for programs in [["gzip", "zstd", "bzip2"], ["bzip2", "xz", "xz"]] {
        for (number, program) in programs.into_iter().enumerate() {
            saved.write("plain", &saved.layers[number]);
            let compressed = tool_bytes(&saved.dir, program, ["-c", "plain"]);
            saved.write(&format!("{number}/layer.tar"), &compressed);
        }
        saved.pack();
        assert!(store.load("saved.tar").contains("was there already"), "{programs:?}");
    }
}

/// Some tools leave the architecture out, or call it as `uname` does.
#[test]
fn a_configuration_without_an_architecture_is_for_this_machine() {
    let store = Store::new();
    for (number, architecture) in ["", "x86_64"].into_iter().enumerate() {
        let mut saved = Saved::new(store.dir());
        saved.config = saved.config.replace("amd64", architecture);
        for (number, layer) in saved.layers.iter().enumerate() {
            saved.write(&format!("{number}/layer.tar"), layer);
        }
        saved.write("config.json", saved.config.as_bytes());
        let layers = json!(["0/layer.tar", "1/layer.tar", "2/layer.tar"]);
        saved.manifest(
            &json!([{"Config": "config.json", "RepoTags": [format!("app:v{number}")], "Layers": layers}]),
        );
        saved.pack();
        assert!(store.load("saved.tar").starts_with(&format!("loaded docker.io/library/app:v{number} ")));
    }
    let images = store.images();
    assert!(images.iter().all(|image| image["platform"] == "linux/amd64"), "{images:?}");
    assert_eq!(images.len(), 2);
}

/// A layout and manifest.json in one (docker from 25 on); its index.json was wrong in some
/// versions.
#[test]
fn archives_of_docker_from_25_on() {
    for index in ["good", "null", "empty image"] {
        let store = Store::new();
        let saved = Saved::new(store.dir());
        let layout = Layout::new(saved.dir.clone());
        let layers: Vec<Value> = saved
            .layers
            .iter()
            .map(|layer| layout.blob("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let config = layout.blob("application/vnd.oci.image.config.v1+json", saved.config.as_bytes());
        let paths = |layers: &[Value]| -> Vec<String> {
            let path =
                |layer: &Value| format!("blobs/{}", layer["digest"].as_str().unwrap().replace(':', "/"));
            layers.iter().map(path).collect()
        };
        saved.manifest(&json!([{"Config": paths(std::slice::from_ref(&config))[0], "RepoTags": ["app:v1"], "Layers": paths(&layers)}]));
        let image = |layers: &[Value]| {
            let mut image =
                layout.document("manifest", &json!({"schemaVersion": 2, "config": config, "layers": layers}));
            image["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:v1", "org.opencontainers.image.ref.name": "v1"});
            image
        };
        match index {
            "good" => layout.index(&[image(&layers)]),
            "null" => saved.write("index.json", br#"{"schemaVersion":2,"manifests":null}"#),
            _ => layout.index(&[image(&[])]),
        }
        saved.pack();
        let said = store.load("saved.tar");
        assert!(said.starts_with("loaded docker.io/library/app:v1 sha256:"), "{index}: {said}");
        let oci = store.bothy(["load", "oci-archive:saved.tar"]).run();
        match index {
            "good" => assert!(oci.output().starts_with(b"loaded docker.io/library/app:v1 sha256:")),
            "null" => drop(oci.code(1).says("holds no image")),
            _ => drop(oci.code(1).says("has 0 layers, and its configuration names 3")),
        }
        assert_eq!(store.files("rootfs").len(), 1);
    }
}
