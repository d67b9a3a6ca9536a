//! Processors, clocks and timers as the guest's kernel finds them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::guest::{Console, Guest, long, needs_linux};

/// Errors of the guest's kernel that are no fault of ours.
const KNOWN_ERRORS: [&str; 1] = [
    // Our kernel has PCI for other machines; this one has none.
    "PCI: Fatal: No config space access function found",
];

const SCRIPT: &str = r#"
of_each() { sed -n "s/^$1[[:space:]]*: //p" /proc/cpuinfo | tr '\n' ' '; }
dmesg >/tmp/dmesg
echo nproc=$(nproc)
echo apicids=$(of_each apicid)
echo cores=$(of_each 'core id')
echo packages=$(of_each 'physical id')
echo siblings=$(of_each siblings)
echo ran=$(for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu awk '{ print $39 }' /proc/self/stat; done)
echo clocksource=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo timers=$(cat /sys/devices/system/clockevents/clockevent[0-9]*/current_device | sort -u)
echo deadline=$(grep -c 'TSC deadline timer available' /tmp/dmesg)
echo x2apic=$(grep -cE 'x2apic enabled|x2apic: enabled by BIOS' /tmp/dmesg)
echo hypervisor=$(sed -n 's/.*Hypervisor detected: //p' /tmp/dmesg)
echo acpi=$(ls /sys/firmware/acpi/tables | tr '\n' ' ')
echo acpi_errors=$(grep -cE 'ACPI.*(Error|Warning|BIOS bug|Firmware Bug)' /tmp/dmesg || true)
echo devices=$(ls /sys/bus/acpi/devices | tr '\n' ' ')
dmesg -r | grep -E '^<[0-3]>|WARNING:|BUG:|Oops|Call Trace|rcu.*stall|soft lockup|clocksource.*unstable' | sed 's/^/complaint=/' || true
echo vmgenid=$(cd /sys/bus/platform/drivers/vmgenid && ls -d *:*)
echo epoch=$(date +%s)
"#;

fn numbers(text: &str) -> Vec<usize> {
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn no_complaints(console: &Console) {
    for complaint in console.values("complaint") {
        console.insist(KNOWN_ERRORS.iter().any(|known| complaint.contains(known)), complaint);
    }
}

fn a_guest_with(cpus: usize) {
    let before = now();
    let console = Guest::new().args(["--cpus", &cpus.to_string()]).script(SCRIPT).run();
    let all: Vec<usize> = (0..cpus).collect();
    console.says("nproc", &cpus.to_string());
    for key in ["apicids", "cores", "ran"] {
        console.insist(numbers(console.value(key)) == all, &format!("{key} are not 0 to {}", cpus - 1));
    }
    console.insist(numbers(console.value("packages")) == vec![0; cpus], "there is not one package");
    console.insist(numbers(console.value("siblings")) == vec![cpus; cpus], "the package is incomplete");
    console.says("clocksource", "kvm-clock");
    console.says("timers", "lapic-deadline");
    console.says("hypervisor", "KVM");
    for key in ["deadline", "x2apic"] {
        console.insist(console.number(key) > 0, &format!("no {key} in the kernel's log"));
    }
    let tables: Vec<&str> = console.value("acpi").split_whitespace().collect();
    console.insist(
        ["APIC", "DSDT", "FACP"].iter().all(|table| tables.contains(table)),
        "ACPI tables are missing",
    );
    console.says("acpi_errors", "0");
    let devices = console.value("devices");
    // The Generic Event Device, the power button, the serial port, pvpanic, the PCI bus, and the
    // generation counter.
    for id in ["ACPI0013", "PNP0C0C", "PNP0501", "QEMU0001", "PNP0A03", "BTHY0001"] {
        console.insist(devices.contains(id), &format!("no {id}"));
    }
    console.says("vmgenid", "BTHY0001:00");
    no_complaints(&console);
    // There is no clock chip: the time of day comes from kvm-clock.
    let epoch = console.number("epoch");
    console.insist(epoch + 2 >= before && epoch <= now() + 2, "the guest's time of day is wrong");
}

#[test]
fn one_processor_has_its_clock_its_timer_and_acpi() {
    needs_linux!();
    a_guest_with(1);
}

#[test]
fn four_processors_are_four_cores_of_one_package() {
    needs_linux!();
    a_guest_with(4);
}

#[test]
fn many_processors_come_up() {
    needs_linux!();
    a_guest_with(if long() { 64 } else { 9 });
}
