//! The command's environment, in docker's order: its defaults, the image's, the files', the flags'.
//! A variable that is set again keeps its place.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, bail};

/// Docker's, for images that don't say one.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in order, each `NAME=VALUE`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Environment(Vec<Vec<u8>>);

impl Environment {
    /// What every container has. HOME is the agent's to add: it knows the image's users.
    pub(super) fn new(host_name: &str, terminal: bool) -> Self {
        let mut variables = vec![PATH.into(), format!("HOSTNAME={host_name}").into_bytes()];
        if terminal {
            variables.push(b"TERM=xterm".to_vec());
        }
        Self(variables)
    }

    /// Sets a variable, by `NAME=VALUE`. Without a value it gets that of `host`; if there is none,
    /// it is removed.
    pub(super) fn set(&mut self, variable: &[u8], host: impl Fn(&OsStr) -> Option<OsString>) {
        let (name, has_value) = match variable.iter().position(|byte| *byte == b'=') {
            Some(end) => (&variable[..end], true),
            None => (variable, false),
        };
        let value = if has_value {
            Some(variable.to_vec())
        } else {
            host(OsStr::from_bytes(name)).map(|value| [name, b"=", &value.into_vec()].concat())
        };
        let is_it = |old: &Vec<u8>| old.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"="));
        let position = self.0.iter().position(is_it);
        match (position, value) {
            (Some(position), Some(value)) => self.0[position] = value,
            (None, Some(value)) => self.0.push(value),
            (Some(position), None) => drop(self.0.remove(position)),
            (None, None) => {}
        }
    }

    /// Sets what a file says, as docker reads it: a variable in each line, taken as it is.
    pub(super) fn read(
        &mut self,
        path: &Path,
        host: impl Fn(&OsStr) -> Option<OsString>,
    ) -> anyhow::Result<()> {
        let text = fs::read(path).with_context(|| format!("--env-file: can't read {}", path.display()))?;
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii_start();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
            if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
                bail!(
                    "--env-file: {}, line {number}: a variable's name is empty or has a space in it",
                    path.display()
                );
            }
            self.set(line, &host);
        }
        Ok(())
    }

    /// The variables.
    pub(super) fn into_list(self) -> Vec<Vec<u8>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &OsStr) -> Option<OsString> {
        (name == "HERE").then(|| "yes".into())
    }

    fn text(environment: Environment) -> Vec<String> {
        environment.into_list().into_iter().map(|v| String::from_utf8(v).unwrap()).collect()
    }

    #[test]
    fn later_values_win_and_keep_the_place_of_the_first() {
        let mut environment = Environment::new("h", true);
        for variable in ["A=1", "PATH=/bin", "A=2=3", "B=", "A", "HERE", "C"] {
            environment.set(variable.as_bytes(), host);
        }
        assert_eq!(text(environment), ["PATH=/bin", "HOSTNAME=h", "TERM=xterm", "B=", "HERE=yes"]);
    }

    #[test]
    fn a_file_is_read_as_docker_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "\u{feff}# no\n  A=b c \n\nHERE\nNOWHERE\nQ=\"x\"\r\n").unwrap();
        let mut environment = Environment::default();
        environment.read(&path, host).unwrap();
        assert_eq!(text(environment), ["A=b c ", "HERE=yes", "Q=\"x\""]);
        for wrong in ["=x", "A B=c"] {
            std::fs::write(&path, wrong).unwrap();
            let error = Environment::default().read(&path, host).unwrap_err().to_string();
            assert!(error.contains("line 1"), "{error}");
        }
    }
}
