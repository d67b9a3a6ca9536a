use super::super::descriptor::Platform;
use super::super::digest::Digest;
use super::super::testing::{OCI_INDEX_TYPE, OCI_MANIFEST_TYPE};
use super::*;
use serde_json::{Value, json};

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(b""), "size": 0})
}

fn document(value: &Value, announced: &str) -> Result<Document, DocumentError> {
    Document::parse(value.to_string().as_bytes(), announced, "it")
}

fn manifest(config: &str, layers: &[&str]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer)).collect();
    json!({"schemaVersion": 2, "config": descriptor(config), "layers": layers})
}

#[test]
fn platforms_are_parsed_and_compared() {
    let parse = |text: &str| text.parse::<Platform>().unwrap();
    let native = Platform::native();
    for text in ["linux/x86_64", "linux/x86-64", "Linux/AMD64", "linux/amd64/v1"] {
        assert_eq!(native, parse(text), "{text}");
    }
    for (offered, distance) in [
        ("linux/amd64", Some(0)),
        ("linux/amd64/v2", Some(1)),
        ("linux/amd64/v3", Some(2)),
        ("linux/arm64", None),
        ("windows/amd64", None),
    ] {
        assert_eq!(native.distance(&parse(offered)), distance, "{offered}");
    }
    assert_eq!(parse("linux/amd64/v2").distance(&parse("linux/amd64/v3")), None);
    assert_eq!(parse("linux/amd64/v2").distance(&native), Some(3));
    assert_eq!((native.distance_to(None), native.distance_to(Some(&parse("linux/arm64")))), (Some(4), None));
    assert!(parse("linux/amd64/v3").runs_here() && !parse("linux/arm64").runs_here());
    for text in ["", "amd64", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/\n"] {
        assert!(text.parse::<Platform>().unwrap_err().contains("expected OS/ARCHITECTURE"), "{text}");
    }
}

#[test]
fn platforms_have_go_s_names_whoever_writes_them() {
    for (os, architecture, variant, expected) in [
        ("linux", "amd64", "", "linux/amd64"),
        ("", "amd64", "", "linux/amd64"),
        ("Linux", "X86_64", "V3", "linux/amd64/v3"),
        ("linux", "x86-64", "v1", "linux/amd64"),
        ("linux", "aarch64", "", "linux/arm64"),
        ("linux", "aarch64", "v8", "linux/arm64"),
        ("linux", "arm64", "8", "linux/arm64"),
        ("linux", "arm64", "v9.0", "linux/arm64/v9"),
        ("linux", "arm64", "v8.2", "linux/arm64/v8.2"),
        ("linux", "i386", "x", "linux/386"),
        ("linux", "armhf", "", "linux/arm/v7"),
        ("linux", "armel", "", "linux/arm/v6"),
        ("linux", "arm", "", "linux/arm/v7"),
        ("linux", "arm", "5", "linux/arm/v5"),
        ("linux", "arm", "v6", "linux/arm/v6"),
        ("linux", "riscv64", "rva20u64", "linux/riscv64/rva20u64"),
        ("macOS", "arm64", "", "darwin/arm64"),
        ("windows", "", "", "windows/unknown"),
    ] {
        let platform = Platform::stated(os, architecture, variant).unwrap();
        assert_eq!(platform.to_string(), expected, "{os} {architecture} {variant}");
    }
    for os in ["", "linux", "LINUX"] {
        assert_eq!(Platform::stated(os, "", "v8"), None);
    }
}

#[test]
fn manifests_and_indexes_are_told_apart_by_what_they_have() {
    let docker = "application/vnd.docker.container.image.v1+json";
    let oci = "application/vnd.oci.image.config.v1+json";
    for (config, layer) in [
        (oci, "application/vnd.oci.image.layer.v1.tar"),
        (oci, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (oci, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (oci, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        (docker, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (docker, "application/vnd.docker.image.rootfs.diff.tar"),
        (docker, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
        (docker, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ("", ""),
    ] {
        let parsed = document(&manifest(config, &[layer]), OCI_MANIFEST_TYPE);
        assert!(matches!(parsed, Ok(Document::Manifest(_))), "{layer}");
    }
    let index = json!({"schemaVersion": 2, "manifests": []});
    assert!(matches!(document(&index, OCI_INDEX_TYPE), Ok(Document::Index(_))));
    assert!(matches!(document(&index, ""), Ok(Document::Index(_))));
}

#[test]
fn what_could_be_taken_for_two_things_is_refused() {
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let good = manifest("", &[layer]);
    let mut both = good.clone();
    both["manifests"] = json!([]);
    let mut lying = good.clone();
    lying["mediaType"] = json!(OCI_INDEX_TYPE);
    for (value, announced) in [
        (&both, ""),
        (&lying, ""),
        (&good, OCI_INDEX_TYPE),
        (&good, "text/plain"),
        (&json!({"schemaVersion": 2}), ""),
        (&json!(null), ""),
        (&json!({"schemaVersion": 2, "layers": []}), ""),
        (&json!({"schemaVersion": 2, "layers": null}), ""),
        (&json!({"schemaVersion": 2, "manifests": null, "layers": null}), ""),
        (&json!({"schemaVersion": 2, "manifests": null}), OCI_MANIFEST_TYPE),
        (&json!({"schemaVersion": 2, "manifests": [], "layers": []}), ""),
    ] {
        let message = document(value, announced).unwrap_err().to_string();
        assert!(message.contains("neither a clear image manifest nor a clear index"), "{message}");
    }
    let old = json!({"schemaVersion": 1, "fsLayers": []});
    assert!(document(&old, "").unwrap_err().to_string().contains("schema 1"));
}

#[test]
fn lists_that_are_null_are_empty_and_say_nothing_beside_others() {
    let mut bare = manifest("", &[]);
    for layers in [json!(null), json!([])] {
        bare["layers"] = layers;
        bare["manifests"] = json!(null);
        bare["annotations"] = json!(null);
        match document(&bare, OCI_MANIFEST_TYPE).unwrap() {
            Document::Manifest(manifest) => assert_eq!(manifest.layers.len(), 0),
            Document::Index(_) => panic!("an index"),
        }
    }
    let mut descriptor = descriptor("");
    descriptor["annotations"] = json!(null);
    descriptor["mediaType"] = json!(null);
    let full = json!({"schemaVersion": 2, "manifests": [descriptor], "config": null, "layers": null, "mediaType": null});
    for (index, count) in [(full, 1), (json!({"schemaVersion": 2, "manifests": null}), 0)] {
        match document(&index, "").unwrap() {
            Document::Index(index) => assert_eq!(index.entries.len(), count),
            Document::Manifest(_) => panic!("a manifest"),
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let layer = "application/vnd.oci.image.layer.v1.tar";
    for (config, layer, part) in [
        (
            "application/vnd.oci.empty.v1+json",
            layer,
            "its configuration has the media type application/vnd.oci.empty",
        ),
        ("application/vnd.cncf.helm.config.v1+json", layer, "configuration"),
        ("", "application/vnd.in-toto+json", "its layer has the media type"),
        ("", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("", "application/vnd.oci.image.layer.v1.tar.evil", "evil"),
        ("", "\u{1b}[2J", "its layer"),
    ] {
        let message = document(&manifest(config, &[layer]), "").unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\u{1b}'), "{message}");
    }
    let many = vec![layer; MAX_LAYERS + 1];
    assert!(document(&manifest("", &many), "").unwrap_err().to_string().contains("more than 1000 layers"));
    for size in [json!(-1), json!(1.5), json!("1"), json!(null)] {
        let mut lying = manifest("", &[layer]);
        lying["layers"][0]["size"] = size;
        document(&lying, "").unwrap_err();
    }
}
