//! Ways to make a run fail at a chosen point.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::lab;
use super::peer::Peer;
use super::process::wait_until;

/// A filter for one direction of a connection: mode, offset, and the byte to flip
/// with or the path to pause on.
///
/// It never holds anything back: what was read is written before the next read.
const FILTER: &str = r#"
my ($mode, $at, $with) = @ARGV;
sub pause {
    open my $file, ">", "$with.paused";
    select undef, undef, undef, 0.002 until -e "$with.go";
}
my $seen = 0;
while (sysread STDIN, my $part, 65536) {
    my $here = $at - $seen;
    $seen += length $part;
    my $inside = $here >= 0 && $here < length $part;
    if ($mode eq "flip") {
        substr($part, $here, 1) ^= chr $with if $inside;
    } elsif ($mode eq "pause") {
        if ($inside) {
            syswrite STDOUT, substr $part, 0, $here, "";
            pause();
        }
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
    /// After so many bytes the stream waits for [`resume`].
    Pause(u64),
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
            Fault::Pause(at) => format!("pause {at} '{}'", dir.join("stream").display()),
        };
        let filter = format!("perl '{}' {arguments}", filter.display());
        let (first, last) = match direction {
            Direction::ToAgent => (filter.as_str(), agent),
            Direction::FromAgent => (agent, filter.as_str()),
        };
        // The shell lets go of both streams: when an end of the pipeline dies, that shows.
        format!("exec 4<&0\n{first} <&4 4<&- | {last} 4<&- &\nexec 4<&- <&- >&-\nwait $!")
    }

    /// An agent at the other end of two pipes that suffers it.
    pub fn peer(self, dir: &Path, direction: Direction) -> Peer {
        Peer::script(dir, &self.pipeline(dir, direction, "agent"))
    }
}

/// Waits until a stream with [`Fault::Pause`] has come to its pause.
pub fn await_pause(dir: &Path) {
    assert!(wait_until(Duration::from_secs(60), || dir.join("stream.paused").exists()), "never paused");
}

/// Lets it go on.
pub fn resume(dir: &Path) {
    std::fs::write(dir.join("stream.go"), "").expect("let the stream go on");
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

/// Seconds that a test does something over and over: HOLESYNC_TEST_SECONDS, or `otherwise`.
pub fn seconds(otherwise: u64) -> u64 {
    std::env::var("HOLESYNC_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
