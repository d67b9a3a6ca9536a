//! What a program in a container finds of the kernel: the options in guest/kernel.config, by their
//! effect.

use std::path::Path;
use std::process::Command;

use super::image::Image;
use super::{needs_image, run, shell};
use crate::guest::needs_linux;
use crate::support::{could_not_run, scratch};
use crate::tools;

/// What docker's filter refuses, though the kernel has it.
const REFUSED: [&str; 4] = ["swapon", "get_mempolicy", "mbind", "userfaultfd"];

/// The lines of `features` by name.
fn features(image: &Image, flags: &[&str], words: &[&str]) -> Vec<(String, String)> {
    let command = ["app", "features"];
    let finished = run(image, flags.iter().chain(&command).chain(words)).run().code(0);
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    let pairs = text.lines().map(|line| line.rsplit_once(' ').unwrap());
    pairs.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
}

#[test]
fn an_unprivileged_container_finds_what_docker_s_finds() {
    needs_linux!();
    let found = features(needs_image!(), &[], &[]);
    assert!(found.len() > 20, "{found:?}");
    for (name, result) in found {
        let expected = if REFUSED.contains(&name.as_str()) { "EPERM" } else { "ok" };
        assert_eq!(result, expected, "{name}");
    }
}

#[test]
fn a_privileged_container_finds_what_docker_refuses_to_others() {
    needs_linux!();
    let found = features(needs_image!(), &["--privileged", "-m256M"], &["all"]);
    assert!(found.len() > 15, "{found:?}");
    for (name, result) in found {
        // The call is there, and looks for the file.
        let expected = if name == "swapon" { "ENOENT" } else { "ok" };
        assert_eq!(result, expected, "{name}");
    }
}

#[test]
fn programs_of_32_bits_run() {
    needs_linux!();
    let finished = run(needs_image!(), ["app", "features32"]).run().code(7);
    assert_eq!(finished.stdout, b"32 bits\n", "{}", finished.stderr);
}

#[test]
fn a_privileged_container_has_all_controllers_and_network_devices() {
    needs_linux!();
    let script = "cat /sys/fs/cgroup/cgroup.controllers
        mkdir /sys/fs/cgroup/below; ls /sys/fs/cgroup/below/cgroup.procs
        for name in one two; do ip link add $name type dummy && ip link set $name up; done
        for kind in macvlan macvtap; do ip link add link one name of-$kind type $kind && echo $kind; done
        ip link add link two name of-ipvlan type ipvlan && echo ipvlan
        for kind in wireguard ifb bridge; do ip link add name a-$kind type $kind && echo $kind; done
        ip link add link one name tagged type vlan id 5 && echo vlan";
    let finished = shell(needs_image!(), &["--privileged"], script).run().code(0);
    let text = String::from_utf8_lossy(&finished.stdout);
    let (controllers, rest) = text.split_once('\n').unwrap();
    let mut controllers: Vec<&str> = controllers.split(' ').collect();
    controllers.sort_unstable();
    let all = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];
    assert_eq!(controllers, all, "{}", finished.stderr);
    let expected =
        "/sys/fs/cgroup/below/cgroup.procs\nmacvlan\nmacvtap\nipvlan\nwireguard\nifb\nbridge\nvlan\n";
    assert_eq!(rest, expected, "{}", finished.stderr);
}

/// Of docker, Kubernetes and `wg-quick`; each by iptables in front of nf_tables, and by the older
/// one.
const RULES: [&str; 10] = [
    "-t nat -N DOCKER",
    "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
    "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-t nat -A DOCKER -m comment --comment web -m statistic --mode random --probability 0.5 -j MARK --or-mark 0x4000",
    "-A INPUT -m recent --name web --rcheck --seconds 10 --reap -j ACCEPT",
    "-A OUTPUT -m hashlimit --hashlimit-upto 5/sec --hashlimit-name web -m owner --uid-owner 0 -j REJECT",
    "-t mangle -A PREROUTING -m physdev --physdev-in veth0 -j CONNMARK --save-mark",
    "-t raw -A PREROUTING -p tcp -m multiport --dports 80,443 -j CT --notrack",
];

#[test]
fn iptables_takes_the_rules_of_container_engines() {
    needs_linux!();
    let image = needs_image!();
    let dir = scratch();
    let Some(root) = root_with_iptables(dir.path(), &image.root) else {
        could_not_run("run::features", "iptables is not installed");
        return;
    };
    let rules = RULES.iter().map(|rule| format!("$iptables {rule} || echo \"$iptables {rule}\"\n"));
    let script = format!(
        "mkdir -p /run; for iptables in 'xtables-nft-multi iptables' 'xtables-legacy-multi iptables'
        do {} $iptables -t nat -S DOCKER | grep -c 172.17.0.2:80; done",
        rules.collect::<String>()
    );
    let source = format!("dir:{}", root.display());
    let finished = run(image, ["--privileged", &source, "sh", "-c", &script]).run().code(0);
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "1\n1\n", "{}", finished.stderr);
}

/// A copy of the image with this machine's iptables, or nothing if it has none that takes all.
fn root_with_iptables(dir: &Path, image: &Path) -> Option<std::path::PathBuf> {
    let root = dir.join("root");
    let copy = "cp -a \"$1\" \"$2\" && cd / || exit 1
        for program in xtables-nft-multi xtables-legacy-multi; do
            path=$(PATH=$PATH:/usr/sbin:/sbin command -v $program) || exit 3
            cp -L $path \"$2/bin/\"
            files=\"$files $(ldd $path | grep -o '/[^ ]*')\"
        done
        files=\"$files $(ldd /usr/lib/*/xtables/libxt_statistic.so | grep -o '/[^ ]*')\"
        for file in $files /usr/lib/*/xtables/lib*.so; do
            mkdir -p \"$2${file%/*}\" && cp -L $file \"$2$file\" || exit 1
        done";
    let status = Command::new("sh").args(["-c", copy, "sh"]).args([image, &root]).status().unwrap();
    match status.code() {
        Some(0) => Some(root),
        Some(3) => None,
        _ => panic!("the root file system could not be copied: {status}"),
    }
}

/// Both programs, for the image.
pub(super) fn compile(directory: &Path) {
    tools::compile("run/features.c", &directory.join("features"));
    tools::compile_for_32_bits("run/features32.c", &directory.join("features32"));
}
