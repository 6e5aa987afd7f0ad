//! What an image holds that is no disk as it is: a packed one, one in the format of a virtual
//! machine, or what only describes one. Told by its first bytes.

use std::io;
use std::path::Path;

use crate::error::{Error, escape};
use crate::scan::Image;

/// Something that a disk would have to be made of first.
///
/// | what | how it begins | said by |
/// |---|---|---|
/// | gzip | `1f 8b 08` | RFC 1952, 2.3.1 |
/// | zstd | `28 b5 2f fd`; a skippable frame `5x 2a 4d 18` | RFC 8878, 3.1.1 and 3.1.2 |
/// | xz | `fd 37 7a 58 5a 00` | The .xz File Format 1.2.1, 2.1.1.1 |
/// | bzip2 | `BZh`, a digit from 1, `31 41 59 26 53 59` or `17 72 45 38 50 90` | compress.c and decompress.c of bzip2 1.0.8 |
/// | lz4 | `04 22 4d 18` | LZ4 Frame Format 1.6.4, General Structure |
/// | zip | `50 4b 03 04` | APPNOTE.TXT 6.3.10, 4.3.7 |
/// | qcow2 | `QFI\xfb`, then the version, 2 or 3, in 4 bytes | docs/interop/qcow2 of QEMU, Header |
/// | VMDK | `KDMV`, `COWD`, or `# Disk DescriptorFile` | Virtual Disk Format 5.0 of VMware |
/// | VHDX | `vhdxfile` | MS-VHDX, 2.2.1 |
/// | VHD | `conectix`: a dynamic one; a fixed one is a disk with a footer | Virtual Hard Disk Image Format Specification 1.0 of Microsoft |
/// | VDI | `7f 10 da be` at 64 | block/vdi.c of QEMU, `VDI_SIGNATURE` |
/// | Android sparse image | `3a ff 26 ed` | sparse_format.h in libsparse of AOSP |
/// | bmap | an XML declaration, and `<bmap ` among the first 4 KiB | bmaptool(1), and what bmaptool create writes |
/// | stream of records | `DATA` or `HOLE` and a line with a number | [`stream`](crate::stream) |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Unpacked by this command, which reads stdin and writes stdout.
    Packed {
        /// Its name.
        name: &'static str,
        /// The command.
        by: &'static str,
    },
    /// A zip archive.
    Zip,
    /// The disk of a virtual machine, in a format of this name that QEMU reads.
    Virtual(&'static str),
    /// An Android sparse image.
    AndroidSparse,
    /// A description of where an image has data.
    Bmap,
    /// What `holesync send` writes.
    Records,
}

/// What stands for an image that has no name here.
const FILE: &str = "FILE";
/// How much of an image tells.
const HEAD: u64 = 4096;

impl Content {
    /// What begins with these bytes, if it is one of these.
    pub fn of(head: &[u8]) -> Option<Content> {
        let packed = |name, by| Some(Content::Packed { name, by });
        match head {
            [0x1f, 0x8b, 0x08, ..] => packed("gzip", "gzip -d"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => packed("zstd", "zstd -d"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => packed("xz", "xz -d"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => {
                packed("bzip2", "bzip2 -d")
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => packed("lz4", "lz4 -d"),
            [b'P', b'K', 3, 4, ..] => Some(Content::Zip),
            [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3, ..] => Some(Content::Virtual("qcow2")),
            [b'v', b'h', b'd', b'x', b'f', b'i', b'l', b'e', ..] => Some(Content::Virtual("VHDX")),
            [b'c', b'o', b'n', b'e', b'c', b't', b'i', b'x', ..] => Some(Content::Virtual("VHD")),
            [0x3a, 0xff, 0x26, 0xed, ..] => Some(Content::AndroidSparse),
            _ if [&b"KDMV"[..], b"COWD", b"# Disk DescriptorFile"].iter().any(|m| head.starts_with(m)) => {
                Some(Content::Virtual("VMDK"))
            }
            _ if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) => Some(Content::Virtual("VDI")),
            _ if head.starts_with(b"<?xml") && has(head, b"<bmap ") => Some(Content::Bmap),
            _ => is_record(head).then_some(Content::Records),
        }
    }

    /// What an image holds.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn read(image: &dyn Image, length: u64) -> io::Result<Option<Content>> {
        let mut head = vec![0; HEAD.min(length) as usize];
        image.read_at(&mut head, 0)?;
        Ok(Content::of(&head))
    }

    /// Why it is not written to a device, and what to do. `runs_through`: `--through` can run a
    /// command where the device is.
    pub fn refuse(self, source: &Path, runs_through: bool) -> Error {
        let name = source.as_os_str().as_encoded_bytes();
        let word = shlex::bytes::try_quote(name).ok().filter(|_| name != b"-");
        let path = word.map_or_else(|| FILE.into(), |word| escape(&word));
        Error::refused(source, format!("{}; --as-is writes it as it is", self.why(&path, runs_through)))
    }

    /// The same of what comes from a store.
    pub fn refuse_stored(self, address: &str) -> Error {
        let why = self.why(FILE, false);
        Error::refused(address, format!("{why}; for that pull it to {FILE}; --as-is writes it as it is"))
    }

    fn why(self, path: &str, runs_through: bool) -> String {
        match self {
            Content::Packed { name, by } if runs_through => format!(
                "is packed ({name}), and would come onto the device packed: unpack it there, with the same command and \
                 --through '{by} > \"$HOLESYNC_DEST\"', or on its way, with {by} < {path} | holesync - DEST"
            ),
            Content::Packed { name, by } => format!(
                "is packed ({name}), and would come onto the device packed: unpack it on its way, with {by} < {path} | \
                 holesync - DEST"
            ),
            Content::Zip => format!(
                "is a zip archive, and would come onto the device as one: unpack it on its way, with unzip -p {path} | \
                 holesync - DEST"
            ),
            Content::Virtual(format) => format!(
                "is the disk of a virtual machine ({format}), and no plain image: make it one first, with qemu-img \
                 convert -O raw {path} disk.img, and send disk.img"
            ),
            Content::AndroidSparse => format!(
                "is an Android sparse image, and no plain one: make it one first, with simg2img {path} disk.img, and \
                 send disk.img"
            ),
            Content::Bmap => {
                "is a bmap, which tells where an image has data, and no image: send the image itself, \
                              whose holes are found without it"
                    .into()
            }
            Content::Records => format!(
                "is a stream of records, as holesync send writes it, and no image: read it with holesync recv DEST < \
                 {path}"
            ),
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whether this is the head of a record.
fn is_record(head: &[u8]) -> bool {
    let Some(rest) = head.strip_prefix(b"DATA\n").or_else(|| head.strip_prefix(b"HOLE\n")) else {
        return false;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && rest.get(digits) == Some(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_told_by_its_first_bytes() {
        let vdi =
            [&b"<<< Oracle VM VirtualBox Disk Image >>>\n"[..], &[0; 24], &[0x7f, 0x10, 0xda, 0xbe]].concat();
        let bmap = b"<?xml version=\"1.0\" ?>\n<!-- This file contains -->\n\n<bmap version=\"2.0\">";
        for (head, says) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip -d"),
            (b"\x28\xb5\x2f\xfd", "zstd -d"),
            (b"\x5f\x2a\x4d\x18", "zstd -d"),
            (b"\xfd7zXZ\0", "xz -d"),
            (b"BZh91AY&SY", "bzip2 -d"),
            (b"\x04\x22\x4d\x18", "lz4 -d"),
            (b"PK\x03\x04", "unzip"),
            (b"QFI\xfb\0\0\0\x03", "qcow2"),
            (b"KDMV\x01", "VMDK"),
            (b"# Disk DescriptorFile\n", "VMDK"),
            (b"vhdxfile", "VHDX"),
            (b"conectix", "VHD"),
            (&vdi, "VDI"),
            (b"\x3a\xff\x26\xed\x01", "simg2img"),
            (bmap, "bmap"),
            (b"HOLE\n4096\nDATA", "holesync recv"),
        ] {
            let content = Content::of(head).unwrap_or_else(|| panic!("{}", escape(head)));
            let error = content.refuse(Path::new("x y"), true).to_string();
            assert!(error.contains(says) && error.contains("--as-is"), "{error}");
        }
        for plain in
            [&b""[..], b"\x1f", b"\xeb\x63\x90", b"DATA\nx", b"HOLE\n12", b"<?xml version", &[0; 512]]
        {
            assert_eq!(Content::of(plain), None, "{}", escape(plain));
        }
    }
}
