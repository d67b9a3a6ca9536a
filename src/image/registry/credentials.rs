//! Whom to be for a registry: what `docker login` and `podman login` have left.
//!
//! Files, in this order: `$REGISTRY_AUTH_FILE`, and no other if it is set;
//! `$XDG_RUNTIME_DIR/containers/auth.json` (or `/run/containers/UID/auth.json`);
//! `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config`); `$DOCKER_CONFIG/config.json`
//! (`~/.docker`). The first that has something for the registry counts. In a file, a helper for
//! this registry (`credHelpers`) comes before the helper for all (`credsStore`), and that before
//! `auths`; there a key may name a part of a registry, `HOST/NAMESPACE`, and the longest that fits
//! counts (containers-auth.json(5)).
//!
//! Credential helpers are programs called `docker-credential-NAME`, which keep passwords elsewhere
//! (docker/docker-credential-helpers, "Development").
//!
//! What is found is only ever for the host that it was saved for: keys are compared as a whole, and
//! never by how they begin or end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::error::RegistryError;
use crate::image::LOG;
use crate::image::digest::read_capped;
use crate::image::json;
use crate::image::reference::Reference;

/// Longest file, in bytes.
const MAX_LEN: u64 = 1 << 20;
/// Longest answer of a helper, in bytes.
const MAX_ANSWER_LEN: u64 = 256 << 10;
/// What docker calls its own registry.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// A secret. Not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// As people type them.
    Password { user: String, password: String },
    /// To be exchanged for tokens (OAuth 2).
    Identity(String),
    /// A token that a registry takes as it is.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// `Basic ...`, if there is a password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity(_) | Self::Token(_) => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credentials::Token(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let bytes = BASE64_STANDARD.decode(auth).map_err(|_| "an `auth` is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "an `auth` is not text")?;
            let (user, password) = text.split_once(':').ok_or("an `auth` is not USER:PASSWORD")?;
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credentials::Password { user: user.into(), password: password.into() }));
        }
        Ok(match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Some(Credentials::Password { user, password }),
            _ => None,
        })
    }
}

/// What there is for the registry of this image. `variable` looks up the environment.
pub(super) fn find(
    reference: &Reference,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Credentials>, RegistryError> {
    for path in files(variable) {
        if let Some(file) = read(&path)?
            && let Some(credentials) = in_file(&file, &path, reference)?
        {
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = || variable("HOME");
    let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers"));
    let runtime = runtime
        .unwrap_or_else(|| PathBuf::from(format!("/run/containers/{}", rustix::process::geteuid().as_raw())));
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home()?.join(".docker")));
    [
        Some(runtime.join("auth.json")),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(path: &Path) -> Result<Option<AuthFile>, RegistryError> {
    let error = |why: String| RegistryError::Credentials { path: path.into(), why };
    let bytes = match File::open(path).and_then(|file| read_capped(file, MAX_LEN)) {
        Ok(bytes) => bytes.ok_or_else(|| error("it is too long".into()))?,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(unreadable) => return Err(error(unreadable.to_string())),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // serde's words could quote a secret.
    let at = |bad: serde_json::Error| {
        format!("it is not the JSON that it should be, at line {}, column {}", bad.line(), bad.column())
    };
    json::from_slice(&bytes).map(Some).map_err(|bad| error(at(bad)))
}

fn in_file(
    file: &AuthFile,
    path: &Path,
    reference: &Reference,
) -> Result<Option<Credentials>, RegistryError> {
    let is_docker_io = reference.registry == "docker.io";
    let server = if is_docker_io { DOCKER_KEY } else { &reference.registry };
    // Without a name: no helper for this registry, not even the one for all.
    let mut is_plain = file.creds_store.is_empty();
    for (key, name) in file.cred_helpers.iter().filter(|(key, _)| host_key(key) == reference.registry) {
        if name.is_empty() {
            is_plain = true;
            continue;
        }
        let server = if is_docker_io { key } else { server };
        if let Some(credentials) = ask_helper(name, server)? {
            return Ok(Some(credentials));
        }
    }
    if !is_plain {
        match ask_helper(&file.creds_store, server) {
            Ok(Some(credentials)) => return Ok(Some(credentials)),
            Ok(None) => {}
            // It may be left over from a program that is gone, and most images need no credentials.
            Err(error) => {
                LOG.warn(format_args!("{}: {error}", path.display()));
            }
        }
    }
    let whole = format!("{}/{}", reference.registry, reference.repository);
    let mut wanted = whole.as_str();
    loop {
        for (_, entry) in file.auths.iter().filter(|(key, _)| host_key(key) == wanted) {
            let error = |why: &str| RegistryError::Credentials { path: path.into(), why: why.into() };
            if let Some(credentials) = entry.credentials().map_err(error)? {
                return Ok(Some(credentials));
            }
        }
        match wanted.rsplit_once('/') {
            Some((shorter, _)) => wanted = shorter,
            None => return Ok(None),
        }
    }
}

/// A key without what old versions of docker wrote around the host.
fn host_key(key: &str) -> &str {
    let host = ["https://", "http://"].iter().find_map(|scheme| key.strip_prefix(scheme));
    let key = host.map_or(key, |rest| rest.split('/').next().unwrap_or_default());
    if key == "index.docker.io" { "docker.io" } else { key }
}

/// A helper's.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for what it has for `server`. `None` if it has nothing. The helper may
/// ask the user something, so there is no time limit.
fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    let helper = format!("docker-credential-{name}");
    let fails = |why: String| RegistryError::Helper { helper: helper.clone(), why };
    // It becomes part of a program's name, and must not become a path.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Err(fails("that is no name of a helper".into()));
    }
    let run = || -> io::Result<(bool, Vec<u8>)> {
        let mut child =
            Command::new(&helper).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that doesn't read may have an answer all the same.
            let _unread = stdin.write_all(server.as_bytes());
        }
        let output = child.stdout.take().map(|stdout| read_capped(stdout, MAX_ANSWER_LEN));
        let status = child.wait()?;
        let output = output.transpose()?.flatten();
        Ok((status.success(), output.ok_or_else(|| io::Error::other("its answer is too long"))?))
    };
    let (good, output) = run().map_err(|error| fails(error.to_string()))?;
    if !good {
        let words = String::from_utf8_lossy(&output);
        // The words are part of the protocol.
        if words.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fails(words.trim().to_owned()));
    }
    let answer: Answer = json::from_slice(&output)
        .map_err(|_| fails("its answer is not the JSON that it should be".into()))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
