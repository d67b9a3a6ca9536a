use super::super::digest::Digest;
use super::super::testing::chain;
use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn directory() -> (tempfile::TempDir, Directory) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("in/blobs/sha256")).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(dir.path().join("in/index.json"), "{}").unwrap();
    let files = Directory::open(&dir.path().join("in")).unwrap();
    (dir, files)
}

#[test]
fn files_are_read_and_missing_ones_named() {
    let (_dir, files) = directory();
    assert_eq!(files.read("index.json").unwrap(), b"{}");
    assert_eq!(files.need("index.json").unwrap().len, 2);
    assert!(files.open("no/such").unwrap().is_none());
    let message = files.read("blobs/sha256/x").unwrap_err().to_string();
    assert!(message.ends_with("in has no blobs/sha256/x"), "{message}");
    assert!(Directory::open(Path::new("/no/such")).is_err());
    assert!(Directory::open(Path::new("/dev/null")).is_err());
}

#[test]
fn nothing_outside_of_the_directory_is_opened() {
    let (dir, files) = directory();
    let inside = |name: &str| dir.path().join("in").join(name);
    symlink("../secret", inside("relative")).unwrap();
    symlink(dir.path().join("secret"), inside("absolute")).unwrap();
    symlink("/", inside("root")).unwrap();
    symlink("loop", inside("loop")).unwrap();
    symlink("index.json", inside("fine")).unwrap();
    for path in ["relative", "absolute", "root/etc/passwd", "../secret", "/etc/passwd", "loop"] {
        let message = files.read(path).unwrap_err().to_string();
        assert!(message.contains("leads out of"), "{path}: {message}");
    }
    assert_eq!(files.read("fine").unwrap(), b"{}");
}

#[test]
fn only_regular_files_are_read() {
    let (dir, files) = directory();
    let fifo = dir.path().join("in/fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in ["fifo", "blobs"] {
        let message = files.read(path).unwrap_err().to_string();
        assert!(message.contains("is not a regular file"), "{message}");
    }
    assert!(files.open("index.json/x").is_err());
}

#[test]
fn a_document_must_be_the_one_that_its_descriptor_names() {
    let (dir, files) = directory();
    let digest = Digest::of(b"{}");
    let path = dir.path().join("in").join(digest.blob_path());
    let descriptor = |size: u64| -> Descriptor {
        serde_json::from_value(serde_json::json!({"digest": digest, "size": size})).unwrap()
    };
    fs::write(&path, "{}").unwrap();
    assert_eq!(files.document(&descriptor(2)).unwrap(), b"{}");
    for (content, size, part) in
        [("{}", 1, "longer than the 1"), ("{}", 3, "has 2 bytes"), ("[]", 2, "is damaged")]
    {
        fs::write(&path, content).unwrap();
        let message = chain(&files.document(&descriptor(size)).unwrap_err());
        assert!(message.contains(part), "{message}");
    }
    let huge = fs::File::create(&path).unwrap();
    huge.set_len(1 << 40).unwrap();
    let message = files.document(&descriptor(1 << 40)).unwrap_err().to_string();
    assert!(message.contains("longer than 4 MiB"), "{message}");
}
