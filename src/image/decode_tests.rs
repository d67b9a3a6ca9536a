use super::super::testing::{file, gzip, tar, zstd};
use super::*;

/// Gives its bytes one by one, or in pieces of any length.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.1);
        self.0.read(&mut out[..n])
    }
}

fn decode(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Decoded::new(Pieces(bytes, piece), "it")?;
    let mut out = Vec::new();
    decoded.read_to_end(&mut out)?;
    assert_eq!(decoded.read(&mut [0; 10])?, 0, "the end stays the end");
    let rest = decoded.into_inner_at_end()?;
    assert!(rest.0.is_empty(), "all has been read");
    Ok(out)
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(next).collect()
}

#[test]
fn every_compression_gives_the_same_bytes() {
    let plain = tar(&[file("a", &noise(400_000))]);
    let parts = [&plain[..100], &plain[100..1000], &plain[1000..]];
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"junk"].concat();
    let streams = [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("members", parts.map(gzip).concat()),
        ("empty members", [gzip(b""), gzip(&plain), gzip(b"")].concat()),
        ("zstd", zstd(&plain)),
        ("frames", parts.map(zstd).concat()),
        ("skippable frames", [skippable.clone(), zstd(&plain), skippable].concat()),
    ];
    for (name, stream) in &streams {
        for piece in [1, 3, 511, 100_000, usize::MAX] {
            assert!(decode(stream, piece).unwrap() == plain, "{name} in pieces of {piece}");
        }
        if *name != "plain" {
            for trailing in [&b"\0\0\0\0\0\0"[..], b"x", b"\x1f", b"(\xb5/", &[7; 200_000]] {
                let stream = [stream, trailing].concat();
                assert!(decode(&stream, 1000).unwrap() == plain, "{name} with a tail");
            }
        }
    }
}

#[test]
fn what_is_cut_off_or_broken_is_an_error() {
    let plain = tar(&[file("a", &noise(10_000))]);
    for stream in [gzip(&plain), zstd(&plain), [gzip(b"x"), gzip(&plain)].concat()] {
        for len in [stream.len() - 1, stream.len() / 2, 30] {
            decode(&stream[..len], 1000).unwrap_err();
        }
        let mut broken = stream.clone();
        broken[stream.len() / 2] ^= 0x55;
        // Zstd has no checksum here, so a changed literal shows in the digests only.
        assert!(decode(&broken, 1000).map_or(true, |out| out != plain));
    }
}

#[test]
fn compressions_that_are_not_supported_are_named() {
    for (start, name) in [(&b"\xfd7zXZ\0\0\0"[..], "xz"), (b"BZh91AY", "bzip2")] {
        let message = decode(start, 100).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("it is compressed"), "{message}");
    }
}

#[test]
fn a_tar_is_told_by_its_checksum() {
    let plain = tar(&[file("\u{1f}\u{8b}\u{8}", b"")]);
    assert!(is_tar(&plain) && is_tar(&[0; 512]) && !is_tar(&[0; 511]) && !is_tar(&[1; 512]));
    // Its first bytes look like gzip's.
    let mut odd = plain.clone();
    odd[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
    let header: &mut [u8; 512] = odd.first_chunk_mut().unwrap();
    super::super::testing::seal(header);
    assert_eq!(Compression::of(&odd), Compression::None);
    assert_eq!(Compression::of(b""), Compression::None);
}

#[test]
fn a_window_larger_than_128_mib_is_refused() {
    // A frame header with a window of 2 GiB (RFC 8878, 3.1.1.1.2), and a block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
    let error = decode(&frame, 100).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("memory"), "{error}");
}
