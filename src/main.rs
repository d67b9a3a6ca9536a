//! The `bothy` command: parse, start the log, dispatch, print one error chain, exit code.

use std::process::ExitCode;

use bothy::cli::Cli;
use bothy::commands::{self, Failure};
use bothy::timeline;
use clap::Parser;

fn main() -> ExitCode {
    let exec_ns = timeline::exec_ns();
    let cli = Cli::parse();
    match commands::run(cli, exec_ns) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (error, code) = match &failure {
                Failure::Usage(error) => (error, 2),
                Failure::Setup(error) => (error, 1),
            };
            eprintln!("bothy: {error:#}");
            ExitCode::from(code)
        }
    }
}
