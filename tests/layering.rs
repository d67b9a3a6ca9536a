//! Holds the direction of the arrows in `src/lib.rs`: which module may name which.

use std::fs;
use std::path::{Path, PathBuf};

/// Used by all.
const EVERYWHERE: &[&str] =
    &["bounded_log", "outcome", "poll", "random", "sink", "size", "thread", "timeline"];

/// A module, or a part of one, and the modules that it may name. The first line that fits a file counts.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli", "commands"]),
    ("cli", &["bench", "config", "image", "spec", "virtio::blk", "virtio::net", "virtio::vsock"]),
    // `bothy doctor` asks KVM, and `bothy boot` opens what the VM will use.
    (
        "commands",
        &[
            "agent",
            "bench",
            "cli",
            "config",
            "vmm",
            "guest_files",
            "image",
            "report",
            "boot",
            "kvm",
            "spec",
            "virtio::blk",
            "virtio::net",
            "virtio::vsock",
        ],
    ),
    ("agent", &["unix_socket"]),
    ("bench", &["spec"]),
    ("snapshot", &[]),
    ("spec", &[]),
    ("image", &[]),
    ("guest_files", &["boot::image", "memory"]),
    ("report", &["vmm::control"]),
    ("vmm", &["config", "vcpu", "boot", "snapshot", "virtio", "devices", "bus", "kvm", "memory"]),
    ("config", &["virtio::blk", "virtio::net", "virtio::vsock", "vcpu", "memory"]),
    ("vcpu", &["kvm", "bus", "memory"]),
    // The tables name the registers' numbers.
    ("boot", &["devices::acpi", "memory"]),
    ("kvm", &["bus", "memory"]),
    ("devices", &["bus", "memory"]),
    ("virtio/core", &["virtio::core", "bus", "memory"]),
    ("virtio/blk", &["virtio::core", "virtio::blk", "bus", "memory"]),
    ("virtio/net", &["virtio::core", "virtio::net", "bus", "memory"]),
    ("virtio/vsock", &["virtio::core", "virtio::vsock", "bus", "memory", "unix_socket"]),
    ("virtio", &["virtio::core", "bus", "memory"]),
    ("bus", &["memory"]),
    ("memory", &[]),
    ("bounded_log", &[]),
    ("outcome", &[]),
    ("poll", &[]),
    ("random", &[]),
    ("sink", &[]),
    ("size", &[]),
    ("thread", &[]),
    ("timeline", &[]),
    ("unix_socket", &[]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The paths behind `crate::` (or `bothy::`, in main.rs) outside of tests, like `virtio::core::queue`.
fn named(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut names = Vec::new();
    for line in lines {
        for prefix in ["crate::", "use bothy::"] {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let path: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
                match rest[path.len()..].strip_prefix('{') {
                    Some(group) => {
                        let group = group.split('}').next().unwrap_or_default();
                        names.extend(group.split(',').map(|name| format!("{path}{}", name.trim())));
                    }
                    None => names.push(path),
                }
            }
        }
    }
    names
}

fn covers(allowed: &str, name: &str) -> bool {
    name == allowed || name.starts_with(&format!("{allowed}::"))
}

#[test]
fn no_module_names_one_that_it_must_not_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources are found");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("inside").with_extension("");
        let relative = relative.to_str().expect("UTF-8");
        let is_test = relative.ends_with("_tests") || relative.ends_with("testing");
        if relative == "lib" || is_test {
            continue;
        }
        let fits = |module: &str| relative == module || relative.starts_with(&format!("{module}/"));
        let (module, allowed) = ALLOWED
            .iter()
            .find(|(module, _)| fits(module))
            .unwrap_or_else(|| panic!("{relative} has no line in ALLOWED"));
        let own = module.replace('/', "::");
        for name in named(&fs::read_to_string(&file).expect("readable")) {
            let known =
                allowed.iter().chain(EVERYWHERE).any(|allowed| covers(allowed, &name)) || covers(&own, &name);
            if !known {
                wrong.push(format!("{relative} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_group_of_names_is_taken_apart() {
    assert_eq!(named("use crate::virtio::{blk, net};"), ["virtio::blk", "virtio::net"]);
    assert_eq!(named("use crate::kvm::{self, KvmError};"), ["kvm::self", "kvm::KvmError"]);
    assert_eq!(named("// crate::kvm\n#[cfg(test)]\nuse crate::vmm;"), [""; 0]);
}

/// Where guests, images and registries can cause what is logged: all of it goes through a `BoundedLog`.
const BOUNDED: &[&str] = &["agent", "devices", "image", "vcpu", "virtio"];

#[test]
fn what_strangers_can_cause_to_be_logged_is_bounded() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for room in BOUNDED {
        let mut files = Vec::new();
        sources(&src.join(room), &mut files);
        assert!(!files.is_empty(), "{room} is found");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            for (number, line) in (1..).zip(text.lines()) {
                if ["log::error!", "log::warn!", "log::info!"].iter().any(|call| line.contains(call)) {
                    found.push(format!("{}, line {number}: {}", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "by BoundedLog instead:\n{}", found.join("\n"));
}
