//! What a container and its processes may do: docker's defaults, and what `--privileged`,
//! `--security-opt` and `--sysctl` make of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow};
use bothy_guest::spec::{Container, Rights};

use crate::cli::{RunArgs, SecurityOption};
use crate::spec::docker;
use crate::spec::seccomp::{Profile, Seccomp};

/// A profile may have so many bytes, and one more shows that it has too many.
const MAX_PROFILE: u64 = (4 << 20) + 1;

/// The container.
pub(super) fn container(flags: &RunArgs, host_name: &str) -> Container {
    let mut container = docker::container(host_name, flags.privileged, &flags.sysctl);
    if flags.security_opt.contains(&SecurityOption::SystemPaths) {
        container.protections.clear();
    }
    container
}

/// The rights of the container's commands.
pub(super) fn rights(flags: &RunArgs) -> anyhow::Result<Rights> {
    // As with docker, a privileged container has no filter unless somebody asks for one.
    let mut seccomp = if flags.privileged { Seccomp::Off } else { Seccomp::Default };
    let (mut no_new_privileges, mut path) = (false, None);
    for option in &flags.security_opt {
        match option {
            SecurityOption::NoNewPrivileges(wanted) => no_new_privileges = *wanted,
            SecurityOption::SystemPaths | SecurityOption::Nothing => {}
            SecurityOption::Builtin => (seccomp, path) = (Seccomp::Default, None),
            SecurityOption::Unconfined if flags.privileged => (seccomp, path) = (Seccomp::Off, None),
            SecurityOption::Unconfined => (seccomp, path) = (Seccomp::Unconfined, None),
            SecurityOption::Profile(file) => {
                (seccomp, path) = (Seccomp::Profile(Box::new(profile(file)?)), Some(file));
            }
        }
    }
    let capabilities = docker::rights(flags.privileged, false, None).capabilities.bounding;
    let filter = seccomp.filter(capabilities).map_err(|error| match path {
        Some(path) => named(path, anyhow!(error)),
        None => anyhow!(error),
    })?;
    Ok(docker::rights(flags.privileged, no_new_privileges, filter))
}

fn profile(path: &Path) -> anyhow::Result<Profile> {
    let read = || -> anyhow::Result<Profile> {
        let mut text = Vec::new();
        File::open(path)
            .context("can't open it")?
            .take(MAX_PROFILE)
            .read_to_end(&mut text)
            .context("can't read it")?;
        Ok(Profile::parse(&text)?)
    };
    read().map_err(|error| named(path, error))
}

fn named(path: &Path, error: anyhow::Error) -> anyhow::Error {
    error.context(format!("--security-opt seccomp={}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn rights_of(words: &[&str]) -> anyhow::Result<Rights> {
        let cli = Cli::try_parse_from(["bothy", "run"].iter().chain(words).chain(&["i"])).unwrap();
        let Command::Run(args) = cli.command else { panic!() };
        rights(&args)
    }

    #[test]
    fn the_last_option_counts_and_privileged_has_no_filter_of_its_own() {
        let instructions =
            |words: &[&str]| rights_of(words).unwrap().seccomp.map(|filter| filter.program.len());
        let default = instructions(&[]).unwrap();
        let unconfined = instructions(&["--security-opt", "seccomp=unconfined"]).unwrap();
        assert!(default > 300 && unconfined < 100, "{default} {unconfined}");
        assert_eq!(instructions(&["--privileged"]), None);
        assert_eq!(instructions(&["--privileged", "--security-opt", "seccomp=unconfined"]), None);
        assert!(instructions(&["--privileged", "--security-opt", "seccomp=builtin"]).unwrap() > 300);
        let both = ["--security-opt", "seccomp=unconfined", "--security-opt=seccomp=builtin"];
        assert_eq!(instructions(&both), Some(default));
        assert!(rights_of(&["--security-opt", "no-new-privileges"]).unwrap().no_new_privileges);
        assert!(!rights_of(&["--security-opt", "no-new-privileges:false"]).unwrap().no_new_privileges);
    }

    #[test]
    fn an_error_names_the_file_and_its_rule() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let option = format!("seccomp={}", path.display());
        let error = || format!("{:#}", rights_of(&["--security-opt", &option]).unwrap_err());
        assert!(
            error().starts_with(&format!("--security-opt {option}: can't open it: No such file")),
            "{}",
            error()
        );
        std::fs::write(
            &path,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "x", "action": "no"}]}"#,
        )
        .unwrap();
        assert_eq!(error(), format!("--security-opt {option}: rule 1 (x): unknown action `no`"));
    }
}
