//! Shell completions and man pages, both made of the command line's own description.
//!
//! A shell asks bothy itself what may stand at a place, by the protocol of clap_complete: the
//! variable COMPLETE names the shell. So images complete by the names that are in the store at that
//! moment.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgAction, Command, CommandFactory, ValueHint};
use clap_complete::env::{CompleteEnv, Shells};
use clap_complete::{ArgValueCompleter, CompletionCandidate, PathCompleter};

use super::{Failure, print};
use crate::cli::{Cli, Shell};
use crate::image::{Reference, Store};

/// What makes bothy answer a shell instead of doing anything.
const VARIABLE: &str = "COMPLETE";

/// Bash takes `busybox:1.36` and `--pull=always` for several words, and wants the last of them
/// back. This asks with the words as they are, and gives back what is behind the last of those
/// breaks.
const BASH_WORDS: &str = r#"
_bothy() {
    local word COMP_WORDS COMP_CWORD
    read -ra COMP_WORDS <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} != *[[:blank:]] ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    word=${COMP_WORDS[COMP_CWORD]}
    _clap_complete_bothy "$1" "$word" "$3"
    if [[ $word == *[:=]* && $COMP_WORDBREAKS == *[:=]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[:=]}"}"}")
    fi
}
complete -o nospace -o bashdefault -F _bothy bothy
"#;

/// Answers a shell that asks for completions, and ends the process then.
pub fn answer_shell() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Prints what a shell has to source.
pub(super) fn completions(shell: Shell) -> Result<u8, Failure> {
    let shells = Shells::builtins();
    let completer = shells.completer(shell.name()).context("clap_complete lacks this shell")?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "bothy", "bothy", "bothy", &mut script)
        .context("can't make the script")?;
    if shell == Shell::Bash {
        script.extend_from_slice(BASH_WORDS.as_bytes());
    }
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Writes `bothy.1` and a page for each subcommand.
pub(super) fn man(dir: &Path) -> Result<u8, Failure> {
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("can't write man pages to {}", dir.display()))?;
    Ok(0)
}

/// The command line with what completes each of its values.
fn command() -> Command {
    let images = || ArgValueCompleter::new(images);
    let sources = || ArgValueCompleter::new(images_and_paths);
    Cli::command()
        .mut_subcommand("run", |run| {
            // To be parsed it is one list, since nothing behind the image is a flag of ours; here
            // the first word is another thing than the rest.
            run.mut_arg("words", |words| {
                words.action(ArgAction::Set).num_args(1).trailing_var_arg(false).add(sources())
            })
            .arg(Arg::new("command").num_args(0..).value_hint(ValueHint::Other))
        })
        .mut_subcommand("bench", |bench| bench.mut_arg("image", |arg| arg.add(sources())))
        .mut_subcommand("load", |load| load.mut_arg("sources", |arg| arg.add(sources())))
        .mut_subcommand("pull", |pull| pull.mut_arg("names", |arg| arg.add(images())))
        .mut_subcommand("rmi", |rmi| rmi.mut_arg("names", |arg| arg.add(images())))
}

/// The names of the store's images that begin with a word, as people write them, or complete if
/// that is how the word begins.
fn images(word: &OsStr) -> Vec<CompletionCandidate> {
    let Some(word) = word.to_str() else { return Vec::new() };
    // A shell is no place for errors.
    let Ok(images) = Store::open().and_then(|store| store.images()) else { return Vec::new() };
    let mut names: Vec<String> = images.into_iter().flat_map(|image| image.names).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().filter_map(|name| candidate(name, word)).map(CompletionCandidate::new).collect()
}

/// The shortest way to write a name that begins with the word.
fn candidate(name: &str, word: &str) -> Option<String> {
    let familiar = name.parse().ok().map(|name: Reference| name.familiar());
    familiar.into_iter().chain([name.to_owned()]).find(|name| name.starts_with(word))
}

fn images_and_paths(word: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = images(word);
    // A path that nothing tells from a name is written with ./ before it.
    if word.as_encoded_bytes().starts_with(b".") || word.as_encoded_bytes().starts_with(b"/") {
        found.extend(clap_complete::engine::ValueCompleter::complete(&PathCompleter::any(), word));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_completed_is_a_consistent_command_line() {
        command().debug_assert();
    }

    #[test]
    fn names_complete_in_the_form_that_was_begun() {
        for (name, word, offered) in [
            ("docker.io/library/busybox:latest", "", Some("busybox")),
            ("docker.io/library/busybox:1.36", "bus", Some("busybox:1.36")),
            ("docker.io/library/busybox:1.36", "docker.io/l", Some("docker.io/library/busybox:1.36")),
            ("localhost/demo:latest", "localhost/demo:", Some("localhost/demo:latest")),
            ("localhost/demo:latest", "demo", None),
        ] {
            assert_eq!(candidate(name, word).as_deref(), offered, "{name}, {word}");
        }
    }
}
