//! Content digests, `sha256:...` and `sha512:...` (OCI image-spec, descriptor.md, "Digests"): their
//! syntax, and computing them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use thiserror::Error;

/// The algorithms that the specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// The usual one.
    Sha256,
    /// The other one.
    Sha512,
}

impl Algorithm {
    /// As it stands in front of the colon, and as the directory in `blobs/` is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of some content. Its text is safe as a file name: lower-case hexadecimal digits of
/// the right number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// Why a text is no digest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// Another algorithm, or none.
    #[error("`{}` is not a digest that can be checked: expected sha256:HEX or sha512:HEX", shown(.0))]
    Algorithm(String),
    /// Wrong digits.
    #[error("`{}` is not a digest: expected {} lower-case hexadecimal digits after {}:", shown(text), algorithm.hex_len(), algorithm.name())]
    Hex {
        /// What was given.
        text: String,
        /// What it claims to be.
        algorithm: Algorithm,
    },
}

/// Text of others, short enough for a line and without control characters.
pub(super) fn shown(text: &str) -> String {
    const LIMIT: usize = 150;
    let mut shown: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() {
        shown.push_str("...");
    }
    shown
}

impl Digest {
    /// Which algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits alone.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, as people are shown them.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Where a layout keeps the blob: `blobs/ALGORITHM/HEX`.
    pub fn blob_path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }

    /// The SHA-256 of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether these bytes have this digest.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Algorithm::Sha256, hex),
            Some(("sha512", hex)) => (Algorithm::Sha512, hex),
            _ => return Err(DigestError::Algorithm(text.into())),
        };
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || hex.len() != algorithm.hex_len() {
            return Err(DigestError::Hex { text: text.into(), algorithm });
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes a digest piece by piece.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest { algorithm, hex }
    }
}

/// Reads all, but no more than `limit` bytes: `None` when there is more.
pub(super) fn read_capped(reader: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_computed_and_checked() {
        let empty: Digest = EMPTY.parse().unwrap();
        assert_eq!(Digest::of(b""), empty);
        assert!(empty.fits(b"") && !empty.fits(b"x"));
        assert_eq!(empty.short(), "e3b0c44298fc");
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"abc");
        let digest = hasher.finish();
        assert!(digest.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert!(digest.to_string().parse::<Digest>().unwrap().fits(b"abc"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in ["", "sha256", "sha256:", "sha256:..", "md5:00", &upper, &EMPTY[..70], "sha256:../../x"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let message = "sha1:\n\u{1b}[31m".parse::<Digest>().unwrap_err().to_string();
        assert!(!message.contains(['\n', '\u{1b}']), "{message}");
    }
}
