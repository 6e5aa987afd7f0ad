//! Peers that lie. Each lie ends the session or its file, in bounded memory and time, and
//! changes nothing that it does not name. A test counts this table and looks for its tests.
//!
//! | liar | lie | test |
//! |---|---|---|
//! | sender | a name that is `..` | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | `..` within a path | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an absolute path | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an empty name | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a name that is `.` | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a NUL in a name | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a name of 256 bytes | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a path of more than 4096 bytes | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | the name of a working file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an entry below a working file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an entry before the layout | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | the layout twice | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an id twice | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | ids that go backwards | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a length above that of any file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | content of an id that was not announced | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | content while another file is open | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | blocks kept of no file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | blocks kept beyond the end | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | zeros beyond the end | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | more zeros once the end is reached | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | an end before all is described | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | the end of a file twice | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | no file abandoned | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | totals within a file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | totals before every file is described | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | data far beyond the end | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | data of pages that a block does not have | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | data of no page | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | fewer bytes than its masks want | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | data of no blocks | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a mask of no width | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | more blocks than a frame may have | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a zstd bomb | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a zstd bomb of four GiB | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | compressed data that is none | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a frame of four GiB | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a message of more than 64 KiB | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a frame of an unknown type | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a message of an unknown kind | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a message with something behind it | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a frame with the number of another | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a data frame without its head | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a list that claims more than it has | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a request within a session | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a symlink that nobody wants | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a device that nobody wants | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a fifo that nobody wants | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | another name that nobody wants | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | another name of what lies outside | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | another name of the destination itself | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | another name of a working file | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | what only receivers say | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a map | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | credit outside a dry run | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | a comparison outside a dry run | `a_lying_sender_ends_its_session_and_changes_nothing` |
//! | sender | another root hash | `a_lying_sender_loses_its_file_and_the_others_come` |
//! | sender | a file of 2^63 - 1 bytes | `a_lying_sender_loses_its_file_and_the_others_come` |
//! | sender | an entry below a symlink that it sent | `a_lying_sender_loses_its_file_and_the_others_come` |
//! | sender | a file in the place of a directory | `a_lying_sender_loses_its_file_and_the_others_come` |
//! | sender | attributes out of every range | `a_lying_sender_loses_its_file_and_the_others_come` |
//! | sender | what another directory has | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | an absolute directory | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | a name that leads on | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | a name that is `..` among those it has | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | names before the layout | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | a removal before the layout | `a_sender_that_lies_about_what_it_has_removes_nothing` |
//! | sender | names without end, and what a symlink leads to | `names_of_a_lying_sender_lead_nowhere_and_take_bounded_memory` |
//! | sender | another name than that of the source | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a file that the rules leave out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a directory that they leave out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a file in such a directory | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | another name of what they leave out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | what a directory has that they leave out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | an attribute that they leave out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a file that is too large | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | what lies below a directory that was asked for alone | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a symlink that leads out | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a symlink where all are followed | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | sender | a source that is missing, and was none | `a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing` |
//! | receiver | removals that nobody asked for | `a_lying_receiver_ends_its_session` |
//! | receiver | something that stays where nothing goes | `a_lying_receiver_ends_its_session` |
//! | receiver | names without bytes, without end | `a_lying_receiver_ends_its_session` |
//! | receiver | more names than a message may have | `a_lying_receiver_ends_its_session` |
//! | receiver | a map of nobody's file | `a_lying_receiver_ends_its_session` |
//! | receiver | a wish for nobody's file | `a_lying_receiver_ends_its_session` |
//! | receiver | a wish for one file twice | `a_lying_receiver_ends_its_session` |
//! | receiver | wishes that go backwards | `a_lying_receiver_ends_its_session` |
//! | receiver | the end of nobody's map | `a_lying_receiver_ends_its_session` |
//! | receiver | the end of a map twice | `a_lying_receiver_ends_its_session` |
//! | receiver | keys of nobody's file | `a_lying_receiver_ends_its_session` |
//! | receiver | a map of more keys than a frame may have | `a_lying_receiver_ends_its_session` |
//! | receiver | a run of nothing | `a_lying_receiver_ends_its_session` |
//! | receiver | a run of an unknown kind | `a_lying_receiver_ends_its_session` |
//! | receiver | a map of no id | `a_lying_receiver_ends_its_session` |
//! | receiver | an answer that was not asked for | `a_lying_receiver_ends_its_session` |
//! | receiver | an answer twice | `a_lying_receiver_ends_its_session` |
//! | receiver | prepared for nobody | `a_lying_receiver_ends_its_session` |
//! | receiver | the result of no directory | `a_lying_receiver_ends_its_session` |
//! | receiver | leaves of too many pages | `a_lying_receiver_ends_its_session` |
//! | receiver | credit that was not taken | `a_lying_receiver_ends_its_session` |
//! | receiver | credit without end | `a_lying_receiver_ends_its_session` |
//! | receiver | a warning of more than 4 KiB | `a_lying_receiver_ends_its_session` |
//! | receiver | a failure of more than 4 KiB | `a_lying_receiver_ends_its_session` |
//! | receiver | totals while files are open | `a_lying_receiver_ends_its_session` |
//! | receiver | a preview outside a dry run | `a_lying_receiver_ends_its_session` |
//! | receiver | what only senders say | `a_lying_receiver_ends_its_session` |
//! | receiver | entries of its own | `a_lying_receiver_ends_its_session` |
//! | receiver | a question of its own | `a_lying_receiver_ends_its_session` |
//! | receiver | data of its own | `a_lying_receiver_ends_its_session` |
//! | receiver | a hash that nobody asked for | `a_lying_receiver_ends_its_session` |
//! | receiver | maps without end of a file that is through | `a_lying_receiver_ends_its_session` |
//! | initiator | noise without end before its greeting | `a_lying_initiator_ends_its_session` |
//! | initiator | a version that nobody speaks | `a_lying_initiator_ends_its_session` |
//! | initiator | a version of nothing | `a_lying_initiator_ends_its_session` |
//! | initiator | something else than a request | `a_lying_initiator_ends_its_session` |
//! | initiator | a request of an unknown kind | `a_lying_initiator_ends_its_session` |
//! | initiator | a block size that is no power of two | `a_lying_initiator_ends_its_session` |
//! | initiator | a block of four GiB | `a_lying_initiator_ends_its_session` |
//! | initiator | a request that is cut off | `a_lying_initiator_ends_its_session` |
//! | initiator | more sources than a request may have | `a_lying_initiator_ends_its_session` |
//! | initiator | a decision before anything is prepared | `a_lying_initiator_ends_its_session` |
//! | initiator | a decision that was not to be waited for | `a_lying_initiator_ends_its_session` |
//! | initiator | data in the place of a request | `a_lying_initiator_ends_its_session` |
//! | initiator | data that was not asked for | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a block with another hash | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | another block than was asked for | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a page beyond the end | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | blocks that go back | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a block beyond the largest file | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a block beyond the end | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a length before what came | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | two lengths | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | a length that no file has | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | an end without a length | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | an end before what was asked for | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | initiator | an entry | `an_image_with_a_lie_in_it_leaves_the_old_file` |
//! | sender | a symlink in the place of the named destination | `a_named_destination_is_not_replaced_by_a_symlink` |
//! | sender | a fatal error of 64 KiB | `a_sender_that_fails_at_length_is_cut_short` |
//! | sender | questions and patches out of turn | `a_sender_that_asks_or_patches_what_it_may_not_is_refused` |
//! | sender | more questions than its credit | `more_questions_than_may_be_open_are_refused` |
//! | sender | a question about a file that is not there | `a_question_without_a_basis_is_refused` |
//! | sender | another block than it promised | `a_block_that_is_not_what_was_promised_is_asked_for_again` |
//! | sender | entries without end, answers unread | `a_sender_that_announces_without_end_is_refused` |
//! | receiver | leaves that nobody asked for | `leaves_that_nobody_asked_for_are_refused_or_dropped` |
//! | receiver | of an old version, a block that it had elsewhere | `a_block_that_an_old_receiver_says_to_have_is_refused` |
//! | receiver | more leaves than it was asked for | `a_receiver_that_answers_with_more_leaves_than_it_was_asked_for_is_refused` |
//! | receiver | leaves of other bytes than it has | `leaves_that_lie_are_never_a_wrong_file` |
//! | receiver | maps that run ahead of its credit | `a_receiver_whose_maps_run_ahead_of_its_answers_is_refused` |
//! | receiver | totals that forget its failures | `failures_that_a_peer_told_of_count_whatever_its_totals_say` |
//! | receiver | answers to nobody, totals of everything | `answers_to_nobody_cost_nothing` |
//! | receiver | a known map that is another one | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map twice | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map of a file without a map | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map without an answer | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map behind a part of one, and one that ends | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map in a second try | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map that the end of the file cuts | `a_map_that_is_said_to_be_known_and_cannot_be_is_refused` |
//! | receiver | a known map that nobody told of | `an_older_receiver_and_one_of_several_files_hear_of_no_maps` |
//! | sender | maps that it knows, before the layout, twice, too many | `maps_that_a_sender_tells_of_out_of_turn_are_refused` |
//! | receiver | wants everything and reads nothing | `a_receiver_that_wants_everything_and_reads_nothing_costs_no_memory` |
//! | initiator | each request to an agent that may not serve it | `each_request_of_a_lying_initiator_is_refused_where_it_leads_out_or_is_not_given` |

mod initiators;
mod receivers;
mod senders;
mod unasked;

use std::collections::BTreeSet;
use std::io::{PipeReader, PipeWriter, Write};
use std::sync::mpsc::{Receiver, channel};

use holesync::error::{Error, Result};
use holesync::protocol::{Frame, FrameReader, FrameWriter, Message};
use holesync::report::Stats;

use crate::roles::PATIENCE;

/// Memory that a lie may cost, in bytes: above what honest peers of the tests beside it
/// cause, and far below what the lies ask for.
const MEMORY: u64 = 256 << 20;

/// The end that lies: says any message, and bytes that no writer would write.
struct Liar {
    output: PipeWriter,
    frames: u64,
    heard: Receiver<Frame>,
    /// All that was heard so far.
    answers: Vec<Frame>,
}

impl Liar {
    fn new(input: PipeReader, output: PipeWriter) -> Liar {
        Liar::after(FrameReader::new(input, "the victim"), output)
    }

    /// A liar that was honest so far, and heard what comes from `input`.
    fn after(mut input: FrameReader<PipeReader>, output: PipeWriter) -> Liar {
        let (heard_in, heard) = channel();
        std::thread::spawn(move || {
            while let Ok(frame) = input.read()
                && heard_in.send(frame).is_ok()
            {}
        });
        Liar { output, frames: 0, heard, answers: Vec::new() }
    }

    /// Waits until its victim says this.
    fn hear(&mut self, wanted: impl Fn(&Message) -> bool) {
        loop {
            let frame = self.heard.recv_timeout(PATIENCE).expect("an answer");
            let found = matches!(&frame, Frame::Message(message) if wanted(message));
            self.answers.push(frame);
            if found {
                return;
            }
        }
    }

    /// All that its victim said, which is gone by now.
    fn answers(mut self) -> Vec<Frame> {
        self.answers.extend(self.heard.iter());
        self.answers
    }

    /// The other end may have had enough already.
    fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.output.write_all(bytes);
    }

    /// A frame of any type, with a length that need not be that of its body.
    fn frame_of(&mut self, kind: u8, len: u32, body: &[u8]) {
        let mut header = [&[kind][..], &len.to_le_bytes()].concat();
        let number = self.frames.to_le_bytes();
        let check = blake3::hash(&[&number, header.as_slice()].concat());
        header.extend(&check.as_bytes()[..4]);
        self.frames += 1;
        // Data and patches have no check of their own.
        let check = if matches!(kind, 2 | 3 | 7 | 8) { Vec::new() } else { checked(body) };
        self.bytes(&[&header, body, &check].concat());
    }

    fn frame(&mut self, kind: u8, body: &[u8]) {
        self.frame_of(kind, body.len() as u32, body);
    }

    fn say(&mut self, message: &Message) {
        self.frame(1, &postcard::to_stdvec(message).unwrap());
    }

    /// What an honest writer makes of something, and nothing else.
    fn tell(&mut self, write: impl FnOnce(&mut FrameWriter<&mut Vec<u8>>) -> Result<()>) {
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(&mut bytes, "the victim");
        write(&mut writer).and_then(|()| writer.flush()).unwrap();
        drop(writer);
        // Numbered anew.
        let len = u32::from_le_bytes(bytes[1..5].try_into().unwrap());
        self.frame_of(bytes[0], len, &bytes[9..9 + len as usize]);
    }
}

fn checked(body: &[u8]) -> Vec<u8> {
    blake3::hash(body).as_bytes()[..4].to_vec()
}

fn is_protocol_error(ended: &Result<Stats>) -> bool {
    matches!(ended, Err(Error::Protocol { .. }))
}

/// Whether this test has its process to itself, as it must to tell what it takes. If not, it was run in
/// another one.
fn is_alone() -> bool {
    const ALONE: &str = "HOLESYNC_TEST_ALONE";
    let thread = std::thread::current();
    let name = thread.name().unwrap();
    // Of tests that are run one by one that is the name of the only thread.
    if name == "main" || std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// The most memory that this process has used so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn the_list_of_lies_is_long_and_each_has_a_test() {
    let rows: Vec<Vec<&str>> = include_str!("liars.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .map(|line| line.trim_end_matches('|').split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| row[0] != "liar")
        .collect();
    assert!(rows.len() >= 40, "{}", rows.len());
    let lies: BTreeSet<_> = rows.iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(lies.len(), rows.len());
    let here = [
        include_str!("liars/senders.rs"),
        include_str!("liars/receivers.rs"),
        include_str!("liars/initiators.rs"),
        include_str!("liars/unasked.rs"),
    ];
    let others = [
        include_str!("known.rs"),
        include_str!("leaves.rs"),
        include_str!("../roles.rs"),
        include_str!("../protocol/wire.rs"),
        include_str!("../../it/remote/confined.rs"),
    ];
    for row in &rows {
        let [_, lie, test] = row[..] else { panic!("{row:?}") };
        let test = format!("fn {}()", test.trim_matches('`'));
        assert!(here.iter().chain(&others).any(|file| file.contains(&test)), "no {test}");
        // Lies that share a test are told there under the same words.
        let by_words = test.starts_with("fn a_lying_");
        assert!(!by_words || here.iter().any(|file| file.contains(&format!("\"{lie}\""))), "{lie}");
    }
    for told in
        here.iter().flat_map(|file| file.lines().filter_map(|line| line.trim().strip_prefix("lie(\"")))
    {
        let lie = told.split('"').next().unwrap();
        assert!(lies.iter().any(|(_, listed)| *listed == lie), "{lie} is not in the table");
    }
}
