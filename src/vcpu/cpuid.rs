//! The guest's CPUID: what KVM supports, made true for one vCPU of this VM.
//!
//! The topology is one socket with one thread per core; the APIC id is the vCPU's number. Leaves by
//! the Intel SDM vol. 2A (CPUID) and the AMD APM vol. 3 (appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_INTEL_CACHE: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// `supported` (KVM_GET_SUPPORTED_CPUID) for vCPU `id` of `count`.
///
/// # Panics
/// If `supported` has more entries than KVM's own limit.
pub(super) fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let topology = Topology { id: id.into(), count: count.into() };
    let replaced = [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_AMD_TOPOLOGY_V2];
    let mut entries: Vec<kvm_cpuid_entry2> =
        supported.as_slice().iter().filter(|entry| !replaced.contains(&entry.function)).copied().collect();
    for entry in &mut entries {
        topology.apply(entry);
    }
    if supported.as_slice().iter().any(|entry| entry.function == LEAF_TOPOLOGY) {
        entries.extend(topology.levels());
    }
    CpuId::from_entries(&entries).expect("no more entries than KVM gave, and three for at least one removed")
}

struct Topology {
    id: u32,
    count: u32,
}

impl Topology {
    /// Bits of the APIC id that number the cores of the socket.
    fn core_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0xffff) | (self.id << 24) | (self.count << 16);
                entry.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                entry.edx = with_bits(entry.edx, EDX_HTT, if self.count > 1 { EDX_HTT } else { 0 });
            }
            LEAF_INTEL_CACHE if entry.eax & 0x1f != 0 => {
                self.share_cache(entry);
                entry.eax = with_bits(entry.eax, 0x3f << 26, ((1 << self.core_bits()) - 1) << 26);
            }
            LEAF_AMD_CACHE if entry.eax & 0x1f != 0 => self.share_cache(entry),
            LEAF_AMD_SIZES => entry.ecx = (self.core_bits() << 12) | (self.count - 1),
            LEAF_AMD_TOPOLOGY => {
                entry.eax = self.id;
                entry.ebx = self.id; // one thread per core: the core's number
                entry.ecx = 0; // one node
            }
            _ => {}
        }
    }

    /// Levels 1 and 2 belong to one core, level 3 to all of them.
    fn share_cache(&self, entry: &mut kvm_cpuid_entry2) {
        let level = (entry.eax >> 5) & 7;
        let sharing = if level >= 3 { (1 << self.core_bits()) - 1 } else { 0 };
        entry.eax = with_bits(entry.eax, 0xfff << 14, sharing << 14);
    }

    /// The extended topology leaf: threads of a core, cores of the socket, end.
    fn levels(&self) -> [kvm_cpuid_entry2; 3] {
        let level = |index, shift, logical, kind: u32| kvm_cpuid_entry2 {
            function: LEAF_TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: logical,
            ecx: (kind << 8) | index,
            edx: self.id,
            ..Default::default()
        };
        [level(0, 0, 1, 1), level(1, self.core_bits(), self.count, 2), level(2, 0, 0, 0)]
    }
}

fn with_bits(value: u32, mask: u32, bits: u32) -> u32 {
    (value & !mask) | (bits & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0x1, 0, 0x1234, 0xff10_0800, 0, EDX_HTT),
            leaf(0x4, 0, 0xfc00_c121, 0, 0, 0),
            leaf(0x4, 3, 0xfc00_c163, 0, 0, 0),
            leaf(0xb, 0, 1, 2, 0x100, 77),
            leaf(0xb, 1, 4, 16, 0x201, 77),
            leaf(0x1f, 0, 1, 2, 0x100, 77),
            leaf(0x8000_0008, 0, 0x3030, 0, 0x700f, 0),
            leaf(0x8000_001e, 0, 77, 0x0105, 0x0303, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).copied()
    }

    #[test]
    fn every_leaf_that_names_the_apic_id_agrees() {
        let cpuid = for_vcpu(&supported(), 5, 6);
        assert_eq!(find(&cpuid, 0x1, 0).unwrap().ebx, 0x0506_0800);
        for index in 0..3 {
            assert_eq!(find(&cpuid, 0xb, index).unwrap().edx, 5);
        }
        assert_eq!(find(&cpuid, 0x8000_001e, 0).unwrap().eax, 5);
        assert_eq!(find(&cpuid, 0x1f, 0), None);
    }

    #[test]
    fn six_cores_need_three_bits_of_the_apic_id() {
        let cpuid = for_vcpu(&supported(), 0, 6);
        let cores = find(&cpuid, 0xb, 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).unwrap().ecx, 0x3005);
        let l1 = find(&cpuid, 0x4, 0).unwrap().eax;
        assert_eq!(((l1 >> 14) & 0xfff, l1 >> 26), (0, 7));
        let l3 = find(&cpuid, 0x4, 3).unwrap().eax;
        assert_eq!(((l3 >> 14) & 0xfff, l3 >> 26), (7, 7));
    }

    #[test]
    fn a_single_cpu_says_no_hyperthreading_and_all_say_hypervisor_and_timer() {
        let one = find(&for_vcpu(&supported(), 0, 1), 0x1, 0).unwrap();
        assert_eq!(one.edx & EDX_HTT, 0);
        assert_eq!(one.ecx, ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR);
        let two = find(&for_vcpu(&supported(), 0, 2), 0x1, 0).unwrap();
        assert_eq!(two.edx & EDX_HTT, EDX_HTT);
    }

    #[test]
    fn sixty_four_cpus_fit() {
        let cpuid = for_vcpu(&supported(), 63, 64);
        assert_eq!(find(&cpuid, 0x1, 0).unwrap().ebx >> 16, 0x3f40);
        assert_eq!(find(&cpuid, 0x4, 0).unwrap().eax >> 26, 63);
    }
}
