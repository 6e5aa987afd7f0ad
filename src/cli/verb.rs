//! The verbs, and their flags.

use std::path::PathBuf;

use clap::Subcommand;

use crate::cli::values::size;
use crate::cli::verbs::{
    CacheArgs, CheckArgs, DiffArgs, DigestArgs, MapArgs, PruneArgs, PublishArgs, VerifyArgs, VersionsArgs,
};

/// Everything that is not a transfer.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Answer another holesync on stdin and stdout
    Agent {
        /// Take every path that is asked for below DIR, and run no commands
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Only send what is there
        #[arg(long, requires = "root", conflicts_with = "write_only")]
        read_only: bool,
        /// Only take what is sent
        #[arg(long, requires = "root")]
        write_only: bool,
        /// Remove nothing that the other end does not have
        #[arg(long, requires = "root")]
        no_delete: bool,
    },
    /// Show where an image has data, here or at host:path
    Map(MapArgs),
    /// Show where two images differ, each here or at host:path, or a map
    Diff(DiffArgs),
    /// Show where an image differs from a map, here or at host:path
    Verify(VerifyArgs),
    /// Print the root hash of files, here or at host:path
    Digest(DigestArgs),
    /// Publish an image in a directory or bucket, from where web servers give it to any number of hosts
    Publish(PublishArgs),
    /// List the versions of an image in a store
    Versions(VersionsArgs),
    /// Look whether all versions of an image in a store are whole
    Check(CheckArgs),
    /// Forget versions of an image in a store, and remove what none needs
    Prune(PruneArgs),
    /// Show or clear the maps that runs have kept
    #[command(subcommand)]
    Cache(CacheArgs),
    /// Write an image to stdout as a stream of DATA and HOLE records
    Send {
        /// The image
        image: PathBuf,
        /// Close the stream with an END record, so that a break in it shows
        #[arg(long)]
        end: bool,
    },
    /// Read such a stream from stdin and make it a file
    Recv {
        /// The file; "-": write the image to stdout, zeros included
        file: PathBuf,
        /// Bytes that the image must have
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
        /// Do not wait until data is on storage
        #[arg(long)]
        no_fsync: bool,
        /// Write also what other programs use
        #[arg(long)]
        force_in_use: bool,
    },
    /// Write the manual, and completions for bash, zsh and fish, below DIR
    Manual {
        /// A directory such as /usr/local/share
        dir: PathBuf,
    },
    /// Finish what an interrupted run had begun to write into a file
    Recover {
        /// Files, or directories to look through
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Do not wait until data is on storage
        #[arg(long)]
        no_fsync: bool,
        /// Write also what other programs use
        #[arg(long)]
        force_in_use: bool,
    },
}
