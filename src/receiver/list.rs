//! A receiver that takes nothing: it shows what the sender announces.

use std::io::{Read, Write};

use crate::error::Result;
use crate::protocol::{self, Connection, Frame, Message};
use crate::report::{Changes, Event, Phase, Stats};
use crate::source::Kind;

/// Entries after which credit goes back, where more have arrived.
const TOGETHER: u64 = 64;

/// Tells of every entry that the sender has, which takes this for a dry run in which all
/// files are equal. Returns what the sender counted.
///
/// # Errors
///
/// When the connection fails, the sender breaks a rule, or gives up.
pub fn list<R: Read, W: Write>(connection: Connection<R, W>) -> Result<Stats> {
    let Connection { mut input, mut output, reporter, .. } = connection;
    let mut due = 0;
    loop {
        if due >= TOGETHER || due > 0 && !input.has_arrived() {
            output.message(&Message::Granted { units: std::mem::take(&mut due) })?;
            output.flush()?;
        }
        match input.read()? {
            Frame::Message(Message::Entry(entry)) => {
                protocol::check_path(&entry.path).map_err(|what| input.bad(what))?;
                reporter.event(Event::Listed(entry.item()));
                if matches!(entry.kind, Kind::File { .. }) {
                    output.message(&Message::Unchanged { id: entry.id, changes: Changes::default() })?;
                }
                due += 1;
            }
            Frame::Message(Message::Layout { .. }) => {}
            // It must hear something, too.
            Frame::Message(Message::Busy(_)) => {
                output.message(&Message::Busy(Phase::Mapping))?;
                output.flush()?;
            }
            Frame::Message(message @ (Message::Warning(_) | Message::WarningAbout { .. })) => {
                message
                    .into_warning(input.peer())
                    .iter()
                    .for_each(|warning| reporter.event(Event::Warning(warning)));
            }
            Frame::Message(Message::SourceFailed(failure)) => {
                reporter.event(Event::Failed(&failure.on(input.peer())))
            }
            Frame::Message(Message::End(stats)) => {
                output.message(&Message::End(Box::default()))?;
                output.flush()?;
                return Ok(*stats);
            }
            _ => return Err(input.bad("a message out of turn")),
        }
    }
}
