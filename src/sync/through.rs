//! An image that a command reads, here or on a host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::location::{Host, Location};
use crate::options::Options;
use crate::protocol::{Frame, Message, Request};
use crate::remote::{FarSide, RemoteOptions};
use crate::report::{Event, Phase, Reporter, Stats};
use crate::shell;
use crate::stream::{self, ImageStream};
use crate::sync::retry::Tries;
use crate::sync::{Completed, Initiator, Shared, stdin};

/// Has `command`, run where `destination` is, read the image `source` whole, and
/// reports it.
///
/// # Errors
///
/// When the image cannot be read, the host cannot be reached, or the command fails.
pub fn through(
    source: &Location,
    destination: &Location,
    command: &OsStr,
    options: &Options,
    remote: &RemoteOptions,
    reporter: &dyn Reporter,
) -> Result<()> {
    let start = Instant::now();
    let tries = &Tries::new(Some(0));
    let shared = &Shared::alone(options);
    let initiator = Initiator { options, remote, reporter, tries, shared, saved: None };
    let Location::Local(source) = source else {
        return Err(Error::Usage("--through wants a source on this machine".into()));
    };
    if stdin::is_stdin(&Location::Local(source.clone())) {
        let what = "--through tells its command the length of the image, which shows on stdin only at the end: pipe it to \
                    the command by ssh, or send - to DEST itself";
        return Err(Error::Usage(what.into()));
    }
    if options.dry_run {
        return Err(Error::Usage("--through and --dry-run exclude each other: the command would run".into()));
    }
    let image = ImageStream::open(source, options.hole_map)?;
    let completed = match destination {
        Location::Local(_) if options.bandwidth.is_some() => {
            let what =
                "--bwlimit limits what goes to another machine: with --through and a DEST here leave it out";
            return Err(Error::Usage(what.into()));
        }
        Location::Local(path) => {
            let mut sent = 0;
            stream::run_command(command, path, image.length, |sink| {
                sent = image.pour(sink)?;
                Ok(())
            })?;
            Completed::here(sent)
        }
        Location::Remote(host, path) => initiator.send_through(&image, command, host, path)?,
    };
    let stats = Stats {
        files_total: 1,
        files_sent: 1,
        apparent_bytes: image.length,
        data_bytes: completed.value,
        sent_data_bytes: completed.value,
        ..Stats::default()
    };
    let completed = Completed { value: stats, route: completed.route, wire: completed.wire };
    reporter.summary(&initiator.summary(start, completed));
    Ok(())
}

impl Initiator<'_> {
    /// Sends an image to a command on a host. Returns how many bytes of data were sent.
    fn send_through(
        self,
        image: &ImageStream,
        command: &OsStr,
        host: &Host,
        path: &Path,
    ) -> Result<Completed<u64>> {
        let (command, destination) = (command.as_bytes(), path.as_os_str().as_bytes());
        // The command says nothing while it works, and the agent not for it.
        self.connect(host, None, |far_side, mut input, mut output| match far_side {
            FarSide::Shell => {
                let host = host.to_string();
                shell::run_command(self.shell_session(input, output, &host), image, command, destination)
            }
            FarSide::Agent => {
                let (command, destination) = (command.to_vec(), path.into());
                self.request(&mut output, Request::Through { command, destination, size: image.length })?;
                let write = |bytes: &[u8]| {
                    self.reporter.event(Event::Done(Phase::Sending, bytes.len() as u64));
                    output.plain(bytes)
                };
                let sent = image.send(true, write).and_then(|sent| output.flush().map(|()| sent));
                drop(output);
                match input.read() {
                    Ok(Frame::Message(Message::End(_))) => sent,
                    Ok(_) => Err(input.bad("something else than the end")),
                    // The error that the other end reports is why nothing could be sent to it.
                    Err(error @ Error::Remote { .. }) => Err(error),
                    Err(error) => sent.and(Err(error)),
                }
            }
        })
    }
}
