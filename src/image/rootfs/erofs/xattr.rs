//! Extended attributes beside an inode.

use std::collections::BTreeMap;

use super::super::flaw::Flaw;

/// Longest name, prefix included, that Linux has.
const MAX_NAME: usize = 255;
/// Longest value that the format has room for; Linux' own limit is one byte above it.
const MAX_VALUE: usize = 65_535;
/// What an inode can count: 65,535 words, of which the header of 12 bytes is one.
const MAX_ALL: usize = 12 + 4 * 65_534;

/// The prefixes that Linux knows, and EROFS' numbers for them. An ACL's is its whole name.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// What overlayfs would take as its own in a layer below it.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Header and entries, in the order of the names; nothing if there are none. Names that Linux can't
/// have on any file system (like macOS' `com.apple.provenance`) are left out, and so are overlayfs'
/// own: they would change what a guest sees.
pub(in crate::image::rootfs) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, Flaw> {
    let mut body = Vec::new();
    for (name, value) in xattrs {
        let Some((index, suffix)) = split(name) else { continue };
        let value_len = u16::try_from(value.len())
            .ok()
            .filter(|len| usize::from(*len) <= MAX_VALUE)
            .ok_or(Flaw::Xattr)?;
        let name_len =
            u8::try_from(suffix.len()).ok().filter(|_| name.len() <= MAX_NAME).ok_or(Flaw::Xattr)?;
        if body.is_empty() {
            // No filter, nothing shared.
            body.resize(12, 0);
        }
        body.extend_from_slice(&[name_len, index]);
        body.extend_from_slice(&value_len.to_le_bytes());
        body.extend_from_slice(suffix);
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if body.len() > MAX_ALL { Err(Flaw::Xattrs) } else { Ok(body) }
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.starts_with(OVERLAY) {
        return None;
    }
    PREFIXES.iter().find_map(|(prefix, index)| {
        let suffix = name.strip_prefix(*prefix)?;
        // An ACL has no suffix, anything else has one.
        (prefix.ends_with(b".") != suffix.is_empty()).then_some((*index, suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(xattrs: &[(&[u8], &[u8])]) -> Result<Vec<u8>, Flaw> {
        encode(&xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
    }

    #[test]
    fn entries_are_aligned_and_in_order() {
        let both = encoded(&[(b"user.b", b"\0\xff"), (b"security.capability", b"x")]).unwrap();
        let expected = b"\0\0\0\0\0\0\0\0\0\0\0\0\x0a\x06\x01\0capabilityx\0\x01\x01\x02\0b\0\xff\0";
        assert_eq!(both, expected);
        assert_eq!(encoded(&[]).unwrap(), b"");
    }

    #[test]
    fn only_names_that_linux_has_are_kept() {
        assert_eq!(encoded(&[(b"com.apple.provenance", b"x"), (b"user.", b"x"), (b"", b"x")]).unwrap(), b"");
        assert_eq!(encoded(&[(b"trusted.overlay.opaque", b"y")]).unwrap(), b"");
        assert_eq!(encoded(&[(b"system.posix_acl_accessory", b"y")]).unwrap(), b"");
        assert_eq!(encoded(&[(b"system.posix_acl_access", b"y")]).unwrap()[12..], *b"\0\x02\x01\0y\0\0\0");
    }

    #[test]
    fn what_an_inode_has_no_room_for_is_refused() {
        let long = [b"user.".to_vec(), vec![b'a'; 251]].concat();
        assert_eq!(encoded(&[(&long, b"")]), Err(Flaw::Xattr));
        assert!(encoded(&[(&long[..255], b"")]).is_ok());
        let big = vec![0; 65_535];
        assert_eq!(encoded(&[(b"user.a", &vec![0; 65_536])]), Err(Flaw::Xattr));
        let four =
            [(&b"user.a"[..], &big[..]), (b"user.b", &big), (b"user.c", &big), (b"user.d", &big[..65_480])];
        assert!(encoded(&four).is_ok_and(|body| body.len() <= MAX_ALL));
        let five = [&four[..], &[(b"user.e", &big)]].concat();
        assert_eq!(encoded(&five), Err(Flaw::Xattrs));
    }
}
