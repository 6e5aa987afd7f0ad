//! Brings this program to the other end, or runs the one that was brought there before.
//! `push.sh` is what the shell there does for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, Warning, escape, in_words, lock, printable};
use crate::location::Host;
use crate::protocol::Greeting;
use crate::remote::bootstrap::{self, Agent, Input, Output, PROGRAM_VERSION, RemoteOptions, Shell};
use crate::remote::elf;
use crate::report::{Event, Reporter, hex, human};

const PUSH_SCRIPT: &str = include_str!("push.sh");

/// Programs that are being brought: one copy of each, to however many hosts.
static BROUGHT: Mutex<Vec<(PathBuf, Weak<Program>)>> = Mutex::new(Vec::new());

/// This program as it is to run at the other end.
struct Program {
    bytes: Vec<u8>,
    /// Its SHA-256 in hexadecimal digits.
    sum: String,
}

/// Has the shell run a program that was brought to the other end before, or brings it
/// there. Returns its greeting. `None`: the shell has to take part itself.
///
/// # Errors
///
/// When the connection fails, or the program arrives damaged.
pub fn agent(
    shell: &Shell,
    input: &mut Input,
    output: &mut Output,
    host: &Host,
    remote: &RemoteOptions,
    reporter: &dyn Reporter,
) -> Result<Option<Greeting>> {
    let may_send = remote.agent == Agent::Push;
    if !may_send && (remote.agent == Agent::None || !shell.pushed) {
        return Ok(None);
    }
    let cannot = |why: &str| {
        let what = format!("cannot bring holesync to {host}: {why}; its shell takes part instead");
        reporter.event(Event::Warning(&Warning::new(what).of(host)));
        Ok(None)
    };
    let program = match &remote.agent_program {
        Some(path) => Program::named(path, &shell.system, host)?,
        None => match Program::for_system(&shell.system, reporter) {
            Ok(program) => program,
            Err(why) => return cannot(&why),
        },
    };
    output.plain(&program.script(may_send, !remote.dry_run)?)?;
    output.flush()?;
    let mut broken = None;
    loop {
        let line = input.plain().line().map_err(|error| broken.take().unwrap_or(error))?;
        match line.as_slice() {
            b"want" => {
                let size = human(program.bytes.len() as u64);
                reporter.event(Event::Note(&format!("bringing {size} to {host}")));
                // Where it cannot be written there, the next line tells why.
                if let Err(error) = output.plain(&program.bytes).and_then(|()| output.flush()) {
                    broken = Some(error);
                }
            }
            note if note.starts_with(b"note ") => {
                let note = String::from_utf8_lossy(&note[5..]);
                reporter.event(Event::Warning(&Warning::new(note).on(&host.to_string())));
            }
            b"have" => return input.await_greeting(0).map(Some),
            other if other.starts_with(b"lost ") => {
                let why = "this program did not arrive there whole: is there room in the cache directory?";
                return Err(Error::Start(format!("{host}: {why}")));
            }
            other => {
                let why = escape(other.strip_prefix(b"none ").unwrap_or(other));
                return if may_send { cannot(&why) } else { Ok(None) };
            }
        }
    }
}

impl Program {
    /// Reads the program for what `uname -sm` printed that lies beside this one, or this one; or tells
    /// why there is none.
    fn for_system(system: &str, reporter: &dyn Reporter) -> Result<Arc<Program>, String> {
        let machine = machine_of(system)?;
        let name = format!("holesync-{machine}");
        let beside = beside_this_program(&name);
        let of =
            |path: &Path| Program::read(path, machine).map_err(|why| format!("{} {why}", printable(path)));
        if !runs_on(machine) {
            return beside.as_deref().map_or_else(
                || {
                    Err(format!(
                        "it is \"{}\", and this is a program for another: put one for it beside this program, as \
                         {name}, or name it with --agent-program",
                        escape(system.as_bytes())
                    ))
                },
                of,
            );
        }
        // Built for this, it has less to carry.
        if let Some(path) = beside {
            match is_of_this_version(&path) {
                true => return of(&path),
                false => reporter.event(Event::Note(&format!(
                    "{} is not of this version: this program is brought",
                    printable(&path)
                ))),
            }
        }
        Program::read(Path::new("/proc/self/exe"), machine).map_err(|why| format!("this program {why}"))
    }

    /// Reads the program that the user named.
    fn named(path: &Path, system: &str, host: &Host) -> Result<Arc<Program>> {
        let named = machine_of(system).and_then(|machine| {
            Program::read(path, machine).map_err(|why| {
                format!("{} {why}: {host} is \"{}\"", printable(path), escape(system.as_bytes()))
            })
        });
        named.map_err(|why| Error::Usage(format!("--agent-program: {why}; name one that runs there")))
    }

    fn read(path: &Path, machine: &str) -> Result<Arc<Program>, String> {
        let mut brought = lock(&BROUGHT);
        brought.retain(|(_, program)| program.strong_count() > 0);
        let there =
            brought.iter().find(|(other, _)| other == path).and_then(|(_, program)| program.upgrade());
        if let Some(program) = there {
            elf::check(&program.bytes, machine)?;
            return Ok(program);
        }
        let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {}", in_words(&error)))?;
        elf::check(&bytes, machine)?;
        let sum = hex(&Sha256::digest(&bytes));
        let program = Arc::new(Program { bytes, sum });
        brought.push((path.to_path_buf(), Arc::downgrade(&program)));
        Ok(program)
    }

    /// The script that takes the program in, if `may_send`, keeps it if `keeps`, and runs it.
    fn script(&self, may_send: bool, keeps: bool) -> Result<Vec<u8>> {
        let variables = [
            ("name", &*format!("agent-{PROGRAM_VERSION}-{}", &self.sum[..16])),
            ("sum", &self.sum),
            ("size", &self.bytes.len().to_string()),
            ("send", if may_send { "yes" } else { "no" }),
            ("keep", if keeps { "yes" } else { "no" }),
        ];
        bootstrap::script(&variables, &[PUSH_SCRIPT])
    }
}

/// The machine in what `uname -sm` printed.
fn machine_of(system: &str) -> Result<&str, String> {
    let is_plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let machine = system.strip_prefix("Linux ").filter(is_plain);
    machine.ok_or_else(|| {
        format!("it is \"{}\", and this is a program for another, for Linux", escape(system.as_bytes()))
    })
}

/// A file of this name beside this program, or where packages put what nobody runs by hand.
fn beside_this_program(name: &str) -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let here = this.parent()?;
    let places = [here.join(name), here.join("../lib/holesync").join(name)];
    places.into_iter().find(|path| path.is_file())
}

/// Whether a program that runs here says that it is of this version.
fn is_of_this_version(path: &Path) -> bool {
    let told = Command::new(path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    told.is_ok_and(|told| told.stdout == format!("holesync {PROGRAM_VERSION}\n").as_bytes())
}

/// Whether this program runs on such a machine.
fn runs_on(machine: &str) -> bool {
    let known = match std::env::consts::ARCH {
        "x86" => &["i386", "i486", "i586", "i686", "x86_64"][..],
        "arm" => &["armv6l", "armv7l", "armv8l"],
        other => &[other],
    };
    known.contains(&machine)
}
