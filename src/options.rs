//! What the user asked for, in the form that the code uses. Built by `cli`,
//! sent to the other end as part of the start message.

mod alternates;
mod attributes;
mod chmod;
mod directories;
mod id_map;
mod since;
mod workplace;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::filter::FilterRules;

pub use alternates::{AlternateKind, Alternates};
pub use attributes::AttributeRules;
pub use chmod::ModeChanges;
pub use directories::{Directories, Missing};
pub use id_map::{IdMap, To};
pub use since::Since;
pub use workplace::WorkplaceRules;

/// How a transfer is to be done. Both ends work from the same copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Descend into directories.
    pub recursive: bool,
    /// Copy symlinks as symlinks; otherwise they are skipped.
    pub links: bool,
    /// Of these none that lead out of what is transferred.
    pub safe_links: bool,
    /// Make the directories that the destination lies in.
    pub mkpath: bool,
    /// Which directories of the sources are made, and what of their paths is kept.
    pub directories: Directories,
    /// What becomes of a source that is not there.
    pub missing: Missing,
    /// Which names are transferred, and which are not deleted.
    pub filter: FilterRules,
    /// Whether directories on other file systems are left out.
    pub one_file_system: OneFileSystem,
    /// Which files are transferred, and which stay as they are.
    pub transfer: TransferRules,
    /// Set permissions; otherwise new files follow the umask.
    pub perms: bool,
    /// Set modification times, to the nanosecond.
    pub times: bool,
    /// Set permissions, too, of a directory that is there and only named as the destination.
    pub destination_perms: bool,
    /// Set its modification time, too.
    pub destination_times: bool,
    /// Set the owner, by name where the name exists there.
    pub owner: bool,
    /// Set the group, by name where the name exists there.
    pub group: bool,
    /// What is kept of attributes beside these, and what is made of them.
    pub attributes: AttributeRules,
    /// Which entries become others on their way, or are made beside files and directories.
    pub kinds: KindRules,
    /// Change nothing; find out what would be done.
    pub dry_run: bool,
    /// The user is told of directories and symlinks, too, and how each entry differed.
    pub tells_changes: TellsChanges,
    /// Compare contents even where size and modification time agree.
    pub checksum: bool,
    /// Treat size and modification time as if they always differed.
    pub ignore_times: bool,
    /// So many seconds between two times are none; less than 0: nanoseconds count, too.
    /// `None`: as the file system of the destination keeps times.
    pub modify_window: Option<i32>,
    /// Take files of equal size for equal.
    pub size_only: bool,
    /// Send everything, whatever the destination has.
    pub whole_file: bool,
    /// How new content becomes the destination.
    pub commit: Commit,
    /// Keep zeros allocated on the destination.
    pub preallocate: bool,
    /// Trust SEEK_DATA and SEEK_HOLE, at both ends.
    pub hole_map: bool,
    /// Reading a file of the source leaves its access time alone, where that may be.
    pub open_noatime: bool,
    /// Read the destination back from storage and check it once more.
    pub verify: bool,
    /// Have data on storage before a file counts as done.
    pub fsync: bool,
    /// Write also what other programs use.
    pub force_in_use: bool,
    /// Write a packed image, or one in the format of a virtual machine, to a device as it is.
    pub as_is: bool,
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// The parts of a block that are compared by themselves when it differs; as
    /// large as a block or larger: none.
    pub leaf_size: BlockSize,
    /// Whether data travels compressed.
    pub compress: Compress,
    /// The zstd level; `None`: one that suits the connection.
    pub compress_level: Option<i32>,
    /// Seconds for which a connection may be silent; 0: for ever.
    pub timeout: u32,
    /// Bytes a second that each end writes at most. `None`: any number.
    pub bandwidth: Option<u64>,
    /// Files and devices at the destination's end that may have what it lacks, relative to the
    /// destination if they are relative.
    pub basis: Vec<Vec<u8>>,
    /// Other directories that may have what is missing at the destination.
    pub alternates: Option<Alternates>,
    /// A new file is begun from the one beside it whose name is most like its own.
    pub fuzzy: bool,
    /// Where new content gathers until it becomes the file.
    pub workplace: WorkplaceRules,
    /// How what is replaced or removed is kept. `None`: it is not.
    pub backup: Option<Backup>,
    /// Files of the source are removed when the destination has them.
    pub remove_source_files: bool,
    /// Files are not read again of which a kept map tells: see `docs/cache.md`. Said in the
    /// greeting.
    #[serde(skip, default = "yes")]
    pub map_cache: bool,
    /// What the only source was made from. Said to nobody.
    #[serde(skip)]
    pub since: Option<Since>,
    /// The file takes its place only when all hosts of this run have theirs ready. Said in the request.
    #[serde(skip)]
    pub together: Option<DeploymentId>,
    /// Directories that are not empty go, too, where something of another kind is to be.
    pub force: bool,
    /// What directories of the destination have and those of the source have not is removed.
    /// `None`: it stays.
    pub delete: Option<Delete>,
}

/// What tells a run to several hosts together from others: random bytes.
pub type DeploymentId = [u8; 16];

/// What an option is that is not told.
fn yes() -> bool {
    true
}

/// How what is replaced or removed is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// What is put behind its name.
    pub suffix: Vec<u8>,
    /// The directory below which it goes, under its own path; relative to the destination,
    /// if it is relative. `None`: it stays in its directory.
    pub dir: Option<Vec<u8>>,
}

impl Backup {
    /// Whether a path is that of something that was kept in its directory.
    pub fn is_one(&self, path: &[u8]) -> bool {
        self.dir.is_none() && path.ends_with(&self.suffix)
    }
}

/// What becomes of entries that are neither plain files nor directories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindRules {
    /// Make device nodes.
    pub devices: bool,
    /// Make fifos and sockets.
    pub specials: bool,
    /// Names of one file in the source become names of one file.
    pub hard_links: bool,
    /// Which symlinks are sent as what they lead to.
    pub follow: FollowLinks,
    /// A symlink to a directory at the destination is as good as a directory.
    pub keep_dir_links: bool,
}

/// Which symlinks of the source are sent as what they lead to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowLinks {
    /// All of them.
    pub all: bool,
    /// Those that lead out of what is transferred.
    pub leaving: bool,
    /// Those to directories.
    pub to_directories: bool,
    /// One that is a source itself is sent as what it is, unless it is one of these; else what
    /// it leads to is, if that is no directory.
    pub keeps_named: bool,
}

impl FollowLinks {
    /// Whether some are that lie below a source.
    pub fn any(self) -> bool {
        self.all || self.leaving || self.to_directories
    }
}

/// Whether directories, symlinks and the like are told of, too, and how each entry differed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TellsChanges {
    /// Files alone are told of.
    #[default]
    No,
    /// Where the other end can tell that.
    WherePossible,
    /// Where it cannot, that is an error.
    Always,
}

impl TellsChanges {
    /// Whether it is asked for.
    pub fn is_asked(self) -> bool {
        self != TellsChanges::No
    }
}

/// Whether a walk stays on the file system that it began on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OneFileSystem {
    /// It goes wherever there are directories.
    No,
    /// A directory where another is mounted is sent empty.
    Yes,
    /// Such a directory is not sent.
    WithoutMountPoints,
}

/// Which files are transferred of those that the source has. None of this has anything
/// removed that the destination has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRules {
    /// No file of more bytes.
    pub max_size: Option<u64>,
    /// No file of fewer bytes.
    pub min_size: Option<u64>,
    /// No file that is newer at the destination.
    pub update: bool,
    /// Nothing that the destination does not have.
    pub existing: bool,
    /// Nothing that the destination has, but for directories.
    pub ignore_existing: bool,
    /// No file that is as long at the destination, or longer.
    pub append: bool,
}

/// What of a file decides whether it stays as it is, of the source's or of what is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct SizeAndTime {
    /// Its modification time in seconds.
    pub time: Option<i64>,
    /// Its length in bytes, if it is a regular file.
    pub length: Option<u64>,
}

impl TransferRules {
    /// Whether a file of so many bytes is transferred.
    pub fn takes_size(&self, length: u64) -> bool {
        self.max_size.is_none_or(|most| length <= most) && self.min_size.is_none_or(|least| length >= least)
    }

    /// Whether something stays as it is at the destination, or is not made. Times that are
    /// no more than so many seconds apart are equal.
    pub fn stays(&self, source: SizeAndTime, there: Option<SizeAndTime>, window: Option<i32>) -> bool {
        let Some(there) = there else { return self.existing };
        let window = i64::from(window.unwrap_or(0).max(0));
        let times = source.time.zip(there.time);
        let is_newer = times.is_some_and(|(source, there)| there > source.saturating_add(window));
        let lengths = source.length.zip(there.length);
        let is_complete = lengths.is_some_and(|(source, there)| there >= source);
        self.ignore_existing || self.update && is_newer || self.append && is_complete
    }

    /// Whether it depends on the destination what is transferred.
    pub fn look_there(&self) -> bool {
        self.update || self.existing || self.ignore_existing || self.append
    }
}

/// How entries are removed that the source does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// At what time.
    pub when: DeleteWhen,
    /// Also what the filter rules leave out.
    pub excluded: bool,
    /// How many entries at most; `None`: any number.
    pub most: Option<u64>,
    /// Also when something could not be read or transferred.
    pub ignore_errors: bool,
}

/// When entries are removed that the source does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeleteWhen {
    /// Before anything is transferred.
    Before,
    /// In each directory, before what is in it is transferred.
    During,
    /// When everything is in its place.
    After,
}

impl Options {
    /// The usual timeout, in seconds.
    pub const TIMEOUT: u32 = 60;

    /// How long the other end may be silent; `None`: for ever.
    pub fn silence(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout.into()))
    }

    /// Whether the receiver tells of entries that are no files.
    pub fn tells_others(&self) -> bool {
        self.tells_changes.is_asked() || self.remove_source_files
    }

    /// Whether the receiver removes something that the sender does not have.
    pub fn removes(&self) -> bool {
        self.delete.is_some() || self.missing == Missing::Deleted
    }

    /// How long an end may be silent itself.
    pub fn life_sign(&self) -> Duration {
        const MOST: Duration = Duration::from_secs(10);
        self.silence().map_or(MOST, |silence| MOST.min(silence / 3))
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            recursive: true,
            links: true,
            safe_links: false,
            mkpath: false,
            directories: Directories {
                relative: false,
                implied: true,
                without_recursion: false,
                prune_empty: false,
            },
            missing: Missing::Failed,
            filter: FilterRules::default(),
            one_file_system: OneFileSystem::No,
            transfer: TransferRules::default(),
            perms: true,
            times: true,
            destination_perms: false,
            destination_times: false,
            owner: false,
            group: false,
            attributes: AttributeRules::default(),
            kinds: KindRules::default(),
            dry_run: false,
            tells_changes: TellsChanges::No,
            checksum: false,
            ignore_times: false,
            modify_window: None,
            size_only: false,
            whole_file: false,
            commit: Commit::Auto,
            preallocate: false,
            hole_map: true,
            open_noatime: false,
            verify: false,
            fsync: true,
            force_in_use: false,
            as_is: false,
            block_size: BlockSize::default(),
            leaf_size: BlockSize::SMALLEST,
            compress: Compress::Auto,
            compress_level: None,
            timeout: Options::TIMEOUT,
            bandwidth: None,
            basis: Vec::new(),
            alternates: None,
            fuzzy: false,
            workplace: WorkplaceRules::default(),
            backup: None,
            remove_source_files: false,
            map_cache: true,
            since: None,
            together: None,
            force: false,
            delete: None,
        }
    }
}

/// How new content becomes the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Commit {
    /// Clone, patch and rename where the file system can clone; else gather the
    /// changes aside and write them from a sealed log, or complete and rename.
    Auto,
    /// Always end in a rename.
    Atomic,
    /// Write into the destination directly.
    InPlace,
}

/// Whether data frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compress {
    /// Never.
    None,
    /// Where the connection is slower than the compressor and the data shrinks.
    Auto,
    /// Always, where the data shrinks.
    Zstd,
}

/// The unit in which two files are compared: a power of two from
/// [`BlockSize::MIN`] to [`BlockSize::MAX`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BlockSize(u32);

impl BlockSize {
    /// One page: 4 KiB.
    pub const MIN: u32 = 4 << 10;
    /// 64 pages, the width of a page mask: 256 KiB.
    pub const MAX: u32 = 256 << 10;
    /// A block of one page.
    pub const SMALLEST: BlockSize = BlockSize(BlockSize::MIN);

    /// A block of this many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when it is not a power of two within the limits.
    pub fn new(bytes: u64) -> Result<BlockSize> {
        let fits = (u64::from(BlockSize::MIN)..=u64::from(BlockSize::MAX)).contains(&bytes);
        if !fits || !bytes.is_power_of_two() {
            return Err(Error::Usage(format!(
                "a block of {bytes} bytes cannot be used: it must be a power of two from 4K to 256K"
            )));
        }
        Ok(BlockSize(bytes as u32))
    }

    /// Bytes in a block.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
}

impl Default for BlockSize {
    fn default() -> BlockSize {
        BlockSize(64 << 10)
    }
}

impl TryFrom<u32> for BlockSize {
    type Error = Error;
    fn try_from(bytes: u32) -> Result<BlockSize> {
        BlockSize::new(u64::from(bytes))
    }
}

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> u32 {
        size.0
    }
}
