use super::super::testing::*;
use super::super::{Limits, RootfsError};
use super::*;

#[test]
fn of_duplicates_the_last_wins() {
    let tar = Tar::new()
        .file("a", b"1")
        .file("a", b"22")
        .dir("d")
        .file("d/x", b"")
        .file("d", b"now a file")
        .file("e", b"")
        .dir("e")
        .file("e/y", b"");
    let image = image(&[tar]);
    assert_eq!(image.names(), ["/a", "/d", "/e", "/e/y"]);
    let nodes = image.nodes();
    assert_eq!(nodes["/a"].size, 2);
    assert_eq!((nodes["/d"].mode, nodes["/d"].size), (0o100_644, 10));
    assert_eq!(nodes["/e"].mode, 0o040_755);
}

#[test]
fn a_directory_over_a_directory_replaces_its_metadata_alone() {
    let xattr: &[(&str, &[u8])] = &[("SCHILY.xattr.user.old", b"1")];
    let lower = Tar::new().pax(xattr).dir("d").file("d/x", b"");
    let upper = Tar::new()
        .pax(&[("mtime", b"5.5"), ("uid", b"70000"), ("gid", b"4000000000"), ("SCHILY.xattr.user.new", b"2")])
        .header(b'5', b"d/", 0, |block| block[100..108].copy_from_slice(b"0001700\0"));
    let image = image(&[lower, upper]);
    let nodes = image.nodes();
    let dir = &nodes["/d"];
    assert_eq!((dir.mode, dir.uid, dir.gid, dir.mtime), (0o041_700, 70_000, 4_000_000_000, (5, 500_000_000)));
    assert_eq!(dir.xattrs.keys().collect::<Vec<_>>(), ["user.new"]);
    assert!(nodes.contains_key("/d/x"));
}

#[test]
fn the_root_takes_its_metadata_from_its_entry() {
    let tar = Tar::new().header(b'5', b"./", 0, |block| block[100..108].copy_from_slice(b"0001711\0"));
    assert_eq!(image(&[tar]).nodes()[""].mode, 0o041_711);
}

#[test]
fn missing_parents_are_made() {
    let image = image(&[Tar::new().file("a/b/c", b"")]);
    let nodes = image.nodes();
    let parent = &nodes["/a/b"];
    assert_eq!((parent.mode, parent.uid, parent.gid, parent.mtime), (0o040_755, 0, 0, (0, 0)));
    assert_eq!((nodes["/a"].links, nodes[""].links), (3, 3));
    assert_eq!(image.built.entries, 3);
}

#[test]
fn names_are_relative_to_the_root_however_they_begin() {
    let tar = Tar::new().file("/abs", b"").file(".//./dots/.//x", b"").hard_link("hard", "/abs");
    assert_eq!(image(&[tar]).names(), ["/abs", "/dots", "/dots/x", "/hard"]);
}

#[test]
fn a_hard_link_reaches_files_of_lower_layers() {
    let lower = Tar::new().file("a", b"123").symlink("s", "a");
    let upper = Tar::new().hard_link("b", "a").hard_link("t", "./s").hard_link("b", "b");
    let nodes = image(&[lower, upper]).nodes();
    assert_eq!((nodes["/a"].links, nodes["/b"].links), (2, 2));
    assert_eq!((nodes["/b"].first.as_str(), nodes["/b"].size), ("/a", 3));
    assert_eq!((nodes["/t"].content.as_str(), nodes["/t"].links), ("a", 2));
}

#[test]
fn a_hard_link_that_replaces_the_directory_of_its_target_keeps_the_data() {
    let data = vec![7; 10_000];
    let expected = image(&[Tar::new().file("d", &data)]).nodes();
    let image = image(&[Tar::new().file("d/f", &data).hard_link("d", "d/f")]);
    assert_eq!(image.nodes()["/d"], expected["/d"]);
    let image = super::super::testing::image(&[
        Tar::new().file("a", &data).hard_link("b", "a"),
        Tar::new().file("a", b""),
    ]);
    assert_eq!(
        (image.nodes()["/b"].content.clone(), image.nodes()["/b"].links),
        (expected["/d"].content.clone(), 1)
    );
}

/// One layer over another, its entries in both orders.
fn both_orders(lower: &Tar, upper: [fn(Tar) -> Tar; 2], expected: &[&str]) {
    let one = image(&[lower.clone(), upper[1](upper[0](Tar::new()))]);
    let two = image(&[lower.clone(), upper[0](upper[1](Tar::new()))]);
    assert_eq!(one.names(), expected);
    assert_same(&one.nodes(), &two.nodes());
}

#[test]
fn a_whiteout_hides_what_is_lower_and_nothing_of_its_own_layer() {
    let lower =
        Tar::new().file("f", b"old").dir("d").file("d/low", b"").file("d/sub/low", b"").file("keep", b"");
    both_orders(
        &lower,
        [|tar| tar.file(".wh.f", b""), |tar| tar.dir("new")],
        &["/d", "/d/low", "/d/sub", "/d/sub/low", "/keep", "/new"],
    );
    both_orders(&lower, [|tar| tar.file(".wh.d", b""), |tar| tar], &["/f", "/keep"]);
    both_orders(
        &lower,
        [|tar| tar.file(".wh.f", b""), |tar| tar.file("f", b"new")],
        &["/d", "/d/low", "/d/sub", "/d/sub/low", "/f", "/keep"],
    );
    both_orders(
        &lower,
        [|tar| tar.file(".wh.d", b""), |tar| tar.dir("d").file("d/up", b"")],
        &["/d", "/d/up", "/f", "/keep"],
    );
    // With no entry for the directory, it is a new one, too.
    both_orders(
        &lower,
        [|tar| tar.file(".wh.d", b""), |tar| tar.file("d/sub/up", b"")],
        &["/d", "/d/sub", "/d/sub/up", "/f", "/keep"],
    );
}

#[test]
fn an_opaque_directory_hides_what_is_lower_and_nothing_of_its_own_layer() {
    let lower = Tar::new().dir("d").file("d/a", b"").file("d/sub/b", b"").file("x", b"");
    both_orders(&lower, [|tar| tar.file("d/.wh..wh..opq", b""), |tar| tar], &["/d", "/x"]);
    both_orders(
        &lower,
        [|tar| tar.file("d/.wh..wh..opq", b""), |tar| tar.file("d/a", b"n").dir("d/sub")],
        &["/d", "/d/a", "/d/sub", "/x"],
    );
    both_orders(
        &lower,
        [|tar| tar.file("d/.wh..wh..opq", b""), |tar| tar.file("d/sub/c", b"")],
        &["/d", "/d/sub", "/d/sub/c", "/x"],
    );
    both_orders(&lower, [|tar| tar.file(".wh..wh..opq", b""), |tar| tar.file("y", b"")], &["/y"]);
    both_orders(&lower, [|tar| tar.file("d/.wh..wh..opq", b""), |tar| tar.file(".wh.d", b"")], &["/x"]);
    // A third layer sees what the second left.
    let upper = Tar::new().file("d/.wh..wh..opq", b"").file("d/new", b"");
    let third = Tar::new().file("d/.wh..wh..opq", b"").file("d/newest", b"");
    assert_eq!(image(&[lower, upper, third]).names(), ["/d", "/d/newest", "/x"]);
}

#[test]
fn whiteouts_of_nothing_do_nothing() {
    let tar = Tar::new()
        .file(".wh.no", b"")
        .file("no/where/.wh.no", b"")
        .file("no/.wh..wh..opq", b"")
        .file(".wh..wh.aufs", b"data")
        .file(".wh..wh.plnk/1.2", b"data")
        .device(b'3', "gone", 0, 0)
        .file("a", b"");
    assert_eq!(image(&[tar]).names(), ["/a"]);
}

#[test]
fn overlayfs_own_whiteout_is_one() {
    let lower = Tar::new().file("a", b"").file("b", b"");
    assert_eq!(image(&[lower, Tar::new().device(b'3', "a", 0, 0)]).names(), ["/b"]);
}

#[test]
fn a_symbolic_link_as_parent_is_followed_inside_the_root() {
    let lower = Tar::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("up", "../../../..")
        .symlink("abs", "/usr/lib")
        .symlink("usr/back", "../lib/deeper")
        .symlink("dangling", "nowhere/yet");
    let upper = Tar::new()
        .file("lib/one", b"")
        .file("up/up/etc/shadow", b"")
        .file("abs/two", b"")
        .file("usr/back/three", b"")
        .file("dangling/four", b"")
        .hard_link("five", "abs/one")
        .file("lib/.wh.gone", b"");
    let image = image(&[lower, upper]);
    for name in
        ["/usr/lib/one", "/etc/shadow", "/usr/lib/two", "/usr/lib/deeper/three", "/nowhere/yet/four", "/five"]
    {
        assert!(image.names().contains(&name.to_owned()), "{name}");
    }
    assert_eq!(image.nodes()["/lib"].mode >> 12, 0o12, "the link is still one");
}

#[test]
fn links_that_lead_in_circles_end() {
    assert_eq!(flaw(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"")), Flaw::Loop);
    assert_eq!(flaw(Tar::new().symlink("a", "a/a").file("a/x", b"")), Flaw::Loop);
    let long = (0..30).fold(Tar::new(), |tar, n| {
        tar.pax(&[("linkpath", format!("{}l{}", "./d/../".repeat(500), n + 1).as_bytes())])
            .symlink(&format!("l{n}"), "x")
    });
    assert_eq!(flaw(long.dir("d").file("l0/x", b"")), Flaw::Loop);
}

#[test]
fn detours_over_symbolic_links_come_to_an_end() {
    let file = tempfile::tempfile().unwrap();
    let (mut tree, mut store) = (Tree::new(100), Store::new(&file, &LIMITS).unwrap());
    let mut apply = |number, ways: &mut Ways| {
        let tar = Tar::new().symlink("l", "d/e").file("l/1", b"").file("l/2", b"").end();
        let layer = Layer { name: "x".into(), tar: Box::new(std::io::Cursor::new(tar)) };
        super::apply(layer, number, 1 << 20, ways, &mut tree, &mut store)
    };
    // Four for each layer: they are counted for all layers together.
    let mut ways = Ways { steps: 100, detours: 10 };
    apply(1, &mut ways).unwrap();
    apply(2, &mut ways).unwrap();
    assert!(matches!(apply(3, &mut ways), Err(RootfsError::Entry { flaw: Flaw::Ways, .. })));
    // Three steps to each file but those at the root.
    let mut ways = Ways { steps: 13, detours: 100 };
    apply(4, &mut ways).unwrap();
    apply(5, &mut ways).unwrap();
    assert!(matches!(apply(6, &mut ways), Err(RootfsError::Entry { flaw: Flaw::Ways, .. })));
}

#[test]
fn aufs_files_of_several_names_are_kept_for_their_hard_links() {
    let big = vec![7; 3 << 20];
    let tar = Tar::new()
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", &big)
        .file(".wh..wh.plnk/3.4", &[1; 5000])
        .hard_link("a", ".wh..wh.plnk/1.2")
        .hard_link("d/b", "/./.wh..wh.plnk/1.2")
        // The only name goes, and comes again.
        .hard_link("c", ".wh..wh.plnk/3.4")
        .file("c", b"")
        .hard_link("c", ".wh..wh.plnk/3.4");
    let lower = Tar::new().file("e", &big);
    let image = image(&[lower, tar.clone(), Tar::new().file("a", b"").file("d/b", b"").file("e", b"")]);
    assert_eq!(image.names(), ["/a", "/c", "/d", "/d/b", "/e"]);
    assert!(image.disk() < 1 << 20, "what has no name any more costs no disk");
    let image = super::super::testing::image(&[tar]);
    let nodes = image.nodes();
    assert_eq!((nodes["/a"].size, &nodes["/a"].content), (3 << 20, &nodes["/d/b"].content));
    assert_eq!((nodes["/c"].size, nodes["/a"].links), (5000, 2));
    assert_eq!(flaw(Tar::new().hard_link("a", ".wh..wh.plnk/1.2")), Flaw::NoTarget);
    assert_eq!(
        flaw(Tar::new().file("d/.wh..wh.plnk/1", b"").hard_link("a", "d/.wh..wh.plnk/1")),
        Flaw::NoTarget
    );
    let unused = super::super::testing::image(&[Tar::new().file(".wh..wh.plnk/1.2", &big).file("x", b"")]);
    assert!(unused.names() == ["/x"] && unused.disk() < 1 << 20);
}

#[test]
fn names_are_cleaned_within_the_root() {
    for (name, clean) in [
        ("./../lib/x", "/lib/x"),
        ("../../../x", "/x"),
        ("/../x", "/x"),
        ("a/../x", "/x"),
        ("a/b/../../../x", "/x"),
        ("a/./b/..//x", "/a/x"),
        ("a/..b/x..", "/a/..b/x.."),
        ("...", "/..."),
    ] {
        assert!(image(&[Tar::new().file(name, b"")]).names().contains(&clean.to_owned()), "{name}");
    }
    // Nothing is made of what is cleaned away, and links there lead nowhere.
    let tar = Tar::new()
        .symlink("link", "usr/lib")
        .file("link/../x", b"1")
        .file("none/../y", b"")
        .dir("none/../z/");
    assert_eq!(image(&[tar]).names(), ["/link", "/x", "/y", "/z"]);
    // The root itself.
    for name in ["..", "a/..", "./../"] {
        let mode = |block: &mut [u8]| block[100..108].copy_from_slice(b"0001711\0");
        let tar = Tar::new().header(b'5', name.as_bytes(), 0, mode);
        assert_eq!(image(&[tar]).nodes()[""].mode, 0o041_711, "{name}");
        assert_eq!(flaw(Tar::new().file(name, b"")), Flaw::Root, "{name}");
    }
    // What is too long stays so, however little is left of it.
    let long = format!("{}x", "a/../".repeat(819));
    assert_eq!(flaw(Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"")), Flaw::PathLength);
    assert_eq!(flaw(Tar::new().pax(&[("path", b"a/../../etc\0/x")]).file("x", b"")), Flaw::Nul);
}

#[test]
fn targets_of_hard_links_are_cleaned_like_names() {
    let lower = Tar::new().file("lib/x", b"123").file("y", b"");
    for target in ["a/../lib/x", "../lib/x", "/../../lib/../lib/x", "lib/../../lib/x"] {
        let nodes = image(&[lower.clone(), Tar::new().hard_link("a/../z", target)]).nodes();
        assert_eq!((nodes["/z"].first.as_str(), nodes["/z"].size), ("/lib/x", 3), "{target}");
    }
    assert_eq!(flaw(Tar::new().hard_link("a", "b/..")), Flaw::LinkToDirectory);
    assert_eq!(flaw(Tar::new().hard_link("a", "../../etc/passwd")), Flaw::NoTarget);
}

#[test]
fn whiteouts_are_cleaned_like_names() {
    let lower = || Tar::new().file("d/a", b"").file("e/b", b"").file("f", b"");
    for (whiteout, left) in [
        ("x/../d/.wh.a", &["/d", "/e", "/e/b", "/f"][..]),
        ("../.wh.f", &["/d", "/d/a", "/e", "/e/b"]),
        ("d/../.wh.e", &["/d", "/d/a", "/f"]),
        ("x/../../d/.wh..wh..opq", &["/d", "/e", "/e/b", "/f"]),
        (".wh.d/../.wh.f", &["/d", "/d/a", "/e", "/e/b"]),
    ] {
        assert_eq!(image(&[lower(), Tar::new().file(whiteout, b"")]).names(), left, "{whiteout}");
    }
    // What is cleaned away hides nothing.
    let tar = Tar::new().file(".wh.d/../new", b"").file("f/.wh..wh..opq/../../e/c", b"");
    assert_eq!(image(&[lower(), tar]).names(), ["/d", "/d/a", "/e", "/e/b", "/e/c", "/f", "/new"]);
    assert_eq!(flaw(Tar::new().file("d/.wh...", b"")), Flaw::Whiteout);
    let plinks = Tar::new().file("x/../.wh..wh.plnk/1", b"1").hard_link("a", "y/../.wh..wh.plnk/1");
    assert_eq!(image(&[plinks]).names(), ["/a"]);
}

#[test]
fn hard_links_need_a_file() {
    assert_eq!(flaw(Tar::new().hard_link("a", "missing")), Flaw::NoTarget);
    assert_eq!(flaw(Tar::new().hard_link("a", "a")), Flaw::NoTarget);
    assert_eq!(flaw(Tar::new().hard_link("a", "b").hard_link("b", "a")), Flaw::NoTarget);
    assert_eq!(flaw(Tar::new().hard_link("a", "no/b")), Flaw::NoTarget);
    assert_eq!(flaw(Tar::new().dir("d").hard_link("a", "d")), Flaw::LinkToDirectory);
    assert_eq!(flaw(Tar::new().hard_link("a", "/")), Flaw::LinkToDirectory);
}

#[test]
fn names_that_linux_could_not_have_are_refused() {
    let long = |len: usize| "n".repeat(len);
    let path = |len: usize| "p/".repeat(len / 2);
    let file = |name: &str| flaw(Tar::new().pax(&[("path", name.as_bytes())]).file("x", b""));
    assert_eq!(file(&long(256)), Flaw::NameLength);
    assert_eq!(file(&format!("{}/x", long(256))), Flaw::NameLength);
    assert_eq!(file(&format!("{}ab", path(4094))), Flaw::PathLength);
    assert_eq!(file("nul\0"), Flaw::Nul);
    assert_eq!(flaw(Tar::new().file("", b"")), Flaw::NoName);
    assert_eq!(flaw(Tar::new().file("./", b"")), Flaw::Root);
    assert_eq!(flaw(Tar::new().symlink("/", "x")), Flaw::Root);
    assert_eq!(flaw(Tar::new().file("f", b"").file("f/x", b"")), Flaw::NotADirectory);
    for name in [".wh.", ".wh..", ".wh...", ".wh.dir/x"] {
        assert_eq!(flaw(Tar::new().file(name, b"")), Flaw::Whiteout, "{name}");
    }
    let longest = format!("{}/{}z", long(255), path(4095 - 256));
    let image = image(&[Tar::new().pax(&[("path", longest.as_bytes())]).file("x", b"")]);
    assert!(image.names().contains(&format!("/{longest}")));
}

#[test]
fn symbolic_links_have_targets_that_linux_could_have() {
    let link = |target: &[u8]| Tar::new().pax(&[("linkpath", target)]).symlink("l", "");
    assert_eq!(flaw(link(b"")), Flaw::Target);
    assert_eq!(flaw(link(&[b't'; 4096])), Flaw::Target);
    assert_eq!(flaw(link(b"a\0b")), Flaw::Nul);
    for len in [1, 4031, 4032, 4033, 4095] {
        let target = "t".repeat(len);
        let nodes = image(&[link(target.as_bytes())]).nodes();
        assert_eq!((nodes["/l"].content.as_str(), nodes["/l"].mode), (target.as_str(), 0o120_777));
    }
}

#[test]
fn nothing_becomes_deeper_than_a_path_is_long() {
    let step = |number: usize| {
        let name = format!("{}l", "d/".repeat(1900));
        let link = Tar::new().pax(&[("path", name.as_bytes())]).symlink("x", "here").0;
        let target = "d/".repeat(1900);
        let jump = Tar::new().pax(&[("linkpath", target.as_bytes())]).symlink(&format!("j{number}"), "x").0;
        [link, jump].concat()
    };
    let name = format!("j0/{}x", "e/".repeat(1900));
    let tar = Tar([step(0), Tar::new().pax(&[("path", name.as_bytes())]).file("x", b"").0].concat());
    assert_eq!(flaw(tar), Flaw::Depth);
}

#[test]
fn devices_and_pipes_are_kept() {
    let tar = Tar::new()
        .device(b'3', "null", 1, 3)
        .device(b'4', "sda", 8, 0)
        .device(b'4', "zero", 0, 0)
        .pax(&[("SCHILY.devmajor", b"4095"), ("SCHILY.devminor", b"1048575")])
        .device(b'3', "big", 0, 0)
        .header(b'6', b"pipe", 0, |_| {});
    let nodes = image(&[tar]).nodes();
    let modes: Vec<_> =
        nodes.iter().map(|(name, node)| (name.as_str(), node.mode >> 12, node.rdev)).collect();
    let dev = rustix::fs::makedev;
    assert_eq!(
        modes[1..],
        [
            ("/big", 2, dev(4095, 0xf_ffff)),
            ("/null", 2, dev(1, 3)),
            ("/pipe", 1, 0),
            ("/sda", 6, dev(8, 0)),
            ("/zero", 6, 0)
        ]
    );
    assert_eq!(flaw(Tar::new().device(b'3', "x", 4096, 0)), Flaw::Device);
    assert_eq!(flaw(Tar::new().device(b'3', "x", 1, 0x10_0000)), Flaw::Device);
}

#[test]
fn ends_of_files_of_every_length_are_kept() {
    let lens =
        [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8191, 8192, 1 << 20, (1 << 20) + 1, 5_000_000];
    let data = |len: usize| (0..len).map(|n| (n % 253).to_le_bytes()[0]).collect::<Vec<u8>>();
    let xattr = vec![b'x'; 3000];
    let tar = lens.iter().fold(Tar::new(), |tar, len| {
        tar.file(&format!("{len}"), &data(*len))
            .pax(&[("SCHILY.xattr.user.x", &xattr)])
            .file(&format!("{len}x"), &data(*len))
    });
    let nodes = image(&[tar]).nodes();
    let dir = tempfile::tempdir().unwrap();
    for len in lens {
        std::fs::write(dir.path().join(format!("{len}")), data(len)).unwrap();
        std::fs::write(dir.path().join(format!("{len}x")), data(len)).unwrap();
    }
    for (name, node) in host_nodes(dir.path()).into_iter().skip(1) {
        assert_eq!((nodes[&name].size, &nodes[&name].content), (node.size, &node.content), "{name}");
    }
}

#[test]
fn large_xattrs_and_many_of_them_are_kept() {
    let value = vec![0xa5; 65_535];
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.a", &value),
            ("SCHILY.xattr.user.b", &value),
            ("SCHILY.xattr.security.capability", b"\x01\0"),
        ])
        .file("a", &[1; 5000])
        .pax(&[("SCHILY.xattr.user.a", &value)])
        .symlink("l", "target")
        .pax(&[("SCHILY.xattr.user.a", &value)])
        .dir("d");
    let nodes = image(&[tar]).nodes();
    assert_eq!(nodes["/a"].xattrs["user.b"], value);
    assert_eq!(nodes["/a"].xattrs.len(), 3);
    assert_eq!((nodes["/l"].xattrs.len(), nodes["/l"].content.as_str()), (1, "target"));
    assert_eq!(nodes["/d"].xattrs["user.a"], value);
    let too_many: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| format!("SCHILY.xattr.user.{name}")).to_vec();
    let too_many: Vec<_> = too_many.iter().map(|key| (key.as_str(), value.as_slice())).collect();
    assert_eq!(flaw(Tar::new().pax(&too_many).file("x", b"")), Flaw::Xattrs);
}

#[test]
fn what_higher_layers_replace_costs_no_disk() {
    let big = vec![1; 8 << 20];
    let lower = Tar::new().file("a", &big).file("d/b", &big).file("c", &big);
    let upper = Tar::new().file("a", b"").file(".wh.d", b"").hard_link("e", "c");
    let third = Tar::new().file(".wh.c", b"");
    let image = image(&[lower, upper, third]);
    assert_eq!(image.nodes()["/e"].size, 8 << 20);
    assert!(image.disk() < 9 << 20, "{} bytes on disk", image.disk());
}

#[test]
fn zeros_cost_no_disk() {
    let tar = Tar::new().file("zeros", &vec![0; 8 << 20]).file("z", &[&[1; 4096][..], &[0; 70_000]].concat());
    // Short ends of files stand beside the inodes, which aren't zeros.
    let tar = (0..200).fold(tar, |tar, n| tar.file(&format!("{n}"), &[0; 2000]));
    let image = image(&[tar]);
    assert_eq!(image.nodes()["/zeros"].size, 8 << 20);
    assert!(image.nodes()["/zeros"].content.starts_with("e3b0c442"), "nothing but zeros");
    assert!(image.disk() < 1 << 20, "{} bytes on disk", image.disk());
}

#[test]
fn limits_hold() {
    let limited = |tar: Tar, max_entries, max_bytes| match build_with(
        &[tar.end()],
        &Limits { max_entries, max_bytes, ..LIMITS },
    ) {
        Err(RootfsError::Entry { flaw, .. }) => Some(flaw),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    assert_eq!(limited(Tar::new().file("a", b"").file("b", b""), 2, 1 << 20), None);
    assert_eq!(limited(Tar::new().file("a", b"").file("b", b""), 1, 1 << 20), Some(Flaw::TooManyEntries));
    assert_eq!(limited(Tar::new().file("a/b", b""), 1, 1 << 20), Some(Flaw::TooManyEntries), "parents count");
    assert_eq!(
        limited(Tar::new().file(".wh.a", b"").file(".wh.a", b""), 1, 1 << 20),
        Some(Flaw::TooManyEntries)
    );
    assert_eq!(
        limited(Tar::new().file("a", &[0; 70_000]), 9, 70_000),
        Some(Flaw::TooManyBytes),
        "headers count"
    );
    assert_eq!(limited(Tar::new().header(b'0', b"a", 1 << 30, |_| {}), 9, 1 << 20), Some(Flaw::Size));
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"0,0")];
    assert_eq!(limited(Tar::new().pax(sparse).file("a", b""), 9, 1 << 20), Some(Flaw::Size));
}

#[test]
fn an_image_is_no_larger_than_it_may_be() {
    // Each of these files has one byte, but takes 64 KiB of the image's length.
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.size", b"4194304"), ("GNU.sparse.map", b"0,1")];
    let file = |tar: Tar, n| tar.pax(sparse).file(&format!("{n}"), b"1");
    let tar = |count| (0..count).fold(Tar::new(), file).end();
    let limits = Limits { max_bytes: 5 << 20, ..LIMITS };
    assert!(build_with(&[tar(70)], &limits).unwrap().built.bytes <= 5 << 20);
    let error = build_with(&[tar(80)], &limits).err().unwrap();
    assert_eq!(error.to_string(), "the file system image would be larger than 5242880 bytes");
}

#[test]
fn an_error_names_layer_and_entry() {
    let good = Tar::new().file("a", b"").end();
    let bad = Tar::new().file("ok", b"").pax(&[("path", b"e\xffvil\n/../x")]).hard_link("x", "y").end();
    let error = build_with(&[good, bad], &LIMITS).err().unwrap().to_string();
    assert_eq!(
        error,
        "layer sha256:1, entry number 2, \"e\\xffvil\\n/../x\": it is a hard link to something that is not there"
    );
}
