//! A vCPU at rest, as plain data: what KVM knows of it, by the structures of its API
//! (Documentation/virt/kvm/api.rst).
//!
//! A state may come from anywhere, and KVM checks it as it checks what any program asks for. What
//! it can't check, that this host's processors have what the guest has seen, is checked here.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::VcpuError;

/// The time stamp counter.
const MSR_TSC: u32 = 0x10;
/// When the local APIC's timer fires, as a time stamp.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A time stamp that no guest gets to.
const FAR: u64 = 1 << 62;

/// Everything about a vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    events: kvm_vcpu_events,
    /// Number and value.
    msrs: Vec<(u32, u64)>,
}

/// Takes everything that a vCPU is. It must not be in its guest. `msrs` are the numbers of all MSRs
/// that this host's KVM has.
pub(super) fn take(vcpu: &VcpuFd, msrs: &[u32]) -> Result<State, VcpuError> {
    // First what KVM brings up to date by looking at it: pending INIT and SIPI (KVM_GET_MP_STATE).
    let mp_state = vcpu.get_mp_state().map_err(VcpuError::ioctl("KVM_GET_MP_STATE"))?;
    // Before the local APIC: a timer that fires between the two is then in both, and not in none.
    let msrs = get_msrs(vcpu, msrs)?;
    Ok(State {
        cpuid: vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(VcpuError::ioctl("KVM_GET_CPUID2"))?
            .as_slice()
            .to_vec(),
        tsc_khz: vcpu.get_tsc_khz().ok(),
        mp_state,
        regs: vcpu.get_regs().map_err(VcpuError::ioctl("KVM_GET_REGS"))?,
        sregs: vcpu.get_sregs().map_err(VcpuError::ioctl("KVM_GET_SREGS"))?,
        xsave: Box::new(vcpu.get_xsave().map_err(VcpuError::ioctl("KVM_GET_XSAVE"))?),
        xcrs: vcpu.get_xcrs().map_err(VcpuError::ioctl("KVM_GET_XCRS"))?,
        debug: vcpu.get_debug_regs().map_err(VcpuError::ioctl("KVM_GET_DEBUGREGS"))?,
        lapic: Box::new(vcpu.get_lapic().map_err(VcpuError::ioctl("KVM_GET_LAPIC"))?),
        events: vcpu.get_vcpu_events().map_err(VcpuError::ioctl("KVM_GET_VCPU_EVENTS"))?,
        msrs,
    })
}

/// Makes a fresh vCPU what another one was, if this host's processors have what it has seen: `own`
/// is what they would show it. `first` of the VM's.
pub(super) fn put(vcpu: &VcpuFd, own: &CpuId, state: &State, first: bool) -> Result<(), VcpuError> {
    if let Some(leaf) = missing(own.as_slice(), &state.cpuid) {
        return Err(VcpuError::Missing { leaf });
    }
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| VcpuError::Missing { leaf: 0 })?;
    vcpu.set_cpuid2(&cpuid).map_err(VcpuError::ioctl("KVM_SET_CPUID2"))?;
    if let (Some(wanted), Ok(own)) = (state.tsc_khz, vcpu.get_tsc_khz())
        && wanted != own
    {
        vcpu.set_tsc_khz(wanted).map_err(VcpuError::ioctl("KVM_SET_TSC_KHZ"))?;
    }
    vcpu.set_mp_state(state.mp_state).map_err(VcpuError::ioctl("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs).map_err(VcpuError::ioctl("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs).map_err(VcpuError::ioctl("KVM_SET_SREGS"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(VcpuError::ioctl("KVM_SET_XCRS"))?;
    #[expect(unsafe_code, reason = "with more features KVM would read more than the structure")]
    // SAFETY: that takes a process that has asked for them (arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM),
    // and this one never does.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(VcpuError::ioctl("KVM_SET_XSAVE"))?;
    vcpu.set_debug_regs(&state.debug).map_err(VcpuError::ioctl("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&state.lapic).map_err(VcpuError::ioctl("KVM_SET_LAPIC"))?;
    if first && state.msrs.iter().any(|(index, _)| *index == MSR_TSC) {
        // KVM takes a write of the counter that comes within a second of another one, in real and
        // in the counter's time, for an attempt to synchronize the two, and does that instead
        // (kvm_synchronize_tsc). It began this one with 0: a guest that was younger than a second
        // would see its time go back, and its timers late. After a write from far away the next one
        // counts as it is; those of the other vCPUs are to be synchronized with this one's.
        set_msrs(vcpu, &[(MSR_TSC, FAR)])?;
    }
    set_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(VcpuError::ioctl("KVM_SET_VCPU_EVENTS"))
}

/// Leaf, subleaf and which of EAX, EBX, ECX and EDX are lists of features (Intel SDM vol. 2A,
/// CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst).
const FEATURES: [(u32, u32, [bool; 4]); 7] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0xd, 1, [true, false, false, false]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];
/// OSXSAVE and OSPKE say what the guest has done, not what the processor can.
const OF_THE_GUEST: [(u32, usize, u32); 2] = [(0x1, 2, 1 << 27), (0x7, 2, 1 << 4)];

/// A leaf with a feature in it that `seen` has and `own` has not.
fn missing(own: &[kvm_cpuid_entry2], seen: &[kvm_cpuid_entry2]) -> Option<u32> {
    let registers = |cpuid: &[kvm_cpuid_entry2], leaf, index| {
        let entry = cpuid.iter().find(|entry| (entry.function, entry.index) == (leaf, index));
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    let lacks = |(leaf, index, lists): &(u32, u32, [bool; 4])| {
        let (own, seen) = (registers(own, *leaf, *index), registers(seen, *leaf, *index));
        (0..4).filter(|register| lists[*register]).any(|register| {
            let dynamic = OF_THE_GUEST.iter().filter(|(of, at, _)| (*of, *at) == (*leaf, register));
            let dynamic = dynamic.fold(0, |bits, (_, _, bit)| bits | bit);
            seen[register] & !own[register] & !dynamic != 0
        })
    };
    FEATURES.iter().find(|leaf| lacks(leaf)).map(|(leaf, _, _)| *leaf)
}

/// The values of those that a guest has: KVM stops at the first that this one has not, and is asked
/// for those behind it.
fn get_msrs(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut values = Vec::with_capacity(numbers.len());
    let mut rest = numbers;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> =
            some.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("no more than the limit");
        let count = vcpu.get_msrs(&mut msrs).map_err(VcpuError::ioctl("KVM_GET_MSRS"))?;
        values.extend(msrs.as_slice()[..count].iter().map(|msr| (msr.index, msr.data)));
        // Past the one that it stopped at.
        rest = &rest[count + usize::from(count < some.len())..];
    }
    // The timer counts by the counter, so that it comes after it.
    values.sort_by_key(|(index, _)| (*index == MSR_TSC_DEADLINE, *index != MSR_TSC, *index));
    Ok(values)
}

/// Sets all of them, in this order. One that KVM refuses is no harm if it is zero, as it is in a
/// fresh vCPU.
fn set_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuError> {
    let mut rest = values;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = some
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries).expect("no more than the limit");
        let count = vcpu.set_msrs(&msrs).map_err(VcpuError::ioctl("KVM_SET_MSRS"))?;
        match some.get(count) {
            Some((index, value)) if *value != 0 => {
                return Err(VcpuError::Msr { index: *index, value: *value });
            }
            _ => rest = &rest[count + usize::from(count < some.len())..],
        }
    }
    Ok(())
}
