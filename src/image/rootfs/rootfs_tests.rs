use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::testing::*;
use super::*;

/// Runs a program that has to succeed.
fn run(program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tree with one of everything. As root; nobody else can make devices or give files away.
fn make_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, data: &[u8]| std::fs::write(at(name), data).unwrap();
    for dir in ["bin", "tmp", "deep/er/still", "many", "sp ace", "empty"] {
        std::fs::create_dir_all(at(dir)).unwrap();
    }
    for (name, len) in
        [("one", 1), ("small", 100), ("tail", 6000), ("long-tail", 4095), ("block", 4096), ("none", 0)]
    {
        let data: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        write(name, &data);
    }
    write("large", &(0..700_001_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    for n in 0..600 {
        write(&format!("many/{n:0200}"), format!("{n}").as_bytes());
    }
    // Directories of 4032, 4033 and 4096 bytes, and of two blocks: the last that fits beside its
    // inode, and the last of one block.
    for len in [143, 144, 207, 208] {
        let dir = at(&format!("dir{len}"));
        std::fs::create_dir(&dir).unwrap();
        let long = (10..24).map(|n| format!("{n:0255}"));
        for name in long.chain([format!("{:0100}", 1), format!("{:0len$}", 2)]) {
            std::fs::write(dir.join(name), b"").unwrap();
        }
    }
    write("bin/su", b"#!");
    std::fs::set_permissions(at("bin/su"), PermissionsExt::from_mode(0o6755)).unwrap();
    std::fs::set_permissions(at("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(at("none"), PermissionsExt::from_mode(0o0)).unwrap();
    std::os::unix::fs::chown(at("small"), Some(3_000_000_000), Some(70_000)).unwrap();
    std::os::unix::fs::chown(at("empty"), Some(1000), Some(1000)).unwrap();
    let odd = [&b"not \xff\xfe utf-8\n"[..], b"!before-dot", b"-", b"~", &[b'n'; 255]];
    for name in odd {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name);
        std::fs::write(root.join(name), b"odd").unwrap();
    }
    symlink("../../one", at("deep/er/up")).unwrap();
    symlink("/nowhere", at("deep/broken")).unwrap();
    symlink("x".repeat(150), at("longish")).unwrap();
    symlink("x/".repeat(2040), at("longest")).unwrap();
    std::fs::hard_link(at("tail"), at("deep/er/tail-too")).unwrap();
    std::fs::hard_link(at("tail"), at("a-tail")).unwrap();
    std::fs::hard_link(at("longish"), at("deep/longish")).unwrap();
    for (kind, name, numbers) in [
        ("c", "null", &["1", "3"][..]),
        ("b", "disk", &["259", "1048575"]),
        ("p", "pipe", &[]),
        ("c", "big", &["4095", "300"]),
    ] {
        run("mknod", &[&[utf8(&at(name)), kind], numbers].concat());
    }
    for (name, attribute, value) in [
        ("one", "user.text", "0x68690a00ff"),
        ("one", "user.empty", "0x"),
        ("bin/su", "security.capability", "0x0100000200200000000000000000000000000000"),
        ("null", "trusted.dev", "0x01"),
        ("longish", "trusted.link", "0x02"),
        (
            "small",
            "system.posix_acl_access",
            "0x0200000001000600ffffffff04000400ffffffff10000600ffffffff20000400ffffffff02000600e8030000",
        ),
        ("empty", "user.dir", "0x03"),
        ("large", "user.big", &format!("0x{}", "5a".repeat(3000))),
    ] {
        // The order of an ACL's entries matters; the kernel sorts out those that are wrong.
        let value = if attribute.ends_with("acl_access") {
            "0x0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff"
        } else {
            value
        };
        run("setfattr", &["-h", "-n", attribute, "-v", value, utf8(&at(name))]);
    }
    for (name, size, parts) in [
        ("sparse", 10_000_000, &[(0, 5), (1_000_000, 70_000), (9_999_999, 1)][..]),
        ("all-hole", 1 << 24, &[]),
        ("begins-with-hole", 40 << 20, &[((40 << 20) - 4097, 4000), (4096 * 77, 3)]),
    ] {
        let file = File::create(at(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, len) in parts {
            file.write_all_at(&vec![7; *len], *offset).unwrap();
        }
    }
    let many = File::create(at("sparse-many")).unwrap();
    for n in 0..60 {
        many.write_all_at(&[8; 5000], n * 40_000 + 4096).unwrap();
    }
    run("touch", &["-h", "-d", "@1700000000.123456789", utf8(&at("one")), utf8(&at("deep/broken"))]);
    run("touch", &["-d", "@-5.25", utf8(&at("block"))]);
    run("touch", &["-d", "@5000000000.000000001", utf8(&at("deep/er"))]);
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        could_not_run(test, "only root can make and extract a tree with devices and owners");
    }
    root
}

/// GNU tar's archive of a tree.
fn archive(root: &Path, file: &Path, options: &[&str]) {
    let all = ["--sort=name", "-C", utf8(root), "-cf", utf8(file), "."];
    run("tar", &[options, &all].concat());
}

fn build_file(tar: &Path) -> Image {
    let image = build_with(&[std::fs::read(tar).unwrap()], &LIMITS).unwrap();
    image.fsck();
    image
}

/// What an archive can't say: formats other than PAX have whole seconds only and no xattrs.
fn without(nodes: &Nodes, nanoseconds: bool, xattrs: bool) -> Nodes {
    let mut nodes = nodes.clone();
    for node in nodes.values_mut() {
        if nanoseconds {
            node.mtime.1 = 0;
        }
        if xattrs {
            node.xattrs.clear();
        }
    }
    nodes
}

#[test]
fn an_image_is_what_gnu_tar_extracts() {
    if !is_root("an_image_is_what_gnu_tar_extracts") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, tar) = (dir.path().join("tree"), dir.path().join("tar"));
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let original = host_nodes(&tree);
    for options in [
        &["--xattrs", "--xattrs-include=*", "--sparse"][..],
        &["--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"],
        &["--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"],
        &["--format=gnu", "--sparse"],
    ] {
        archive(&tree, &tar, options);
        let extracted = dir.path().join("extracted");
        std::fs::create_dir(&extracted).unwrap();
        run(
            "tar",
            &[
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "-p",
                "-C",
                utf8(&extracted),
                "-xf",
                utf8(&tar),
            ],
        );
        let image = build_file(&tar);
        assert_same(&image.nodes(), &host_nodes(&extracted));
        let gnu = options[0].ends_with("gnu");
        assert_same(&image.nodes(), &without(&original, gnu, gnu));
        assert!(image.built.bytes < 20 << 20, "holes are holes: {}", image.built.bytes);
        std::fs::remove_dir_all(&extracted).unwrap();
    }
}

#[test]
fn fsck_extracts_what_was_archived_and_linux_mounts_it() {
    if !is_root("fsck_extracts_what_was_archived_and_linux_mounts_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, tar) = (dir.path().join("tree"), dir.path().join("tar"));
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    archive(&tree, &tar, &["--xattrs", "--xattrs-include=*", "--sparse"]);
    let image = build_file(&tar);
    let expected = host_nodes(&tree);

    let extracted = dir.path().join("extracted");
    run("fsck.erofs", &[&format!("--extract={}", utf8(&extracted)), "--preserve", utf8(image.file.path())]);
    let mut found = without(&host_nodes(&extracted), false, true);
    let mut wanted = without(&expected, false, true);
    for (name, node) in &mut found {
        let wanted = wanted.get_mut(name).unwrap();
        // This checker makes hard links files of their own, knows neither xattrs nor a directory's
        // time once it has filled it, and gives a file away after it has set its mode.
        (node.mode, wanted.mode) = (node.mode & !0o6000, wanted.mode & !0o6000);
        (node.links, wanted.links) = (0, 0);
        (node.first, wanted.first) = (String::new(), String::new());
        // Debian 12's leaves holes out, and with them moves what is behind them.
        if ["/sparse", "/sparse-many", "/all-hole", "/begins-with-hole"].contains(&name.as_str()) {
            (node.size, node.content) = (wanted.size, wanted.content.clone());
        }
        if node.mode >> 12 == 0o04 {
            node.mtime = wanted.mtime;
        }
    }
    assert_same(&found, &wanted);

    let mounted = dir.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    let mount = ["-t", "erofs", "-o", "loop,ro", utf8(image.file.path()), utf8(&mounted)];
    let output = Command::new("mount").args(mount).output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        could_not_run(
            "fsck_extracts_what_was_archived_and_linux_mounts_it",
            &format!("(its second half) no EROFS: {why}"),
        );
        return;
    }
    let found = std::panic::catch_unwind(|| host_nodes(&mounted));
    run("umount", &[utf8(&mounted)]);
    assert_same(&found.unwrap(), &expected);
}

#[test]
fn a_directory_becomes_the_image_that_its_archive_does() {
    if !is_root("a_directory_becomes_the_image_that_its_archive_does") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let file = tempfile::NamedTempFile::new().unwrap();
    let built = build_from_dir(&tree, file.as_file(), &LIMITS).unwrap();
    let image = Image { file, built };
    image.fsck();
    assert_same(&image.nodes(), &host_nodes(&tree));
    assert!(image.built.bytes < 20 << 20, "holes are holes: {}", image.built.bytes);
    assert_eq!(image.built.entries, image.names().len() as u64);

    let again = tempfile::NamedTempFile::new().unwrap();
    build_from_dir(&tree, again.as_file(), &LIMITS).unwrap();
    assert!(std::fs::read(again.path()).unwrap() == image.bytes(), "the same bytes");
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let files =
        |tar: Tar| (0..300).fold(tar, |tar, n| tar.file(&format!("d{}/f{n}", n % 7), &vec![3; n * 97]));
    let layers = || {
        [
            files(Tar::new())
                .pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"2")])
                .file("x", b"y")
                .end(),
            Tar::new().file("d1/f1", b"new").file("d2/.wh..wh..opq", b"").end(),
        ]
    };
    let one = build_with(&layers(), &LIMITS).unwrap();
    let two = build_with(&layers(), &LIMITS).unwrap();
    assert!(one.bytes() == two.bytes());
    // However the stream is cut into reads, and whatever the limit.
    let file = tempfile::NamedTempFile::new().unwrap();
    let layers = layers();
    let dribble = layers.iter().map(|tar| Ok(Layer { name: "x".into(), tar: Box::new(Dribble(tar, 0)) }));
    build(dribble, file.as_file(), &Limits { max_bytes: 1 << 30, ..LIMITS }).unwrap();
    assert!(one.bytes() == std::fs::read(file.path()).unwrap());
}

/// Gives what it has in pieces of odd lengths.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1 = (self.1 * 31 + 7) % 1009;
        let len = (self.1 + 1).min(out.len()).min(self.0.len());
        if self.1.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (now, later) = self.0.split_at(len);
        out[..len].copy_from_slice(now);
        self.0 = later;
        Ok(len)
    }
}

#[test]
fn each_layer_is_opened_when_the_one_before_has_been_read_to_its_end() {
    let tar = Tar::new().file("a", b"1").end();
    let tar = [&tar[..], &[9; 100_000]].concat();
    let at_end = std::cell::Cell::new(true);
    struct Watched<'a>(&'a [u8], &'a std::cell::Cell<bool>);
    impl Read for Watched<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(out)?;
            self.1.set(n == 0);
            Ok(n)
        }
    }
    let layers = (0..3).map(|number: u32| {
        assert!(at_end.replace(false));
        let tar: Box<dyn Read> = Box::new(Watched(&tar, &at_end));
        Ok(Layer { name: number.to_string(), tar })
    });
    build(layers, &tempfile::tempfile().unwrap(), &LIMITS).unwrap();
    assert!(at_end.get());
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let image = image(&[Tar::new().dir("d").file("d/f", &[1; 10_000]).symlink("l", "d")]);
    let meta = image.bytes().len() - 4096;
    // The type of an inode, and the order of names in a directory.
    for at in [meta + 64 + 4, meta + 64 + 64 + 8] {
        let broken = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = image.bytes();
        bytes[at] ^= 0xff;
        bytes[at + 1] ^= 0xff;
        std::fs::write(broken.path(), bytes).unwrap();
        let output = Command::new("fsck.erofs").arg(broken.path()).output().unwrap();
        assert!(!output.status.success(), "{at}: it can't say that an image is right");
    }
}

/// An image as umoci makes it: a layer, then a second one with what was removed, replaced and added
/// since. Its own unpacking says what is right.
#[test]
fn layers_become_what_umoci_unpacks() {
    if !is_root("layers_become_what_umoci_unpacks") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, bundle) = (format!("{}:tag", at("oci")), at("bundle"));
    let files = dir.path().join("bundle/rootfs");
    run("umoci", &["init", "--layout", &at("oci")]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["unpack", "--image", &image, &bundle]);
    make_tree(&files);
    run("umoci", &["repack", "--image", &image, &bundle]);
    run("umoci", &["unpack", "--image", &image, &at("second")]);
    let files = dir.path().join("second/rootfs");
    std::fs::remove_dir_all(files.join("many")).unwrap();
    std::fs::remove_dir_all(files.join("deep/er/still")).unwrap();
    std::fs::remove_file(files.join("one")).unwrap();
    std::fs::remove_dir(files.join("empty")).unwrap();
    std::fs::write(files.join("empty"), b"a file now").unwrap();
    std::fs::remove_file(files.join("block")).unwrap();
    std::fs::create_dir_all(files.join("block/of/flats")).unwrap();
    std::fs::write(files.join("deep/er/new"), vec![1; 5000]).unwrap();
    std::fs::hard_link(files.join("tail"), files.join("deep/third-tail")).unwrap();
    std::fs::set_permissions(files.join("bin"), PermissionsExt::from_mode(0o700)).unwrap();
    run("umoci", &["repack", "--image", &image, &at("second")]);
    run("umoci", &["unpack", "--image", &image, &at("last")]);

    let blob = |digest: &serde_json::Value| {
        let digest = digest["digest"].as_str().unwrap().replace(':', "/");
        dir.path().join("oci/blobs").join(digest)
    };
    let json =
        |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
    let manifest = json(&blob(&json(&dir.path().join("oci/index.json"))["manifests"][0]));
    let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| {
        let output =
            Command::new("gzip").arg("-dc").stdin(File::open(blob(layer)).unwrap()).output().unwrap();
        assert!(output.status.success());
        output.stdout
    });
    let layers: Vec<_> = layers.collect();
    assert_eq!(layers.len(), 2);
    let image = build_with(&layers, &LIMITS).unwrap();
    image.fsck();
    assert_same(&image.nodes(), &host_nodes(&dir.path().join("last/rootfs")));
}

/// An archive of so many entries, made as it is read. Nothing of it stays in memory.
struct Entries<F> {
    next: u64,
    count: u64,
    entry: F,
    ready: Vec<u8>,
    at: usize,
}

impl<F: Fn(u64) -> Tar> Read for Entries<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.ready.len() && self.next < self.count {
            self.ready = (self.entry)(self.next).0;
            self.next += 1;
            self.at = 0;
        }
        let n = out.len().min(self.ready.len() - self.at);
        out[..n].copy_from_slice(&self.ready[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

type MakeEntry = fn(u64) -> Tar;

/// Peak of this process' memory in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

const SHAPE: &str = "BOTHY_TEST_SHAPE";

/// Builds an image in a process of its own and says how far its memory grew.
fn grows(shape: &str) -> u64 {
    let name = "image::rootfs::tests::memory_is_at_most_400_bytes_per_entry_and_its_name";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(SHAPE, shape)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line =
        said.lines().find_map(|line| line.split("grew by ").nth(1)).unwrap_or_else(|| panic!("{said}"));
    line.parse().unwrap()
}

#[test]
fn memory_is_at_most_400_bytes_per_entry_and_its_name() {
    // Of 9 bytes at most.
    const NAME: u64 = 9;
    // The number of entries in all, and how many of them one entry of the archive makes.
    let shapes: [(&str, u64, u64, MakeEntry); 5] = [
        ("one directory", 100_000, 1, |n| Tar::new().file(&format!("{n}"), b"content")),
        ("each in a new directory", 60_000, 2, |n| Tar::new().file(&format!("{n}d/f"), b"content")),
        ("long chains", 60_000, 20, |n| Tar::new().dir(&format!("{n}/{}", "d/".repeat(19)))),
        ("long targets", 30_000, 1, |n| {
            Tar::new().pax(&[("linkpath", &[b't'; 4000])]).symlink(&format!("{n}"), "")
        }),
        ("large xattrs", 30_000, 1, |n| {
            Tar::new().pax(&[("SCHILY.xattr.user.x", &[b'x'; 3000])]).dir(&format!("{n}"))
        }),
    ];
    if let Ok(wanted) = std::env::var(SHAPE) {
        let (_, count, makes, entry) = shapes.into_iter().find(|(shape, ..)| *shape == wanted).unwrap();
        let once = |count| {
            let tar = Entries { next: 0, count, entry, ready: Vec::new(), at: 0 };
            let layer = Layer { name: String::new(), tar: Box::new(tar) };
            build([Ok(layer)], &tempfile::tempfile().unwrap(), &Limits { max_entries: 10_000_000, ..LIMITS })
                .unwrap()
        };
        once(10);
        let before = peak();
        assert_eq!(once(count / makes).entries, count);
        println!("grew by {}", peak() - before);
        return;
    }
    for (shape, count, ..) in shapes {
        let bytes = grows(shape) / count;
        println!("{shape}: {bytes} bytes per entry");
        assert!(bytes <= 400 + NAME, "{shape}: {bytes}");
    }
}
