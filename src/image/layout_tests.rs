use super::super::files::Directory;
use super::super::testing::{OCI_INDEX_TYPE, Parts, chain, named, platform, with};
use super::*;
use serde_json::{Value, json};

fn find(parts: &Parts, which: &Which, platform: &str) -> Result<Vec<Found>, String> {
    let dir = tempfile::tempdir().unwrap();
    parts.write_to(dir.path());
    let files = Directory::open(dir.path()).unwrap();
    let found = oci_images(&files, which, &platform.parse().unwrap());
    found.map_err(|error| chain(&error).replace(dir.path().to_str().unwrap(), "DIR"))
}

fn digest(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}

#[track_caller]
fn refused(parts: &Parts, part: &str) {
    let message = find(parts, &Which::All, "linux/amd64").unwrap_err();
    assert!(message.contains(part) && !message.contains('\n'), "{message}");
}

#[test]
fn an_image_is_found_with_all_that_belongs_to_it() {
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    parts.index(&[named(image.clone(), "v1")]);
    let found = find(&parts, &Which::All, "linux/amd64").unwrap().remove(0);
    assert_eq!((found.digest, found.tag.as_deref(), found.names.len()), (digest(&image), Some("v1"), 0));
    assert_eq!((found.layers.len(), found.config.cmd), (1, vec!["sh".to_owned()]));
    assert_eq!(found.layers[0].digest.as_ref(), Some(&found.layers[0].diff_id), "uncompressed");
}

#[test]
fn images_are_chosen_by_tag_name_and_number() {
    let mut parts = Parts::default();
    let (one, two) = (parts.small_image("amd64"), parts.image("amd64", &[]));
    let full = json!({"io.containerd.image.name": "docker.io/library/two:v2", "org.opencontainers.image.ref.name": "v2"});
    parts.index(&[named(one.clone(), "v1"), with(two.clone(), "annotations", full)]);
    let which = |which: Which| -> Result<Vec<Digest>, String> {
        Ok(find(&parts, &which, "linux/amd64")?.into_iter().map(|found| found.digest).collect())
    };
    let name = |name: &str| Which::Named(name.into());
    assert_eq!(which(Which::All).unwrap(), [digest(&one), digest(&two)]);
    assert_eq!(which(name("v1")).unwrap(), [digest(&one)]);
    for text in ["v2", "two:v2", "docker.io/library/two:v2"] {
        assert_eq!(which(name(text)).unwrap(), [digest(&two)], "{text}");
    }
    assert_eq!(which(Which::Number(0)).unwrap(), [digest(&one)]);
    assert!(
        which(name("v3"))
            .unwrap_err()
            .contains("DIR has no image v3: there are v1, docker.io/library/two:v2")
    );
    assert!(which(Which::Number(2)).unwrap_err().contains("no image @2"));
}

#[test]
fn the_platform_is_chosen_through_nested_indexes() {
    let mut parts = Parts::default();
    let (arm, amd) = (parts.small_image("arm64"), parts.small_image("amd64"));
    let v3 = parts.image("amd64", &[]);
    let attestation =
        with(amd.clone(), "annotations", json!({"vnd.docker.reference.type": "attestation-manifest"}));
    let unknown = with(arm.clone(), "platform", json!({"os": "unknown", "architecture": "unknown"}));
    let inner = json!({"schemaVersion": 2, "manifests": [
        unknown, attestation, platform(arm.clone(), "arm64", "v8"), platform(v3.clone(), "amd64", "v3"), platform(amd.clone(), "amd64", ""),
    ]});
    let inner = parts.document(OCI_INDEX_TYPE, &inner);
    let outer = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": [inner]}));
    parts.index(&[outer]);
    let found = |platform| find(&parts, &Which::All, platform).map(|mut found| found.remove(0).digest);
    assert_eq!(found("linux/amd64").unwrap(), digest(&amd), "without a variant wins over v3");
    assert_eq!(found("linux/amd64/v3").unwrap(), digest(&v3));
    assert_eq!(found("linux/amd64/v2").unwrap(), digest(&amd), "older processors' programs run, too");
    let message = found("linux/s390x").unwrap_err();
    assert_eq!(
        message,
        "DIR has no image for linux/s390x: there are linux/amd64, linux/amd64/v3, linux/arm64/v8"
    );
    // Without platforms in the index, the configurations say it.
    parts.index(&[arm.clone(), amd.clone()]);
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap()[0].digest, digest(&amd));
    // What an index promises, the configuration must keep.
    parts.index(&[platform(arm, "amd64", "")]);
    refused(&parts, "there is only linux/arm64");
}

#[test]
fn manifests_of_docker_are_read_as_well() {
    let mut parts = Parts::default();
    let layer = parts.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", "x");
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [Digest::of(b"y")]}});
    let config = parts.document("application/vnd.docker.container.image.v1+json", &config);
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = platform(parts.document(kind, &manifest), "amd64", "");
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = parts.document(kind, &json!({"schemaVersion": 2, "mediaType": kind, "manifests": [manifest]}));
    parts.index(&[list]);
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap()[0].digest, digest(&manifest));
}

#[test]
fn indexes_that_are_too_deep_or_lead_to_too_much_are_refused() {
    let mut parts = Parts::default();
    let mut inner = parts.small_image("amd64");
    for _ in 0..=MAX_DEPTH {
        inner = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    parts.index(&[inner]);
    refused(&parts, "nested too deep");
    // Each level names the next one ten times: ten to the fifth documents.
    let mut inner = parts.small_image("amd64");
    for _ in 0..MAX_DEPTH {
        inner = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": vec![inner; 10]}));
    }
    parts.index(&[inner]);
    refused(&parts, "too many manifests");
}

#[test]
fn hostile_and_broken_layouts_are_refused() {
    let mut parts = Parts::default();
    refused(&parts, "DIR has no index.json");
    refused(parts.index(&[]), "DIR holds no image");
    for (text, part) in [
        ("", "index.json in DIR is malformed: EOF"),
        ("{", "malformed"),
        (r#"{"manifests": null}"#, "neither a clear image manifest nor a clear index"),
        (r#"{"manifests": [{}]}"#, "missing field `digest`"),
        (r#"{"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}"#, "is not a digest"),
        (r#"{"manifests": [{"digest": "sha256:\u001b[2J", "size": 1}]}"#, "is not a digest"),
    ] {
        parts.0.insert(OCI_INDEX.into(), text.into());
        refused(&parts, part);
    }
    parts.0.insert(OCI_INDEX.into(), " ".repeat(5 << 20).into());
    refused(&parts, "longer than 4 MiB");

    let image = parts.small_image("amd64");
    let missing = json!({"digest": Digest::of(b"missing"), "size": 7});
    refused(parts.index(&[missing]), "DIR has no blobs/sha256/");
    refused(parts.index(&[with(image.clone(), "size", json!(1))]), "longer than the 1 bytes");
    refused(parts.index(&[with(image.clone(), "mediaType", json!(OCI_INDEX_TYPE))]), "neither a clear");
    let signature = json!({"schemaVersion": 2, "config": {"mediaType": "x", "digest": Digest::of(b""), "size": 0}, "layers": []});
    let signature = parts.document("", &signature);
    refused(parts.index(std::slice::from_ref(&signature)), "is not an image: its configuration");
    parts.index(&[signature.clone(), image.clone()]);
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap().len(), 1, "an image beside a signature");
    parts.index(&[named(signature, "x.sig"), named(image, "x")]);
    assert_eq!(
        find(&parts, &Which::All, "linux/amd64").unwrap().len(),
        1,
        "a signature with a name of its own"
    );
    assert!(find(&parts, &Which::Named("x.sig".into()), "linux/amd64").is_err());
}
