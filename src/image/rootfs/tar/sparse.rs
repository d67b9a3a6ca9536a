//! Where a sparse file has data.

use super::super::flaw::Flaw;

/// So many parts make 16 MiB of map while the file is read, and fit for a disk image with as many holes.
pub(super) const MAX_PARTS: usize = 1 << 20;

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image::rootfs) struct Part {
    pub(in crate::image::rootfs) offset: u64,
    pub(in crate::image::rootfs) len: u64,
}

/// A map of parts: in order, apart from each other, inside the file, and together as long as what is stored.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::image::rootfs) struct Sparse {
    pub(in crate::image::rootfs) size: u64,
    pub(in crate::image::rootfs) parts: Vec<Part>,
}

impl Sparse {
    pub(super) fn new(size: u64, mut parts: Vec<Part>, stored: u64) -> Result<Self, Flaw> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for part in &parts {
            if part.offset < end {
                return Err(Flaw::SparseMap);
            }
            end = part.offset.checked_add(part.len).ok_or(Flaw::SparseMap)?;
            // Apart from each other, so the sum is never larger than the end.
            sum += part.len;
        }
        if end > size || sum != stored {
            return Err(Flaw::SparseMap);
        }
        parts.retain(|part| part.len != 0);
        Ok(Self { size, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64, parts: &[(u64, u64)], stored: u64) -> Result<Vec<(u64, u64)>, Flaw> {
        let parts = parts.iter().map(|(offset, len)| Part { offset: *offset, len: *len }).collect();
        Sparse::new(size, parts, stored).map(|map| map.parts.iter().map(|p| (p.offset, p.len)).collect())
    }

    #[test]
    fn a_map_must_fit_its_file_and_what_is_stored() {
        assert_eq!(map(100, &[(0, 10), (50, 10), (100, 0)], 20), Ok(vec![(0, 10), (50, 10)]));
        assert_eq!(map(100, &[], 0), Ok(vec![]));
        assert_eq!(map(100, &[(0, 10), (9, 10)], 20), Err(Flaw::SparseMap), "over each other");
        assert_eq!(map(100, &[(50, 10), (0, 10)], 20), Err(Flaw::SparseMap), "in the wrong order");
        assert_eq!(map(100, &[(95, 10)], 10), Err(Flaw::SparseMap), "outside");
        assert_eq!(map(100, &[(0, 10)], 11), Err(Flaw::SparseMap), "more is stored");
        assert_eq!(map(u64::MAX, &[(1, u64::MAX)], 5), Err(Flaw::SparseMap), "an end that wraps");
    }
}
