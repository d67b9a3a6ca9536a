//! Splits a kernel command line into words, by the kernel's own rules for quotes.
//!
//! The kernel (`next_arg` in `lib/cmdline.c`) ends a word at white space outside double quotes, and
//! removes a pair of quotes around a whole word or around its value. There is no escape character,
//! so a value can't contain a double quote and a space at once in any other way.

/// One word: `key` or `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub key: String,
    /// `None` where the word has no `=`.
    pub value: Option<String>,
}

/// The words of a command line, in order.
#[must_use]
pub fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(parse_word(&std::mem::take(&mut word)));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(parse_word(&word));
    }
    words
}

/// The value of the last word with this key: later words win, as in the kernel.
#[must_use]
pub fn last_value<'a>(words: &'a [Word], key: &str) -> Option<&'a str> {
    words.iter().rev().filter(|word| word.key == key).find_map(|word| word.value.as_deref())
}

fn parse_word(word: &str) -> Word {
    let word = unquote(word);
    match word.split_once('=') {
        Some((key, value)) => Word { key: key.to_owned(), value: Some(unquote(value).to_owned()) },
        None => Word { key: word.to_owned(), value: None },
    }
}

fn unquote(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(key: &str, value: Option<&str>) -> Word {
        Word { key: key.to_owned(), value: value.map(str::to_owned) }
    }

    #[test]
    fn words_are_split_at_any_white_space() {
        assert_eq!(words(" quiet\tpanic=-1  \n"), [word("quiet", None), word("panic", Some("-1"))]);
        assert_eq!(words(""), []);
    }

    #[test]
    fn a_quoted_value_keeps_its_spaces_and_loses_its_quotes() {
        let line = r#"a bothy.exec="echo one  two; exit 3" b"#;
        assert_eq!(
            words(line),
            [word("a", None), word("bothy.exec", Some("echo one  two; exit 3")), word("b", None)]
        );
    }

    #[test]
    fn quotes_may_stand_around_the_whole_word() {
        assert_eq!(words(r#""bothy.exec=echo one two""#), [word("bothy.exec", Some("echo one two"))]);
    }

    #[test]
    fn a_value_may_contain_the_equals_sign() {
        assert_eq!(words("bothy.net=mac=1,ip=2"), [word("bothy.net", Some("mac=1,ip=2"))]);
    }

    #[test]
    fn quotes_inside_a_value_stay() {
        assert_eq!(words(r#"x=a"b c"d"#), [word("x", Some(r#"a"b c"d"#))]);
    }

    #[test]
    fn a_quote_that_is_never_closed_reaches_to_the_end() {
        assert_eq!(words(r#"x="a b"#), [word("x", Some("a b"))]);
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(words(r#"x= y="""#), [word("x", Some("")), word("y", Some(""))]);
    }

    #[test]
    fn the_last_value_wins() {
        let words = words("x=1 x=2 x y=3");
        assert_eq!(last_value(&words, "x"), Some("2"));
        assert_eq!(last_value(&words, "z"), None);
    }
}
