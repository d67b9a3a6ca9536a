//! One 512-byte header: fields as they stand there, with their numbers checked (POSIX ustar, GNU
//! and star variants).

use super::super::flaw::Flaw;

pub(super) const BLOCK: usize = 512;
/// So many parts make 16 MiB of map while the file is read, and fit for a disk image with as many
/// holes.
pub(super) const MAX_PARTS: usize = 1 << 20;

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image::rootfs) struct Part {
    pub(in crate::image::rootfs) offset: u64,
    pub(in crate::image::rootfs) len: u64,
}

/// A block that has the checksum of a header.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// None for a block of zeros, which ends an archive.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Option<Self>, Flaw> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Self(block);
        let stated = header.number(148..156).map_err(|_| Flaw::Checksum)?;
        // The checksum's own field counts as spaces. Some old programs summed signed bytes.
        let counted = || block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
        let unsigned: i64 = counted().map(|byte| i64::from(*byte)).sum();
        let signed: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
        if stated == unsigned || stated == signed { Ok(Some(header)) } else { Err(Flaw::Checksum) }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix before it.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if &self.0[257..263] != b"ustar\0" {
            &[]
        } else if &self.0[508..] == b"tar\0" {
            text(&self.0[345..476])
        } else {
            text(&self.0[345..500])
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, Flaw> {
        let mode = self.number(100..108)? & 0o7777;
        u16::try_from(mode).map_err(|_| Flaw::Number)
    }

    pub(super) fn uid(&self) -> Result<u32, Flaw> {
        owner(self.number(108..116)?)
    }

    pub(super) fn gid(&self) -> Result<u32, Flaw> {
        owner(self.number(116..124)?)
    }

    pub(super) fn size(&self) -> Result<u64, Flaw> {
        u64::try_from(self.number(124..136)?).map_err(|_| Flaw::Size)
    }

    pub(super) fn mtime(&self) -> Result<i64, Flaw> {
        self.number(136..148)
    }

    pub(super) fn device(&self) -> Result<(i64, i64), Flaw> {
        Ok((self.number(329..337)?, self.number(337..345)?))
    }

    /// Size with its holes, of a GNU sparse file.
    pub(super) fn real_size(&self) -> Result<u64, Flaw> {
        u64::try_from(self.number(483..495)?).map_err(|_| Flaw::Size)
    }

    /// The first parts of a GNU sparse file's map, and whether more follow.
    pub(super) fn sparse(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    fn number(&self, field: std::ops::Range<usize>) -> Result<i64, Flaw> {
        number(&self.0[field])
    }
}

/// An owner's number. Systems with signed owners write negative ones; they keep their 32 bits, so
/// -2 (`nobody`) is 4294967294, as in docker. -1 means "unchanged" to chown(2), so docker leaves
/// the file to root.
pub(super) fn owner(number: i64) -> Result<u32, Flaw> {
    let id = u32::try_from(number).or_else(|_| i32::try_from(number).map(i32::cast_unsigned));
    match id {
        Ok(u32::MAX) => Ok(0),
        Ok(id) => Ok(id),
        Err(_) => Err(Flaw::Owner),
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces or NULs, or, marked by the first bit, a big-endian number in two's
/// complement.
pub(super) fn number(field: &[u8]) -> Result<i64, Flaw> {
    let first = field.first().copied().unwrap_or_default();
    if first & 0x80 != 0 {
        // The mark replaces the sign bit; the one below it has the sign.
        let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(first.cast_signed()) };
        return field[1..].iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256).map(|sum| sum | i64::from(*byte)).ok_or(Flaw::Number)
        });
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => {
            sum.checked_mul(8).and_then(|sum| sum.checked_add(i64::from(digit - b'0'))).ok_or(Flaw::Number)
        }
        _ => Err(Flaw::Number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_never_wrap() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644  "), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"77777777777\0"), Ok(0o77_777_777_777));
        assert_eq!(number(b"0000648\0"), Err(Flaw::Number));
        assert_eq!(number(b"-000001\0"), Err(Flaw::Number));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x02"), Ok(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Err(Flaw::Number));
        assert_eq!(number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Ok(i64::MAX));
        assert_eq!(number(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Flaw::Number));
        assert_eq!(number(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"), Ok(i64::MIN));
        assert_eq!(number(b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff"), Err(Flaw::Number));
    }

    #[test]
    fn owners_have_32_bits_with_a_sign_or_without() {
        for (number, id) in [
            (0, 0),
            (4_294_967_294, 4_294_967_294),
            (-2, 4_294_967_294),
            (-2_147_483_648, 2_147_483_648),
            // What chown(2) takes for none.
            (4_294_967_295, 0),
            (-1, 0),
        ] {
            assert_eq!(owner(number), Ok(id), "{number}");
        }
        for number in [4_294_967_296, -2_147_483_649, i64::MAX, i64::MIN] {
            assert_eq!(owner(number), Err(Flaw::Owner), "{number}");
        }
    }
}
