//! How much memory there is for the page cache, as far as this process may use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::sys;

/// Whether this many bytes take more of the page cache than one file should: half of the
/// memory, that of the control group counted.
pub fn exceeds_cache(bytes: u64) -> bool {
    static MEMORY: OnceLock<Option<u64>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| [sys::memory(), limit_of_groups()].into_iter().flatten().min());
    memory.is_some_and(|memory| bytes > memory / 2)
}

/// The least that a control group of this process may have, in bytes; cgroups(7).
fn limit_of_groups() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| limit_of(Path::new("/sys/fs/cgroup"), line)).min()
}

/// The least of one line of `/proc/self/cgroup`, `number:controllers:path`, the parents of
/// the group counted. Of version 2, whose line names no controllers, or of the controller
/// of memory.
fn limit_of(mounted: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (base, name) = match controllers {
        "" => (mounted.to_path_buf(), "memory.max"),
        some if some.split(',').any(|one| one == "memory") => {
            (mounted.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let path = Path::new(path.trim_start_matches('/'));
    // Within a namespace of its own, what a group sees as the root may be any of them.
    let groups: Vec<PathBuf> = path.ancestors().map(|group| base.join(group).join(name)).collect();
    // "max" is no number, and means no limit.
    groups.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_a_group_and_its_parents_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mounted.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/b/memory.max", "max\n");
        write("memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/a/b/memory.limit_in_bytes", "500\n");
        let limit = |line| limit_of(mounted.path(), line);
        assert_eq!(limit("0::/a/b"), Some(1000));
        assert_eq!(limit("0::/c"), None);
        assert_eq!(limit("4:cpu,memory:/a/b"), Some(500));
        assert_eq!(limit("4:cpu,memory:/a"), Some(9223372036854771712));
        assert_eq!(limit("4:cpu:/a/b"), None);
        assert_eq!(limit("nonsense"), None);
    }
}
