//! `holesync map`: the extents of an image, or its blocks, as a table and as a picture; its
//! map as a file; its bmap.

use std::ffi::OsString;
use std::io::{BufWriter, stdout};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use holesync::error::{Error, Result, printable};
use holesync::hashmap::map_file::{self, MapWriter};
use holesync::hashmap::{MapEntry, page_runs};
use holesync::location::Location;
use holesync::report::picture::{Picture, Shows};
use holesync::report::{Event, Phase, Reporter, hex, human};
use holesync::stream::{Bmap, ImageStream};
use holesync::sync::survey::{self, Looking};
use serde_json::json;

use crate::cli::verbs::draw::DrawArgs;
use crate::cli::verbs::look::{LookArgs, Watch};
use crate::cli::verbs::output;

/// `holesync map IMG`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// The image: a file or block device, or host:path
    image: OsString,
    /// Show a hash for every block that is not zero
    #[arg(long)]
    hashes: bool,
    /// Write the map of the image to FILE.map: what `verify` and `diff` compare with later, without
    /// the image; with --bmap, the bmap to FILE
    #[arg(short, long, value_name = "FILE.map", conflicts_with = "hashes")]
    output: Option<PathBuf>,
    /// Write the bmap of an image that is here, with which `bmaptool copy` flashes it: to stdout, or
    /// where -o says
    #[arg(long, conflicts_with = "hashes")]
    bmap: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    look: LookArgs,
}

impl MapArgs {
    /// Prints the table, and draws.
    ///
    /// # Errors
    ///
    /// When the image cannot be read, or something not be written.
    pub fn run(mut self, umask: u32) -> Result<()> {
        // Of a bmap, stdout.
        self.output = self.output.filter(|path| !self.bmap || path.as_os_str() != "-");
        let location = Location::parse(&self.image)?;
        self.draw.check(&[&location])?;
        self.check_output(&location)?;
        let as_text = !self.json && !self.prints_bmap();
        let of_use = self.check_look();
        let (options, remote) = self.look.options(umask)?;
        of_use?;
        let watch = Watch::new(&[&location], false);
        let looking = Looking { options: &options, remote: &remote, reporter: &watch };
        let mut rows = Rows { as_json: self.json, picture: None, watch: &watch };
        let length = match &self.output {
            output if self.bmap => rows.bmap(&location, output.as_deref()),
            Some(file) => rows.save(&location, looking, file),
            None if self.hashes => rows.blocks(&location, looking),
            None => rows.extents(&location, looking),
        };
        watch.finish();
        let length = length?;
        let name = printable(Path::new(&self.image));
        let mut picture = rows.picture.unwrap_or_else(|| start(length));
        picture.set_heading(name);
        self.draw.draw(&picture, as_text)
    }

    fn check_output(&self, location: &Location) -> Result<()> {
        if self.json && self.prints_bmap() {
            return Err(Error::Usage(
                "a bmap is XML: leave --json out, or write it to a file with -o FILE.bmap".into(),
            ));
        }
        let Some(path) = &self.output else { return Ok(()) };
        match self.bmap {
            true => output::check_no_map(path)?,
            false => output::check_map(path)?,
        }
        output::check(path, &[location])
    }

    /// Options that would do nothing are a mistake.
    fn check_look(&self) -> Result<()> {
        let hashes = self.hashes || (self.output.is_some() && !self.bmap);
        if self.look.names_a_unit() && !hashes {
            let what =
                "-B is the unit of hashes, and none are made: say --hashes or -o FILE.map, or leave it out";
            return Err(Error::Usage(what.into()));
        }
        if self.bmap && self.look.names_an_agent() {
            let what =
                "--agent is for an image on a host, and --bmap reads one that is here: leave one of them out";
            return Err(Error::Usage(what.into()));
        }
        Ok(())
    }

    /// Stdout is the bmap, and nothing else.
    fn prints_bmap(&self) -> bool {
        self.bmap && self.output.is_none()
    }
}

/// An empty picture of an image.
fn start(length: u64) -> Picture {
    let mut picture = Picture::new(length);
    picture.add_band("data", "data", Shows::Data, length);
    picture
}

/// What is printed, and counted for the picture.
struct Rows<'a> {
    as_json: bool,
    picture: Option<Picture>,
    watch: &'a Watch,
}

impl Rows<'_> {
    fn head(&self) -> Result<()> {
        if self.as_json {
            return Ok(());
        }
        self.watch.print_line(&format!("{:>16} {:>16} kind", "offset", "length"))
    }

    fn print(&self, bytes: &Range<u64>, kind: &str, hash: Option<&str>) -> Result<()> {
        let (offset, length) = (bytes.start, bytes.end - bytes.start);
        if length == 0 {
            return Ok(());
        }
        self.watch.print_line(&match (self.as_json, hash) {
            (true, None) => json!({"offset": offset, "length": length, "kind": kind}).to_string(),
            (true, Some(hash)) => {
                json!({"offset": offset, "length": length, "kind": kind, "hash": hash}).to_string()
            }
            (false, hash) => {
                format!("{offset:>16} {length:>16} {kind}{}{}", hash.map_or("", |_| " "), hash.unwrap_or(""))
            }
        })
    }

    /// Has the picture show data.
    fn mark(&mut self, length: u64, bytes: &Range<u64>) {
        self.picture.get_or_insert_with(|| start(length)).mark(0, bytes);
    }

    fn extents(&mut self, location: &Location, looking: Looking) -> Result<u64> {
        self.head()?;
        let mut at = 0;
        let length = survey::extents(location, looking, &mut |length, extent| {
            self.print(&(at..extent.start), "hole", None)?;
            self.print(&extent, "data", None)?;
            self.mark(length, &extent);
            at = extent.end;
            Ok(())
        })?;
        self.print(&(at..length), "hole", None)?;
        Ok(length)
    }

    fn blocks(&mut self, location: &Location, looking: Looking) -> Result<u64> {
        self.head()?;
        let mut zeros = 0..0;
        let grid = survey::blocks(location, looking, &mut |grid, index, blocks| {
            match blocks {
                MapEntry::Zero(count) if zeros.end == index => zeros.end += count,
                MapEntry::Zero(count) => zeros = index..index + count,
                MapEntry::Data { pages, hash } => {
                    self.print(&grid.bytes(&zeros), "zero", None)?;
                    zeros = index + 1..index + 1;
                    self.print(&grid.bytes(&(index..index + 1)), "data", Some(&hex(hash)))?;
                    for run in page_runs(*pages) {
                        self.mark(grid.length, &grid.pages(index, &run));
                    }
                }
            }
            Ok(())
        })?;
        self.print(&grid.bytes(&zeros), "zero", None)?;
        Ok(grid.length)
    }

    /// Writes the map to a file.
    fn save(&mut self, location: &Location, looking: Looking, path: &Path) -> Result<u64> {
        let failed = |error| Error::file("write", path)(error);
        let mut data = 0;
        let (grid, root) = output::put(path, |file| {
            let mut writer = None;
            let grid = survey::blocks(location, looking, &mut |grid, index, entry| {
                let writer = match &mut writer {
                    Some(writer) => writer,
                    none => none.insert(MapWriter::new(BufWriter::new(file), grid).map_err(failed)?),
                };
                writer.add(entry).map_err(failed)?;
                if let MapEntry::Data { pages, .. } = entry {
                    data += grid.masked_bytes(index, *pages);
                    page_runs(*pages).for_each(|run| self.mark(grid.length, &grid.pages(index, &run)));
                }
                Ok(())
            })?;
            let writer = match writer {
                Some(writer) => writer,
                // An image of no bytes has no blocks.
                None => MapWriter::new(BufWriter::new(file), &grid).map_err(failed)?,
            };
            Ok((grid, writer.finish().map_err(failed)?.1))
        })?;
        let (name, root, length) = (printable(path), hex(&root), grid.length);
        self.watch.print_line(&match self.as_json {
            true => json!({"path": name, "length": length, "data_bytes": data,
                "block_size": grid.block.bytes(), "root": root})
            .to_string(),
            false => format!("{name}: {} of data in {}, {root}", human(data), human(length)),
        })?;
        Ok(length)
    }

    /// Writes the bmap to a file, or to stdout.
    fn bmap(&mut self, location: &Location, output: Option<&Path>) -> Result<u64> {
        let image = bmap_of(location)?;
        let length = image.length;
        self.watch.event(Event::Found(length));
        let mut read = 0;
        let mut bmap = Bmap::of(&image, &mut |extent| {
            self.mark(length, &extent);
            self.watch.event(Event::Done(Phase::Mapping, extent.end - read));
            read = extent.end;
        })?;
        self.watch.finish();
        let Some(path) = output else {
            bmap.write(&mut stdout().lock(), Path::new("stdout"))?;
            return Ok(length);
        };
        output::put(path, |mut file| bmap.write(&mut file, path))?;
        let (name, data) = (printable(path), bmap.data);
        self.watch.print_line(&match self.as_json {
            true => json!({"path": name, "length": length, "data_bytes": data}).to_string(),
            false => format!("{name}: {} of data in {}", human(data), human(length)),
        })?;
        Ok(length)
    }
}

/// The image that a bmap is to be made of: its bytes are read.
fn bmap_of(location: &Location) -> Result<ImageStream> {
    match location {
        Location::Remote(host, path) => Err(Error::Usage(format!(
            "--bmap reads the image itself, which is on {host}: run holesync map {} --bmap there",
            printable(path)
        ))),
        Location::Local(path) if map_file::is_map(path) => {
            Err(Error::refused(path, "is a map, which has no bytes to make a bmap of: name the image itself"))
        }
        Location::Local(path) => ImageStream::open(path, true),
    }
}
