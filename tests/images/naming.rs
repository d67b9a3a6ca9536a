//! Which image a name leads to: neither a file that is run nor one that lies in the working
//! directory takes a name over.

use std::fs;

use serde_json::json;

use crate::make::{Layout, sha256, tar_of, words};
use crate::store::Store;

/// An archive as `docker save` writes it, with these names and a layer of this content; gives its
/// digest.
fn archive(store: &Store, file: &str, names: &[&str], content: &[u8]) -> String {
    let dir = store.dir().join("saved");
    fs::create_dir_all(&dir).unwrap();
    let layer = tar_of(store.dir(), "file", content);
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]}});
    fs::write(dir.join("layer.tar"), layer).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    words(store.dir(), &format!("tar -cf {file} -C saved ."));
    fs::remove_dir_all(dir).unwrap();
    sha256(config.to_string().as_bytes())
}

/// The digest that a name leads to.
fn digest_of(store: &Store, name: &str) -> Option<String> {
    let images = store.images();
    let image = images.iter().find(|image| image["names"].as_array().unwrap().contains(&name.into()))?;
    Some(image["digest"].as_str().unwrap().to_owned())
}

/// `bothy run WORDS...`, which ends where a virtual machine would start; its image is in the store
/// by then.
fn run(store: &Store, words: &[&str]) -> crate::support::Finished {
    let words = ["run", "--kernel", "/dev/null"].iter().chain(words);
    // No registry answers.
    store.bothy(words).env("HTTPS_PROXY", "http://127.0.0.1:1").env("https_proxy", "").run().code(125)
}

const DEBIAN: &str = "docker.io/library/debian:13";

#[test]
fn a_file_that_is_run_takes_no_name_over() {
    let store = Store::new();
    let good = archive(&store, "good.tar", &["debian:13"], b"good");
    store.load("./good.tar");
    let evil = archive(&store, "evil.tar", &["debian:13", "other"], b"evil");
    Layout::good(store.dir().join("layout"), b"of a layout");
    fs::create_dir_all(store.dir().join("root/etc")).unwrap();
    for word in ["./evil.tar", "docker-archive:evil.tar", "oci:layout", "./layout", "dir:root", "./root"] {
        run(&store, &[word, "sh"]).says("--kernel");
        assert_eq!(store.names(), [DEBIAN], "{word}");
        assert_eq!(digest_of(&store, DEBIAN), Some(good.clone()), "{word}");
    }
    let bytes = fs::read(store.dir().join("evil.tar")).unwrap();
    store.bothy(["run", "--kernel", "/dev/null", "-"]).input(bytes).run().code(125).says("--kernel");
    assert_eq!(store.names(), [DEBIAN]);
    // It can be run again by its digest.
    run(&store, &["--pull", "never", &evil["sha256:".len()..][..12]]).says("--kernel");
}

#[test]
fn a_word_without_a_slash_is_no_file() {
    let store = Store::new();
    archive(&store, "postgres", &[], b"evil");
    fs::create_dir_all(store.dir().join("redis/etc")).unwrap();
    for word in ["postgres", "redis"] {
        run(&store, &["--pull", "never", word])
            .says(&format!("no image docker.io/library/{word}:latest in the store"));
        run(&store, &[word]).says(&format!("can't pull {word} (for the file of that name write ./{word})"));
        assert_eq!(store.names(), [""; 0]);
    }
    run(&store, &["./postgres"]).says("--kernel");
}

#[test]
fn what_has_no_name_of_its_own_does_not_stand_for_a_registry_s() {
    let store = Store::new();
    archive(&store, "postgres.tar", &[], b"local");
    store.load("./postgres.tar");
    assert_eq!(store.names(), ["localhost/postgres:latest"]);
    run(&store, &["postgres"])
        .says("can't pull postgres (localhost/postgres is in the store: write all of its name)");
    run(&store, &["localhost/postgres"]).says("--kernel");
    // Where no registry is asked, it can't be meant.
    run(&store, &["--pull", "never", "postgres"]).says("--kernel");
}

#[test]
fn a_load_tells_which_names_move_and_may_give_none() {
    let store = Store::new();
    let old = archive(&store, "old.tar", &["debian:13", "app:1"], b"old");
    let new = archive(&store, "new.tar", &["debian:13"], b"new");
    assert_eq!(store.load("old.tar"), format!("loaded {DEBIAN} docker.io/library/app:1 {old}\n"));
    assert_eq!(store.load("new.tar"), format!("loaded {DEBIAN} {new}\nmoved {DEBIAN} here from {old}\n"));
    // Nothing moves twice.
    let again = store.load("new.tar");
    assert_eq!(again, format!("loaded {DEBIAN} {new} (its file system was there already)\n"));
    let text = |words: &[&str]| String::from_utf8(store.bothy(words).run().output()).unwrap();
    let named = text(&["load", "--name", "app:1", "new.tar"]);
    assert_eq!(named.lines().last(), Some(format!("moved docker.io/library/app:1 here from {old}").as_str()));
    let unnamed = text(&["load", "--no-names", "old.tar"]);
    assert_eq!(unnamed, format!("loaded <none> {old} (its file system was there already)\n"));
    assert_eq!(digest_of(&store, DEBIAN), Some(new));
    store.bothy(["load", "--no-names", "--name", "x", "old.tar"]).run().code(2).says("--name");
}
