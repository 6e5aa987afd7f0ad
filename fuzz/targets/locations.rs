//! Locations of the command line.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use holesync::location::Location;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(Location::Remote(host, path)) = Location::parse(OsStr::from_bytes(data)) else { return };
    assert!(!host.name.is_empty() && !host.name.starts_with('-'));
    assert!(host.user.as_ref().is_none_or(|user| !user.is_empty() && !user.starts_with('-')));
    assert!(!path.as_os_str().is_empty());
    let shown = host.to_string();
    assert!(!shown.contains(['\n', '$', '`', '\'', '"']), "{shown}");
});
