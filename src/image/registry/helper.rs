//! Credential helpers: programs called `docker-credential-NAME`, which keep passwords elsewhere (docker/docker-credential-helpers, "Development").

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::credentials::Credentials;
use super::error::RegistryError;
use crate::image::digest::read_capped;
use crate::image::json;

/// Longest answer, in bytes.
const MAX_LEN: u64 = 256 << 10;

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for what it has for `server`. `None` if it has nothing. The helper may ask the user something, so there is no time limit.
pub(super) fn ask(name: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
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
        let output = child.stdout.take().map(|stdout| read_capped(stdout, MAX_LEN));
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
