//! The ways to enter a kernel, and the kernels that Debian ships.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::guest::{Console, Guest, blank, guest_dir, long, needs_linux, noise, target};
use crate::support::{self, could_not_run};
use crate::tap::Tap;

/// What Linux notes as its boot loader (`type_of_loader`): of a PVH entry it says so itself, else
/// it's what we wrote.
const BY_PVH: &str = "176";
const BY_BOOT_PARAMETERS: &str = "255";

fn loader_of(kernel: &Path) -> Console {
    let script = "echo loader=$(cat /proc/sys/kernel/bootloader_type); echo release=$(uname -r)";
    Guest::with_kernel(kernel).script(script).run()
}

fn own_release() -> String {
    fs::read_to_string(guest_dir().join("kernel.release")).unwrap().trim().to_owned()
}

#[test]
fn a_bzimage_boots_by_the_64_bit_protocol() {
    needs_linux!();
    let console = loader_of(&guest_dir().join("bzImage"));
    console.says("loader", BY_BOOT_PARAMETERS);
    console.says("release", &own_release());
}

#[test]
fn a_vmlinux_with_the_note_boots_by_pvh() {
    needs_linux!();
    let console = loader_of(&guest_dir().join("vmlinux"));
    console.says("loader", BY_PVH);
    console.says("release", &own_release());
}

#[test]
fn a_vmlinux_without_the_note_boots_by_the_64_bit_protocol() {
    needs_linux!();
    let mut image = fs::read(guest_dir().join("vmlinux")).unwrap();
    // An ELF note: lengths of name and description, type, name. Type 0x12 of owner Xen is
    // XEN_ELFNOTE_PHYS32_ENTRY.
    let is_pvh_note = |note: &[u8]| {
        note[..4] == [4, 0, 0, 0] && note[5..12] == [0, 0, 0, 0x12, 0, 0, 0] && note[12..] == *b"Xen\0"
    };
    let notes: Vec<usize> =
        (0..image.len() - 16).step_by(4).filter(|at| is_pvh_note(&image[*at..*at + 16])).collect();
    assert_eq!(notes.len(), 1, "PVH notes in our kernel: {notes:?}");
    image[notes[0] + 8] = 0x7f;
    let dir = support::scratch();
    let console = loader_of(&support::file(dir.path(), "vmlinux", &image));
    console.says("loader", BY_BOOT_PARAMETERS);
    console.says("release", &own_release());
}

/// Boots one of Debian's kernels with each transport and with one and two vCPUs; in short runs only
/// with `short`.
fn debian_kernel_works(test: &str, name: &str, short: (&str, u8)) {
    let kernel = target().join("debian-kernels").join(name);
    if !kernel.join("modules.cpio").exists() {
        return could_not_run(
            test,
            &format!("no {}: tests/host/debian-kernels fetches what this Debian ships", kernel.display()),
        );
    }
    if !support::is_root() {
        could_not_run(test, "its network device: only root can make a tap");
    }
    let all = [("mmio", 1), ("mmio", 2), ("pci", 1), ("pci", 2)];
    let combinations = if long() { all.to_vec() } else { vec![short] };
    for (transport, cpus) in combinations {
        // For the output of a test that fails.
        println!("{name}, {transport}, {cpus} vCPUs");
        debian_kernel_works_with(&kernel, transport, cpus);
    }
}

/// Boots a kernel with two disks and a network device, lets it work on them, and presses the power
/// button.
fn debian_kernel_works_with(kernel: &Path, transport: &str, cpus: u8) {
    // Each test has a tap and a network of its own.
    static NETWORKS: AtomicU8 = AtomicU8::new(100);
    let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
    let host = Ipv4Addr::new(10, 77, network, 1);
    let tap =
        support::is_root().then(|| Tap::new(&format!("bothydeb{network}"), host).expect("root makes a tap"));
    let dir = support::scratch();
    let content = noise(1 << 20, 7);
    let source = support::file(dir.path(), "source", &content);
    let disk = blank(dir.path(), "disk", 16);
    let ping = if tap.is_some() { format!("ping -c 3 -W 20 {host} >/dev/null") } else { String::new() };
    let script = format!(
        "
        echo release=$(uname -r)
        echo nproc=$(nproc)
        echo clocksource=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
        echo rng=$(cat /sys/class/misc/hw_random/rng_current) $(head -c 512 /dev/hwrng | wc -c)
        echo on_pci=$(for it in /sys/block/vd? /sys/class/net/eth*; do readlink -f $it; done | grep -c /pci0000:00/)
        echo read_only=$(cat /sys/block/vda/ro) $(cat /sys/block/vdb/ro)
        echo serials=$(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)
        mke2fs /dev/vdb >/dev/null 2>&1
        mount -t ext4 /dev/vdb /mnt
        cat /dev/vda >/mnt/file
        cmp /dev/vda /mnt/file
        {ping}
        dmesg | grep -E 'WARNING:|BUG:|Oops|Call Trace|not reserved' | sed 's/^/complaint=/' || true
        echo ready=yes
        sleep 1000"
    );
    let mut guest = Guest::with_kernel(&kernel.join("vmlinuz"))
        .args(["--cpus", &cpus.to_string(), "--transport", transport])
        .disk(&source, ",ro,id=source")
        .disk(&disk, "")
        .modules(kernel.join("modules.cpio"));
    if let Some(tap) = &tap {
        guest = guest.args(["--net", &format!("tap={},ip=10.77.{network}.2/24", tap.name())]);
    }
    let mut vm = guest.script(script).start();
    vm.wait_for("ready=yes");
    vm.running.signal(libc::SIGTERM);
    let console = vm.ends_with(0);
    console.says("release", fs::read_to_string(kernel.join("version")).unwrap().trim());
    console.says("nproc", &cpus.to_string());
    console.says("clocksource", "kvm-clock");
    console.says("rng", "virtio_rng.0 512");
    let devices = if tap.is_some() { "3" } else { "2" };
    console.says("on_pci", if transport == "pci" { devices } else { "0" });
    console.says("read_only", "1 0");
    console.says("serials", "source blk1");
    console.insist(console.values("complaint").is_empty(), "the kernel complains");
    // Nothing in the script made the guest write its cache back: an orderly power-off did.
    let written = fs::read(&disk).unwrap();
    console.insist(support::contains(&written, &content[..4096]), "the file system was not unmounted");
}

macro_rules! debian_kernels {
    ($($name:literal $short:tt $test:ident)*) => {
        $(
            #[test]
            fn $test() {
                needs_linux!();
                debian_kernel_works(stringify!($test), $name, $short);
            }
        )*

        const DEBIAN_KERNELS: &[&str] = &[$($name),*];
    };
}

debian_kernels! {
    "6.1-generic" ("pci", 1) debians_6_1_generic_works_and_obeys_the_power_button
    "6.1-cloud" ("pci", 2) debians_6_1_cloud_works_and_obeys_the_power_button
    "6.1-rt" ("mmio", 2) debians_6_1_rt_works_and_obeys_the_power_button
    "6.12-generic" ("mmio", 2) debians_6_12_generic_works_and_obeys_the_power_button
    "6.12-cloud" ("mmio", 1) debians_6_12_cloud_works_and_obeys_the_power_button
    "6.12-rt" ("pci", 2) debians_6_12_rt_works_and_obeys_the_power_button
}

#[test]
fn debian_kernels_tell_their_panic() {
    needs_linux!();
    let there = |name: &&&str| target().join("debian-kernels").join(name).join("modules.cpio").exists();
    let kernels: Vec<&&str> = DEBIAN_KERNELS.iter().filter(there).collect();
    if kernels.is_empty() {
        return could_not_run(
            "debian_kernels_tell_their_panic",
            "none is there: tests/host/debian-kernels fetches them",
        );
    }
    // One shows that the device works with a module; the others differ in the module only.
    for name in kernels.iter().rev().take(if long() { kernels.len() } else { 1 }) {
        let kernel = target().join("debian-kernels").join(name);
        Guest::with_kernel(&kernel.join("vmlinuz"))
            .modules(kernel.join("modules.cpio"))
            .script("echo c >/proc/sysrq-trigger")
            .ends_with(3);
    }
}
