//! `-VV`: what this program is and can do, for programs.

use holesync::protocol;
use serde::Serialize;

use crate::cli::info;

/// What is told, in the names that rsync has for it.
#[derive(Serialize)]
struct Description {
    program: &'static str,
    version: &'static str,
    protocol: u16,
    capabilities: Capabilities,
    checksum_list: &'static [&'static str],
    compress_list: &'static [&'static str],
    license: &'static str,
}

#[derive(Serialize)]
struct Capabilities {
    file_bits: u32,
    hardlinks: bool,
    hardlink_specials: bool,
    hardlink_symlinks: bool,
    symlinks: bool,
    symtimes: bool,
    atimes: bool,
    crtimes: bool,
    #[serde(rename = "ACLs")]
    acls: bool,
    xattrs: bool,
    prealloc: bool,
    append: bool,
    batchfiles: bool,
    inplace: bool,
    iconv: bool,
    #[serde(rename = "IPv6")]
    ipv6: bool,
    secluded_args: bool,
    stop_at: bool,
}

/// The answer to `-VV`, if these are the words behind the program's name.
pub fn in_detail<'a>(words: impl Iterator<Item = &'a str>) -> Option<clap::Error> {
    let mut times = 0;
    for word in words {
        times += match word {
            "--version" => 1,
            _ => word.strip_prefix('-').filter(|letters| letters.bytes().all(|b| b == b'V'))?.len(),
        };
    }
    let description = Description {
        program: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        protocol: protocol::VERSION,
        capabilities: Capabilities {
            file_bits: 64,
            hardlinks: true,
            hardlink_specials: true,
            hardlink_symlinks: true,
            symlinks: true,
            symtimes: true,
            atimes: true,
            crtimes: false,
            acls: true,
            xattrs: true,
            prealloc: true,
            append: true,
            batchfiles: false,
            inplace: true,
            iconv: false,
            ipv6: true,
            secluded_args: true,
            stop_at: true,
        },
        checksum_list: &["blake3"],
        compress_list: &["zstd", "none"],
        license: env!("CARGO_PKG_LICENSE"),
    };
    // It has nothing that cannot be written.
    let text = serde_json::to_string_pretty(&description).unwrap_or_default() + "\n";
    if times > 1 { info::page(text) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_asked_it_tells_all() {
        for words in [&["-VV"][..], &["-V", "-V"], &["--version", "--version"], &["-VVV"]] {
            let told = in_detail(words.iter().copied()).expect("told").to_string();
            let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
            assert_eq!(told["program"], "holesync");
            assert_eq!(told["capabilities"]["hardlinks"], true);
            assert_eq!(told["capabilities"]["ACLs"], true);
        }
        for words in [&["-V"][..], &["--version"], &[], &["-VV", "a"], &["-vV"]] {
            assert!(in_detail(words.iter().copied()).is_none(), "{words:?}");
        }
    }
}
