//! `holesync publish`: a version of an image into a store.

use std::path::PathBuf;

use clap::Args;
use holesync::error::{Error, Result, printable};
use holesync::report::{hex, human};
use holesync::store::address::{Address, Base, Reach, make_directory};
use holesync::store::name::Version;
use holesync::store::publish::{PublishOptions, Published, publish};
use holesync::store::signature::Signer;
use serde_json::json;

use crate::cli::values::{size, unit_of_comparison};
use crate::cli::verbs::look::Watch;

/// `holesync publish IMG STORE/NAME`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The image: a file or block device
    image: PathBuf,
    /// A directory, or s3://bucket/prefix, and behind it the name of the image
    #[arg(value_name = "STORE/NAME")]
    store: String,
    /// The name of the version [default: the time]
    #[arg(long = "as", value_name = "VERSION")]
    version: Option<String>,
    /// Sign the version with this key of ssh, by ssh-keygen
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// STORE/NAME is the plain image already: write its map alone, beside it
    #[arg(long, conflicts_with = "compress_level")]
    raw: bool,
    /// zstd level
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(i32).range(1..=19))]
    compress_level: i32,
    /// Unit of comparison, a power of two from 4K to 256K [default: 64K]
    #[arg(short = 'B', long, value_name = "SIZE", value_parser = size)]
    block_size: Option<u64>,
    /// Read holes, too: for file systems that report them wrongly
    #[arg(long)]
    no_hole_map: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl PublishArgs {
    /// Publishes, and tells what.
    ///
    /// # Errors
    ///
    /// When the image cannot be read, or the store not be written.
    pub fn run(self) -> Result<()> {
        let address = Address::parse(&self.store)?;
        let name = address.image()?;
        let version = self.version.as_deref().map(Version::new).transpose()?;
        let block_size = unit_of_comparison(self.block_size)?;
        // No store is made for an image that is not there, nor for a key.
        std::fs::metadata(&self.image).map_err(Error::file("look at", &self.image))?;
        let options = PublishOptions {
            version,
            block_size,
            hole_map: !self.no_hole_map,
            level: self.compress_level,
            raw: self.raw,
            sign: self.sign.as_deref().map(Signer::new).transpose()?,
        };
        if let Base::Directory(path) = &address.base {
            make_directory(path)?;
        }
        let objects = address.base.open_writable(&Reach::from_environment()?)?;
        let watch = Watch::new(&[], false);
        let published = publish(&self.image, (objects.as_ref(), name), &options, &watch);
        watch.finish();
        let published = published?;
        watch.print_line(&if self.json { as_json(&published) } else { self.as_text(&published) })
    }

    fn as_text(&self, published: &Published) -> String {
        let Published { head, is_old, counts, stored, patches } = published;
        let (image, root) = (printable(&self.image), hex(&head.root.0));
        let version = format!("{}@{}", self.store, head.version());
        if *is_old {
            return format!("{version} is {image} already, {root}");
        }
        let data = human(head.data);
        format!(
            "{version}: {data} of data in {}, {} of it new, {} written, {patches} patches, {root}",
            human(head.length),
            human(counts.data),
            human(*stored)
        )
    }
}

fn as_json(published: &Published) -> String {
    let Published { head, is_old, counts, stored, patches } = published;
    json!({
        "version": head.version(), "new": !is_old, "length": head.length, "data_bytes": head.data,
        "new_blocks": counts.blocks, "new_data_bytes": counts.data, "pack_bytes": counts.stored,
        "stored_bytes": stored, "patches": patches, "root": hex(&head.root.0),
    })
    .to_string()
}
