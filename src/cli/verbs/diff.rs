//! `holesync diff`: where two images differ, as a table and as a picture. Exit codes are those
//! of cmp(1) and diff(1): 0 equal, 1 different, 2 and more where that is not known.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use holesync::error::{Error, Result, printable};
use holesync::hashmap::difference::{Content, Lengths, Span};
use holesync::location::Location;
use holesync::report::human;
use holesync::report::picture::{Picture, Shows};
use holesync::sync::survey::{self, Looking};
use serde_json::json;

use crate::cli::verbs::draw::DrawArgs;
use crate::cli::verbs::look::{LookArgs, Watch};
use crate::cli::verbs::print_line;

/// The images differ.
const DIFFERENT: u8 = 1;
/// A command line that makes no sense.
pub const TROUBLE: u8 = 2;

/// `holesync diff A B`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// An image: a file or block device, host:path, or a map
    pub(super) a: OsString,
    /// Another one
    pub(super) b: OsString,
    /// Print nothing, and end at the first difference: the exit code tells
    #[arg(short, long, conflicts_with_all = ["svg", "chart", "json"])]
    pub(super) quiet: bool,
    /// One JSON object a line, the summary last
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) draw: DrawArgs,
    #[command(flatten)]
    pub(super) look: LookArgs,
}

impl DiffArgs {
    /// Prints the table, and draws. Returns whether there is a difference, as an exit code.
    ///
    /// # Errors
    ///
    /// When an image cannot be read, or something not be written.
    pub fn run(self, umask: u32) -> Result<ExitCode> {
        self.run_if(umask, || Ok(()))
    }

    /// The same where `check` has nothing against it.
    pub(super) fn run_if(self, umask: u32, check: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
        let as_json = self.json;
        let result = check().and_then(|()| self.compare(umask));
        if let (Err(error), true) = (&result, as_json) {
            let code = error.exit_code().max(TROUBLE);
            print_line(&json!({"event": "error", "code": code, "message": error.to_string()}).to_string())?;
        }
        result
    }

    fn compare(self, umask: u32) -> Result<ExitCode> {
        let (a, b) = (Location::parse(&self.a)?, Location::parse(&self.b)?);
        self.draw.check(&[&a, &b])?;
        let (options, remote) = self.look.options(umask)?;
        let watch = Watch::new(&[&a, &b], self.quiet);
        let looking = Looking { options: &options, remote: &remote, reporter: &watch };
        let names = [&self.a, &self.b].map(|name| printable(Path::new(name)));
        let mut found = Found { as_json: self.json, names, ..Found::default() };
        let quiet = self.quiet;
        let compared = survey::diff(&a, &b, looking, &mut |lengths, span| {
            match span.differs {
                // Nothing else is to be found out.
                true if quiet => Err(Error::Reported { code: DIFFERENT }),
                _ => found.take(lengths, &span, &watch),
            }
        });
        watch.finish();
        let lengths = match compared {
            Err(Error::Reported { code: DIFFERENT }) if quiet => return Ok(ExitCode::from(DIFFERENT)),
            compared => compared?,
        };
        if !quiet {
            found.summarize(lengths)?;
            self.draw.draw(&found.drawn(lengths), !self.json)?;
        }
        Ok(ExitCode::from(if found.ranges > 0 { DIFFERENT } else { 0 }))
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    as_json: bool,
    names: [String; 2],
    picture: Option<Picture>,
    /// Ranges that differ, their bytes, and the bytes of data of both images.
    ranges: u64,
    bytes: u64,
    data: [u64; 2],
}

/// The bands of the picture.
const BANDS: [(&str, usize); 3] = [("A", 0), ("B", 1), ("differs", 2)];

impl Found {
    fn take(&mut self, lengths: Lengths, span: &Span, watch: &Watch) -> Result<()> {
        let picture = self.picture.get_or_insert_with(|| start(lengths, &self.names));
        let length = span.bytes.end - span.bytes.start;
        for (content, (_, band)) in [span.a, span.b].into_iter().zip(BANDS) {
            if content == Content::Data {
                self.data[band] += length;
                picture.mark(band, &span.bytes);
            }
        }
        if !span.differs {
            return Ok(());
        }
        picture.mark(BANDS[2].1, &span.bytes);
        self.ranges += 1;
        self.bytes += length;
        self.print(span, length, watch)
    }

    fn print(&self, span: &Span, length: u64, watch: &Watch) -> Result<()> {
        let (kind, what) = match (span.a, span.b) {
            (Content::Absent, _) => ("beyond_a", "beyond the end of A"),
            (_, Content::Absent) => ("beyond_b", "beyond the end of B"),
            (Content::Data, Content::Zeros) => ("only_a", "data in A, zeros in B"),
            (Content::Zeros, Content::Data) => ("only_b", "zeros in A, data in B"),
            _ => ("changed", "changed"),
        };
        let offset = span.bytes.start;
        if self.as_json {
            let row = json!({"event": "range", "offset": offset, "length": length, "kind": kind});
            return watch.print_line(&row.to_string());
        }
        if self.ranges == 1 {
            watch.print_line(&format!("{:>16} {:>16} what", "offset", "length"))?;
        }
        watch.print_line(&format!("{offset:>16} {length:>16} {what}"))
    }

    fn summarize(&self, lengths: Lengths) -> Result<()> {
        if !self.as_json {
            return print_line(&self.verdict());
        }
        let image = |nth: usize, length: u64| json!({"path": self.names[nth], "length": length, "data_bytes": self.data[nth]});
        print_line(
            &json!({"event": "summary", "equal": self.ranges == 0, "ranges": self.ranges,
                "differing_bytes": self.bytes, "a": image(0, lengths.a), "b": image(1, lengths.b)})
            .to_string(),
        )
    }

    fn verdict(&self) -> String {
        let [a, b] = &self.names;
        match self.ranges {
            0 => format!("{a} and {b} are equal: {} of data", human(self.data[0])),
            1 => format!("{a} and {b} differ: {} in 1 range", human(self.bytes)),
            many => format!("{a} and {b} differ: {} in {many} ranges", human(self.bytes)),
        }
    }

    fn drawn(&mut self, lengths: Lengths) -> Picture {
        let mut picture = self.picture.take().unwrap_or_else(|| start(lengths, &self.names));
        picture.set_heading(match self.ranges {
            0 => "equal".into(),
            1 => format!("{} differ, in 1 range", human(self.bytes)),
            many => format!("{} differ, in {many} ranges", human(self.bytes)),
        });
        picture
    }
}

/// An empty picture of two images.
fn start(lengths: Lengths, names: &[String; 2]) -> Picture {
    let mut picture = Picture::new(lengths.longest());
    let [(a, _), (b, _), (differs, _)] = BANDS;
    picture.add_band(a, &names[0], Shows::Data, lengths.a);
    picture.add_band(b, &names[1], Shows::Data, lengths.b);
    picture.add_band(differs, differs, Shows::Difference, lengths.longest());
    picture
}
