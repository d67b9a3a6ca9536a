use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_are_completed_as_docker_completes_them() {
    let at = |name: &str| format!("{name}@{DIGEST}");
    for (written, complete) in [
        ("busybox".to_owned(), "docker.io/library/busybox:latest".to_owned()),
        ("busybox:1.36".into(), "docker.io/library/busybox:1.36".into()),
        ("busybox:5000".into(), "docker.io/library/busybox:5000".into()),
        ("me/app".into(), "docker.io/me/app:latest".into()),
        ("me/app/part:v1".into(), "docker.io/me/app/part:v1".into()),
        ("docker.io/busybox".into(), "docker.io/library/busybox:latest".into()),
        ("docker.io/me/app".into(), "docker.io/me/app:latest".into()),
        ("index.docker.io/busybox".into(), "docker.io/library/busybox:latest".into()),
        ("quay.io/app".into(), "quay.io/app:latest".into()),
        ("quay.io/org/app:v1.2-rc.3".into(), "quay.io/org/app:v1.2-rc.3".into()),
        ("localhost/app".into(), "localhost/app:latest".into()),
        ("localhost:5000/app:x".into(), "localhost:5000/app:x".into()),
        ("registry:5000/app".into(), "registry:5000/app:latest".into()),
        ("Registry/app".into(), "Registry/app:latest".into()),
        ("127.0.0.1:5000/a/b".into(), "127.0.0.1:5000/a/b:latest".into()),
        ("[::1]:5000/app".into(), "[::1]:5000/app:latest".into()),
        ("[2001:db8::1]/app".into(), "[2001:db8::1]/app:latest".into()),
        ("localhost".into(), "docker.io/library/localhost:latest".into()),
        ("example.com".into(), "docker.io/library/example.com:latest".into()),
        ("a__b/c.d/e-f--g_h".into(), "docker.io/a__b/c.d/e-f--g_h:latest".into()),
        (at("busybox"), at("docker.io/library/busybox")),
        (at("busybox:1"), at("docker.io/library/busybox:1")),
        (at("quay.io:443/a"), at("quay.io:443/a")),
        ("x:A_Z.9-".into(), "docker.io/library/x:A_Z.9-".into()),
        ("deadbeef".into(), "docker.io/library/deadbeef:latest".into()),
    ] {
        let name: Reference = written.parse().unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(name.to_string(), complete, "{written}");
        assert_eq!(name.to_string().parse::<Reference>().unwrap(), name, "{written}, again");
    }
}

#[test]
fn what_is_no_name_is_refused_with_what_was_expected() {
    let long = "a".repeat(256);
    let long_tag = format!("x:{}", "t".repeat(129));
    let id = "0".repeat(64);
    for (text, part) in [
        ("", "empty"),
        ("Busybox", "lower-case"),
        ("me/App", "lower-case"),
        ("a b", "letters, digits"),
        ("-a", "letters, digits"),
        ("a-", "letters, digits"),
        ("a..b", "letters, digits"),
        ("a___b", "letters, digits"),
        ("a._b", "letters, digits"),
        ("a//b", "a single / between two parts"),
        ("docker.io//x", "a single / between two parts"),
        ("quay.io/a//b:v1", "a single / between two parts"),
        ("a/", "no / at the end"),
        ("docker.io/a/:v1", "no / at the end"),
        ("/a", "can't begin with . or /; to load a file use `bothy load`"),
        ("./a", "can't begin with . or /"),
        ("https://quay.io/org/app:v1", "leave out https://: write quay.io/org/app:v1"),
        ("HTTPS://quay.io/app/", "leave out https://: write quay.io/app"),
        (
            "http://localhost:5000/app",
            "leave out http://: write localhost:5000/app, and for plain HTTP add --insecure-registry",
        ),
        ("http:/a", "port"),
        ("quay.io/", "is missing"),
        ("quay.io/../x", "letters, digits"),
        ("a:", "the tag behind the colon is missing"),
        ("a:.x", "is not a tag"),
        ("a:-x", "is not a tag"),
        ("a:b:c", "is not a tag"),
        ("a:b/c", "port"),
        ("quay.io:0/a", "port"),
        ("quay.io:65536/a", "port"),
        ("quay.io:+1/a", "port"),
        ("quay.io:/a", "port"),
        (".io/a", "can't begin with . or /"),
        ("-x.io/a", "HOST:PORT"),
        ("[::1/a", "HOST:PORT"),
        ("[zz:]/a", "HOST:PORT"),
        ("[::1]x/a", "HOST:PORT"),
        ("a@", "the digest behind @ is missing"),
        ("a@x", "sha256:HEX"),
        ("a@sha256:00", "64 lower-case"),
        ("a@sha1:00", "sha256:HEX"),
        ("@sha256:00", "64 lower-case"),
        ("a@b@c", "sha256:HEX"),
        ("\u{e4}", "letters, digits"),
        ("a\nb", "letters, digits"),
        (&long, "at most 255"),
        (&long_tag, "1 to 128"),
        (&id, "write sha256:"),
    ] {
        let message = match text.parse::<Reference>() {
            Ok(name) => panic!("{text} became {name}"),
            Err(error) => error.to_string(),
        };
        assert!(
            message.contains(part) && !message.contains('\n') && message.len() < 400,
            "{text}: {message}"
        );
    }
}

#[test]
fn a_file_gives_its_image_a_name() {
    for (path, tag, name) in [
        ("/tmp/busybox.tar", None, "localhost/busybox:latest"),
        ("/tmp/My App.tar.gz", Some("v1"), "localhost/my-app:v1"),
        ("/tmp/a+b.tgz", Some("no tag"), "localhost/a-b:latest"),
        ("app.tar.xz", None, "localhost/app:latest"),
        ("app.tar.bz2", None, "localhost/app:latest"),
        ("app.txz", None, "localhost/app:latest"),
        ("app.gz", None, "localhost/app.gz:latest"),
        ("/tmp/...", None, "localhost/image:latest"),
        ("/", None, "localhost/image:latest"),
        ("a._b", None, "localhost/image:latest"),
    ] {
        let local = local(Path::new(path), tag);
        assert_eq!(local.to_string(), name);
        assert_eq!(local.to_string().parse::<Reference>().unwrap(), local);
    }
}

#[test]
fn people_write_names_without_what_is_completed() {
    let digest = format!("@sha256:{}", "a".repeat(64));
    for (name, familiar) in [
        ("docker.io/library/busybox:latest", "busybox"),
        ("busybox:1.36", "busybox:1.36"),
        ("someone/tool", "someone/tool"),
        ("localhost/demo:latest", "localhost/demo"),
        ("quay.io/library/x:latest", "quay.io/library/x"),
        (&format!("docker.io/library/busybox{digest}"), &format!("busybox{digest}")),
    ] {
        assert_eq!(name.parse::<Reference>().unwrap().familiar(), familiar);
    }
    // Shorter they would be other names.
    let number = format!("docker.io/library/{}:latest", "b".repeat(64));
    for name in ["docker.io/library/a/b:latest", "docker.io/library/example.com/x:latest", &number] {
        assert_eq!(name.parse::<Reference>().unwrap().familiar(), name);
    }
}
