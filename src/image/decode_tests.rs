use super::super::testing::{bzip2, file, gzip, tar, xz, xz_with, zstd};
use super::*;
use lzma_rust2::{CheckType, FilterType, XzOptions};

/// Gives its bytes one by one, or in pieces of any length.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.1);
        self.0.read(&mut out[..n])
    }
}

fn decode(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Decoded::new(Pieces(bytes, piece))?;
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
        ("xz", xz(&plain)),
        ("xz streams", parts.map(xz).concat()),
        ("empty xz streams", [xz(b""), xz(&plain), xz(b"")].concat()),
        (
            "xz streams with padding",
            [xz(parts[0]), vec![0; 4], xz(parts[1]), vec![0; 400], xz(parts[2])].concat(),
        ),
        ("xz blocks and filters", xz_with(&plain, odd_options())),
        ("bzip2", bzip2(&plain)),
        ("bzip2 streams", parts.map(bzip2).concat()),
        ("empty bzip2 streams", [bzip2(b""), bzip2(&plain), bzip2(b"")].concat()),
    ];
    for (name, stream) in &streams {
        for piece in [1, 3, 511, 100_000, usize::MAX] {
            assert!(decode(stream, piece).unwrap() == plain, "{name} in pieces of {piece}");
        }
        if *name != "plain" {
            let starts = [&b"\x1f"[..], b"(\xb5/", b"\xfd7zX", b"BZ"];
            for trailing in [&b"\0\0\0\0\0\0"[..], b"x", &[7; 200_000]].into_iter().chain(starts) {
                let stream = [stream, trailing].concat();
                assert!(decode(&stream, 1000).unwrap() == plain, "{name} with a tail");
            }
        }
    }
}

#[test]
fn what_is_cut_off_or_broken_is_an_error() {
    let plain = tar(&[file("a", &noise(10_000))]);
    for stream in [
        gzip(&plain),
        zstd(&plain),
        [gzip(b"x"), gzip(&plain)].concat(),
        xz(&plain),
        [xz(b"x"), xz(&plain)].concat(),
        bzip2(&plain),
        [bzip2(b"x"), bzip2(&plain)].concat(),
    ] {
        for len in [stream.len() - 1, stream.len() / 2, 30] {
            decode(&stream[..len], 1000).unwrap_err();
        }
        let mut broken = stream.clone();
        broken[stream.len() / 2] ^= 0x55;
        // Zstd has no checksum here, so a changed literal shows in the digests only.
        assert!(decode(&broken, 1000).map_or(true, |out| out != plain));
    }
}

/// Several blocks, another check, and filters before LZMA2.
fn odd_options() -> XzOptions {
    let mut options = XzOptions::with_preset(0);
    options.set_check_sum_type(CheckType::Sha256);
    options.set_block_size(std::num::NonZeroU64::new(1));
    options.lzma_options.dict_size = 64 << 10;
    options.prepend_pre_filter(FilterType::BcjX86, 0);
    options.prepend_pre_filter(FilterType::Delta, 4);
    options
}

#[test]
fn compressions_that_are_not_supported_are_named() {
    for (start, name) in [
        (&b"LZIP\x01"[..], "lzip"),
        (b"\x04\x22\x4d\x18x", "lz4"),
        (b"\x1f\x9dx", "compress"),
        (b"PK\x03\x04x", "zip"),
        (b"7z\xbc\xaf\x27\x1cx", "7-Zip"),
    ] {
        let message = decode(start, 100).unwrap_err().to_string();
        assert_eq!(message, format!("it is compressed with {name}: expected gzip, zstd, xz, bzip2 or none"));
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

/// A stream of xz whose only block says that it needs a dictionary of this size (xz file format
/// 1.1.0, 5.3.1).
fn xz_with_dictionary(code: u8) -> Vec<u8> {
    let mut stream = xz(b"content");
    // Block header: length, flags, filter, length of its property, property.
    assert_eq!((stream[12], stream[14..16].to_vec()), (2, vec![0x21, 1]));
    stream[16] = code;
    let mut crc = flate2::Crc::new();
    crc.update(&stream[12..20]);
    stream[20..24].copy_from_slice(&crc.sum().to_le_bytes());
    stream
}

#[test]
fn a_dictionary_larger_than_128_mib_is_refused() {
    for (code, mib) in [(28, 64), (30, 128)] {
        assert_eq!(decode(&xz_with_dictionary(code), 100).unwrap(), b"content", "{mib} MiB");
    }
    // 192 MiB, 256 MiB, 4 GiB less one byte.
    for code in [31, 32, 40] {
        let error = decode(&xz_with_dictionary(code), 100).unwrap_err();
        assert_eq!(error.to_string(), "it needs a dictionary of more than 128 MiB");
    }
    decode(&xz_with_dictionary(41), 100).unwrap_err();
}

#[test]
fn padding_behind_xz_comes_to_an_end() {
    let stream = xz(b"x");
    let mut decoded = Decoded::new(stream.chain(io::repeat(0))).unwrap();
    let error = decoded.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("too much stands behind its end"), "{error}");
}

#[test]
fn changed_bytes_never_panic() {
    let plain = tar(&[file("a", &noise(3000)), file("b", &[7; 9000])]);
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let rounds = if std::env::var("BOTHY_LONG").is_ok_and(|long| !long.is_empty()) { 20_000 } else { 300 };
    for stream in [xz(&plain), xz_with(&plain, odd_options()), bzip2(&plain), gzip(&plain), zstd(&plain)] {
        for _ in 0..rounds {
            let mut bad = stream.clone();
            for _ in 0..=next(3) {
                let at = next(bad.len());
                bad[at] ^= 1 << next(8);
            }
            // Correct the CRC of xz' first block header, so that the decoder gets past it.
            let end = 12 + (usize::from(bad[12]) + 1) * 4;
            if bad.starts_with(XZ) && bad[12] > 0 && end <= bad.len() && next(2) == 0 {
                let mut crc = flate2::Crc::new();
                crc.update(&bad[12..end - 4]);
                bad[end - 4..end].copy_from_slice(&crc.sum().to_le_bytes());
            }
            if next(4) == 0 {
                bad.truncate(next(bad.len()));
            }
            // Any result is fine, but it must end.
            let mut out = Vec::new();
            let decoded = Decoded::new(&bad[..]);
            let _any = decoded.and_then(|decoded| decoded.take(1 << 20).read_to_end(&mut out));
        }
    }
}
