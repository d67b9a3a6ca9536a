use super::super::testing::{chain, entry, file, tar};
use super::*;
use std::io::Write;

fn open(bytes: &[u8]) -> Result<Archive, ContentError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open(file, "a.tar".into())
}

#[track_caller]
fn refused(bytes: &[u8], part: &str) {
    let message = chain(&open(bytes).unwrap_err());
    assert!(message.starts_with("a.tar ") && message.contains(part), "{message}");
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let body = format!(" {key}={value}\n");
        let len = (1..).find(|len: &usize| len.to_string().len() + body.len() == *len).unwrap();
        text.push_str(&format!("{len}{body}"));
    }
    entry("pax", b'x', "", text.len() as u64, text.as_bytes())
}

#[test]
fn files_are_found_by_their_paths_in_any_order() {
    let archive = open(&tar(&[
        file("./b/c", b"c"),
        entry("dir/", b'5', "", 0, b""),
        file("a", &[1; 1000]),
        file("a", b"the last one counts"),
        file("empty", b""),
    ]))
    .unwrap();
    assert_eq!(archive.read("b/c").unwrap(), b"c");
    assert_eq!(archive.read("./b//c").unwrap(), b"c");
    assert_eq!(archive.read("a").unwrap(), b"the last one counts");
    assert_eq!(archive.read("empty").unwrap(), b"");
    assert!(archive.has("a") && archive.open("dir").unwrap().is_none());
    for path in ["", "/", "..", "a/.."] {
        assert!(archive.open(path).unwrap().is_none(), "{path}");
    }
}

#[test]
fn long_names_come_from_extended_headers() {
    let long = format!("{}/layer.tar", "x".repeat(200));
    let with_zero = [long.as_bytes(), b"\0"].concat();
    let archives = [
        tar(&[
            entry("././@LongLink", b'L', "", with_zero.len() as u64, &with_zero),
            file("x", b"1"),
            file("y", b"2"),
        ]),
        tar(&[pax(&[("mtime", "1.5"), ("path", &long)]), file("x", b"1"), file("y", b"2")]),
        tar(&[pax(&[("path", &long)]), entry("g", b'g', "", 0, b""), file("x", b"1"), file("y", b"2")]),
    ];
    for bytes in archives {
        let archive = open(&bytes).unwrap();
        assert_eq!(archive.read(&long).unwrap(), b"1");
        assert_eq!(archive.read("y").unwrap(), b"2");
        assert!(!archive.has("x"));
    }
    // A prefix, as POSIX has it.
    let mut bytes = file("name", b"1");
    bytes[345..348].copy_from_slice(b"dir");
    super::super::testing::seal(bytes.first_chunk_mut().unwrap());
    assert_eq!(open(&bytes).unwrap().read("dir/name").unwrap(), b"1");
    // A size that the header has no room for.
    let bytes = tar(&[pax(&[("size", "3")]), entry("x", b'0', "", 0, b"123"), file("y", b"2")]);
    assert_eq!(open(&bytes).unwrap().read("x").unwrap(), b"123");
    let mut binary = entry("x", b'0', "", 3, b"123");
    binary[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    super::super::testing::seal(binary.first_chunk_mut().unwrap());
    assert_eq!(open(&binary).unwrap().read("x").unwrap(), b"123");
}

#[test]
fn links_lead_to_other_files_of_the_archive_only() {
    let archive = open(&tar(&[
        file("one/layer.tar", b"layer"),
        entry("two/layer.tar", b'2', "../one/layer.tar", 0, b""),
        entry("three", b'1', "one/layer.tar", 0, b""),
        entry("four", b'2', "two/layer.tar", 0, b""),
        entry("out", b'2', "../../etc/passwd", 0, b""),
        entry("abs", b'2', "/etc/passwd", 0, b""),
        entry("hard", b'1', "../etc/passwd", 0, b""),
        entry("ring", b'2', "gnir", 0, b""),
        entry("gnir", b'2', "ring", 0, b""),
        entry("lost", b'2', "nowhere", 0, b""),
    ]))
    .unwrap();
    for path in ["two/layer.tar", "three", "four"] {
        assert_eq!(archive.read(path).unwrap(), b"layer", "{path}");
    }
    for path in ["out", "abs", "hard", "lost"] {
        assert!(archive.open(path).unwrap().is_none(), "{path}");
    }
    assert!(archive.read("ring").unwrap_err().to_string().contains("link to a link"));
}

#[test]
fn paths_and_links_are_cleaned_within_the_archive() {
    let archive = open(&tar(&[
        file("../one", b"1"),
        file("a/../../b/./two", b"2"),
        entry("../c/link", b'2', "../../../b/two", 0, b""),
        entry("c/rooted", b'2', "/../b/two", 0, b""),
        entry("hard", b'1', "./../b/x/../two", 0, b""),
    ]))
    .unwrap();
    for path in ["one", "../one", "/one", "x/../one"] {
        assert_eq!(archive.read(path).unwrap(), b"1", "{path}");
    }
    for path in ["b/two", "../b/two", "c/link", "c/rooted", "hard"] {
        assert_eq!(archive.read(path).unwrap(), b"2", "{path}");
    }
    // The same path, written in another way.
    refused(&tar(&[file("index.json", b"1"), file("a/../../index.json", b"2")]), "index.json is in it twice");
}

#[test]
fn links_have_no_data_whatever_their_size_says() {
    let archive = open(&tar(&[
        file("one", b"1"),
        pax(&[("size", "512")]),
        entry("two", b'1', "one", 0, b""),
        entry("three", b'2', "one", 7, b""),
        file("four", b"4"),
    ]))
    .unwrap();
    assert_eq!(archive.read("two").unwrap(), b"1");
    assert_eq!(archive.read("three").unwrap(), b"1");
    assert_eq!(archive.read("four").unwrap(), b"4");
}

#[test]
fn data_is_passed_over_and_found_where_it_is() {
    let mut entries = Vec::new();
    for len in [0, 1, 511, 512, 513, 3000, 4096, 5000, 100_000] {
        entries.push(pax(&[("mtime", "1.5")]));
        entries.push(file(&format!("of-{len}"), &vec![7; len]));
        entries.push(file(&format!("behind-{len}"), b"x"));
    }
    let bytes = tar(&entries);
    let archive = open(&bytes).unwrap();
    for len in [0, 1, 511, 512, 513, 3000, 4096, 5000, 100_000] {
        assert!(archive.read(&format!("of-{len}")).unwrap() == vec![7; len], "{len}");
        assert_eq!(archive.read(&format!("behind-{len}")).unwrap(), b"x");
    }
    // Without the last padding.
    let mut bytes = file("last", &[1; 9000]);
    bytes.truncate(512 + 9000);
    assert_eq!(open(&bytes).unwrap().read("last").unwrap(), [1; 9000]);
    bytes.truncate(512 + 8999);
    refused(&bytes, "cut off");
    // What is only skipped costs nothing, however long it is.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&entry("huge", b'0', "", 1 << 32, b"")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(
        &file,
        &super::super::testing::file("end", b"end"),
        512 + (1 << 32),
    )
    .unwrap();
    assert_eq!(Archive::open(file, "a.tar".into()).unwrap().read("end").unwrap(), b"end");
}

#[test]
fn hostile_and_broken_archives_are_refused() {
    refused(b"x", "cut off");
    refused(&[b'x'; 2000], "not a tar");
    refused(&[file("a", b"a"), vec![b'x'; 512]].concat(), "entry number 2: its header's checksum is wrong");
    refused(&tar(&[file("a", b"a")])[..512], "cut off");
    refused(&entry("a", b'0', "", 1 << 32, b"a"), "cut off");
    let long = (1 << 20) + 1;
    refused(&entry("x", b'x', "", long, &[0; (1 << 20) + 1]), "its extended header is longer than 1 MiB");
    refused(&tar(&[file("index.json", b"1"), file("./index.json", b"2")]), "index.json is in it twice");
    refused(
        &tar(&[file("manifest.json", b"1"), file("manifest.json", b"2")]),
        "manifest.json is in it twice",
    );
    refused(&tar(&[pax(&[("size", "18446744073709551615")]), file("x", b"")]), "cut off");
    let mut huge = entry("a", b'0', "", 0, b"");
    huge[124..136].copy_from_slice(&[0xff; 12]);
    super::super::testing::seal(huge.first_chunk_mut().unwrap());
    refused(&huge, "cut off");
    let many: Vec<_> = (0..=MAX_ENTRIES).map(|n| file(&n.to_string(), b"")).collect();
    refused(&tar(&many), "more than 50000 entries");
}

#[test]
fn what_matters_to_nobody_is_passed_over() {
    let archive = open(&tar(&[
        file("..", b"1"),
        entry("null", b'3', "", 0, b""),
        entry("sparse", b'S', "", 0, b""),
        pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,1")]),
        file("sparse2", b"1"),
        pax(&[("path", &"x".repeat(600))]),
        file("long", b"1"),
        pax(&[("linkpath", &"x".repeat(600))]),
        entry("long2", b'2', "", 0, b""),
        file("good", b"good"),
    ]))
    .unwrap();
    assert_eq!(archive.entries.len(), 1);
    assert_eq!(archive.read("good").unwrap(), b"good");
    for text in ["x", "0 ", "-1 a=b", "99999 a=b", "5 a=b", "6 a=b\n0 ", "3 \u{fffd}"] {
        let header = entry("pax", b'x', "", text.len() as u64, text.as_bytes());
        refused(&tar(&[header, file("good", b"good")]), "its extended header is malformed");
    }
    assert!(open(&[]).unwrap().entries.is_empty());
}

#[test]
fn an_archive_that_shrinks_afterwards_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    (&file).write_all(&tar(&[super::super::testing::file("a", &[1; 5000])])).unwrap();
    let archive = Archive::open(file.try_clone().unwrap(), "a.tar".into()).unwrap();
    file.set_len(1000).unwrap();
    archive.read("a").unwrap_err();
}
