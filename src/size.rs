//! Amounts with units, by docker's grammar: `536870912`, `512m`, `1.5g`, `10 GB`, `1TiB`.
//!
//! A number, perhaps with a fraction, perhaps a space, and perhaps a unit: b, k, m, g, t or p in
//! letters of either case, with `b` or `ib` behind it or not. Without a unit it is a number of
//! bytes (or bits). What is less than one is cut off.

use std::fmt;

/// What a unit is a power of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// 1024: memory and files.
    Binary,
    /// 1000: rates of networks.
    Decimal,
}

/// Not such an amount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotASize(String);

impl fmt::Display for NotASize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.0.chars().take(50).flat_map(char::escape_debug).collect();
        write!(f, "`{shown}` is not a size: expected a number and a unit, like 512M, 1.5G or 2T")
    }
}

impl std::error::Error for NotASize {}

/// Reads an amount.
pub fn parse(text: &str, base: Base) -> Result<u64, NotASize> {
    amount(text, base).ok_or_else(|| NotASize(text.to_owned()))
}

fn amount(text: &str, base: Base) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = text.split_at(end);
    let factor = factor(unit.strip_prefix(' ').unwrap_or(unit), base)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More digits than these change no byte of the largest unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = u64::try_from(fraction * u128::from(factor) / scale).ok()?;
    whole.checked_mul(factor)?.checked_add(part)
}

fn factor(unit: &str, base: Base) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => return Some(1),
        Some('b') => return (unit == "b").then_some(1),
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some(_) => return None,
    };
    let base: u64 = if base == Base::Binary { 1024 } else { 1000 };
    matches!(letters.as_str(), "" | "b" | "ib").then(|| base.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_what_docker_reads() {
        for (text, bytes) in [
            ("0", 0),
            ("536870912", 512 << 20),
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("1.5g", 1536 << 20),
            (".5G", 512 << 20),
            ("1.G", 1 << 30),
            ("32KiB", 32 << 10),
            ("32 kb", 32 << 10),
            ("1T", 1 << 40),
            ("2p", 2 << 50),
            ("7b", 7),
            ("1.9", 1),
            ("0.3k", 307),
            ("1.0000000000000000000000001k", 1024),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text, Base::Binary), Ok(bytes), "{text}");
        }
        assert_eq!(parse("1.5g", Base::Decimal), Ok(1_500_000_000));
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "",
            " ",
            "G",
            ".",
            ".G",
            "-1",
            "+1",
            "1e3",
            "1_000",
            "1 2",
            "1.2.3",
            "1x",
            "1bb",
            "1kx",
            "1kibb",
            "1  k",
            " 1k",
            "1k ",
            "99999999999999999999",
            "18446744073709551615k",
            "½G",
            "0x10",
        ] {
            assert!(parse(text, Base::Binary).is_err(), "{text}");
        }
        let message = parse("1x", Base::Binary).unwrap_err().to_string();
        assert_eq!(message, "`1x` is not a size: expected a number and a unit, like 512M, 1.5G or 2T");
    }
}
