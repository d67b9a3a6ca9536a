use super::super::archive::Archive;
use super::super::testing::{Parts, chain, file, tar};
use super::*;
use serde_json::{Value, json};
use std::io::Write;

const NATIVE: fn() -> Platform = Platform::native;

fn archive(parts: &Parts) -> Archive {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&parts.to_tar()).unwrap();
    Archive::open(file, "a.tar".into()).unwrap()
}

/// An image as docker saves it; gives its entry in manifest.json.
fn saved(parts: &mut Parts, architecture: &str, tags: &[&str]) -> Value {
    let layer = tar(&[file("a", architecture.as_bytes())]);
    let config = json!({"architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}})
    .to_string();
    let path = format!("{}.json", Digest::of(config.as_bytes()).hex());
    parts.0.insert(path.clone(), config.into());
    parts.0.insert(format!("{architecture}/layer.tar"), layer);
    json!({"Config": path, "RepoTags": tags, "Layers": [format!("{architecture}/layer.tar")]})
}

fn manifest(parts: &mut Parts, images: &[Value]) {
    parts.0.insert(DOCKER_MANIFEST.into(), Value::from(images).to_string().into());
}

#[test]
fn images_are_chosen_by_name_and_number() {
    let mut parts = Parts::default();
    let one = saved(&mut parts, "amd64", &["one:v1", "quay.io/one:v2"]);
    let mut two = one.clone();
    two["RepoTags"] = json!(null);
    manifest(&mut parts, &[one, two]);
    let archive = archive(&parts);
    let names = |which: &Which| -> Result<Vec<Vec<String>>, String> {
        let found = docker_images(&archive, which, &NATIVE()).map_err(|error| chain(&error))?;
        Ok(found.iter().map(|found| found.names.iter().map(ToString::to_string).collect()).collect())
    };
    let both = vec!["docker.io/library/one:v1".to_owned(), "quay.io/one:v2".to_owned()];
    assert_eq!(names(&Which::All).unwrap(), [both.clone(), vec![]]);
    assert_eq!(names(&Which::Number(1)).unwrap(), [vec![]; 1] as [Vec<String>; 1]);
    assert_eq!(names(&Which::Named("one:v1".into())).unwrap(), [both]);
    for (which, wanted) in
        [(Which::Number(2), "@2"), (Which::Named("one".into()), "one"), (Which::Named("A".into()), "A")]
    {
        let message = names(&which).unwrap_err();
        assert!(
            message.contains(&format!("no image {wanted}: there are docker.io/library/one:v1")),
            "{message}"
        );
    }
}

/// As docker saves an image `FROM scratch`.
#[test]
fn an_image_without_layers_has_null_in_their_place() {
    for layers in [json!(null), json!([])] {
        let mut parts = Parts::default();
        let config = r#"{"architecture": "amd64", "os": "linux", "config": null, "history": null,
            "rootfs": {"type": "layers", "diff_ids": null}}"#;
        parts.0.insert("config.json".into(), config.into());
        manifest(&mut parts, &[json!({"Config": "config.json", "RepoTags": null, "Layers": layers})]);
        let found = docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap();
        assert_eq!((found.len(), found[0].layers.len()), (1, 0));
    }
    let mut parts = Parts::default();
    parts.0.insert(DOCKER_MANIFEST.into(), "null".into());
    let message = chain(&docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap_err());
    assert_eq!(message, "a.tar holds no image");
}

#[test]
fn a_configuration_need_not_say_what_it_is_for() {
    for architecture in ["", "x86_64", "AMD64"] {
        let mut parts = Parts::default();
        let image = saved(&mut parts, architecture, &[]);
        manifest(&mut parts, &[image]);
        assert_eq!(
            docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap().len(),
            1,
            "{architecture}"
        );
    }
    let mut parts = Parts::default();
    let config = json!({"rootfs": {"diff_ids": null}}).to_string();
    parts.0.insert("config.json".into(), config.into());
    manifest(&mut parts, &[json!({"Config": "config.json"})]);
    assert_eq!(docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap().len(), 1);
}

#[test]
fn a_short_archive_can_not_hold_images_without_end() {
    let refused = |images: &[Value], parts: &mut Parts, part: &str| {
        manifest(parts, images);
        let message = chain(&docker_images(&archive(parts), &Which::All, &NATIVE()).unwrap_err());
        assert!(message.contains(part) && message.contains("a.tar"), "{message}");
    };
    let mut parts = Parts::default();
    let image = saved(&mut parts, "amd64", &[]);
    refused(&vec![image.clone(); 1001], &mut parts, "holds 1001 images");
    let many = archive(&parts);
    assert_eq!(docker_images(&many, &Which::Number(1000), &NATIVE()).unwrap().len(), 1, "one can be had");
    // One long configuration that many images have.
    let mut config: Value = serde_json::from_slice(&parts.0[image["Config"].as_str().unwrap()]).unwrap();
    config["config"] = json!({"Env": vec![""; 1 << 20]});
    parts.0.insert("long.json".into(), config.to_string().into());
    let long = json!({"Config": "long.json", "RepoTags": null, "Layers": image["Layers"]});
    refused(&vec![long; 20], &mut parts, "too long, all together");
}

#[test]
fn an_image_has_a_thousand_layers_at_most() {
    let mut parts = Parts::default();
    let layers = |count: usize| {
        let diff_ids = vec![Digest::of(b""); count];
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}}).to_string()
    };
    parts.0.insert("1000.json".into(), layers(1000).into());
    parts.0.insert("1001.json".into(), layers(1001).into());
    let image = |count: usize| json!({"Config": format!("{count}.json"), "Layers": vec!["a"; count]});
    manifest(&mut parts, &[image(1000), image(1001)]);
    let archive = archive(&parts);
    assert!(docker_images(&archive, &Which::Number(0), &NATIVE()).is_ok());
    let message = chain(&docker_images(&archive, &Which::Number(1), &NATIVE()).unwrap_err());
    assert_eq!(message, "1001.json in a.tar has more than 1000 layers");
}

#[test]
fn what_is_wrong_is_said() {
    let check = |change: &dyn Fn(&mut Parts, &mut Value), part: &str| {
        let mut parts = Parts::default();
        let mut image = saved(&mut parts, "amd64", &["one"]);
        change(&mut parts, &mut image);
        manifest(&mut parts, &[image]);
        let message = chain(&docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap_err());
        assert!(message.contains(part) && message.contains("a.tar"), "{message}");
    };
    check(&|_, image| image["Config"] = json!("gone.json"), "has no gone.json");
    check(&|_, image| image["Config"] = json!("../../etc/passwd"), "has no ../../etc/passwd");
    check(&|_, image| image["Layers"] = json!([]), "has 0 layers, and its configuration names 1");
    check(&|_, image| image["RepoTags"] = json!(["A"]), "bad name");
    check(&|_, image| image["Layers"] = json!(null), "has 0 layers, and its configuration names 1");
    check(&|_, image| image["Layers"] = json!("x"), "manifest.json in a.tar is malformed");
    for missing in ["Config", "Layers"] {
        let null = if missing == "Config" { json!(null) } else { json!([null]) };
        check(
            &|_, image| image[missing] = null.clone(),
            "the path of a configuration or of a layer is missing",
        );
    }
    check(
        &|parts, image| {
            let path = image["Config"].as_str().unwrap();
            parts.0.insert(path.into(), br#"{"architecture":"amd64","rootfs":{}}"#.to_vec());
        },
        "is damaged",
    );
    check(
        &|parts, image| *image = saved(parts, "arm64", &[]),
        "no image for linux/amd64: there is only linux/arm64",
    );
    let mut parts = Parts::default();
    manifest(&mut parts, &[]);
    assert!(
        docker_images(&archive(&parts), &Which::All, &NATIVE()).unwrap_err().to_string().contains("no image")
    );
}
