//! The `bothy` command: parse, start the log, dispatch, print one error chain, exit code.

use std::process::ExitCode;

use bothy::cli::Cli;
use bothy::commands;
use bothy::timeline;
use clap::error::ErrorKind;

fn main() -> ExitCode {
    let exec_ns = timeline::exec_ns();
    // Before arguments, environment and files are read.
    let monitor = match commands::fork_monitor() {
        Ok(monitor) => monitor,
        Err(error) => {
            commands::say(&format!("bothy: {error:#}"));
            let is_boot = std::env::args_os().nth(1).is_some_and(|word| word == "boot");
            return ExitCode::from(if is_boot { 1 } else { commands::RUN_FAILED });
        }
    };
    commands::answer_shell();
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::of_process(&words) {
        Ok(cli) => cli,
        // Help and version, or the help that stands for a missing command.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            commands::say(&format!("bothy: {}", bothy::cli::one_line(&error.to_string())));
            // Docker's exit codes are 125 and more, for wrong words as well.
            let is_run = words.get(1).is_some_and(|word| word == "run");
            return ExitCode::from(if is_run { commands::RUN_FAILED } else { 2 });
        }
    };
    match commands::run(cli, exec_ns, monitor) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            commands::say(&format!("bothy: {:#}", failure.error()));
            ExitCode::from(failure.exit_code())
        }
    }
}
