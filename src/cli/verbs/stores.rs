//! `holesync versions`, `prune` and `check`: what a store keeps.

use std::time::Duration;

use clap::Args;
use holesync::error::{Again, Error, Result};
use holesync::remote;
use holesync::report::{hex, human};
use holesync::store::address::{Address, Reach};
use holesync::store::check::{Checked, check, check_newest};
use holesync::store::keep::{self, PruneRules, Versions, prune, versions};
use holesync::store::name::ImageName;
use holesync::store::objects::WritableObjects;
use serde_json::json;

use crate::cli::values::age;
use crate::cli::verbs::look::Watch;
use crate::cli::verbs::{each, print_line};

/// `holesync versions STORE/NAME`.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// The image: a directory or s3://bucket/prefix, and its name
    #[arg(value_name = "STORE/NAME")]
    store: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl VersionsArgs {
    /// Prints a line for each version, the newest first.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn run(&self) -> Result<()> {
        let address = Address::parse(&self.store)?;
        let objects = address.base.open_writable(&Reach::from_environment()?)?;
        let (objects, name) = (objects.as_ref(), address.image()?);
        let Versions { kept, damaged } = listed(objects, name)?;
        if kept.is_empty() && damaged.is_empty() {
            return Err(keep::nothing_there(objects, name));
        }
        for kept in kept {
            let (head, is_signed) = (kept.head, !kept.sealed.signature.is_empty());
            let root = hex(&head.root.0);
            let signed = if is_signed { " signed" } else { "" };
            print_line(&match self.json {
                true => json!({"version": head.version(), "time": head.time / 1_000_000_000, "length": head.length,
                    "data_bytes": head.data, "root": root, "signed": is_signed})
                .to_string(),
                false => format!(
                    "{} {} of data in {} {root}{signed}",
                    head.version(),
                    human(head.data),
                    human(head.length)
                ),
            })?;
        }
        each(damaged, Err)
    }
}

/// All versions, and before them the image that lies there as it is, if it is the newest.
fn listed(objects: &dyn WritableObjects, name: &ImageName) -> Result<Versions> {
    let mut all = versions(objects, name)?;
    match keep::newest(objects, name) {
        Ok(newest) => drop(all.kept.splice(0..0, newest.filter(|newest| newest.head.places.is_none()))),
        Err(error @ Error::Protocol { .. }) => all.damaged.push(error),
        Err(error) => return Err(error),
    }
    Ok(all)
}

/// `holesync check STORE/NAME`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The image: a directory or s3://bucket/prefix, and its name
    #[arg(value_name = "STORE/NAME")]
    store: String,
}

impl CheckArgs {
    /// Reads all versions, and tells of each whether it is whole.
    ///
    /// # Errors
    ///
    /// When one is not, or the store cannot be read.
    pub fn run(&self) -> Result<()> {
        let (address, reach) = (Address::parse(&self.store)?, Reach::from_environment()?);
        let (objects, name) = (address.base.open_writable(&reach)?, address.image()?);
        let Versions { kept, damaged } = versions(objects.as_ref(), name)?;
        let (plain, wrong) = match check_newest((objects.as_ref(), name), &kept) {
            Ok(plain) => (plain, None),
            Err(error) => (None, Some(error)),
        };
        let all = plain.iter().chain(&kept).map(Ok).chain(damaged.into_iter().chain(wrong).map(Err));
        let watch = Watch::new(&[], false);
        // After a signal nothing more is looked at.
        let all = all.take_while(|_| !remote::is_interrupted());
        let checked = each(all, |kept| {
            let kept = kept?;
            // What is wrong with one version ends what is asked for it.
            let objects = address.base.open_writable(&reach)?;
            let Checked { blocks, bytes } = check((objects.as_ref(), name), kept, &watch)?;
            let version = kept.head.version();
            watch.print_line(&format!(
                "{}@{version} is whole: {blocks} blocks, {} read",
                self.store,
                human(bytes)
            ))
        });
        watch.finish();
        match remote::is_interrupted() {
            true => Err(Error::Interrupted(Again::Anew)),
            false => checked,
        }
    }
}

/// `holesync prune STORE/NAME`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The image: a directory or s3://bucket/prefix, and its name
    #[arg(value_name = "STORE/NAME")]
    store: String,
    /// Keep so many versions, the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// And those that are no older: 12h, 30d, 8w
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: Option<Duration>,
    /// How long what no version needs stays, for those who pull or publish meanwhile
    #[arg(long, value_name = "TIME", value_parser = age, default_value = "1d")]
    grace: Duration,
    /// Change nothing, tell what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl PruneArgs {
    /// Forgets versions, and tells what went.
    ///
    /// # Errors
    ///
    /// When the store cannot be read or written.
    pub fn run(&self) -> Result<()> {
        let address = Address::parse(&self.store)?;
        let objects = address.base.open_writable(&Reach::from_environment()?)?;
        let rules = PruneRules {
            keep: self.keep as usize,
            older_than: self.older_than,
            grace: self.grace,
            dry_run: self.dry_run,
        };
        let pruned = prune((objects.as_ref(), address.image()?), &rules)?;
        let ((condemned, condemned_bytes), (removed, removed_bytes)) = (pruned.condemned, pruned.removed);
        if self.json {
            return print_line(
                &json!({"forgotten": pruned.versions, "kept": pruned.kept, "condemned": condemned,
                    "condemned_bytes": condemned_bytes, "removed": removed, "removed_bytes": removed_bytes,
                    "dry_run": self.dry_run})
                .to_string(),
            );
        }
        for version in &pruned.versions {
            print_line(&format!("{}@{version} forgotten", self.store))?;
        }
        print_line(&format!(
            "{} versions kept; {condemned} objects of {} condemned, {removed} of {} removed",
            pruned.kept,
            human(condemned_bytes),
            human(removed_bytes)
        ))
    }
}
