//! Writes the seeds anew: `cargo run --bin seeds DIRECTORY`. What a seed holds is what an
//! honest peer would say. Those of the shell were said by one.

use std::path::Path;

use holesync::error::Failure;
use holesync::hashmap::leaves::Leaves;
use holesync::hashmap::map_file::MapWriter;
use holesync::hashmap::plan::Run;
use holesync::hashmap::{Grid, MapEntry};
use holesync::options::BlockSize;
use holesync::protocol::{
    Ask, BlockAnswer, Differ, Entry, FrameWriter, ImageMessage, LeafAnswer, MAGIC, Message, OLDEST, Patch,
    Onward, Request, Said, Speaker, Told, VERSION,
};
use holesync::report::Changes;
use holesync::source::{Kind, Metadata, Node, Owner};
use holesync::store::head::{Digest, Head, PatchesHead, Proven, SealedHead, Subject};
use holesync::store::name::{ImageName, ObjectId, Version};
use holesync::store::patches::PatchesWriter;
use holesync::store::places::{Place, PlacesWriter, head_of};
use holesync::sys::xattrs::{AclEntry, Acls};
use holesync_fuzz::unframed;

fn main() {
    let root = std::env::args().nth(1).expect("a directory");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = Path::new(&root).join(target);
        std::fs::create_dir_all(&dir).expect("mkdir");
        std::fs::write(dir.join(name), bytes).expect("write");
    };
    put("frames", "greeting", &[&MAGIC[..], &OLDEST.to_le_bytes(), &VERSION.to_le_bytes(), &[0; 4]].concat());
    put(
        "frames",
        "request",
        &written(&|output| {
            let request = Request::Receive { destination: b"old".to_vec().into(), directory: false };
            output.message(&Message::Start(Box::default(), request, None))
        }),
    );
    put("frames", "survey", &survey());
    put("frames", "image", &image());
    put("frames", "together", &together());
    put("frames", "onward", &onward());
    put("frames", "known", &[known(), as_known()].concat());
    put("frames", "descriptions", &description());
    put("frames", "answers", &answers());
    for how in [0, 1] {
        put("receiver", &format!("tree-{how}"), &[&[how][..], &description()].concat());
        put("sender", &format!("answers-{how}"), &[&[how][..], &answers()].concat());
    }
    put("receiver", "attributes", &[&[8][..], &description()].concat());
    put("receiver", "removal", &[&[4][..], &removal()].concat());
    put("sender", "removed", &[&[4][..], &removed()].concat());
    put("receiver", "single", &[&[2][..], &single()].concat());
    put("receiver", "known", &[&[18][..], &known()].concat());
    put("sender", "known", &[&[16][..], &as_known()].concat());
    for (name, text) in [
        ("path", "vm.img"),
        ("host", "user@host:dir/vm.img"),
        ("v6", "user@[::1]:vm.img"),
        ("url", "ssh://user@host:22/vm.img"),
        ("url-v6", "ssh://[fe80::1%eth0]:22/"),
    ] {
        put("locations", name, text.as_bytes());
    }
    put("records", "image", b"DATA\n4\nabcdHOLE\n4092\nEND\n4096\n");
    put("records", "open", b"HOLE\n4096\n");
    put("log", "records", &log());
    put("map", "whole", &map_file());
    // A block size, a length, a section of a run of zeros: see the target.
    put("map", "made", &[4, 16, 0, 0, 16, 1, 1, 2, 16, 0]);
    put("casync", "whole", &index());
    // Flags, a greatest length, chunks: see the target.
    put("casync", "made", &[0xa0, 255, 10, 0, 1, 64, 0]);
    put("head", "unsigned", &head(false));
    put("head", "signed", &head(true));
    put("places", "whole", &places());
    // Packs, then numbers of blocks, pack, frame and first byte: see the target.
    put("places", "made", &[2, 3, 1, 24, 99, 0, 1, 0, 200, 1, 9, 0]);
    let (index, records) = patches();
    // The length of the image: see the target.
    put("patches", "whole", &[&[4, 200][..], &index].concat());
    put("patches", "made", &[&[4, 200][..], &records].concat());
    put("tar", "sparse", &tar());
    // The form in which ranges are printed, and the length of the image: see the target.
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/hashmap/since/list/samples");
    let names = ["rbd.txt", "rbd.json", "nbdinfo.txt", "nbdinfo.json", "thin_delta.xml", "thin_delta-verbose.xml"];
    for (how, name) in names.iter().enumerate() {
        let list = std::fs::read(samples.join(name)).expect("read");
        put("changes", name, &[&[how as u8, 26, 0][..], &list].concat());
    }
    put("changes", "plain", b"\x00\x1a\x00# what has changed\n0x100000 4096\n512 0x200 # a sector\n");
}

type Write<'a> = &'a dyn Fn(&mut FrameWriter<&mut Vec<u8>>) -> holesync::error::Result<()>;

fn written(write: Write) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut output = FrameWriter::new(&mut bytes, "memory");
    write(&mut output).and_then(|()| output.flush()).expect("memory");
    drop(output);
    unframed(&bytes)
}

fn entry(id: u64, path: &str, kind: Kind) -> Message {
    let owner = Owner { uid: 0, gid: 0, user: "root".into(), group: "root".into() };
    let entry = AclEntry { tag: 2, permissions: 6, number: 1, name: "daemon".into() };
    let metadata = Metadata {
        mode: Some(0o644),
        mtime: Some((1, 2)),
        atime: Some((3, 4)),
        owner: Some(owner),
        acls: Some(Box::new(Acls { access: vec![entry], default: Vec::new() })),
        xattrs: Some(vec![(b"user.one".to_vec(), b"1".to_vec())]),
    };
    Message::Entry(Entry { id, path: path.into(), kind, metadata })
}

fn file(length: u64) -> Kind {
    Kind::File { length, allocated: length, whole: false, retry: false }
}

fn description() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Layout { single: false })?;
        output.message(&entry(0, "new", file(40_000)))?;
        output.message(&entry(1, "old", file(20_000)))?;
        output.message(&entry(2, "made", Kind::Directory))?;
        output.message(&entry(3, "link", Kind::Symlink(b"old".to_vec())))?;
        output.message(&entry(4, "fifo", Kind::Node(Node::Fifo)))?;
        output.message(&entry(5, "name", Kind::HardLink(b"old".to_vec())))?;
        output.message(&Message::Content { id: 0 })?;
        output.data(0, &[1, 2], &[&[7; 8192]])?;
        output.message(&Message::Zero { blocks: 3 })?;
        output.message(&Message::Finish { root: [0; 32], settled: true })?;
        output.message(&Message::Content { id: 1 })?;
        output.message(&Message::Keep { blocks: 1 })?;
        output.differ(&Differ { first: 1, hashes: vec![[1; 32]] })?;
        output.patch(&Patch { first: 1, masks: vec![3], sent: vec![1], bytes: vec![5; 4096] }, None)?;
        output.message(&Message::Abandon)?;
        output.message(&Message::End(Box::default()))
    })
}

/// Both directions of a file that waits for other hosts.
fn together() -> Vec<u8> {
    written(&|output| {
        let destination = b"vm.img".to_vec().into();
        output.message(&Message::Start(
            Box::default(),
            Request::Together { destination, directory: false, run: [7; 16] },
            None,
        ))?;
        output.message(&Message::Layout { single: true })?;
        output.message(&Message::Finish { root: [0; 32], settled: true })?;
        output.message(&Message::Prepared { id: 0 })?;
        output.message(&Message::Commit)?;
        output.message(&Message::End(Box::default()))
    })
}

/// Both directions where one host sends to another by itself.
fn onward() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Onward(Onward::Witness([7; 16])))?;
        output.message(&Message::Onward(Onward::Meet([7; 16])))?;
        output.message(&Message::Onward(Onward::Met(true)))?;
        output.message(&Message::Onward(Onward::Apart("no route".into())))?;
        output.message(&Message::Onward(Onward::Joined))?;
        output.message(&Message::Onward(Onward::Heard(Speaker::Sender, Said::Data(4096))))?;
        output.message(&Message::Onward(Onward::Heard(Speaker::Receiver, Said::Message(vec![15, 0]))))?;
        output.message(&Message::Onward(Onward::Over { sent: 4096, received: 99 }))?;
        output.message(&Message::End(Box::default()))
    })
}

/// Both directions of an image from stdin.
fn image() -> Vec<u8> {
    written(&|output| {
        let destination = b"vm.img".to_vec().into();
        output.message(&Message::Start(Box::default(), Request::Image { destination }, None))?;
        output.message(&Message::Image(ImageMessage::Opened { device: true }))?;
        output.differ(&Differ { first: 1, hashes: vec![[1; 32]; 2] })?;
        output.message(&Message::Image(ImageMessage::Lacks(vec![1])))?;
        output.data(2, &[1], &[&[7; 4096]])?;
        output.message(&Message::Image(ImageMessage::Length(200_000)))?;
        output.message(&Message::End(Box::default()))
    })
}

/// Both directions of one.
fn survey() -> Vec<u8> {
    written(&|output| {
        let path = b"vm.img".to_vec().into();
        output.message(&Message::Start(Box::default(), Request::Survey { path }, None))?;
        for ask in [
            Ask::Extents { from: 4096 },
            Ask::Blocks { length: 1 << 20 },
            Ask::More { entries: 2 },
            Ask::Leaves { blocks: vec![0, 3] },
            Ask::End,
        ] {
            output.message(&Message::Ask(ask))?;
        }
        let blocks = vec![MapEntry::Zero(3), MapEntry::Data { pages: 1, hash: [1; 32] }];
        for told in [Told::Length(1 << 20), Told::Extents(vec![(0, 4096)]), Told::Blocks(blocks), Told::End] {
            output.message(&Message::Told(told))?;
        }
        output.leaves(&LeafAnswer { id: 0, blocks: vec![Leaves::default().into(); 2] })
    })
}

fn single() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Layout { single: true })?;
        output.message(&entry(0, "old", file(0)))?;
        output.message(&Message::Content { id: 0 })?;
        output.message(&Message::Finish { root: [0; 32], settled: true })?;
        output.message(&Message::End(Box::default()))
    })
}

/// A file of which the sender knows what is there.
fn known() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Layout { single: true })?;
        output.message(&Message::Knows { roots: vec![[7; 32], [8; 32]] })?;
        output.message(&entry(0, "old", file(20_000)))?;
        output.message(&Message::Content { id: 0 })?;
        output.message(&Message::Keep { blocks: 3 })?;
        output.message(&Message::Finish { root: [0; 32], settled: true })?;
        output.message(&Message::End(Box::default()))
    })
}

/// What the receiver says of it.
fn as_known() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Map { id: 1, device: false })?;
        output.message(&Message::AsKnown { id: 1, root: [7; 32] })?;
        output.message(&Message::Done { id: 1, changed: None, changes: Changes::default() })?;
        output.message(&Message::End(Box::default()))
    })
}

fn removal() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Layout { single: false })?;
        output.message(&entry(0, "made", Kind::Directory))?;
        output.message(&Message::Contents {
            directory: b"".to_vec(),
            names: vec![b"old".to_vec()],
            is_whole: true,
        })?;
        output.message(&Message::Contents {
            directory: b"made".to_vec(),
            names: Vec::new(),
            is_whole: true,
        })?;
        output.message(&Message::RemoveOthers)?;
        output.message(&Message::End(Box::default()))
    })
}

fn removed() -> Vec<u8> {
    written(&|output| {
        (1..4).try_for_each(|id| output.message(&Message::Unchanged { id, changes: Changes::default() }))?;
        output.message(&Message::Made { id: 0, is_there: true, changes: Changes::NEW })?;
        output.message(&Message::Removed { paths: vec![b"x/".to_vec()] })?;
        output.message(&Message::Stays(Failure::new(23, "f")))?;
        output.message(&Message::End(Box::default()))
    })
}

fn answers() -> Vec<u8> {
    written(&|output| {
        output.message(&Message::Map { id: 1, device: false })?;
        output.map(1, &[Run::Keys(vec![[9; 16]; 2]), Run::Zero(1)])?;
        output.message(&Message::MapEnd { id: 1 })?;
        output.leaves(&LeafAnswer { id: 1, blocks: vec![Leaves::default().into(), BlockAnswer::Had] })?;
        output.message(&Message::NoBasis { id: 3, device: false })?;
        output.message(&Message::Granted { units: 2 })?;
        output.message(&Message::Warning("w".into()))?;
        output.message(&Message::Again { id: 1 })?;
        output.message(&Message::Done { id: 3, changed: Some(1), changes: Changes::default() })?;
        output.message(&Message::Failed { id: 1, failure: Failure::new(23, "f") })?;
        output.message(&Message::End(Box::default()))
    })
}

/// Three records and the head of a seal.
fn log() -> Vec<u8> {
    let mut bytes = vec![4];
    for (start, end, kind) in [(0u64, 4096u64, 1), (8192, 12288, 2), (4096, 9000, 3), (0, 64, 4)] {
        bytes.extend(start.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        bytes.push(kind);
    }
    bytes.extend([0; 64]);
    bytes
}

/// A sparse file of 8192 bytes, of which the second half is data.
fn tar() -> Vec<u8> {
    let header = |name: &str, kind: u8, size: usize| {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block
    };
    let pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.name=image\n29 GNU.sparse.realsize=8192\n";
    let mut archive = vec![0, 32, 19];
    archive.extend(header("./PaxHeaders/image", b'x', pax.len()));
    archive.extend(padded(pax));
    archive.extend(header("./GNUSparseFile.0/image", b'0', 512 + 4096));
    archive.extend(padded(b"1\n4096\n4096\n"));
    archive.extend([7; 4096]);
    archive.resize(3 + 20 * 512, 0);
    archive
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(512, 0);
    bytes
}

/// What casync makes of an image of 100,000 bytes that is two chunks.
fn index() -> Vec<u8> {
    let head = [48, 0x9682_4d9c_7b12_9ff9, 0xb << 60, 16 << 10, 64 << 10, 256 << 10, u64::MAX, 0xe75b_9e11_2f17_417d];
    let chunks = [65_536, 1, 2, 3, 4, 100_000, 5, 6, 7, 8];
    let tail = [0, 0, 48, 16 + 3 * 40, 0x4b4f_050e_5549_ecd1];
    [&head[..], &chunks, &tail].concat().into_iter().flat_map(u64::to_le_bytes).collect()
}

/// What is published of a version.
fn head(signed: bool) -> Vec<u8> {
    let (name, version) = (ImageName::new("disk").expect("a name"), Version::new("v1").expect("a name"));
    let proven = |length| Proven { digest: Digest([7; 32]), length };
    let subject = Subject {
        name: &name,
        version: &version,
        id: ObjectId([9; 16]),
        time: 1_700_000_000_000_000_000,
        modified: Some((1_700_000_000, 1)),
        grid: Grid { length: 9 << 16, block: BlockSize::default() },
        data: 4 << 16,
        root: [1; 32],
    };
    let patches = PatchesHead { object: Digest([3; 32]), index: proven(99) };
    let line = Head::new(subject, proven(300), Some(proven(80)), Some(patches)).to_line();
    // How PROTOCOL.sshsig begins, and a signature of nothing.
    let blob = "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgl0PvLdourjnjJYF3AtZuJ5TV5vP39y7v\n9AReff04h5kkAAAAI";
    let signature = format!("-----BEGIN SSH SIGNATURE-----\n{blob}\n-----END SSH SIGNATURE-----\n");
    SealedHead { line, signature: if signed { signature.into_bytes() } else { Vec::new() } }.to_bytes()
}

fn places() -> Vec<u8> {
    let mut writer = PlacesWriter::new(Vec::new()).expect("write");
    let place = |pack, offset, raw| Place { pack, offset, stored: 9000, raw };
    for (place, bytes) in [(place(0, 24, 0), 65_536), (place(0, 24, 65_536), 4096), (place(1, 24, 0), 8192)] {
        writer.add(place, bytes).expect("write");
    }
    [head_of(&[ObjectId([1; 16]), ObjectId([2; 16])]), writer.finish().expect("write")].concat()
}

/// An index of patches, and what it unpacks to.
fn patches() -> (Vec<u8>, Vec<u8>) {
    let mut writer = PatchesWriter::new(3).expect("write");
    for (index, pages) in [(1, 1), (2, 0x8001), (7, 0)] {
        let bytes = vec![7; 4096 * u64::count_ones(pages) as usize];
        writer.add(index, &[9; 16], pages, &bytes).expect("write");
    }
    let (index, _) = writer.finish().expect("write").expect("patches");
    let records = zstd::bulk::decompress(&index, 1 << 20).expect("unpack");
    (index, records)
}

fn map_file() -> Vec<u8> {
    let grid = Grid { length: 9 << 16, block: BlockSize::default() };
    let mut writer = MapWriter::new(Vec::new(), &grid).expect("write");
    for entry in [MapEntry::Zero(3), MapEntry::Data { pages: 0xffff, hash: [1; 32] }, MapEntry::Zero(5)] {
        writer.add(&entry).expect("write");
    }
    writer.finish().expect("write").0
}
