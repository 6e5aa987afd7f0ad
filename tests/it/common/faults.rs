//! Ways to make a run fail at a chosen point.

use std::path::Path;
use std::process::Command;

use super::lab;
use super::peer::Peer;

/// A filter for one direction of a connection: mode, offset, byte to flip with.
///
/// It never holds anything back: what was read is written before the next read.
const FILTER: &str = r#"
my ($mode, $at, $with) = @ARGV;
my $seen = 0;
while (sysread STDIN, my $part, 65536) {
    my $here = $at - $seen;
    $seen += length $part;
    my $inside = $here >= 0 && $here < length $part;
    if ($mode eq "flip") {
        substr($part, $here, 1) ^= chr $with if $inside;
    } elsif ($here < length $part) {
        $part = substr $part, 0, $here > 0 ? $here : 0;
    }
    syswrite STDOUT, $part;
    last if $mode eq "cut" && $inside;
}
"#;

/// What befalls the bytes of one direction.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The stream ends after so many bytes.
    Cut(u64),
    /// The byte at this offset is changed by XOR.
    Flip(u64, u8),
    /// Nothing passes after so many bytes, but the stream stays open as long
    /// as its writer lives.
    Stall(u64),
}

/// Which direction it befalls.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    ToAgent,
    FromAgent,
}

impl Fault {
    /// A shell pipeline in which `agent` suffers it. `dir` keeps the filter.
    pub fn pipeline(self, dir: &Path, direction: Direction, agent: &str) -> String {
        let filter = dir.join("filter.pl");
        std::fs::write(&filter, FILTER).expect("write the filter");
        let arguments = match self {
            Fault::Cut(at) => format!("cut {at} 0"),
            Fault::Flip(at, with) => format!("flip {at} {with}"),
            Fault::Stall(at) => format!("stall {at} 0"),
        };
        let filter = format!("perl '{}' {arguments}", filter.display());
        match direction {
            Direction::ToAgent => format!("{filter} | {agent}"),
            Direction::FromAgent => format!("{agent} | {filter}"),
        }
    }

    /// An agent at the other end of two pipes that suffers it.
    pub fn peer(self, dir: &Path, direction: Direction) -> Peer {
        Peer::script(dir, &self.pipeline(dir, direction, "agent"))
    }
}

/// Whether strace works here; if not, a counted skip.
pub fn can_trace() -> bool {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let works = works.is_ok_and(|status| status.success());
    if !works {
        lab::skip("no strace");
    }
    works
}

/// An agent that is killed when one of its threads makes the `nth` call of this
/// name, before the call does anything.
pub fn killed_at(dir: &Path, call: &str, nth: usize) -> Peer {
    let what = format!("-e 'trace=?{call}' -e 'inject=?{call}:signal=KILL:when={nth}'");
    Peer::script(dir, &format!("exec strace -f -qq -o /dev/null {what} $command"))
}
