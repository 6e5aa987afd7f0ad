//! The flags that name several hosts, and the file that keeps which of them are to be tried again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Args;
use holesync::error::{Error, Result, lock, printable};
use holesync::location::{Host, Location};
use holesync::store::address::Address;
use holesync::sync::Deployment;

use crate::cli::verbs::output;

/// The most bytes of a file of hosts.
const MOST: u64 = 4 << 20;

/// Which hosts, and how many at once.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// Send SRC... to this host, too; all operands are SRC then, or the last one is :PATH
    #[arg(long, value_name = "[USER@]HOST[:PATH]")]
    to: Vec<OsString>,
    /// Send SRC... to the hosts in FILE, one a line: [user@]host[:port], with :PATH as DEST, or with
    /// a path of its own; "-": stdin
    #[arg(long, value_name = "FILE")]
    hosts: Vec<PathBuf>,
    /// Of several hosts, send to so many at once [default: 16]; from a store, so many requests at once
    /// [default: 12]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Put the image in place at all hosts or at none: when each has it ready
    #[arg(long)]
    together: bool,
    /// Keep the hosts in FILE that do not have SRC yet, for --hosts
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,
}

/// Several hosts, and how they were named.
#[derive(Debug)]
pub struct SeveralHosts {
    /// What the library takes.
    pub deployment: Deployment,
    /// What names each of them, as it was given.
    lines: Vec<OsString>,
    /// Where those go that are to be tried again.
    failed: Option<PathBuf>,
}

impl SeveralHosts {
    /// Refuses to list what is to be sent.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn check(&self, list_only: bool) -> Result<()> {
        let what = "--list-only sends nothing: leave --to and --hosts out";
        if list_only { Err(Error::Usage(what.into())) } else { Ok(()) }
    }

    /// The first destination.
    pub fn first(&self) -> Option<Location> {
        self.deployment.destinations.first().map(|(host, path)| Location::Remote(host.clone(), path.clone()))
    }
}

fn is_in_a_store(source: &OsString) -> bool {
    matches!(Address::of_source(source), Ok(Some(_)))
}

impl HostsArgs {
    /// How much is done at once, if that was said.
    pub fn jobs(&self) -> Option<usize> {
        self.jobs.map(usize::from)
    }

    /// Whether hosts are named in this way.
    pub fn are_several(&self) -> bool {
        !self.to.is_empty() || !self.hosts.is_empty()
    }

    /// The hosts, if several are named in this way; takes DEST from the operands.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a line that names no host, two that name one place, and options
    /// without hosts; when a file cannot be read.
    pub fn several(&self, paths: &mut Vec<OsString>) -> Result<Option<SeveralHosts>> {
        if !self.are_several() {
            return match (self.jobs, &self.failed, self.together) {
                (None, None, false) => Ok(None),
                (.., true) => Err(Error::Usage(
                    "--together is for several hosts: name them with --to or --hosts".into(),
                )),
                (Some(_), None, false) if paths.first().is_some_and(is_in_a_store) => Ok(None),
                _ => Err(Error::Usage(
                    "--jobs and --failed are for several hosts: name them with --to or --hosts".into(),
                )),
            };
        }
        let path = paths.last().and_then(|last| Location::path_alone(last));
        if path.is_some() {
            paths.pop();
        }
        check_operands(paths)?;
        let mut named: Vec<(String, OsString)> =
            self.to.iter().map(|to| ("--to".into(), to.clone())).collect();
        for file in &self.hosts {
            named.extend(lines_of(file)?);
        }
        let mut destinations: Vec<(Host, PathBuf)> = Vec::new();
        for (place, line) in &named {
            let wrong = |what: String| Error::Usage(format!("{place}: {what}"));
            let destination = Location::parse_destination(line, path.as_deref())
                .map_err(|error| wrong(error.to_string()))?;
            if let Some(first) = destinations.iter().position(|other| *other == destination) {
                return Err(wrong(format!(
                    "{line:?} is the same place as {:?} ({})",
                    named[first].1, named[first].0
                )));
            }
            destinations.push(destination);
        }
        if destinations.is_empty() {
            let files: Vec<_> = self.hosts.iter().map(|file| printable(file)).collect();
            return Err(Error::Usage(format!("--hosts {}: there is no host in it", files.join(", "))));
        }
        Ok(Some(SeveralHosts {
            deployment: Deployment {
                destinations,
                jobs: self.jobs.map(usize::from),
                together: self.together,
            },
            lines: named.into_iter().map(|(_, line)| line).collect(),
            failed: self.failed.clone(),
        }))
    }
}

/// Refuses what is probably a DEST among operands that are all SRC.
fn check_operands(paths: &[OsString]) -> Result<()> {
    let Some(last) = paths.last() else {
        return Err(Error::Usage(
            "there is no SRC: with --to and --hosts write SRC..., or SRC... :PATH".into(),
        ));
    };
    let shown = printable(Path::new(last));
    let is_far = |path: &OsString| matches!(Location::parse(path), Ok(Location::Remote(..)));
    if is_far(last) && !paths.iter().all(is_far) {
        return Err(Error::Usage(format!(
            "{shown} stands beside --to or --hosts, where every operand is a SRC, and the others are here: name all hosts \
             with --to, or give their path alone, as :PATH"
        )));
    }
    if paths.len() > 1 && !is_far(last) && Path::new(last).symlink_metadata().is_err() {
        return Err(Error::Usage(format!(
            "{shown} is not here: with --to and --hosts every operand is a SRC; the path at the hosts is :PATH"
        )));
    }
    Ok(())
}

/// The lines of a file that name hosts, each with where it stands.
fn lines_of(file: &Path) -> Result<Vec<(String, OsString)>> {
    let mut text = Vec::new();
    let is_stdin = file == Path::new("-");
    let read = match is_stdin {
        true => std::io::stdin().lock().take(MOST).read_to_end(&mut text),
        false => File::open(file).and_then(|file| file.take(MOST).read_to_end(&mut text)),
    };
    read.map_err(Error::file("read the hosts in", if is_stdin { Path::new("stdin") } else { file }))?;
    if text.len() as u64 == MOST {
        return Err(Error::Usage(format!(
            "--hosts {}: more than 4 MiB are no list of hosts",
            printable(file)
        )));
    }
    let lines = text.split(|&byte| byte == b'\n').zip(1..).filter_map(|(line, number)| {
        let line = line.trim_ascii();
        let is_host = !line.is_empty() && !line.starts_with(b"#");
        is_host.then(|| {
            (format!("--hosts {}, line {number}", printable(file)), OsStr::from_bytes(line).to_owned())
        })
    });
    Ok(lines.collect())
}

/// The file of hosts that are to be tried again. It is right at any time, however the run ends.
pub struct FailedList {
    path: PathBuf,
    /// Each host, until it is equal.
    left: Mutex<Vec<Option<OsString>>>,
}

impl FailedList {
    /// Begins the file with all hosts, if there is to be one. `sources`: what it must not replace.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn begin(several: &SeveralHosts, sources: &[Location]) -> Result<Option<FailedList>> {
        let Some(path) = &several.failed else { return Ok(None) };
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            return Err(Error::refused(path, "is no file: --failed wants the name of one"));
        }
        output::check(path, &sources.iter().collect::<Vec<_>>())?;
        let left = several.lines.iter().cloned().map(Some).collect();
        let list = FailedList { path: path.clone(), left: Mutex::new(left) };
        list.write(&lock(&list.left))?;
        Ok(Some(list))
    }

    /// A host is equal.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn is_equal(&self, at: usize) -> Result<()> {
        let mut left = lock(&self.left);
        left.get_mut(at).map(Option::take);
        self.write(&left)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, left: &[Option<OsString>]) -> Result<()> {
        let text: Vec<u8> =
            left.iter().flatten().flat_map(|line| [line.clone().into_vec(), vec![b'\n']].concat()).collect();
        output::put(&self.path, |mut file| file.write_all(&text).map_err(Error::file("write", &self.path)))
    }
}
