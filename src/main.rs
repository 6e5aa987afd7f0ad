//! The entry point of the program: parse the command line, run its verb, exit code.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use holesync::error::{Error, code, escape};

fn main() -> ExitCode {
    end_with_a_thread_that_panics();
    holesync::sys::raise_open_files_limit();
    let arguments: Vec<_> = std::env::args_os().collect();
    let usage = cli::usage_code(&arguments);
    let cli = match cli::Cli::read(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let failed = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if failed { usage } else { 0 });
        }
    };
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            let code = if error.exit_code() == code::USAGE { usage } else { error.exit_code() };
            if !matches!(error, Error::Reported { .. }) {
                // The last line of a run that failed: the error with its exit code, as rsync has it.
                let message = format!("{error} (code {code})");
                // A stderr that is closed is no reason to panic, as eprintln would.
                let _ = writeln!(std::io::stderr(), "holesync: {}", escape(message.as_bytes()));
            }
            ExitCode::from(code)
        }
    }
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
