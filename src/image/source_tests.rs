use super::super::testing::{Parts, gzip};
use super::*;
use std::fs;

fn source(text: &str) -> Source {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn sources_are_told_by_what_stands_before_the_colon() {
    let named = |name: &str| Which::Named(name.into());
    let layout = |dir: &str, which| Source::Layout { dir: dir.into(), which };
    let archive = |file: &str, kind, which| Source::Archive { file: file.into(), kind, which };
    for (text, expected) in [
        ("-", Source::Stdin),
        ("oci:d", layout("d", Which::All)),
        ("oci:d:", layout("d", Which::All)),
        ("oci:/a/b:v1", layout("/a/b", named("v1"))),
        ("oci:d:docker.io/library/x:1", layout("d", named("docker.io/library/x:1"))),
        ("oci:d:@2", layout("d", Which::Number(2))),
        ("oci:d:@x", layout("d", named("@x"))),
        ("oci-archive:f.tar", archive("f.tar", ArchiveKind::Oci, Which::All)),
        ("oci-archive:f.tar:v1", archive("f.tar", ArchiveKind::Oci, named("v1"))),
        ("docker-archive:f.tar", archive("f.tar", ArchiveKind::Docker, Which::All)),
        ("docker-archive:f.tar:a/b:c", archive("f.tar", ArchiveKind::Docker, named("a/b:c"))),
        ("dir:/a:b", Source::Dir("/a:b".into())),
        ("docker://busybox", Source::Name("busybox".parse().unwrap())),
        ("docker:dind", Source::Name("docker:dind".parse().unwrap())),
        ("no-such-file", Source::Name("no-such-file".parse().unwrap())),
        ("docker://app.tar", Source::Name("app.tar".parse().unwrap())),
        ("app.tar:v1", Source::Name("app.tar:v1".parse().unwrap())),
        ("star", Source::Name("star".parse().unwrap())),
        ("localhost:5000/x", Source::Name("localhost:5000/x".parse().unwrap())),
    ] {
        assert_eq!(source(text), expected, "{text}");
    }
}

#[test]
fn what_is_no_source_is_refused_with_what_was_expected() {
    for (text, part) in [
        ("", "empty"),
        ("oci:", "oci:DIR[:TAG]"),
        ("oci::x", "oci:DIR[:TAG]"),
        ("oci-archive:", "oci-archive:FILE"),
        ("docker-archive:", "docker-archive:FILE"),
        ("dir:", "dir:DIR"),
        ("docker-daemon:x", "not read by bothy"),
        ("containers-storage:x", "not read by bothy"),
        ("docker://", "empty"),
        ("/no/such/file", "can't open /no/such/file"),
        ("./no", "can't open ./no"),
        ("no-such.tar", "can't open no-such.tar"),
        ("some/where/app.tar.gz", "can't open some/where/app.tar.gz"),
        ("App.TAR.XZ", "can't open App.TAR.XZ"),
        ("app.tgz", "can't open app.tgz"),
        ("app.tar.bz2", "can't open app.tar.bz2"),
        ("https://quay.io/app", "leave out https://: write quay.io/app"),
        ("docker://https://quay.io/app", "leave out https://"),
        ("docker.io//x", "a single /"),
        ("Upper", "lower-case"),
        ("/dev/null", "is not an image"),
    ] {
        let message = text.parse::<Source>().unwrap_err().to_string();
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn a_path_is_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let mut parts = Parts::default();
    let image = parts.small_image("amd64");
    parts.index(&[image]).write_to(&path("layout"));
    fs::create_dir_all(path("root/usr")).unwrap();
    fs::create_dir_all(path("other/debian")).unwrap();
    fs::write(path("a.tar"), parts.to_tar()).unwrap();
    fs::write(path("a.tgz"), gzip(&parts.to_tar())).unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("text"), "x".repeat(1000)).unwrap();

    assert_eq!(source(&text("layout")), Source::Layout { dir: path("layout"), which: Which::All });
    assert_eq!(source(&text("root")), Source::Dir(path("root")));
    for name in ["a.tar", "a.tgz"] {
        let archive = Source::Archive { file: path(name), kind: ArchiveKind::Any, which: Which::All };
        assert_eq!(source(&text(name)), archive);
    }
    for (name, part) in
        [("other", "neither an OCI image layout"), ("empty", "is not an image"), ("text", "tar")]
    {
        let error = text(name).parse::<Source>().unwrap_err();
        assert!(error.to_string().contains(part) && !error.is_usage(), "{error}");
    }
    assert!("A".parse::<Source>().unwrap_err().is_usage());
}
