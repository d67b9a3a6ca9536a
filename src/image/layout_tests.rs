use super::super::files::Directory;
use super::super::index::MAX_OFFERED;
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
fn an_image_without_layers_has_null_in_their_place() {
    let mut parts = Parts::default();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": null}});
    let config = parts.document("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": null, "annotations": null});
    let manifest = parts.document("application/vnd.oci.image.manifest.v1+json", &manifest);
    parts.index(&[with(manifest, "annotations", json!(null))]);
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap()[0].layers.len(), 0);
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
        "DIR has no image for linux/s390x: there are linux/amd64, linux/amd64/v3, linux/arm64"
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
fn only_layouts_of_version_1_are_read() {
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    parts.index(&[image]);
    for (text, part) in [
        (r#"{"imageLayoutVersion":"2.0.0"}"#, "DIR is an OCI image layout of version 2.0.0"),
        ("{}", "oci-layout in DIR is malformed"),
        (r#"{"imageLayoutVersion":null}"#, "oci-layout in DIR is malformed"),
        ("", "oci-layout in DIR is malformed"),
    ] {
        parts.0.insert(OCI_LAYOUT.into(), text.into());
        refused(&parts, part);
    }
    parts.0.insert(OCI_LAYOUT.into(), r#"{"imageLayoutVersion":"1.1.0"}"#.into());
    assert!(find(&parts, &Which::All, "linux/amd64").is_ok());
    parts.0.remove(OCI_LAYOUT);
    assert!(find(&parts, &Which::All, "linux/amd64").is_ok());
}

#[test]
fn the_budget_is_one_for_all_images_of_a_layout() {
    let mut parts = Parts::default();
    let mut image = parts.small_image("amd64");
    for _ in 0..MAX_DEPTH {
        image = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": [image]}));
    }
    let images =
        |count: usize| -> Vec<Value> { (0..count).map(|n| named(image.clone(), &format!("v{n}"))).collect() };
    parts.index(&images(500));
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap().len(), 500);
    parts.index(&images(700));
    refused(&parts, "too many manifests");
    // As many as fit into an index: to put them in order takes no time that anybody notices.
    parts.index(&images(16_000));
    let begin = std::time::Instant::now();
    refused(&parts, "DIR holds 16000 images, and no more than 1000 are loaded at once");
    assert_eq!(find(&parts, &Which::Named("v9999".into()), "linux/amd64").unwrap().len(), 1);
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

#[test]
fn documents_may_not_be_long_all_together() {
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    let index = json!({"schemaVersion": 2, "manifests": [image], "annotations": {"x": "x".repeat(3 << 20)}});
    let index = parts.document(OCI_INDEX_TYPE, &index);
    parts.index(&(0..5).map(|n| named(index.clone(), &format!("v{n}"))).collect::<Vec<_>>());
    assert_eq!(find(&parts, &Which::All, "linux/amd64").unwrap().len(), 5);
    parts.index(&(0..20).map(|n| named(index.clone(), &format!("v{n}"))).collect::<Vec<_>>());
    refused(&parts, "too long, all together");
}

#[test]
fn images_without_names_are_several_unless_their_platforms_differ() {
    let mut parts = Parts::default();
    let (one, two, arm) = (parts.small_image("amd64"), parts.image("amd64", &[]), parts.small_image("arm64"));
    let found = |parts: &Parts, which: &Which| -> Vec<Digest> {
        find(parts, which, "linux/amd64").unwrap().into_iter().map(|found| found.digest).collect()
    };
    parts.index(&[one.clone(), two.clone(), one.clone()]);
    assert_eq!(found(&parts, &Which::All), [digest(&one), digest(&two)]);
    assert_eq!(found(&parts, &Which::Number(1)), [digest(&two)]);
    let amd = |image: &Value| platform(image.clone(), "amd64", "");
    parts.index(&[amd(&one), platform(arm.clone(), "arm64", ""), amd(&two)]);
    assert_eq!(found(&parts, &Which::All), [digest(&one), digest(&two)]);
    assert_eq!(found(&parts, &Which::Number(0)), [digest(&one)]);
    let other = parts.image("arm64", &[]);
    parts.index(&[platform(arm, "arm64", "v9"), other]);
    refused(&parts, "there are linux/arm64, linux/arm64/v9");
}

/// An index with this entry in front of an image for this platform, and one behind it for another.
fn beside(parts: &mut Parts, entry: &Value) -> (Value, Value) {
    let (amd, arm) = (parts.small_image("amd64"), parts.small_image("arm64"));
    let entries = json!([entry, platform(amd.clone(), "amd64", ""), platform(arm.clone(), "arm64", "")]);
    let index = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": entries}));
    let entries = json!([entry, platform(arm, "arm64", "")]);
    let foreign = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": entries}));
    parts.index(&[named(index, "v1")]);
    (amd, foreign)
}

#[test]
fn entries_that_can_not_be_used_are_passed_over_and_only_named_if_nothing_fits() {
    let missing = json!({"digest": Digest::of(b"missing"), "size": 7});
    let amd = json!({"os": "linux", "architecture": "amd64"});
    let with_digest = |digest: &str| json!({"digest": digest, "size": 5, "platform": amd});
    for (entry, reason) in [
        (json!(null), "a descriptor has no digest"),
        (json!({"size": 5, "platform": amd}), "a descriptor has no digest"),
        (with_digest(&format!("blake3:{}", "a".repeat(64))), "is not a digest that can be checked"),
        (with_digest("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8"), "is not a digest"),
        (with_digest("sha256:short"), "expected 64 lower-case hexadecimal digits"),
        (with_digest("sha256:../../../etc/passwd"), "expected 64 lower-case hexadecimal digits"),
        (json!({"digest": Digest::of(b""), "platform": amd}), "is missing"),
        (json!({"digest": Digest::of(b""), "size": null, "platform": amd}), "is missing"),
        (json!({"digest": Digest::of(b""), "size": -1, "platform": amd}), " is -1"),
        (
            with(missing.clone(), "mediaType", json!("application/vnd.in-toto+json")),
            "has the media type application/vnd.in-toto+json",
        ),
        (
            with(
                missing.clone(),
                "mediaType",
                json!("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            ),
            "a docker manifest of schema 1",
        ),
        // Nobody knows what these are for, and they lead nowhere.
        (missing.clone(), "has no blobs/sha256/"),
        (with(missing.clone(), "platform", json!({})), "has no blobs/sha256/"),
        (with(missing.clone(), "platform", json!({"os": "linux"})), "has no blobs/sha256/"),
    ] {
        let mut parts = Parts::default();
        let (amd, foreign) = beside(&mut parts, &entry);
        let found = find(&parts, &Which::All, "linux/amd64");
        assert_eq!(found.unwrap_or_else(|error| panic!("{entry}: {error}"))[0].digest, digest(&amd));
        parts.index(&[named(foreign, "v1")]);
        let message = find(&parts, &Which::All, "linux/amd64").unwrap_err();
        let begin = "DIR has no image for linux/amd64: there is only linux/arm64; an entry of its index can't be used: ";
        assert!(message.starts_with(begin) && message.contains(reason), "{message}");
    }
    // One that says that it is for this platform must lead somewhere.
    let mut parts = Parts::default();
    beside(&mut parts, &with(missing, "platform", amd.clone()));
    refused(&parts, "has no blobs/sha256/");
    // A type that is wrong is no odd entry, but a broken document.
    for entry in [json!(7), json!({"digest": 7}), json!({"size": "5"}), json!({"platform": []})] {
        let mut parts = Parts::default();
        beside(&mut parts, &entry);
        refused(&parts, "is malformed");
    }
}

#[test]
fn entries_of_index_json_are_passed_over_as_well_unless_somebody_asks_for_them() {
    let mut parts = Parts::default();
    let image = named(parts.small_image("amd64"), "v1");
    let odd = json!({"digest": "blake3:00", "size": 1});
    let missing = json!({"digest": Digest::of(b"missing"), "size": 7, "platform": {}});
    parts.index(&[odd.clone(), named(odd.clone(), "v2"), image.clone(), missing.clone()]);
    let found = |which: Which| {
        find(&parts, &which, "linux/amd64").map(|found| (found.len(), found[0].digest.clone()))
    };
    for which in [Which::All, Which::Named("v1".into()), Which::Number(0)] {
        assert_eq!(found(which), Ok((1, digest(&image))));
    }
    assert_eq!(
        found(Which::Named("v2".into())).unwrap_err(),
        "DIR has no image that can be used: v2 can't be used: `blake3:00` is not a digest that can be checked: \
         expected sha256:HEX or sha512:HEX"
    );
    let arm = platform(parts.small_image("arm64"), "arm64", "");
    parts.index(&[arm, missing.clone()]);
    refused(&parts, "there is only linux/arm64; an entry of its index can't be used: DIR has no blobs/");
    parts.index(&[named(missing, "v3"), image]);
    refused(&parts, "DIR has no blobs/sha256/");
    let many = vec![odd; 10_000];
    parts.index(&many);
    refused(&parts, "(and 9999 more)");
}

#[test]
fn entries_that_lead_nowhere_are_not_tried_without_end() {
    let missing: Vec<_> = (0..100).map(|n| json!({"digest": Digest::of(&[n]), "size": 1})).collect();
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    for (count, fits) in [(MAX_ASTRAY, true), (MAX_ASTRAY + 1, false)] {
        let entries = [&missing[..count], std::slice::from_ref(&image)].concat();
        let index = parts.document(OCI_INDEX_TYPE, &json!({"schemaVersion": 2, "manifests": entries}));
        parts.index(&[index]);
        assert_eq!(find(&parts, &Which::All, "linux/amd64").is_ok(), fits, "{count}");
    }
}

#[test]
fn an_image_that_does_not_say_what_it_is_for_is_for_this_platform_if_no_other_is() {
    let all = |parts: &Parts| find(parts, &Which::All, "linux/amd64").unwrap();
    let mut parts = Parts::default();
    let (bare, long) = (parts.small_image(""), parts.small_image("x86_64"));
    let (amd, arm) = (parts.small_image("amd64"), parts.small_image("aarch64"));
    for image in [&bare, &long] {
        for descriptor in
            [image.clone(), platform(image.clone(), "amd64", ""), platform(image.clone(), "x86_64", "")]
        {
            parts.index(&[named(descriptor.clone(), "v1")]);
            assert_eq!(all(&parts)[0].digest, digest(image), "{descriptor}");
        }
    }
    for stated in
        [json!(null), json!({}), json!({"os": "linux"}), json!({"architecture": ""}), json!({"os": ""})]
    {
        parts.index(&[with(bare.clone(), "platform", stated.clone())]);
        assert_eq!(all(&parts)[0].digest, digest(&bare), "{stated}");
    }
    parts.index(&[with(amd.clone(), "platform", json!({"architecture": "amd64"}))]);
    assert_eq!(all(&parts)[0].digest, digest(&amd), "without a system it is Linux");
    // One that says it wins, wherever it stands.
    for images in [[&bare, &amd], [&amd, &bare]] {
        parts.index(&images.map(|image| named(image.clone(), "v1")));
        assert_eq!(all(&parts)[0].digest, digest(&amd));
    }
    // The index says it for the configuration, and the configuration for the index.
    parts.index(&[platform(bare.clone(), "aarch64", "")]);
    refused(&parts, "there is only linux/arm64");
    parts.index(&[arm]);
    refused(&parts, "there is only linux/arm64");
    parts.index(&[with(bare, "platform", json!({"os": "windows"}))]);
    refused(&parts, "there is only windows/unknown");
}

#[test]
fn of_platforms_without_end_some_are_named() {
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    let images: Vec<_> =
        (0..10_000).map(|n| named(platform(image.clone(), &format!("a{n}"), ""), "v1")).collect();
    parts.index(&images);
    let dir = tempfile::tempdir().unwrap();
    parts.write_to(dir.path());
    let files = Directory::open(dir.path()).unwrap();
    match oci_images(&files, &Which::All, &Platform::native()) {
        Err(ContentError::Platform { offered, .. }) => assert_eq!(offered.platforms.len(), MAX_OFFERED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_and_broken_layouts_are_refused() {
    let mut parts = Parts::default();
    refused(&parts, "DIR has no index.json");
    refused(parts.index(&[]), "DIR holds no image");
    for (text, part) in [
        ("", "index.json in DIR is malformed: EOF"),
        ("{", "malformed"),
        (r#"{"manifests": null}"#, "DIR holds no image"),
        ("null", "neither a clear image manifest nor a clear index"),
        ("[]", "index.json in DIR is malformed"),
        (
            r#"{"manifests": [{}]}"#,
            "DIR has no image that can be used: an entry of its index can't be used: a descriptor has no digest",
        ),
        (r#"{"manifests": [null, {}]}"#, "a descriptor has no digest (and 1 more)"),
        (r#"{"manifests": [7]}"#, "index.json in DIR is malformed"),
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
