//! Which certificate authorities are trusted.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::error::{Error, Result};

/// Where systems keep the authorities that all their programs trust, in one file.
const OF_THE_SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The longest of them.
const LONGEST: u64 = 64 << 20;

/// Those of a file; without one those of the system, or of this program where it has none.
///
/// # Errors
///
/// When the file cannot be read, or has none.
pub fn read(ca: Option<&Path>) -> Result<RootCerts> {
    if let Some(ca) = ca {
        let found = read_file(ca).map_err(Error::file("read the certificates of", ca))?;
        if found.is_empty() {
            return Err(Error::refused(
                ca,
                "has no certificate in it: it is to be PEM, with BEGIN CERTIFICATE",
            ));
        }
        return Ok(found.into());
    }
    let found = OF_THE_SYSTEM
        .iter()
        .find_map(|path| read_file(Path::new(path)).ok().filter(|found| !found.is_empty()));
    Ok(found.map_or(RootCerts::WebPki, RootCerts::from))
}

fn read_file(path: &Path) -> io::Result<Vec<Certificate<'static>>> {
    let mut pem = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut pem)?;
    // What is no certificate may stand between them.
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(certificates.collect())
}
