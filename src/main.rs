//! The entry point of the program: parse the command line, run its verb, exit code.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use holesync::error::{Error, code, escape};

fn main() -> ExitCode {
    end_with_a_thread_that_panics();
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

/// A thread that panics takes the process along: others may be waiting for it, and so may
/// the other end.
fn end_with_a_thread_that_panics() {
    const PANICKED: i32 = 101;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(PANICKED);
    }));
}
