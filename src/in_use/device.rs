//! Who holds a block device: what is mounted from it or from a part of it, what it is a part
//! of. sysfs, `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/swaps` tell.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::error::{Error, printable};
use crate::in_use::WAY_OUT;

/// A use of a device.
struct Use {
    what: String,
    is_read_only: bool,
}

/// The error for a device of this number that the system says is held.
pub fn refuse_held(path: &Path, device: u64) -> Error {
    let who = uses_of(device)
        .into_iter()
        .next()
        .map_or("it is held (mounted elsewhere?)".into(), |found| found.what);
    Error::refused(path, format!("the device is in use: {who}; {WAY_OUT}"))
}

/// Who may be writing a device that is open, as far as that shows.
pub(super) fn writer_of(file: &File) -> Option<String> {
    let device = file.metadata().ok()?.rdev();
    uses_of(device).into_iter().find(|found| !found.is_read_only).map(|found| found.what)
}

/// The uses of a device, of the parts of it, and of the whole that it is a part of.
fn uses_of(device: u64) -> Vec<Use> {
    let devices = related(device);
    let mut found = mounts_of(&devices);
    found.extend(swaps_of(&devices));
    // What is made of the whole is not made of this part.
    for held in devices.iter().filter(|related| !related.is_whole) {
        let holders = fs::read_dir(sysfs(held.number).join("holders")).into_iter().flatten().flatten();
        found.extend(holders.map(|holder| {
            let name = printable(Path::new(&holder.file_name()));
            Use { what: format!("/dev/{name} is made of it"), is_read_only: false }
        }));
    }
    found
}

/// A device that a use of makes a use of another one.
struct Related {
    number: u64,
    /// The other one is a part of it.
    is_whole: bool,
}

fn related(device: u64) -> Vec<Related> {
    let dir = sysfs(device);
    let mut found = vec![Related { number: device, is_whole: false }];
    let numbered = |dir: PathBuf, is_whole| {
        let number = fs::read_to_string(dir.join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let number = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Related { number, is_whole })
    };
    if dir.join("partition").exists() {
        found.extend(numbered(dir.join(".."), true));
    }
    let below = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    found.extend(
        below.filter(|part| part.join("partition").exists()).filter_map(|part| numbered(part, false)),
    );
    found
}

fn sysfs(device: u64) -> PathBuf {
    // The kernel resolves "..": this is a link to where the device is.
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

fn mounts_of(devices: &[Related]) -> Vec<Use> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts).into_owned();
    mounts.lines().filter_map(|line| mount_of(devices, line)).collect()
}

/// The use that a line tells of: `id parent major:minor root point options … - type source …`.
/// Some file systems have a number of their own there; their source is a device.
fn mount_of(devices: &[Related], line: &str) -> Option<Use> {
    let (mount, device) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let (number, point, options) = (mount.get(2)?, mount.get(4)?, mount.get(5)?);
    let source = device.split(' ').nth(1)?;
    let is_ours = |device: &Related| {
        let named = format!("{}:{}", major(device.number), minor(device.number));
        named == **number || is_device(&unescape(source), device.number)
    };
    devices.iter().any(is_ours).then(|| Use {
        what: format!("it is mounted at {}", printable(Path::new(&unescape(point)))),
        is_read_only: options.split(',').any(|option| option == "ro"),
    })
}

fn swaps_of(devices: &[Related]) -> Vec<Use> {
    let names = swap_names().into_iter();
    let ours = names.filter(|name| devices.iter().any(|device| is_device(name, device.number)));
    ours.map(|_| Use { what: "it is swap space".into(), is_read_only: false }).collect()
}

/// What is swapped to, files and devices; proc_swaps(5).
pub(super) fn swap_names() -> Vec<OsString> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect()
}

fn is_device(path: &OsString, number: u64) -> bool {
    Path::new(path).is_absolute()
        && fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == number)
}

/// Turns `\ooo` back into the byte that it stands for.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let octal = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_tells_point_and_rights() {
        let device = [Related { number: nix::sys::stat::makedev(7, 3), is_whole: false }];
        let line = "36 35 7:3 / /mnt/a\\040b rw,noatime shared:1 - ext4 /nowhere rw";
        let found = mount_of(&device, line).expect("a mount");
        assert_eq!((found.what.as_str(), found.is_read_only), ("it is mounted at /mnt/a b", false));
        assert!(mount_of(&device, &line.replace(" rw,", " ro,")).is_some_and(|found| found.is_read_only));
        assert!(mount_of(&device, &line.replace("7:3", "7:30")).is_none());
        assert!(mount_of(&device, "nonsense").is_none());
    }

    #[test]
    fn bytes_that_were_escaped_come_back() {
        assert_eq!(unescape("a\\040b\\134c\\"), OsString::from("a b\\c\\"));
        assert_eq!(unescape("\\9"), OsString::from("\\9"));
    }
}
