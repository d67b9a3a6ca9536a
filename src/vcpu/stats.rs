//! KVM's own counters of one vCPU, through KVM_GET_STATS_FD: what they are called and what they
//! stand at.
//!
//! With the local APIC in the kernel most exits (halts, timer, page faults, ioeventfd writes) never
//! return to user space, so only KVM can count them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// More than the file has: a header, about 50 descriptors and their values.
const MAX_FILE: u64 = 64 * 1024;

/// An open statistics file. Reading it costs KVM nothing until then.
pub struct StatsFd(File);

/// Opens the statistics of a vCPU.
pub(super) fn open(vcpu: &VcpuFd) -> io::Result<StatsFd> {
    #[expect(unsafe_code, reason = "kvm-ioctls has no KVM_GET_STATS_FD")]
    // SAFETY: the ioctl takes no argument and only makes a descriptor.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "a raw descriptor becomes an owned one")]
    // SAFETY: KVM just made this descriptor and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    Ok(StatsFd(file))
}

impl StatsFd {
    /// All counters with one value, as (name, value), in KVM's order.
    pub fn read(mut self) -> io::Result<Vec<(String, u64)>> {
        let mut bytes = Vec::new();
        self.0.by_ref().take(MAX_FILE).read_to_end(&mut bytes)?;
        parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed KVM statistics"))
    }
}

/// Reads the format of "KVM_GET_STATS_FD" in the KVM API documentation: a header of six words,
/// descriptors of 16 bytes and a name, values of 8 bytes.
fn parse(file: &[u8]) -> Option<Vec<(String, u64)>> {
    let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?));
    let size = |at: usize| usize::try_from(word(at)?).ok();
    let (name_len, count, descriptors, data) = (size(4)?, size(8)?, size(16)?, size(20)?);
    let mut stats = Vec::new();
    for index in 0..count {
        let at = descriptors.checked_add(index.checked_mul(16usize.checked_add(name_len)?)?)?;
        let values = u16::from_le_bytes(*file.get(at.checked_add(6)?..)?.first_chunk()?);
        if values != 1 {
            continue; // a histogram
        }
        let value_at = data.checked_add(size(at + 8)?)?;
        let value = u64::from_le_bytes(*file.get(value_at..)?.first_chunk()?);
        let name = file.get(at + 16..(at + 16).checked_add(name_len)?)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        stats.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: u16) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0u32, 8, 1, 24, 24, 48] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 6]);
        file.extend(values.to_le_bytes());
        file.extend([0; 8]);
        file.extend(b"exits\0\0\0");
        file.extend(77u64.to_le_bytes());
        file
    }

    #[test]
    fn a_counter_is_read_by_name_and_a_histogram_is_left_out() {
        assert_eq!(parse(&file(1)), Some(vec![("exits".to_owned(), 77)]));
        assert_eq!(parse(&file(2)), Some(vec![]));
    }

    #[test]
    fn a_file_that_ends_early_is_malformed() {
        let file = file(1);
        for len in [0, 23, 40, 55] {
            assert_eq!(parse(&file[..len]), None, "{len}");
        }
    }
}
