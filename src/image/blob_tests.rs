use super::super::testing::{bzip2, chain, file, gzip, tar, xz, zstd};
use super::*;

fn layer() -> Vec<u8> {
    tar(&[file("a", &[7; 5000]), file("b", b"b")])
}

fn read(stored: &[u8], expected: Expected) -> (io::Result<Vec<u8>>, usize) {
    let verified = Rc::new(Cell::new(0));
    let mut out = Vec::new();
    let result = LayerReader::new(stored, expected, verified.clone())
        .and_then(|mut reader| reader.read_to_end(&mut out))
        .map(|_| out);
    (result, verified.get())
}

fn expected(stored: &[u8], plain: &[u8]) -> Expected {
    Expected {
        name: "layer x".into(),
        digest: Some(Digest::of(stored)),
        len: Some(stored.len() as u64),
        diff_id: Digest::of(plain),
    }
}

#[test]
fn a_good_layer_is_verified_at_its_end() {
    let plain = layer();
    let tail = |mut stored: Vec<u8>| {
        stored.extend(b"and more");
        stored
    };
    let compressed = [gzip(&plain), zstd(&plain), xz(&plain), bzip2(&plain)];
    for stored in compressed.clone().into_iter().chain(compressed.map(tail)).chain([plain.clone()]) {
        let (out, verified) = read(&stored, expected(&stored, &plain));
        assert_eq!((out.unwrap(), verified), (plain.clone(), 1));
    }
    // Docker's archives say nothing about the blob.
    let stored = gzip(&plain);
    let (out, verified) = read(&stored, Expected { digest: None, len: None, ..expected(&stored, &plain) });
    assert_eq!((out.unwrap(), verified), (plain, 1));
}

#[test]
fn what_stands_behind_a_layer_comes_to_an_end() {
    let plain = layer();
    for stored in [gzip(&plain), zstd(&plain), xz(&plain), bzip2(&plain)] {
        let expected = Expected { digest: None, len: None, ..expected(&stored, &plain) };
        let endless = stored.chain(io::repeat(0));
        let mut reader = LayerReader::new(endless, expected, Rc::default()).unwrap();
        let error = chain(&reader.read_to_end(&mut Vec::new()).unwrap_err());
        assert!(error.contains("too much stands behind its end"), "{error}");
    }
}

#[test]
fn a_sha512_digest_counts_as_well() {
    let plain = layer();
    let mut hasher = Hasher::new(super::super::digest::Algorithm::Sha512);
    hasher.update(&plain);
    let digest = hasher.finish();
    let good = Expected { digest: Some(digest.clone()), diff_id: digest, ..expected(&plain, &plain) };
    assert_eq!(read(&plain, good).1, 1);
}

#[test]
fn every_lie_is_told_at_the_end() {
    let plain = layer();
    let stored = gzip(&plain);
    let other = Digest::of(b"other");
    let base = || expected(&stored, &plain);
    let longer = [&stored[..], b"x"].concat();
    let len = stored.len() as u64;
    for (stored, expected, part) in [
        (&stored, Expected { digest: Some(other.clone()), ..base() }, "is damaged"),
        (&stored, Expected { diff_id: other, ..base() }, "doesn't fit the image's configuration"),
        (&stored, Expected { len: Some(len + 1), ..base() }, "instead of the"),
        (&stored, Expected { len: Some(len - 1), ..base() }, "longer than the"),
        (&stored, Expected { len: Some(0), ..base() }, "longer than the 0 bytes"),
        (&longer, base(), "longer than the"),
        (&longer, Expected { len: Some(len + 1), ..base() }, "is damaged"),
        (&stored[..100].to_vec(), base(), "can't be decompressed"),
    ] {
        let (result, verified) = read(stored, expected);
        let message = chain(&result.unwrap_err());
        assert!(message.contains(part) && message.starts_with("layer x "), "{message}");
        assert_eq!(verified, 0);
    }
}

#[test]
fn a_plain_layer_that_lies_is_found_out_whichever_digest_is_wrong() {
    let (plain, other) = (layer(), Digest::of(b"other"));
    let base = || expected(&plain, &plain);
    for (expected, part) in [
        (Expected { diff_id: other.clone(), ..base() }, "doesn't fit"),
        (Expected { digest: Some(other.clone()), ..base() }, "is damaged"),
        (Expected { digest: Some(other.clone()), diff_id: other.clone(), ..base() }, "is damaged"),
        (Expected { digest: None, len: None, diff_id: other.clone(), ..base() }, "doesn't fit"),
    ] {
        let (result, verified) = read(&plain, expected);
        assert!(chain(&result.unwrap_err()).contains(part), "{part}");
        assert_eq!(verified, 0);
    }
}

#[test]
fn after_a_failure_every_read_fails() {
    let plain = layer();
    let lie = Expected { diff_id: Digest::of(b"other"), ..expected(&plain, &plain) };
    let mut reader = LayerReader::new(&plain[..], lie, Rc::default()).unwrap();
    io::copy(&mut reader, &mut io::sink()).unwrap_err();
    reader.read(&mut [0; 10]).unwrap_err();
    reader.read(&mut [0; 10]).unwrap_err();
}

/// `BOTHY_STORE_BENCH=DIR cargo test --release --lib image::blob -- --nocapture`, with l.tar,
/// l.tar.gz, l.tar.zst, l.tar.xz and l.tar.bz2 in DIR.
#[test]
fn speed_with_both_digests() {
    let Some(dir) = std::env::var_os("BOTHY_STORE_BENCH").map(std::path::PathBuf::from) else { return };
    let diff_id = Digest::of(&std::fs::read(dir.join("l.tar")).unwrap());
    for name in ["l.tar", "l.tar.gz", "l.tar.zst", "l.tar.xz", "l.tar.bz2"] {
        let stored = std::fs::read(dir.join(name)).unwrap();
        let expected = Expected {
            name: name.into(),
            digest: Some(Digest::of(&stored)),
            len: Some(stored.len() as u64),
            diff_id: diff_id.clone(),
        };
        let file = std::fs::File::open(dir.join(name)).unwrap();
        let verified = Rc::new(Cell::new(0));
        let start = std::time::Instant::now();
        let mut reader = LayerReader::new(file, expected, verified.clone()).unwrap();
        let mut chunk = vec![0; 128 << 10];
        let mut bytes = 0;
        while let n @ 1.. = reader.read(&mut chunk).unwrap() {
            bytes += n;
        }
        let rate = bytes / usize::try_from(start.elapsed().as_micros()).unwrap();
        println!("{name}: {rate} MB/s of uncompressed content");
        assert_eq!(verified.get(), 1);
    }
}
