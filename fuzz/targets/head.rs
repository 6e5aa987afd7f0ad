//! The head of a version: any line, and anything in the place of its signature.
#![no_main]

use std::sync::LazyLock;

use holesync::store::head::{Head, SealedHead};
use holesync::store::name::ImageName;
use holesync::store::signature::Trusted;
use libfuzzer_sys::fuzz_target;

/// A key that has signed nothing.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

static TRUSTED: LazyLock<Trusted> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), KEY).expect("write");
    Trusted::read(file.path()).expect("a key")
});

fuzz_target!(|data: &[u8]| {
    let Ok(sealed) = SealedHead::parse(data, "here") else { return };
    assert_eq!(sealed.to_bytes(), data);
    assert!(TRUSTED.check(&sealed.line, &sealed.signature, "here").is_err());
    let name = ImageName::new("disk").expect("a name");
    let Ok(head) = Head::parse(&sealed.line, "here", &name) else { return };
    let grid = head.grid().expect("a grid");
    assert!(head.data <= grid.length, "{head:?}");
    assert_eq!(Head::parse(&head.to_line(), "here", &name).expect("the same"), head);
});
