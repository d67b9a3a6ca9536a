//! What a registry asks for with 401: the `WWW-Authenticate` header (RFC 9110, 11.6.1; RFC 6750;
//! the distribution project's token authentication).

/// A way to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password.
    Basic,
    /// A token, to be had at another address.
    Bearer { realm: String, service: Option<String> },
}

/// The way to go, of those that are offered: a token before a password.
pub(super) fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let offered: Vec<Challenge> = headers.into_iter().flat_map(parse).collect();
    let bearer = offered.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(offered.first()).cloned()
}

/// The challenges of one header; those of other kinds, and what isn't well-formed, are passed over.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scheme = String::new();
    let mut params: Vec<(String, String)> = Vec::new();
    let mut end = |scheme: &str, params: &mut Vec<(String, String)>| {
        let mut take = |name: &str| {
            let at = params.iter().position(|(key, _)| key == name)?;
            Some(params.swap_remove(at).1)
        };
        match scheme {
            "basic" => challenges.push(Challenge::Basic),
            "bearer" => {
                challenges
                    .extend(take("realm").map(|realm| Challenge::Bearer { realm, service: take("service") }));
            }
            _ => {}
        }
        params.clear();
    };
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            // The end, or a stray `=`.
            break;
        }
        match after.strip_prefix('=') {
            Some(value) => {
                let Some((value, after)) = parse_value(value) else { break };
                params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            None => {
                end(&scheme, &mut params);
                scheme = word.to_ascii_lowercase();
                rest = after;
            }
        }
    }
    end(&scheme, &mut params);
    challenges
}

/// A word, or a quoted text; and what is behind it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
    }

    #[test]
    fn challenges_are_taken_apart() {
        for (headers, expected) in [
            (
                &[r#"Bearer realm="https://a/token",service="a, \"b\"",scope="repository:x:pull,push""#][..],
                bearer("https://a/token", Some("a, \"b\"")),
            ),
            (&[r#"bearer service=a , REALM=https://a/t"#], bearer("https://a/t", Some("a"))),
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&[r#"Basic realm="x", Bearer realm="r""#], bearer("r", None)),
            (&[r#"Negotiate, Digest realm="d", nonce="n""#, r#"Bearer realm="r""#], bearer("r", None)),
            (&[r#"Negotiate"#], None),
            (&[r#"Bearer service="no realm""#], None),
            (&[r#"Bearer realm="no end"#], None),
            (&["=", "", ",,,", "\"", "Bearer ="], None),
            (&[], None),
        ] {
            assert_eq!(choose(headers.iter().copied()), expected, "{headers:?}");
        }
    }
}
