//! The entry point of the program: parse the command line, run its verb, exit code.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use holesync::error::{Error, code, escape};

fn main() -> ExitCode {
    let cli = match cli::Cli::read(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let failed = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if failed { code::USAGE } else { 0 });
        }
    };
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::Reported { .. }) {
                // A stderr that is closed is no reason to panic, as eprintln would.
                let _ = writeln!(std::io::stderr(), "holesync: {}", escape(message(&error).as_bytes()));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// The last line of a run that failed: the error with its exit code, as rsync has it.
fn message(error: &Error) -> String {
    format!("{error} (code {})", error.exit_code())
}
