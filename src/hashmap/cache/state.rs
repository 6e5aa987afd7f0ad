//! The state of a file that a map is kept under: what tells it from any other file, and from
//! itself with other content.

use std::fs::{self, File};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::hashmap::Grid;
use crate::options::BlockSize;
use crate::scan::FileState;
use crate::sys;

/// Bytes that stand before the map in an entry: see [`KeptState::head`].
pub const HEAD: usize = MAGIC.len() + BOOT + 8 * (NAMING + CONTENT);
const MAGIC: &[u8; 16] = b"holesync kept 1\n";
/// Bytes of the id of a boot.
const BOOT: usize = 16;
/// Numbers that tell a file and a grid from others.
const NAMING: usize = 6;
/// Numbers that tell one content of it from another.
const CONTENT: usize = 5;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptState {
    head: [u8; HEAD],
    grid: Grid,
}

impl KeptState {
    /// That of an open file. `None`: it is no witness of the content there.
    pub fn of(file: &File, state: &FileState, block: BlockSize) -> Option<KeptState> {
        let times = state.times()?;
        if !sys::dates_every_change(file) {
            return None;
        }
        let birth = since_epoch(file.metadata().ok()?.created().ok()?)?;
        let naming: [u64; NAMING] =
            [sys::file_system_id(file).ok()?, state.device, state.inode, birth.0, birth.1, block.bytes()];
        let [mtime, mtime_nanoseconds, ctime, ctime_nanoseconds] = times.map(i64::cast_unsigned);
        let content: [u64; CONTENT] = [state.length, mtime, mtime_nanoseconds, ctime, ctime_nanoseconds];
        let mut head = [0; HEAD];
        let (text, numbers) = head.split_at_mut(MAGIC.len() + BOOT);
        text[..MAGIC.len()].copy_from_slice(MAGIC);
        text[MAGIC.len()..].copy_from_slice(&boot()?);
        for (place, number) in
            numbers.as_chunks_mut::<8>().0.iter_mut().zip(naming.into_iter().chain(content))
        {
            *place = number.to_le_bytes();
        }
        Some(KeptState { head, grid: Grid { length: state.length, block } })
    }

    /// What the entry begins with: magic, boot id, then 8 bytes each, little-endian: id of the
    /// file system, device, inode, time of birth (seconds, nanoseconds), block size; length,
    /// mtime, ctime.
    pub fn head(&self) -> [u8; HEAD] {
        self.head
    }

    /// The name of the entry: one for each file and block size, whatever its content.
    pub fn name(&self) -> String {
        let naming = &self.head[..MAGIC.len() + BOOT + 8 * NAMING];
        blake3::hash(naming).to_hex()[..32].into()
    }

    /// The grid of the map.
    pub fn grid(&self) -> Grid {
        self.grid
    }
}

fn since_epoch(time: SystemTime) -> Option<(u64, u64)> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some((since.as_secs(), u64::from(since.subsec_nanos())))
}

/// The id of this boot of this machine; random(4). A power cut can keep new content and lose its
/// ctime.
fn boot() -> Option<[u8; BOOT]> {
    static ID: OnceLock<Option<[u8; BOOT]>> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
        u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
    })
}
