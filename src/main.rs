//! The `bothy` command: parse, start the log, dispatch, print one error chain, exit code.

use std::process::ExitCode;

use bothy::cli::Cli;
use bothy::commands::{self, Failure};
use bothy::timeline;
use clap::Parser;
use clap::error::ErrorKind;

fn main() -> ExitCode {
    let exec_ns = timeline::exec_ns();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version, or the help that stands for a missing command.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            commands::say(&format!("bothy: {}", bothy::cli::one_line(&error.to_string())));
            return ExitCode::from(2);
        }
    };
    match commands::run(cli, exec_ns) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (error, code) = match &failure {
                Failure::Usage(error) => (error, 2),
                Failure::Setup(error) => (error, 1),
            };
            commands::say(&format!("bothy: {error:#}"));
            ExitCode::from(code)
        }
    }
}
