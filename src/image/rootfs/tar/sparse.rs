//! Where a sparse file has data: the maps of GNU's own format and of its three in PAX records.

use std::io::Read;

use super::super::flaw::{Flaw, Trouble};
use super::header::{self, BLOCK, Header, MAX_PARTS, Part};
use super::pax::{Pax, decimal};
use super::{Reader, What};

/// A map of parts: in order, apart from each other, inside the file, and together as long as what
/// is stored.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::image) struct Sparse {
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

impl<R: Read> Reader<R> {
    /// A file, sparse or not, by what its PAX records say. Its data has been announced with
    /// `stored`.
    pub(super) fn pax_file(&mut self, pax: &mut Pax) -> Result<What, Trouble> {
        let parts = std::mem::take(&mut pax.sparse.parts);
        let Some(size) = pax.sparse.real_size else {
            return if parts.is_empty() { Ok(What::File(self.data)) } else { Err(Flaw::SparseMap.into()) };
        };
        // In version 1.0 the map stands before the data.
        let parts = if pax.sparse.major == 0 { parts } else { self.map_before_data()? };
        Ok(What::Sparse(Sparse::new(size, parts, self.data)?))
    }

    /// GNU's own map: four parts in the header, 21 in each block that follows while they say so.
    pub(super) fn gnu_map(&mut self, header: &Header) -> Result<Vec<Part>, Trouble> {
        let mut parts = Vec::new();
        let mut add = |fields: &[u8]| -> Result<(), Flaw> {
            for field in fields.chunks_exact(24) {
                let number = |n: &[u8]| u64::try_from(header::number(n)?).map_err(|_| Flaw::SparseMap);
                // What isn't used is empty.
                if field[0] == 0 {
                    break;
                }
                if parts.len() == MAX_PARTS {
                    return Err(Flaw::SparseParts);
                }
                parts.push(Part { offset: number(&field[..12])?, len: number(&field[12..])? });
            }
            Ok(())
        };
        let (fields, mut more) = header.sparse();
        add(fields)?;
        while more {
            let block = self.block()?.ok_or(Flaw::Truncated)?;
            // A block without a part would let the map go on for ever.
            if block[0] == 0 {
                return Err(Flaw::SparseMap.into());
            }
            add(&block[..504])?;
            more = block[504] != 0;
        }
        Ok(parts)
    }

    /// The map of version 1.0: a count, then offset and length of each part, in decimal lines,
    /// padded to whole blocks.
    fn map_before_data(&mut self) -> Result<Vec<Part>, Trouble> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = || -> Result<u64, Trouble> {
            let mut digits = Vec::new();
            loop {
                if at == BLOCK {
                    if self.data < BLOCK as u64 {
                        return Err(Flaw::SparseMap.into());
                    }
                    self.read_exact(&mut block)?;
                    self.data -= BLOCK as u64;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(decimal(&digits).ok_or(Flaw::SparseMap)?),
                    // The longest number has 20 digits.
                    _ if digits.len() == 20 => return Err(Flaw::SparseMap.into()),
                    byte => digits.push(byte),
                }
            }
        };
        let count = number()?;
        if count > MAX_PARTS as u64 {
            return Err(Flaw::SparseParts.into());
        }
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push(Part { offset: number()?, len: number()? });
        }
        Ok(parts)
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
