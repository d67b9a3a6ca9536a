//! One file with the guest inside.

use std::fs;
use std::time::Duration;

use crate::guest::{Console, GUEST_DIR_VARIABLE, guest_dir, needs_linux};
use crate::support::{self, Bothy};

#[test]
fn a_packed_binary_boots_its_own_guest_anywhere_and_names_its_licences() {
    needs_linux!();
    let dir = support::scratch();
    let packed = dir.path().join("bothy-alone");
    let path = packed.to_str().unwrap();
    Bothy::new(["pack", path])
        .env(GUEST_DIR_VARIABLE, guest_dir())
        .limit(Duration::from_secs(60))
        .run()
        .output();
    let parts: u64 = ["vmlinux", "initramfs.cpio"]
        .map(|name| fs::metadata(guest_dir().join(name)).unwrap().len())
        .iter()
        .sum();
    assert!(fs::metadata(&packed).unwrap().len() > parts, "the guest is not in it");
    let alone = |words: &[&str]| {
        let bothy = Bothy::program(&packed, words).current_dir(std::path::Path::new("/"));
        // Nor may another guest than its own be found by accident.
        bothy
            .in_shell(&format!("unset {GUEST_DIR_VARIABLE}; exec \"$@\""))
            .limit(Duration::from_secs(120))
            .run()
    };
    let console = Console::of(alone(&["boot", "--append", "bothy.exec=\"echo release=$(uname -r)\""]));
    console.insist(console.finished.code == 0, &format!("exit code {}", console.finished.code));
    console.says("release", fs::read_to_string(guest_dir().join("kernel.release")).unwrap().trim());

    let licences = String::from_utf8(alone(&["licenses"]).output()).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(guest_dir().join("manifest.json")).unwrap()).unwrap();
    for (name, part) in [("Linux", &manifest["kernel"]), ("busybox", &manifest["initramfs"]["busybox"])] {
        let line = licences
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("no {name}: {licences}"));
        for key in ["licence", "source_package", "source_version"] {
            let value = part[key].as_str().unwrap();
            assert!(line.contains(value), "no {key} {value}: {licences}");
        }
    }
    for part in ["zstd: BSD-3-Clause", "Meta Platforms", "zlib-rs: Zlib", "Trifecta"] {
        assert!(licences.contains(part), "no {part}: {licences}");
    }
}
