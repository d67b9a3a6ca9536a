//! PAX records (`LENGTH KEY=VALUE`, POSIX pax interchange format), those that say something about a
//! file.

use std::collections::BTreeMap;

use super::super::flaw::Flaw;
use super::header;
use super::header::{MAX_PARTS, Part};

/// What the records before an entry say.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// GNU.sparse.*, of versions 0.0, 0.1 and 1.0.
#[derive(Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) major: u64,
    pub(super) parts: Vec<Part>,
    offset: Option<u64>,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, Flaw> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or(Flaw::Extended)?;
            let len = usize::try_from(decimal(&data[..space]).ok_or(Flaw::Extended)?);
            let len = len.ok().filter(|len| (space + 1..=data.len()).contains(len)).ok_or(Flaw::Extended)?;
            let (record, rest) = data.split_at(len);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(Flaw::Extended)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(Flaw::Extended)?;
            pax.record(&record[..equals], &record[equals + 1..])?;
            data = rest;
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Flaw> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.contains(&0) {
                return Err(Flaw::Extended);
            }
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.record(key, value);
        }
        // An empty value takes a record back. Go's decoder takes a sign before a number.
        let (negative, digits) = match value {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        let whole = || match value {
            [] => Ok(None),
            _ => decimal(digits).ok_or(Flaw::Number).map(Some),
        };
        let number = || if negative { Err(Flaw::Number) } else { whole() };
        let id = || match whole()? {
            None => Ok(None),
            Some(id) => {
                let id = i64::try_from(id).map_err(|_| Flaw::Owner)?;
                header::owner(if negative { -id } else { id }).map(Some)
            }
        };
        let device = || number().map(|number| number.map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = number()?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"SCHILY.devmajor" => self.major = device()?,
            b"SCHILY.devminor" => self.minor = device()?,
            _ => {}
        }
        Ok(())
    }
}

impl SparseRecords {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Flaw> {
        let number = || decimal(value).ok_or(Flaw::SparseMap);
        match key {
            b"major" => self.major = number()?,
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Flaw::SparseMap)?;
                self.push(Part { offset, len: number()? })?;
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    match (offset, numbers.next().flatten()) {
                        (Some(offset), Some(len)) => self.push(Part { offset, len })?,
                        _ => return Err(Flaw::SparseMap),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, part: Part) -> Result<(), Flaw> {
        if self.parts.len() == MAX_PARTS {
            return Err(Flaw::SparseParts);
        }
        self.parts.push(part);
        Ok(())
    }
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, Flaw> {
    if value.contains(&0) {
        return Err(Flaw::Nul);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let digit = |digit: &u8| digit.is_ascii_digit().then(|| u64::from(digit - b'0'));
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(10)?.checked_add(digit(byte)?))
}

/// Seconds with a fraction, perhaps negative, as seconds and nanoseconds after them.
fn time(text: &[u8]) -> Result<(i64, u32), Flaw> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let text = text.strip_prefix(b"+").filter(|_| !negative).unwrap_or(text);
    let mut halves = text.splitn(2, |byte| *byte == b'.');
    let whole = decimal(halves.next().unwrap_or_default()).ok_or(Flaw::Time)?;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Flaw::Time);
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let ns = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let whole = i64::try_from(whole).map_err(|_| Flaw::Time)?;
    match (negative, ns) {
        (false, ns) => Ok((whole, ns)),
        (true, 0) => Ok((-whole, 0)),
        (true, ns) => Ok((-whole - 1, 1_000_000_000 - ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        assert_eq!(time(b"1700000000.123456789"), Ok((1_700_000_000, 123_456_789)));
        assert_eq!(time(b"1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"+1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"1.0000000019"), Ok((1, 1)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time(b"-9223372036854775807.5"), Ok((i64::MIN, 500_000_000)));
        for wrong in ["", "-", "+", ".", "1.x", "x", "9223372036854775808", "--1", "-+1", "++1", "1e3"] {
            assert_eq!(time(wrong.as_bytes()), Err(Flaw::Time), "{wrong}");
        }
    }

    #[test]
    fn records_of_a_wrong_length_are_refused() {
        for wrong in [
            "5 a=b",
            "6 a=b\n7",
            "0 a=b\n",
            "99 a=b\n",
            "x a=b\n",
            " a=b\n",
            "3 \n",
            "5 ab\n",
            "18446744073709551616 a=\n",
        ] {
            assert_eq!(Pax::parse(wrong.as_bytes()).err(), Some(Flaw::Extended), "{wrong}");
        }
        assert_eq!(Pax::parse(b"6 a=b\n11 path=x\ny\n").err(), Some(Flaw::Extended));
        let pax = Pax::parse(b"12 path=x\ny\n23 SCHILY.xattr.a=\0\n\n\xff\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"x\ny");
        assert_eq!(pax.xattrs[&b"a"[..]], b"\0\n\n\xff");
    }

    #[test]
    fn numbers_may_have_a_sign_and_only_owners_may_be_negative() {
        let pax = Pax::parse(b"10 uid=-2\n10 gid=+5\n11 size=+3\n").unwrap();
        assert_eq!((pax.uid, pax.gid, pax.size), (Some(4_294_967_294), Some(5), Some(3)));
        assert_eq!(Pax::parse(b"10 uid=-1\n").unwrap().uid, Some(0));
        for (wrong, flaw) in [
            ("8 uid=-\n", Flaw::Number),
            ("11 uid=-+2\n", Flaw::Number),
            ("11 size=-3\n", Flaw::Number),
            ("19 uid=-2147483649\n", Flaw::Owner),
            ("28 uid=-9223372036854775808\n", Flaw::Owner),
        ] {
            assert_eq!(Pax::parse(wrong.as_bytes()).err(), Some(flaw), "{wrong}");
        }
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let pax = Pax::parse(b"10 path=x\n8 path=\n8 size=\n10 mtime=\n").unwrap();
        assert!(pax.path.is_none() && pax.size.is_none() && pax.mtime.is_none());
    }
}
