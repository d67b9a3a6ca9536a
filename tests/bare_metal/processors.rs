//! Further processors, started by INIT and SIPI, and what CPUID tells each of them.

use super::asm::{TRAMPOLINE_DATA_GPA, TRAMPOLINE_GPA, trampoline};
use super::guest::{Guest, u32_at, words};
use super::script::{LAPIC, RESULTS, Script};

/// Copies the trampoline to where SIPI vector 0x10 starts, and clears what it counts in.
fn prepare() -> Script {
    let (from, len) = trampoline();
    Script::new().enable_lapic().copy(TRAMPOLINE_GPA, from, len).fill(TRAMPOLINE_DATA_GPA, 0, 0x500)
}

fn wait_for_count(script: Script, count: u32) -> Script {
    script.wait(TRAMPOLINE_DATA_GPA + 0x400, u32::MAX, count).put(TRAMPOLINE_DATA_GPA, 0x404)
}

/// INIT and SIPI for everybody else.
fn wake_all(script: Script) -> Script {
    script.write32(LAPIC + 0x300, 0xc_4500).write32(LAPIC + 0x300, 0xc_4610)
}

fn all_start(cpus: u8) {
    let others = u32::from(cpus) - 1;
    // Longer than a second SIPI takes, if it should wrongly count twice.
    let script = wait_for_count(wake_all(prepare()), others).sleep(10).put(TRAMPOLINE_DATA_GPA + 0x400, 4);
    let output = Guest::new(&script).run(&["--cpus", &cpus.to_string()]);
    for id in 0..64usize {
        let runs = id > 0 && id < usize::from(cpus);
        assert_eq!(output[id], u8::from(runs), "APIC id {id} of {cpus}");
        let x2apic = u32_at(&output, 0x100 + 4 * id);
        assert_eq!(x2apic as usize, if runs { id } else { 0 }, "x2APIC id");
    }
    assert_eq!(u32_at(&output, 0x400), others);
    assert_eq!(u32_at(&output, 0x404), others, "and nobody started twice");
}

#[test]
fn two_processors_start() {
    all_start(2);
}

#[test]
fn three_processors_start() {
    all_start(3);
}

#[test]
fn sixty_four_processors_start_each_with_an_apic_id_of_its_own() {
    all_start(64);
}

#[test]
fn one_processor_of_many_is_started_by_its_own_apic_id() {
    let wake = prepare()
        .write32(LAPIC + 0x310, 2 << 24)
        .write32(LAPIC + 0x300, 0x4500)
        .write32(LAPIC + 0x310, 2 << 24)
        .write32(LAPIC + 0x300, 0x4610);
    let output = Guest::new(&wait_for_count(wake, 1)).run(&["--cpus", "4"]);
    assert_eq!(output[..4], [0, 0, 1, 0]);
}

#[test]
fn a_single_processor_has_nobody_to_start() {
    let script = wake_all(prepare()).sleep(10).put(TRAMPOLINE_DATA_GPA + 0x400, 4);
    assert_eq!(Guest::new(&script).run(&[]), [0; 4]);
}

#[test]
fn processors_that_were_never_started_do_not_hold_up_the_end() {
    let output = Guest::new(&Script::new().say(b'e')).run(&["--cpus", "64"]);
    assert_eq!(output, b"e");
}

/// CPUID leaves of the boot processor, by (leaf, subleaf), each as EAX, EBX, ECX, EDX.
fn cpuid<const N: usize>(cpus: u8, leaves: [(u32, u32); N]) -> [[u32; 4]; N] {
    let len = u32::try_from(N).unwrap() * 16;
    let script = Script::new().each((0..).zip(leaves), |script, (n, (leaf, subleaf))| {
        script.cpuid(leaf, subleaf, RESULTS + 16 * n)
    });
    let output = words(&Guest::new(&script.put(RESULTS, len)).run(&["--cpus", &cpus.to_string()]));
    std::array::from_fn(|n| output[4 * n..4 * n + 4].try_into().unwrap())
}

#[test]
fn cpuid_tells_of_a_hypervisor_that_is_kvm_with_its_clock() {
    let [features, base, kvm] = cpuid(1, [(1, 0), (0x4000_0000, 0), (0x4000_0001, 0)]);
    assert_eq!(features[2] >> 31, 1, "hypervisor");
    assert_eq!(features[2] >> 21 & 1, 1, "x2APIC");
    assert_eq!(features[2] >> 24 & 1, 1, "TSC deadline timer");
    let signature: Vec<u8> = base[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(signature, b"KVMKVMKVM\0\0\0");
    assert_eq!(kvm[0] >> 3 & 1, 1, "kvmclock");
}

#[test]
fn cpuid_tells_of_one_socket_with_a_core_per_vcpu() {
    let [features, threads, cores] = cpuid(6, [(1, 0), (0xb, 0), (0xb, 1)]);
    assert_eq!(features[1] >> 24, 0, "APIC id");
    assert_eq!(features[1] >> 16 & 0xff, 6, "logical processors");
    assert_eq!(features[3] >> 28 & 1, 1, "HTT");
    assert_eq!((threads[0] & 0x1f, threads[1] & 0xffff, threads[2] >> 8 & 0xff), (0, 1, 1), "{threads:x?}");
    assert_eq!((cores[0] & 0x1f, cores[1] & 0xffff, cores[2] >> 8 & 0xff), (3, 6, 2), "{cores:x?}");
    let [features] = cpuid(1, [(1, 0)]);
    // Not HTT, which software KVM sets whatever it is told.
    assert_eq!(features[1] >> 16 & 0xff, 1, "logical processors");
}
