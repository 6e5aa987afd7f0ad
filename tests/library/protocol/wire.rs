//! Frames: what is written is read back, and nothing else is ever read.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use holesync::error::{Error, Failure};
use holesync::hashmap::Key;
use holesync::hashmap::leaves::Leaves;
use holesync::hashmap::plan::Run;
use holesync::location::Host;
use holesync::options::{Compress, Options};
use holesync::protocol::{
    BlockAnswer, Data, Differ, Entry, Frame, FrameReader, FrameWriter, ImageMessage, LeafAnswer, MAGIC,
    MAX_DATA, MAX_DATA_BLOCKS, MAX_DIFFER, MAX_MAP_KEYS, MAX_MAP_RUNS, MAX_NAME, MAX_NOISE, MAX_PATH,
    Message, OLDEST, Onward, OnwardRequest, Patch, Request, Said, Speaker, TimedWriter, VERSION, check_path,
};
use holesync::report::{Changes, Phase, Stats};
use holesync::source::{Kind, Metadata, Node, Owner};
use holesync::sys::xattrs::{AclEntry, Acls};
use proptest::prelude::*;

/// What `write` writes, as bytes.
fn written(write: impl FnOnce(&mut FrameWriter<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::new(&mut bytes, "the test");
    write(&mut writer);
    writer.flush().expect("memory takes everything");
    drop(writer);
    bytes
}

/// All frames up to the first error.
fn read(bytes: &[u8]) -> (Vec<Frame>, Error) {
    let mut reader = FrameReader::new(bytes, "the test");
    let mut frames = Vec::new();
    loop {
        match reader.read() {
            Ok(frame) => frames.push(frame),
            Err(error) => return (frames, error),
        }
    }
}

fn changes() -> impl Strategy<Value = Changes> {
    let all = [Changes::NEW, Changes::TRANSFER, Changes::VALUE, Changes::SIZE, Changes::TIME, Changes::MODE];
    let set = |these: Vec<Changes>| {
        these.into_iter().fold(Changes::default(), |changes, one| changes.with(one, true))
    };
    prop::sample::subsequence(all.to_vec(), 0..=all.len()).prop_map(set)
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let owner = (any::<u32>(), any::<u32>(), "[a-z]{0,9}", ".{0,9}")
        .prop_map(|(uid, gid, user, group)| Owner { uid, gid, user, group });
    let time = || prop::option::of((any::<i64>(), any::<u32>()));
    let bytes = || prop::collection::vec(any::<u8>(), 0..30);
    let entry = (any::<u16>(), any::<u16>(), any::<u32>(), "[a-z]{0,9}")
        .prop_map(|(tag, permissions, number, name)| AclEntry { tag, permissions, number, name });
    let entries = prop::collection::vec(entry, 0..4);
    let acls = (entries.clone(), entries).prop_map(|(access, default)| Box::new(Acls { access, default }));
    let xattrs = prop::option::of(prop::collection::vec((bytes(), bytes()), 0..4));
    let mode = prop::option::of(any::<u32>());
    (mode, time(), time(), prop::option::of(owner), prop::option::of(acls), xattrs).prop_map(
        |(mode, mtime, atime, owner, acls, xattrs)| Metadata { mode, mtime, atime, owner, acls, xattrs },
    )
}

fn kind() -> impl Strategy<Value = Kind> {
    let file = (any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>())
        .prop_map(|(length, allocated, whole, retry)| Kind::File { length, allocated, whole, retry });
    let bytes = || prop::collection::vec(any::<u8>(), 0..99);
    let device = (any::<u32>(), any::<u32>());
    let node = prop_oneof![
        Just(Node::Fifo),
        Just(Node::Socket),
        device.prop_map(|(major, minor)| Node::CharDevice(major, minor)),
        device.prop_map(|(major, minor)| Node::BlockDevice(major, minor)),
    ];
    let (link, hard_link) = (bytes().prop_map(Kind::Symlink), bytes().prop_map(Kind::HardLink));
    prop_oneof![file, Just(Kind::Directory), link, node.prop_map(Kind::Node), hard_link, Just(Kind::Missing)]
}

fn onward() -> impl Strategy<Value = Onward> {
    let path = || prop::collection::vec(any::<u8>(), 0..300);
    let host = (prop::option::of("[a-z]{1,9}"), "[a-z0-9.]{1,30}", any::<Option<u16>>())
        .prop_map(|parts| Host::try_from(parts).unwrap());
    let speaker = || prop_oneof![Just(Speaker::Sender), Just(Speaker::Receiver)];
    let request =
        (host, any::<Option<[u8; 16]>>(), path(), prop::collection::vec(path(), 0..4), any::<[bool; 4]>());
    prop_oneof![
        any::<[u8; 16]>().prop_map(Onward::Witness),
        any::<[u8; 16]>().prop_map(Onward::Meet),
        any::<bool>().prop_map(Onward::Met),
        request.prop_map(|(to, run, destination, sources, [sudo, directory, listed, cipher_of_ssh])| {
            let (destination, sources) = (destination.into(), sources.into_iter().map(Into::into).collect());
            let (options, remote_path, token) = (Options::default(), Some("x".into()), [1; 16]);
            let request = OnwardRequest {
                options,
                run,
                to,
                remote_path,
                sudo,
                cipher_of_ssh,
                token,
                destination,
                directory,
                sources,
                listed,
            };
            Onward::Send(Box::new(request))
        }),
        ".{0,50}".prop_map(Onward::Apart),
        Just(Onward::Joined),
        (speaker(), path()).prop_map(|(speaker, message)| Onward::Heard(speaker, Said::Message(message))),
        (speaker(), any::<u64>()).prop_map(|(speaker, bytes)| Onward::Heard(speaker, Said::Data(bytes))),
        any::<[u64; 2]>().prop_map(|[sent, received]| Onward::Over { sent, received }),
    ]
}

/// What no user could write as a host cannot come from elsewhere either.
#[test]
fn a_host_from_elsewhere_is_checked() {
    let parts = |name: &str| postcard::to_stdvec(&(None::<String>, name, None::<u16>)).unwrap();
    assert!(postcard::from_bytes::<Host>(&parts("a.b")).is_ok());
    for bad in ["", "-oProxyCommand=x", "a b", "a;b", "$(a)"] {
        assert!(postcard::from_bytes::<Host>(&parts(bad)).is_err(), "{bad}");
    }
}

fn message() -> impl Strategy<Value = Message> {
    let path = || prop::collection::vec(any::<u8>(), 0..300);
    let failure = || (1..=255u8, ".{0,50}").prop_map(|(code, message)| Failure::new(code, message));
    let request = prop_oneof![
        (path(), any::<bool>()).prop_map(|(destination, directory)| Request::Receive {
            destination: destination.into(),
            directory
        }),
        (prop::collection::vec(path().prop_map_into(), 0..4), any::<bool>())
            .prop_map(|(sources, listed)| Request::Send { sources, listed }),
        (path(), any::<bool>())
            .prop_map(|(path, nul_separated)| Request::Names { path: path.into(), nul_separated }),
        prop::collection::vec(path().prop_map_into(), 0..4).prop_map(|paths| Request::Digest { paths }),
        path().prop_map(|destination| Request::Image { destination: destination.into() }),
    ];
    let options = Options { compress: Compress::Auto, compress_level: Some(-3), ..Options::default() };
    prop_oneof![
        (request, any::<Option<[u8; 16]>>()).prop_map(move |(request, run)| Message::Start(
            Box::new(options.clone()),
            request,
            run
        )),
        any::<bool>().prop_map(|device| Message::Image(ImageMessage::Opened { device })),
        prop::collection::vec(any::<u8>(), 0..99)
            .prop_map(|lacks| Message::Image(ImageMessage::Lacks(lacks))),
        any::<u64>().prop_map(|length| Message::Image(ImageMessage::Length(length))),
        any::<bool>().prop_map(|single| Message::Layout { single }),
        (any::<u64>(), path(), kind(), metadata())
            .prop_map(|(id, path, kind, metadata)| Message::Entry(Entry { id, path, kind, metadata })),
        any::<u64>().prop_map(|id| Message::Content { id }),
        any::<u64>().prop_map(|blocks| Message::Keep { blocks }),
        any::<u64>().prop_map(|blocks| Message::Zero { blocks }),
        (any::<[u8; 32]>(), any::<bool>()).prop_map(|(root, settled)| Message::Finish { root, settled }),
        Just(Message::Abandon),
        (any::<u64>(), changes()).prop_map(|(id, changes)| Message::Unchanged { id, changes }),
        (any::<u64>(), any::<bool>()).prop_map(|(id, device)| Message::NoBasis { id, device }),
        (any::<u64>(), any::<bool>()).prop_map(|(id, device)| Message::Map { id, device }),
        (any::<u64>(), any::<[bool; 3]>(), changes()).prop_map(|(id, [device, mapped, resized], changes)| {
            Message::Preview { id, device, mapped, resized, changes }
        }),
        (any::<u64>(), any::<bool>(), changes()).prop_map(|(id, is_there, changes)| Message::Made {
            id,
            is_there,
            changes
        }),
        (path(), prop::collection::vec(path(), 0..4), any::<bool>())
            .prop_map(|(directory, names, is_whole)| Message::Contents { directory, names, is_whole }),
        (prop::collection::vec(path(), 0..4), any::<bool>())
            .prop_map(|(names, is_last)| Message::Names { names, is_last }),
        any::<u64>().prop_map(|id| Message::MapEnd { id }),
        (any::<u64>(), failure()).prop_map(|(id, failure)| Message::Failed { id, failure }),
        (any::<u64>(), prop::option::of(any::<u64>()), changes())
            .prop_map(|(id, changed, changes)| Message::Done { id, changed, changes }),
        any::<u64>().prop_map(|id| Message::Again { id }),
        any::<u64>().prop_map(|id| Message::Lacking { id }),
        onward().prop_map(Message::Onward),
        prop::collection::vec(any::<[u8; 32]>(), 0..4).prop_map(|roots| Message::Knows { roots }),
        (any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, root)| Message::AsKnown { id, root }),
        any::<u64>().prop_map(|bytes| Message::Believed { bytes }),
        any::<u64>().prop_map(|units| Message::Granted { units }),
        Just(Message::Busy(Phase::WritingBack)),
        failure().prop_map(Message::Unset),
        ".{0,50}".prop_map(Message::Warning),
        (path(), ".{0,50}").prop_map(|(path, text)| Message::WarningAbout { path, text }),
        failure().prop_map(Message::SourceFailed),
        any::<u64>().prop_map(|n| Message::End(Box::new(Stats { files_total: n, ..Stats::default() }))),
        any::<[u8; 32]>().prop_map(|root| Message::Digest { root }),
        (path(), kind(), metadata(), changes(), prop::option::of(any::<u64>())).prop_map(
            |(path, kind, metadata, changes, would_send)| {
                let entry = Entry { id: 7, path, kind, metadata };
                Message::Compared { entry, changes, would_send }
            }
        ),
    ]
}

fn data() -> impl Strategy<Value = Data> {
    let masks = prop::collection::vec(any::<u64>(), 1..9);
    (any::<u64>(), masks, prop::collection::vec(any::<u8>(), 0..5000))
        .prop_map(|(first, masks, bytes)| Data { first, masks, bytes })
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let keys = prop::collection::vec(any::<Key>(), 1..20).prop_map(Run::Keys);
    prop::collection::vec(prop_oneof![(1..=u64::MAX).prop_map(Run::Zero), keys], 0..20)
}

fn differ() -> impl Strategy<Value = Differ> {
    (any::<u64>(), prop::collection::vec(any::<[u8; 32]>(), 1..9))
        .prop_map(|(first, hashes)| Differ { first, hashes })
}

fn answer() -> impl Strategy<Value = LeafAnswer> {
    let leaves =
        (any::<u64>(), prop::collection::vec(any::<[u8; 8]>(), 0..65)).prop_map(|(data, mut hashes)| {
            hashes.truncate(u64::count_ones(data) as usize);
            BlockAnswer::Leaves(Leaves { data, hashes })
        });
    let block = prop_oneof![3 => leaves, 1 => Just(BlockAnswer::Had)];
    (any::<u64>(), prop::collection::vec(block, 0..6)).prop_map(|(id, blocks)| LeafAnswer { id, blocks })
}

/// Patches without a byte among them.
fn patch() -> impl Strategy<Value = Patch> {
    let masks = prop::collection::vec((any::<u64>(), any::<u64>()), 1..9);
    let bytes = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..5000)];
    (any::<u64>(), masks, bytes).prop_map(|(first, masks, bytes)| {
        let (masks, sent) = masks.into_iter().unzip();
        Patch { first, masks, sent, bytes }
    })
}

/// One frame of any kind, and how to write it.
#[derive(Debug, Clone)]
enum Any {
    Message(Message),
    Data(Data, bool),
    Map(u64, Vec<Run>),
    Differ(Differ),
    Leaves(LeafAnswer),
    Patch(Patch, bool),
}

fn any_frame() -> impl Strategy<Value = Any> {
    prop_oneof![
        message().prop_map(Any::Message),
        (data(), any::<bool>()).prop_map(|(data, packed)| Any::Data(data, packed)),
        (any::<u64>(), runs()).prop_map(|(id, runs)| Any::Map(id, runs)),
        differ().prop_map(Any::Differ),
        answer().prop_map(Any::Leaves),
        (patch(), any::<bool>()).prop_map(|(patch, packed)| Any::Patch(patch, packed)),
    ]
}

/// Frames whose bodies have a check of their own.
fn checked_frame() -> impl Strategy<Value = Any> {
    any_frame().prop_filter("data is checked by its hashes", |frame| {
        !matches!(frame, Any::Data(..) | Any::Patch(..))
    })
}

fn write(writer: &mut FrameWriter<impl Write>, frame: &Any) {
    let result = match frame {
        Any::Message(message) => writer.message(message),
        Any::Map(id, runs) => writer.map(*id, runs),
        Any::Data(data, false) => writer.data(data.first, &data.masks, &[&data.bytes]),
        Any::Data(data, true) => {
            let packed = zstd::bulk::compress(&data.bytes, 1).expect("compress");
            writer.data_zstd(data.first, &data.masks, data.bytes.len(), &packed)
        }
        Any::Differ(differ) => writer.differ(differ),
        Any::Leaves(answer) => writer.leaves(answer),
        Any::Patch(patch, false) => writer.patch(patch, None),
        Any::Patch(patch, true) => {
            let packed = zstd::bulk::compress(&patch.bytes, 1).expect("compress");
            writer.patch(patch, Some(&packed))
        }
    };
    result.expect("memory takes everything");
}

fn expected(frame: Any) -> Frame {
    match frame {
        Any::Message(message) => Frame::Message(message),
        Any::Data(data, _) => Frame::Data(data),
        Any::Map(id, runs) => Frame::Map(id, runs),
        Any::Differ(differ) => Frame::Differ(differ),
        Any::Leaves(answer) => Frame::Leaves(answer),
        Any::Patch(patch, _) => Frame::Patch(patch),
    }
}

/// The first frame of a stream: this body behind a header that is right, and with the
/// check of the body where there is one.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let head = [&[kind][..], &(body.len() as u32).to_le_bytes()].concat();
    let check = |bytes: &[u8]| blake3::hash(bytes).as_bytes()[..4].to_vec();
    let behind = if [2, 3, 7, 8].contains(&kind) { Vec::new() } else { check(body) };
    [&head, &check(&[&0u64.to_le_bytes(), &head[..]].concat()), body, &behind].concat()
}

/// Kind and body of a frame that is all of `bytes`.
fn unframed(bytes: &[u8]) -> (u8, &[u8]) {
    let len = u32::from_le_bytes(bytes[1..5].try_into().expect("a header")) as usize;
    (bytes[0], &bytes[9..9 + len])
}

/// Whether what was read stays within all limits.
fn is_bounded(frame: &Frame) -> bool {
    let masks = |masks: &[u64]| (1..=MAX_DATA_BLOCKS).contains(&masks.len());
    match frame {
        Frame::Message(_) => true,
        Frame::Data(data) => masks(&data.masks) && data.bytes.len() <= MAX_DATA,
        Frame::Map(_, runs) => {
            let keys = runs.iter().map(|run| if let Run::Keys(keys) = run { keys.len() } else { 0 });
            runs.len() <= MAX_MAP_RUNS && keys.sum::<usize>() <= MAX_MAP_KEYS
        }
        Frame::Differ(differ) => (1..=MAX_DIFFER).contains(&differ.hashes.len()),
        Frame::Leaves(answer) => answer.blocks.len() <= MAX_DIFFER,
        Frame::Patch(patch) => {
            masks(&patch.masks) && patch.sent.len() == patch.masks.len() && patch.bytes.len() <= MAX_DATA
        }
    }
}

/// What a body of any content may come to: one frame within the limits, or a broken
/// rule, or the other side's farewell.
fn assert_fine_or_refused(kind: u8, body: &[u8]) {
    let (frames, end) = read(&framed(kind, body));
    match frames.as_slice() {
        [] => assert!(matches!(end, Error::Protocol { .. } | Error::Remote { .. }), "{kind}: {end}"),
        [frame] => {
            assert!(matches!(end, Error::Closed { .. }), "{kind}: {end}");
            assert!(is_bounded(frame), "{kind}: a frame beyond its limits");
        }
        _ => panic!("{kind}: two frames in one"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(frames in prop::collection::vec(any_frame(), 1..6)) {
        let bytes = written(|writer| frames.iter().for_each(|frame| write(writer, frame)));
        let (found, end) = read(&bytes);
        prop_assert!(matches!(end, Error::Closed { .. }), "{end}");
        prop_assert_eq!(found, frames.into_iter().map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_an_error_in_the_end_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (frames, _) = read(&bytes);
        prop_assert!(frames.is_empty(), "a check of 32 bits let {frames:?} through");
    }

    #[test]
    fn a_stream_that_is_cut_off_gives_its_whole_frames_and_an_error(
        frames in prop::collection::vec(any_frame(), 1..4), at in any::<prop::sample::Index>(),
    ) {
        let bytes = written(|writer| frames.iter().for_each(|frame| write(writer, frame)));
        let (found, end) = read(&bytes[..at.index(bytes.len())]);
        prop_assert!(matches!(end, Error::Closed { .. }), "{end}");
        prop_assert!(found.len() < frames.len());
        let expected: Vec<_> = frames.into_iter().map(expected).take(found.len()).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_flipped_bit_in_anything_but_data_is_found(
        first in checked_frame(), second in checked_frame(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut bytes = written(|writer| {
            write(writer, &first);
            write(writer, &second);
        });
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (found, _) = read(&bytes);
        prop_assert!(found.len() < 2, "{found:?}");
        prop_assert!(found.is_empty() || found[0] == expected(first));
    }

    #[test]
    fn any_body_behind_a_right_header_is_taken_within_limits_or_refused(
        kind in 0..10u8, body in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        assert_fine_or_refused(kind, &body);
    }

    #[test]
    fn a_body_that_is_almost_right_is_taken_within_limits_or_refused(
        frame in any_frame(), kind in prop::option::weighted(0.2, 1..9u8), len in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), head in any::<bool>(),
    ) {
        let bytes = written(|writer| write(writer, &frame));
        let (own, body) = unframed(&bytes);
        let mut body = body.to_vec();
        // Counts and lengths are near the start.
        let reach = if head { body.len().min(24) } else { body.len() };
        if reach > 0 {
            changes.iter().for_each(|(at, byte)| body[at.index(reach)] = *byte);
        }
        if changes.len() % 2 == 1 {
            body.truncate(len.index(body.len() + 1));
        }
        assert_fine_or_refused(kind.unwrap_or(own), &body);
    }

    #[test]
    fn frames_that_are_swapped_or_lost_are_found(first in message(), second in message()) {
        let one = written(|writer| write(writer, &Any::Message(first.clone())));
        let both = written(|writer| {
            write(writer, &Any::Message(first.clone()));
            write(writer, &Any::Message(second.clone()));
        });
        let (head, tail) = both.split_at(one.len());
        prop_assert!(read(tail).0.is_empty());
        prop_assert!(read(&[tail, head].concat()).0.is_empty());
    }
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_anything_is_allocated() {
    for kind in [1u8, 2, 3, 4, 5, 6, 7, 8, 9, 0, 255] {
        let head = [&[kind], &u32::MAX.to_le_bytes()[..]].concat();
        let check = blake3::hash(&[&0u64.to_le_bytes()[..], &head].concat());
        let (frames, error) = read(&[&head[..], &check.as_bytes()[..4], &[0; 10]].concat());
        assert!(frames.is_empty());
        assert!(matches!(error, Error::Protocol { .. }), "{kind}: {error}");
    }
}

#[test]
fn every_limit_holds_and_one_more_is_refused() {
    let refused =
        |bytes: Vec<u8>| matches!(read(&bytes), (frames, Error::Protocol { .. }) if frames.is_empty());
    let taken = |bytes: Vec<u8>| read(&bytes).0.len() == 1;
    let data = |blocks: usize, len: usize| {
        written(|writer| writer.data(0, &vec![1; blocks], &[&vec![7; len]]).expect("memory"))
    };
    assert!(taken(data(MAX_DATA_BLOCKS, MAX_DATA)));
    assert!(refused(data(MAX_DATA_BLOCKS + 1, 1)) && refused(data(1, MAX_DATA + 1)) && refused(data(0, 0)));
    let map = |runs: usize, keys: usize| {
        let mut all = vec![Run::Zero(1); runs - 1];
        all.push(Run::Keys(vec![[3; 16]; keys]));
        written(|writer| writer.map(7, &all).expect("memory"))
    };
    assert!(taken(map(MAX_MAP_RUNS, MAX_MAP_KEYS)));
    assert!(refused(map(MAX_MAP_RUNS + 1, 1)) && refused(map(1, MAX_MAP_KEYS + 1)));
    for empty in [Run::Zero(0), Run::Keys(Vec::new())] {
        assert!(refused(written(|writer| writer.map(7, &[Run::Zero(1), empty]).expect("memory"))));
    }
    let halves = [MAX_MAP_KEYS / 2, MAX_MAP_KEYS / 2 + 1].map(|keys| Run::Keys(vec![[3; 16]; keys]));
    assert!(refused(written(|writer| writer.map(7, &halves).expect("memory"))), "too many keys in two runs");
    let differ = |blocks: usize| {
        let differ = Differ { first: 7, hashes: vec![[3; 32]; blocks] };
        written(|writer| writer.differ(&differ).expect("memory"))
    };
    assert!(taken(differ(1)) && taken(differ(MAX_DIFFER)));
    assert!(refused(differ(0)) && refused(differ(MAX_DIFFER + 1)));
    let leaves = |blocks: usize, hashes: usize| {
        let blocks = vec![Leaves { data: u64::MAX, hashes: vec![[3; 8]; hashes] }.into(); blocks];
        written(|writer| writer.leaves(&LeafAnswer { id: 7, blocks }).expect("memory"))
    };
    assert!(taken(leaves(0, 0)) && taken(leaves(MAX_DIFFER, 64)));
    assert!(refused(leaves(MAX_DIFFER + 1, 0)) && refused(leaves(MAX_DIFFER, 65)));
    let blocks = vec![Leaves { data: 0b101, hashes: vec![[3; 8]; 3] }.into()];
    let more = written(|writer| writer.leaves(&LeafAnswer { id: 7, blocks }).expect("memory"));
    assert!(refused(more), "more leaves than pages");
    let patch = |blocks: usize, len: usize, packed: bool| {
        let masks = vec![u64::MAX; blocks];
        let patch = Patch { first: 7, sent: masks.clone(), masks, bytes: vec![7; len] };
        let packed = packed.then(|| zstd::bulk::compress(&patch.bytes, 1).expect("compress"));
        written(|writer| writer.patch(&patch, packed.as_deref()).expect("memory"))
    };
    for packed in [false, true] {
        assert!(taken(patch(MAX_DATA_BLOCKS, MAX_DATA, packed)) && taken(patch(1, 0, packed)));
        assert!(refused(patch(MAX_DATA_BLOCKS + 1, 1, packed)) && refused(patch(1, MAX_DATA + 1, packed)));
        assert!(refused(patch(0, 0, packed)));
    }
    let warning =
        |len: usize| written(|writer| writer.message(&Message::Warning("x".repeat(len))).expect("memory"));
    assert!(taken(warning(60_000)) && refused(warning(70_000)));
}

/// Head of a frame of data or of a patch: first block, blocks, width of a mask, bytes.
fn data_head(blocks: u32, width: u8, bytes: u32) -> Vec<u8> {
    [&0u64.to_le_bytes()[..], &blocks.to_le_bytes(), &[width], &bytes.to_le_bytes()].concat()
}

#[test]
fn lists_that_run_over_their_frame_are_refused() {
    let refused = |kind: u8, parts: &[&[u8]]| {
        let (frames, error) = read(&framed(kind, &parts.concat()));
        assert!(frames.is_empty() && matches!(error, Error::Protocol { .. }), "{kind}: {error}");
    };
    for kind in [2, 3, 7, 8] {
        let lists = if kind < 7 { 1 } else { 2 };
        // One byte of masks is missing, then all of them; widths that are none.
        refused(kind, &[&data_head(3, 8, 0), &vec![1; 3 * 8 * lists - 1]]);
        refused(kind, &[&data_head(4096, 8, 0)]);
        refused(kind, &[&data_head(u32::MAX, 8, 0), &[1; 99]]);
        refused(kind, &[&data_head(1, 0, 0), &[1; 99]]);
        refused(kind, &[&data_head(1, 9, 0), &[1; 99]]);
        refused(kind, &[&data_head(1, 1, u32::MAX), &[1; 99]]);
        refused(kind, &[&data_head(1, 1, 0)[..16]]);
        // More bytes than are said, or fewer.
        refused(kind, &[&data_head(1, 1, 4), &vec![1; lists + 3]]);
        refused(kind, &[&data_head(1, 1, 4), &vec![1; lists + 5]]);
    }
    // Hashes with something behind them, and with half of one.
    refused(5, &[&[0; 8], &[3; 33]]);
    refused(5, &[&[0; 8], &[3; 31]]);
    refused(5, &[&[0; 7]]);
    // More leaves than there are bytes; a mask without a count; half a mask; no id.
    refused(6, &[&[0; 8], &[1; 8], &[2], &[3; 15]]);
    refused(6, &[&[0; 8], &[1; 8], &[255], &[3; 64 * 8]]);
    refused(6, &[&[0; 8], &[1; 8]]);
    refused(6, &[&[0; 8], &[1; 7]]);
    refused(6, &[&[0; 7]]);
}

#[test]
fn compressed_bytes_unpack_to_what_they_are_said_to_be_or_not_at_all() {
    let packed = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compress");
    for kind in [3, 8] {
        let masks: &[u8] = if kind == 3 { &[1] } else { &[1, 1] };
        for said in [0, 1, 4096, MAX_DATA] {
            let bomb = framed(kind, &[&data_head(1, 1, said as u32), masks, &packed].concat());
            let (frames, error) = read(&bomb);
            assert!(frames.is_empty() && matches!(error, Error::Protocol { .. }), "{said}: {error}");
        }
        let right = zstd::bulk::compress(&[7; 4096], 1).expect("compress");
        for (said, fits) in [(4095, false), (4096, true), (4097, false)] {
            let (frames, _) = read(&framed(kind, &[&data_head(1, 1, said), masks, &right].concat()));
            assert_eq!(frames.len(), usize::from(fits), "{said}");
        }
    }
}

#[test]
fn paths_from_the_other_side_are_plain_names() {
    let name = vec![b'n'; MAX_NAME];
    for fine in [&b""[..], b"a", b"a/b", b"-", b"...", b"a\n\xff", &name] {
        assert!(check_path(fine).is_ok(), "{fine:?}");
    }
    let (long, deep) = (vec![b'n'; MAX_NAME + 1], b"n/".repeat(MAX_PATH / 2 + 1));
    for bad in
        [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b", b"a\0", &long, &deep]
    {
        assert!(check_path(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn noise_before_the_greeting_is_skipped_up_to_its_limit() {
    let greeting = written(|writer| writer.greet(None, true).expect("memory"));
    let settle = |noise: usize, limit: usize| {
        let bytes = [vec![b'.'; noise], greeting.clone()].concat();
        FrameReader::new(bytes.as_slice(), "the test").await_greeting(limit).map(|greeting| greeting.version)
    };
    assert_eq!(settle(0, 0).ok(), Some(VERSION));
    assert_eq!(settle(MAX_NOISE, MAX_NOISE).ok(), Some(VERSION));
    assert!(matches!(settle(MAX_NOISE + 1, MAX_NOISE), Err(Error::Unanswered { .. })));
    assert!(matches!(settle(1, 0), Err(Error::Unanswered { .. })));
}

#[test]
fn the_newest_common_version_is_spoken_or_none() {
    for (oldest, newest, common) in [
        (VERSION, VERSION, Some(VERSION)),
        (0, 9, Some(VERSION)),
        (VERSION + 1, 9, None),
        (0, OLDEST - 1, None),
    ] {
        let versions = [u16::to_le_bytes(oldest), u16::to_le_bytes(newest)].concat();
        let bytes = [&MAGIC[..], &versions, &[0; 4]].concat();
        let spoken =
            FrameReader::new(bytes.as_slice(), "the test").await_greeting(0).map(|greeting| greeting.version);
        match common {
            Some(version) => assert_eq!(spoken.ok(), Some(version)),
            None => assert!(matches!(spoken, Err(Error::Version { .. })), "{oldest} to {newest}"),
        }
    }
}

#[test]
fn a_greeting_tells_of_instructions_for_aes() {
    for (aes, bits) in [(None, 0), (Some(true), 1), (Some(false), 2)] {
        let bytes = written(|writer| writer.greet(aes, true).expect("memory"));
        let greeting = FrameReader::new(bytes.as_slice(), "the test").await_greeting(0).expect("a greeting");
        assert_eq!(greeting.aes, aes);
        // Bits that are not known yet say nothing.
        let bytes = [&bytes[..12], &(0xffff_fffc_u32 | bits).to_le_bytes()].concat();
        let greeting = FrameReader::new(bytes.as_slice(), "the test").await_greeting(0).expect("a greeting");
        assert_eq!(greeting.aes, aes);
    }
}

/// What is read of a data frame for these ranges of a file, written to a pipe with
/// another frame behind it, and whether the file could be read.
fn through_a_pipe(file: &File, ranges: &[Range<u64>]) -> (Data, io::Result<()>) {
    let (from, to) = io::pipe().expect("pipe");
    let reading = std::thread::spawn(move || {
        let mut reader = FrameReader::new(from, "the test");
        [reader.read(), reader.read()]
    });
    let mut writer = FrameWriter::direct(TimedWriter::new(to, Arc::default()), "the test");
    let read = writer.data_of_file(7, &[3, 1], file, ranges).expect("written");
    writer.message(&Message::Abandon).expect("written");
    writer.flush().expect("written");
    drop(writer);
    match reading.join().expect("no panic") {
        [Ok(Frame::Data(data)), Ok(Frame::Message(Message::Abandon))] => (data, read),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_of_a_file_go_to_a_pipe_as_they_are() {
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("written");
    let (data, read) = through_a_pipe(&file, &[4096..12288, 16384..300_000]);
    read.expect("all was read");
    assert_eq!((data.first, data.masks), (7, vec![3, 1]));
    assert!(data.bytes == [&bytes[4096..12288], &bytes[16384..]].concat());
}

#[test]
fn a_file_that_cannot_be_read_does_not_break_the_stream() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all_at(&[1; 5000], 0).expect("written");
    let (data, read) = through_a_pipe(file.as_file(), &[4096..8192, 0..4096]);
    read.expect("what is not there is zeros");
    assert!(data.bytes == [[1; 904].as_slice(), &[0; 3192], &[1; 4096]].concat());
    let blind = File::options().write(true).open(file.path()).expect("open");
    let (data, read) = through_a_pipe(&blind, &[0..4096, 4096..8192]);
    assert!(read.is_err() && data.bytes == [0; 8192]);
}
