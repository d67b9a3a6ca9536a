//! Answers that are no success: which error they are.

use std::time::SystemTime;

use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, Uri};

use super::error::{Login, RegistryError, is_busy};
use super::http::{self, header};
use super::retry::parse_after;
use crate::image::json;

/// Longest error message that is read, in bytes.
const MAX_MESSAGE_LEN: u64 = 16 << 10;

/// What an answer that isn't a success means.
pub(super) fn status_error(
    url: &Uri,
    host: String,
    response: &mut Response<Body>,
    what: &str,
    login: Login,
) -> RegistryError {
    let (status, what) = (response.status().as_u16(), what.to_owned());
    let after = header(response, "retry-after").and_then(|text| parse_after(text, SystemTime::now()));
    let body = http::beginning(url, response, MAX_MESSAGE_LEN);
    // Servers in front of a registry send pages, too, but these headers tell what to do.
    let wants = after.is_some() || response.headers().contains_key("www-authenticate");
    if !wants && http::is_page(response, &body) {
        return RegistryError::WebPage { host, what, status };
    }
    match status {
        401 | 403 => RegistryError::Denied { host, what, login },
        404 => RegistryError::NotFound { host, what },
        _ if is_busy(status) => RegistryError::Busy { host, what, status, after },
        _ => {
            let message = message_in(&body).unwrap_or_default();
            RegistryError::Status { host, status, what, message }
        }
    }
}

/// The first message (distribution-spec, "Error Codes").
fn message_in(bytes: &[u8]) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct One {
        message: String,
    }
    let errors: Errors = json::from_slice(bytes).ok()?;
    errors.errors.into_iter().next().map(|one| one.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_registry_are_passed_on_in_a_line() {
        assert_eq!(message_in(br#"{"errors": [{"code": "X", "message": "no"}, {}]}"#).as_deref(), Some("no"));
        assert_eq!(message_in(br#"{"errors": [{"message": null}]}"#).as_deref(), Some(""));
        assert_eq!(message_in(br#"{"errors": null}"#), None);
        assert_eq!(message_in(b"<html>"), None);
        let error =
            RegistryError::Status { host: "a".into(), status: 418, what: "b".into(), message: "x\ny".into() };
        assert_eq!(error.to_string(), "a answers with HTTP status 418 for b: x\\ny");
    }
}
