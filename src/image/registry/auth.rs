//! From a challenge to an `Authorization` header: the password itself, or a token that a token
//! server gives for it (distribution project, "Token Authentication" and "OAuth2 Token
//! Authentication").
//!
//! A registry may name any token server, so it decides who sees the credentials that are meant for
//! it; it could have asked for them itself. But only the registry's own challenge counts, not that
//! of a host to which it redirects; TLS isn't left for it; and a token server's redirects aren't
//! followed. Without TLS there are no credentials here, unless the user has allowed that (see
//! `client`).

use std::fmt::Write;

use serde::Deserialize;
use ureq::http::Uri;

use super::address::{host_of, may_lead, parse, without_query};
use super::challenge::Challenge;
use super::credentials::Credentials;
use super::error::{Login, RegistryError};
use super::http::{self, Http, Request};
use super::status::status_error;
use crate::image::json;
use crate::image::reference::Reference;

/// Longest answer of a token server, in bytes.
const MAX_ANSWER_LEN: u64 = 256 << 10;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
}

/// Who asks, and for what.
pub(super) struct Asking<'a> {
    pub(super) http: &'a Http,
    pub(super) reference: &'a Reference,
    /// The registry's own address.
    pub(super) base: &'a Uri,
    pub(super) insecure: bool,
    pub(super) credentials: Option<&'a Credentials>,
    /// What an error calls those.
    pub(super) login: Login,
}

impl Asking<'_> {
    /// The header's value.
    pub(super) fn authorize(&self, challenge: &Challenge) -> Result<String, RegistryError> {
        match (challenge, self.credentials) {
            (Challenge::Bearer { .. }, Some(Credentials::Token(token))) => Ok(format!("Bearer {token}")),
            (Challenge::Bearer { realm, service }, _) => {
                Ok(format!("Bearer {}", self.token(realm, service.as_deref())?))
            }
            (Challenge::Basic, credentials) => {
                credentials.and_then(Credentials::basic).ok_or_else(|| RegistryError::Denied {
                    host: self.reference.registry.clone(),
                    what: self.reference.to_string(),
                    login: self.login,
                })
            }
        }
    }

    fn token(&self, realm: &str, service: Option<&str>) -> Result<String, RegistryError> {
        let wrong = |what: String| RegistryError::Answer { host: self.reference.registry.clone(), what };
        let realm = parse(realm).ok_or_else(|| wrong("its token server has no good address".into()))?;
        if !may_lead(self.base, &realm, self.insecure) {
            return Err(RegistryError::Plain {
                host: self.reference.registry.clone(),
                url: without_query(&realm),
            });
        }
        let scope = format!("repository:{}:pull", self.reference.repository);
        let host = host_of(&realm);
        let mut response = if let Some(Credentials::Identity(token)) = self.credentials {
            let mut form = vec![("grant_type", "refresh_token"), ("client_id", "bothy"), ("scope", &scope)];
            form.push(("refresh_token", token));
            form.extend(service.map(|service| ("service", service)));
            self.http.send(&realm, &Request { form: Some(&form), ..Request::default() })?
        } else {
            let mut query = vec![("scope", scope.as_str())];
            query.extend(service.map(|service| ("service", service)));
            if let Some(Credentials::Password { user, .. }) = self.credentials {
                query.push(("account", user));
            }
            let url = with_query(&realm, &query)
                .ok_or_else(|| wrong("its token server has no good address".into()))?;
            let basic = self.credentials.and_then(Credentials::basic);
            self.http.send(&url, &Request { authorization: basic.as_deref(), ..Request::default() })?
        };
        if response.status() != 200 {
            let what = self.reference.to_string();
            return Err(status_error(&realm, host, &mut response, &what, self.login));
        }
        let wrong = |what: &str| RegistryError::Answer { host: host.clone(), what: what.into() };
        let bytes = http::read(&realm, &mut response, MAX_ANSWER_LEN)?;
        let bytes = bytes.ok_or_else(|| wrong("its token is too long"))?;
        if http::is_page(&response, &bytes) {
            let (what, status) = ("a token".into(), response.status().as_u16());
            return Err(RegistryError::WebPage { host, what, status });
        }
        // serde's words could quote a token.
        let answer: Answer = json::from_slice(&bytes).map_err(|_| wrong("its token is not JSON"))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            return Err(wrong("there is no token in it"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("its token is none"));
        }
        Ok(token)
    }
}

/// The address with these parameters behind those that it has.
fn with_query(url: &Uri, params: &[(&str, &str)]) -> Option<Uri> {
    let mut text = url.to_string();
    let mut separator = if url.query().is_some() { '&' } else { '?' };
    for (name, value) in params {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String can't fail.
                let _infallible = write!(text, "%{byte:02X}");
            }
        }
        separator = '&';
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_escaped_and_added_to_those_that_are_there() {
        let url = |text: &str| text.parse::<Uri>().unwrap();
        let query = [("scope", "repository:a/b:pull"), ("service", "a b&c=\u{e9}")];
        assert_eq!(
            with_query(&url("https://a.example/token"), &query).unwrap().to_string(),
            "https://a.example/token?scope=repository:a/b:pull&service=a%20b%26c%3D%C3%A9"
        );
        assert_eq!(
            with_query(&url("https://a.example/token?x=1"), &query[..1]).unwrap().to_string(),
            "https://a.example/token?x=1&scope=repository:a/b:pull"
        );
    }
}
