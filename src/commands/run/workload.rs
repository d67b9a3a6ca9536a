//! What is run: the image's defaults with the flags over them, by docker's rules.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::bail;
use bothy_guest::spec::Rights;

use super::environment::Environment;
use crate::cli::RunArgs;
use crate::container::protocol::Program;
use crate::image::RunConfig;

/// The program. `command` is what stands behind the image.
pub(super) fn program(
    image: &RunConfig,
    flags: &RunArgs,
    command: &[OsString],
    host_name: &str,
    rights: Rights,
) -> anyhow::Result<Program> {
    let mut environment = Environment::new(host_name, flags.tty);
    let host = |name: &OsStr| env::var_os(name);
    image.env.iter().filter(|variable| variable.contains('=')).for_each(|variable| {
        environment.set(variable.as_bytes(), host);
    });
    for file in &flags.env_file {
        environment.read(file, host)?;
    }
    for variable in &flags.env {
        if variable.is_empty() || variable.as_bytes().starts_with(b"=") {
            bail!("--env: {variable:?} names no variable");
        }
        environment.set(variable.as_bytes(), host);
    }
    Ok(Program {
        args: words(image, flags, command)?,
        env: environment.into_list(),
        cwd: directory(image, flags)?,
        user: flags.user.clone().unwrap_or_else(|| image.user.clone()),
        rights,
    })
}

fn bytes(word: &OsStr) -> Vec<u8> {
    word.as_bytes().to_vec()
}

/// Entry point and command. Another entry point than the image's makes the image's command
/// meaningless.
fn words(image: &RunConfig, flags: &RunArgs, command: &[OsString]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut words: Vec<Vec<u8>> = match &flags.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![bytes(entrypoint)],
        // One empty word is how an image's maker takes the entry point of its base away.
        None if image.entrypoint == [""] => Vec::new(),
        None => image.entrypoint.iter().map(|word| word.clone().into_bytes()).collect(),
    };
    if !command.is_empty() {
        words.extend(command.iter().map(|word| bytes(word)));
    } else if flags.entrypoint.is_none() {
        words.extend(image.cmd.iter().map(|word| word.clone().into_bytes()));
    }
    match words.first() {
        None => bail!("the image has no default command; give one after IMAGE"),
        Some(program) if program.is_empty() => bail!("the command to run is empty; give one after IMAGE"),
        Some(_) => Ok(words),
    }
}

fn directory(image: &RunConfig, flags: &RunArgs) -> anyhow::Result<Vec<u8>> {
    match &flags.workdir {
        Some(dir) if dir.as_bytes().starts_with(b"/") => Ok(bytes(dir)),
        Some(dir) => bail!("--workdir: {} is not an absolute path", dir.display()),
        // Images may say one without the slash; docker starts at the root then.
        None => Ok([b"/", image.working_dir.trim_start_matches('/').as_bytes()].concat()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn workload(image: &RunConfig, words: &[&str]) -> anyhow::Result<Program> {
        let cli = Cli::try_parse_from(["bothy", "run"].iter().chain(words)).unwrap();
        let Command::Run(args) = cli.command else { panic!() };
        program(image, &args, &args.words[1..], "h", Rights::default())
    }

    fn args(image: &RunConfig, words: &[&str]) -> String {
        let workload = workload(image, words).unwrap();
        String::from_utf8(workload.args.join(&b' ')).unwrap()
    }

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: vec!["entry".into(), "-e".into()],
            cmd: vec!["cmd".into()],
            env: vec!["A=image".into(), "PATH=/image".into()],
            user: "app".into(),
            working_dir: "srv".into(),
            ..RunConfig::default()
        }
    }

    #[test]
    fn entry_point_and_command_are_put_together_as_docker_does() {
        assert_eq!(args(&image(), &["i"]), "entry -e cmd");
        assert_eq!(args(&image(), &["i", "x", "y"]), "entry -e x y");
        assert_eq!(args(&image(), &["--entrypoint", "other", "i"]), "other");
        assert_eq!(args(&image(), &["--entrypoint", "other", "i", "x"]), "other x");
        assert_eq!(args(&image(), &["--entrypoint", "", "i", "x"]), "x");
        let none = RunConfig { entrypoint: vec![String::new()], ..image() };
        assert_eq!(args(&none, &["i"]), "cmd");
        assert_eq!(args(&none, &["i", "x"]), "x");
        for (image, words) in [
            (RunConfig::default(), &["i"][..]),
            (image(), &["--entrypoint", "", "i"]),
            (RunConfig::default(), &["i", ""]),
        ] {
            assert!(workload(&image, words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn flags_win_over_the_image() {
        let plain = workload(&image(), &["i"]).unwrap();
        assert_eq!((plain.cwd.as_slice(), plain.user.as_str()), (&b"/srv"[..], "app"));
        let env: Vec<_> = plain.env.iter().map(|v| String::from_utf8_lossy(v)).collect();
        assert_eq!(env, ["PATH=/image", "HOSTNAME=h", "A=image"]);
        let other = workload(&image(), &["-w", "/w", "-u", "0:5", "-e", "A=flag", "i"]).unwrap();
        assert_eq!((other.cwd.as_slice(), other.user.as_str()), (&b"/w"[..], "0:5"));
        assert!(other.env.contains(&b"A=flag".to_vec()));
        assert!(workload(&image(), &["-w", "w", "i"]).is_err());
        assert!(workload(&image(), &["-e", "=x", "i"]).is_err());
    }
}
