use super::super::testing::*;
use super::super::{Limits, RootfsError};
use super::*;

fn pax_file(records: &[(&str, &[u8])], data: &[u8]) -> Tar {
    Tar::new().pax(records).file("f", data)
}

/// A GNU sparse file's header, with fields from 386 on and its size with holes.
fn gnu_sparse(fields: &[u8], more: bool, stored: usize, size: &str) -> Tar {
    Tar::new().header(b'S', b"f", stored as u64, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[386..386 + fields.len()].copy_from_slice(fields);
        block[482] = u8::from(more);
        block[483..483 + size.len()].copy_from_slice(size.as_bytes());
    })
}

fn octal(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| format!("{number:011o}\0").into_bytes()).collect()
}

fn refused(bytes: Vec<u8>) -> Flaw {
    match build_with(&[bytes], &LIMITS).err().expect("refused") {
        RootfsError::Entry { flaw, .. } => flaw,
        other => panic!("{other}"),
    }
}

#[test]
fn long_names_come_from_gnu_headers_and_pax_records() {
    let long = "n".repeat(200);
    let gnu = Tar::new()
        .header(b'L', b"././@LongLink", 201, |_| {})
        .data(format!("{long}\0").as_bytes())
        .header(b'K', b"././@LongLink", 301, |_| {})
        .data(format!("{}\0", "t".repeat(300)).as_bytes())
        .symlink("short", "short");
    let nodes = image(&[gnu]).nodes();
    assert_eq!(nodes[&format!("/{long}")].content, "t".repeat(300));
    let pax = pax_file(&[("path", b"\xff\xfe/x"), ("linkpath", b"ignored")], b"");
    assert_eq!(image(&[pax]).names(), ["/\\xff\\xfe", "/\\xff\\xfe/x"]);
    let ustar = Tar::new().header(b'0', b"name", 0, |block| block[345..348].copy_from_slice(b"a/b"));
    assert_eq!(image(&[ustar]).names(), ["/a", "/a/b", "/a/b/name"]);
    // What GNU has there is no prefix.
    let gnu = Tar::new().header(b'0', b"name", 0, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..348].copy_from_slice(b"123");
    });
    assert_eq!(image(&[gnu]).names(), ["/name"]);
}

#[test]
fn pax_records_win_over_the_header_and_hold_for_one_entry() {
    let tar =
        pax_file(&[("size", b"3"), ("uid", b"70000"), ("mtime", b"-1.25")], b"").data(b"abc").file("g", b"");
    // The header said 0 bytes; the record says 3, and they follow.
    let nodes = image(&[tar]).nodes();
    assert_eq!((nodes["/f"].size, nodes["/f"].uid, nodes["/f"].mtime), (3, 70_000, (-2, 750_000_000)));
    assert_eq!(nodes["/g"].uid, 0);
}

#[test]
fn global_headers_and_volume_names_mean_nothing() {
    let records = Tar::new().pax(&[("path", b"evil"), ("uid", b"5")]).0;
    let global = Tar(records).0;
    let mut global = Tar(global);
    global.0[156] = b'g';
    let sum: u32 = global.0[..512]
        .iter()
        .enumerate()
        .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
        .sum();
    global.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tar = global.header(b'V', b"volume", 0, |_| {}).file("a", b"").file("b", b"");
    let image = image(&[tar]);
    assert_eq!(image.names(), ["/a", "/b"]);
    assert_eq!(image.nodes()["/a"].uid, 0);
}

#[test]
fn links_and_devices_have_no_data_whatever_their_size_says() {
    let sized = |kind, name: &[u8]| Tar::new().header(kind, name, 512, |block| block[157] = b'x').0;
    let tar = Tar([
        Tar::new().file("x", b"").0,
        sized(b'1', b"h"),
        sized(b'2', b"s"),
        sized(b'5', b"d"),
        sized(b'6', b"p"),
    ]
    .concat());
    assert_eq!(image(&[tar]).names(), ["/d", "/h", "/p", "/s", "/x"]);
}

#[test]
fn archives_from_before_posix_are_read() {
    let old = |block: &mut [u8]| block[257..265].fill(0);
    let tar = Tar::new().header(0, b"dir/", 0, old).header(0, b"dir/f", 3, old).data(b"abc").header(
        b'7',
        b"c",
        0,
        |_| {},
    );
    let nodes = image(&[tar]).nodes();
    assert_eq!((nodes["/dir"].mode >> 12, nodes["/dir/f"].size), (0o04, 3));
}

#[test]
fn an_archive_may_end_without_its_end() {
    let tar = Tar::new().file("a", b"1").0;
    for zeros in [0, 512, 1024, 10_240] {
        let image = build_with(&[[&tar[..], &vec![0; zeros]].concat()], &LIMITS).unwrap();
        assert_eq!(image.names(), ["/a"]);
    }
    assert!(build_with(&[Vec::new()], &LIMITS).is_ok());
}

#[test]
fn a_stream_that_ends_too_early_is_refused() {
    let tar = Tar::new().pax(&[("path", b"name")]).file("a", &[1; 1000]).0;
    for len in [1, 511, 513, 1025, 1535, 1536 + 999] {
        assert_eq!(refused(tar[..len].to_vec()), Flaw::Truncated, "{len}");
    }
    for len in [1023, 1024] {
        assert_eq!(refused(tar[..len].to_vec()), Flaw::NoEntry, "{len}");
    }
    assert_eq!(refused([&tar[..1024], &[0; 1024]].concat()), Flaw::NoEntry);
}

/// `umoci insert` writes such layers.
#[test]
fn the_padding_behind_the_last_file_may_be_missing_or_cut_off() {
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"0,700,4000,300")];
    for tar in [
        Tar::new().file("a", &[1; 1000]),
        Tar::new().file("b", b"").file("a", &[1; 300_000]),
        Tar::new().pax(sparse).file("a", &[1; 1000]),
        gnu_sparse(&octal(&[0, 1000]), false, 1000, "1750").data(&[1; 1000]),
    ] {
        let end = tar.0.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let whole = build_with(&[tar.clone().end()], &LIMITS).unwrap();
        for padding in [0, 1, 23, 24] {
            let cut = build_with(&[tar.0[..end + padding].to_vec()], &LIMITS).unwrap();
            assert_same(&cut.nodes(), &whole.nodes());
        }
        assert_eq!(refused(tar.0[..end - 1].to_vec()), Flaw::Truncated, "a byte of the file");
        let behind = [&tar.0[..end], &Tar::new().file("x", b"").0].concat();
        assert!(build_with(&[behind], &LIMITS).is_err(), "only at the end");
    }
    // The file isn't there after an extended header, however that is padded.
    let pax = Tar::new().pax(&[("path", b"x")]).0;
    let end = pax.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert_eq!(refused(pax[..end].to_vec()), Flaw::NoEntry);
}

#[test]
fn headers_with_a_wrong_checksum_are_refused() {
    let mut tar = Tar::new().file("a", b"").end();
    tar[0] ^= 1;
    assert_eq!(refused(tar), Flaw::Checksum);
    assert_eq!(refused(vec![b'x'; 2048]), Flaw::Checksum);
    assert_eq!(refused([&[0; 512][..], &Tar::new().file("a", b"").end()].concat()), Flaw::Checksum);
}

#[test]
fn sizes_that_lie_are_refused() {
    let size = |field: &[u8]| {
        flaw(Tar::new().header(b'0', b"f", 0, |block| block[124..124 + field.len()].copy_from_slice(field)))
    };
    assert_eq!(size(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Flaw::Size, "-1");
    assert_eq!(size(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Flaw::Size, "2^63 - 1");
    assert_eq!(size(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), Flaw::Number, "2^64 - 1");
    assert_eq!(size(b"77777777777\0"), Flaw::Truncated, "8 GiB that aren't there");
    assert_eq!(size(b"999"), Flaw::Number);
    assert_eq!(flaw(pax_file(&[("size", b"18446744073709551615")], b"")), Flaw::Size);
    assert_eq!(flaw(pax_file(&[("size", b"18446744073709551616")], b"")), Flaw::Number);
    assert_eq!(flaw(pax_file(&[("size", b"-1")], b"")), Flaw::Number);
}

#[test]
fn extended_headers_have_a_limit() {
    for kind in [b'x', b'g', b'L', b'K'] {
        assert_eq!(flaw(Tar::new().header(kind, b"x", (1 << 20) + 1, |_| {})), Flaw::ExtendedSize);
        assert_eq!(flaw(Tar::new().header(kind, b"x", 1 << 32, |_| {})), Flaw::ExtendedSize);
    }
    let big = vec![b'x'; 1 << 20];
    assert_eq!(flaw(Tar::new().header(b'x', b"x", 1 << 20, |_| {}).data(&big)), Flaw::Extended);
    assert_eq!(
        flaw(Tar::new().header(b'L', b"x", 1 << 20, |_| {}).data(&big).file("x", b"")),
        Flaw::PathLength
    );
}

#[test]
fn xattrs_have_limits() {
    let xattr = |key: &str, value: &[u8]| flaw(pax_file(&[(&format!("SCHILY.xattr.{key}"), value)], b""));
    assert_eq!(xattr("user.x", &vec![0; 65_536]), Flaw::Xattr);
    assert_eq!(xattr(&format!("user.{}", "n".repeat(251)), b""), Flaw::Xattr);
    assert_eq!(xattr("user.\0", b""), Flaw::Extended);
}

#[test]
fn types_that_no_file_system_has_are_refused() {
    for kind in *b"MDNAZ8" {
        assert_eq!(flaw(Tar::new().header(kind, b"x", 0, |_| {})), Flaw::Type(kind));
    }
}

#[test]
fn owners_and_times_fit_or_are_refused() {
    assert_eq!(flaw(pax_file(&[("uid", b"4294967296")], b"")), Flaw::Owner);
    assert_eq!(flaw(pax_file(&[("gid", b"18446744073709551615")], b"")), Flaw::Owner);
    assert_eq!(flaw(pax_file(&[("gid", b"-4294967295")], b"")), Flaw::Owner);
    assert_eq!(flaw(pax_file(&[("mtime", b"1e9")], b"")), Flaw::Time);
    let uid = |block: &mut [u8]| block[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0");
    assert_eq!(flaw(Tar::new().header(b'0', b"x", 0, uid)), Flaw::Owner);
    let uid = |block: &mut [u8]| block[108..116].copy_from_slice(b"\xff\xff\xff\xff\x7f\xff\xff\xff");
    assert_eq!(flaw(Tar::new().header(b'0', b"x", 0, uid)), Flaw::Owner);
}

/// GNU tar writes what octal digits have no room for in base 256, and what is negative in two's
/// complement.
#[test]
fn numbers_in_base_256_are_read_and_negative_ones_have_a_meaning() {
    let field = |at: usize, bytes: &'static [u8]| {
        move |block: &mut [u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
    };
    let owners = |block: &mut [u8]| {
        field(108, b"\xff\xff\xff\xff\xff\xff\xff\xfe")(block);
        field(116, b"\xff\xff\xff\xff\x80\0\0\0")(block);
    };
    let tar = Tar::new()
        .header(b'0', b"owners", 0, owners)
        .header(b'0', b"none", 0, field(108, b"\xff\xff\xff\xff\xff\xff\xff\xff"))
        .header(b'0', b"large", 0, field(108, b"\x80\0\0\0\xff\xff\xff\xfe"))
        .header(b'0', b"old", 0, field(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb"))
        .header(b'0', b"future", 0, field(136, b"\x80\0\0\0\0\0\0\x40\0\0\0\0"))
        .header(b'0', b"sized", 0, field(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x03"))
        .data(b"abc")
        .pax(&[("uid", b"-2"), ("gid", b"-1")])
        .file("pax", b"");
    let nodes = image(&[tar]).nodes();
    let owner = |name: &str| (nodes[name].uid, nodes[name].gid);
    assert_eq!(owner("/owners"), (4_294_967_294, 2_147_483_648), "as docker and umoci have it");
    assert_eq!((owner("/none").0, owner("/large").0), (0, 4_294_967_294));
    assert_eq!(owner("/pax"), (4_294_967_294, 0));
    assert_eq!((nodes["/old"].mtime, nodes["/future"].mtime), ((-5, 0), (1 << 38, 0)));
    assert_eq!(nodes["/sized"].size, 3);
}

#[test]
fn maps_of_holes_are_believed_only_as_far_as_they_fit() {
    let map = |records: &[(&str, &[u8])], data: &[u8]| flaw(pax_file(records, data));
    let size: (&str, &[u8]) = ("GNU.sparse.size", b"100");
    assert_eq!(map(&[size, ("GNU.sparse.map", b"0,10,5,10")], &[1; 20]), Flaw::SparseMap);
    assert_eq!(map(&[size, ("GNU.sparse.map", b"0,10,20")], &[1; 20]), Flaw::SparseMap);
    assert_eq!(map(&[size, ("GNU.sparse.map", b"95,10")], &[1; 10]), Flaw::SparseMap);
    assert_eq!(map(&[size, ("GNU.sparse.map", b"0,18446744073709551615")], &[1; 10]), Flaw::SparseMap);
    assert_eq!(map(&[size, ("GNU.sparse.map", b"0,5")], &[1; 10]), Flaw::SparseMap);
    assert_eq!(map(&[("GNU.sparse.map", b"0,10")], &[1; 10]), Flaw::SparseMap, "no size");
    assert_eq!(map(&[size, ("GNU.sparse.numbytes", b"5")], &[1; 5]), Flaw::SparseMap);
    let huge: &[(&str, &[u8])] = &[("GNU.sparse.size", b"18446744073709551615"), ("GNU.sparse.map", b"0,5")];
    assert_eq!(map(huge, &[1; 5]), Flaw::Size);

    let one: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"100")];
    assert_eq!(map(one, b""), Flaw::SparseMap);
    assert_eq!(map(one, &[b'1'; 512]), Flaw::SparseMap, "a number without an end");
    assert_eq!(map(one, &[b'\n'; 512]), Flaw::SparseMap);
    let padded = |text: &str| [text.as_bytes(), &vec![0; 512 - text.len()]].concat();
    assert_eq!(map(one, &padded("99999999\n")), Flaw::SparseParts);
    assert_eq!(map(one, &padded("1000\n0\n")), Flaw::SparseMap);
    assert_eq!(map(one, &padded("1\n0\n5\n")), Flaw::SparseMap, "nothing is stored");

    let gnu = |fields: &[u64], stored: usize, size| {
        flaw(gnu_sparse(&octal(fields), false, stored, size).data(&vec![1; stored]))
    };
    assert_eq!(gnu(&[0, 512, 100, 512], 1024, "77777777"), Flaw::SparseMap);
    assert_eq!(gnu(&[0, 512], 512, "777"), Flaw::SparseMap, "511 bytes");
    assert_eq!(
        flaw(gnu_sparse(&octal(&[0, 1]), true, 1, "777").data(&[0; 512])),
        Flaw::SparseMap,
        "an empty block"
    );
    assert_eq!(flaw(gnu_sparse(b"xxxx", false, 1, "777").data(&[0; 512])), Flaw::Number);
    let endless = gnu_sparse(&octal(&[0, 1]), true, 1, "777");
    assert_eq!(refused(endless.0), Flaw::Truncated);
}

#[test]
fn a_map_without_end_is_cut_off() {
    // Blocks of 21 parts, each saying that another follows.
    let part = octal(&[0, 0]);
    let block = [&part.repeat(21)[..], &[1; 8]].concat();
    let tar = gnu_sparse(&octal(&[0, 0]), true, 0, "777").0;
    assert_eq!(refused([tar, block.repeat(50_000)].concat()), Flaw::SparseParts);
}

#[test]
fn sparse_files_keep_their_holes() {
    let gnu = gnu_sparse(&octal(&[0, 5000, 1 << 30, 3]), false, 5003, "10000000003").data(&[7; 5003]);
    let image = image(&[gnu]);
    assert_eq!(image.nodes()["/f"].size, (1 << 30) + 3);
    assert!(image.built.bytes < 64 << 20 && image.disk() < 1 << 20, "{} {}", image.built.bytes, image.disk());
    // One that has none after all.
    let whole: &[(&str, &[u8])] = &[("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"0,3000,3000,2000")];
    let plain = super::super::testing::image(&[Tar::new().file("f", &[9; 5000])]).nodes();
    assert_eq!(
        super::super::testing::image(&[pax_file(whole, &[9; 5000])]).nodes()["/f"].content,
        plain["/f"].content
    );
    let named: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b""), ("GNU.sparse.name", b"real")];
    assert_eq!(flaw(pax_file(named, b"")), Flaw::SparseMap);
    let empty: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"9000,0"), ("GNU.sparse.name", b"real")];
    assert_eq!(super::super::testing::image(&[pax_file(empty, b"")]).nodes()["/real"].size, 9000);
}

/// A small archive with one of everything.
fn good() -> Vec<u8> {
    let sparse: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"100000"),
        ("GNU.sparse.name", b"sp"),
    ];
    let map = [&b"2\n0\n10\n90000\n10\n"[..], &[0; 496], &[5; 20]].concat();
    let more = [&octal(&[50_000, 600, 60_000, 0])[..], &[0; 464]].concat();
    let gnu = gnu_sparse(&octal(&[0, 100, 10_000, 100, 20_000, 100, 30_000, 100]), true, 1000, "00000165140");
    let tar = Tar::new()
        .dir("d")
        .file("d/f", &[1; 5000])
        .pax(&[("path", b"long\xff"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"v"), ("uid", b"70000")])
        .file("x", b"abc")
        .symlink("s", "d")
        .hard_link("h", "s/f")
        .device(b'3', "c", 1, 3)
        .header(b'L', b"././@LongLink", 151, |_| {})
        .data(&[&[b'n'; 150][..], b"\0"].concat())
        .pax(sparse)
        .file("GNUSparseFile.0/sp", &map)
        .file("d/.wh.g", b"")
        .dir("d/d")
        .file("d/.wh..wh..opq", b"");
    Tar([tar.0, gnu.data(&more).data(&[6; 1000]).0].concat()).end()
}

/// Builds, and doesn't care what comes of it as long as something does, soon, and small. What comes
/// is sound.
fn survives(bytes: &[u8], check: bool) -> bool {
    let limits = Limits { max_entries: 10_000, max_bytes: 1 << 30, max_disk: u64::MAX };
    let Ok(image) = build_with(&[bytes.to_vec()], &limits) else { return false };
    image.names();
    if check {
        image.fsck();
    }
    true
}

#[test]
fn flipped_bits_never_panic() {
    let good = good();
    assert!(survives(&good, true));
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let mut built = 0;
    let rounds = if std::env::var("BOTHY_LONG").is_ok_and(|long| !long.is_empty()) { 50_000 } else { 4000 };
    for round in 0..rounds {
        let mut bad = good.clone();
        for _ in 0..=round % 4 {
            // Mostly in headers, which begin at blocks.
            let at = if round % 3 == 0 { next(bad.len()) } else { next(bad.len() / 512) * 512 + next(512) };
            bad[at] = match next(4) {
                0 => bad[at] ^ 1 << next(8),
                1 => b"0179 \0\n=\x80\xff"[next(10)],
                2 => 0,
                _ => next(256).to_le_bytes()[0],
            };
        }
        // Headers get checksums that are right, or everything would end there.
        if round % 2 == 0 {
            mend(&mut bad);
        }
        if round % 5 == 0 {
            bad.truncate(next(good.len()));
        }
        built += u32::from(survives(&bad, round % 50 == 0));
    }
    assert!(built > 100, "some must get through: {built}");
}

/// Corrects the checksum of every block that looks like a header.
fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn an_archive_cut_anywhere_never_panics() {
    let good = good();
    for len in (0..good.len()).step_by(7) {
        survives(&good[..len], false);
    }
}

#[test]
fn a_source_that_fails_is_named() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("digest mismatch"))
        }
    }
    let layer = super::super::Layer { name: "sha256:ab".into(), tar: Box::new(Broken) };
    let error = super::super::build([Ok(layer)], &tempfile::tempfile().unwrap(), &LIMITS).unwrap_err();
    assert_eq!(error.to_string(), "layer sha256:ab can't be read, at entry number 1");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "digest mismatch");
}
