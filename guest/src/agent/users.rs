//! Who a command runs as: `USER[:GROUP]` looked up in an image's own passwd and group files, as
//! docker does.
//!
//! A line may end after the user's number; what is missing is group 0 and no home. Unlike docker, a
//! number that is none doesn't count as 0, which is root: whoever is named there is refused.

use super::refusal::Refusal;

/// The identity of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, `gid` among them.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

/// The largest that the kernel takes and that doesn't mean "unchanged" or a negative number.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// A line of passwd. A number that can't be one is `None`.
struct Account<'a> {
    name: &'a [u8],
    uid: Option<u32>,
    gid: Option<u32>,
    home: &'a [u8],
}

/// A line of group.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Finds the user that `spec` names.
pub(crate) fn find(spec: &str, passwd: &[u8], group: &[u8]) -> Result<User, Refusal> {
    let (user, group_spec) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user.as_bytes());
    let account = accounts(passwd)
        .find(|account| account.name == user.as_bytes() || (number.is_some() && number == account.uid));
    let (uid, gid, home) = match (&account, number) {
        (Some(Account { uid: Some(uid), gid: Some(gid), home, .. }), _) => (*uid, *gid, *home),
        (Some(_), _) => {
            return Err(Refusal::other(format!(
                "user {user}: its line in the passwd file has no valid user or group number"
            )));
        }
        (None, Some(number)) => (number, 0, &b""[..]),
        (None, None) => {
            return Err(Refusal::other(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let (gid, mut supplementary) = if group_spec.is_empty() {
        let name = account.map(|account| account.name);
        let of_user = |group: &Group<'_>| {
            name.is_some_and(|name| group.members.split(|byte| *byte == b',').any(|member| member == name))
        };
        (gid, groups(group).filter(of_user).map(|group| group.gid).collect())
    } else {
        (find_group(group_spec, group)?, Vec::new())
    };
    supplementary.insert(0, gid);
    let mut seen = std::collections::BTreeSet::new();
    supplementary.retain(|gid| seen.insert(*gid));
    let home = if home.is_empty() { b"/" } else { home };
    Ok(User { uid, gid, groups: supplementary, home: home.to_vec() })
}

fn find_group(spec: &str, group: &[u8]) -> Result<u32, Refusal> {
    let number = id(spec.as_bytes());
    groups(group)
        .find(|group| group.name == spec.as_bytes() || number == Some(group.gid))
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| {
            Refusal::other(format!("unable to find group {spec}: no matching entries in group file"))
        })
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let uid = fields.nth(1).and_then(id);
        let gid = fields.next().map_or(Some(0), id);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn id(text: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# no:x:1:1::/:\nbroken\nbin:x:1:1:bin:/bin:/sbin/nologin\n\
        web:x:1000:50::/srv:/bin/sh\n7:x:70:70::/seven:\n";
    const GROUP: &[u8] = b"root:x:0:root\nbin:x:1:root,bin\nwww:x:50:\nvideo:x:44:web,root\naudio:x:63:web\n";

    fn user(spec: &str) -> User {
        find(spec, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn nobody_named_is_root_with_the_groups_of_root() {
        let root = User { uid: 0, gid: 0, groups: vec![0, 1, 44], home: b"/root".to_vec() };
        assert_eq!(user(""), root);
        assert_eq!(user("root"), root);
        assert_eq!(user("0"), root);
    }

    #[test]
    fn a_user_is_found_by_name_or_number_with_all_groups() {
        let web = User { uid: 1000, gid: 50, groups: vec![50, 44, 63], home: b"/srv".to_vec() };
        assert_eq!(user("web"), web);
        assert_eq!(user("1000"), web);
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        assert_eq!(user("web:video").groups, [44]);
        assert_eq!(user("1000:99").groups, [99]);
        assert_eq!(user(":www").gid, 50);
    }

    #[test]
    fn a_number_that_is_nobody_is_itself_with_group_0() {
        assert_eq!(user("4711"), User { uid: 4711, gid: 0, groups: vec![0], home: b"/".to_vec() });
    }

    #[test]
    fn a_name_made_of_digits_counts_as_a_name_first_in_the_file() {
        assert_eq!(user("7").uid, 70);
    }

    #[test]
    fn unknown_names_and_numbers_out_of_range_are_refused() {
        for spec in ["nobody", "web:nogroup", "4294967295", "2147483648", "-1", "+1", "1000:-1"] {
            assert!(find(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
    }

    #[test]
    fn a_line_may_end_after_the_user_and_numbers_that_are_none_are_refused() {
        let passwd = b"app:x:1000\nshort:x:1001:\nhalf:x\nbig:x:99999999999:0::/:\nword:x:7:staff::/:\n";
        let app = find("app", passwd, b"extra:x:2000:app\n").unwrap();
        assert_eq!(app, User { uid: 1000, gid: 0, groups: vec![0, 2000], home: b"/".to_vec() });
        assert_eq!(find("1000", passwd, b"").unwrap().gid, 0);
        for spec in ["short", "half", "big", "word", "7"] {
            let message = find(spec, passwd, b"").unwrap_err().message;
            assert!(message.starts_with(&format!("user {spec}: its line in the passwd file")), "{message}");
        }
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        assert_eq!(find("", b"", b"").unwrap().home, b"/");
        assert!(find("root", b"", b"").is_err());
    }
}
