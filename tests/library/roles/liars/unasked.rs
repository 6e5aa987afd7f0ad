//! Senders that send what they were not asked for.

use std::ffi::OsStr;
use std::io;

use holesync::confinement::NamedPath;
use holesync::filter::RulesReader;
use holesync::options::{Commit, Delete, DeleteWhen, Missing, Options};
use holesync::protocol::{Entry, Message};
use holesync::receiver::Target;
use holesync::source::{Asked, Kind, Metadata};

use super::{Liar, is_protocol_error};
use crate::roles::{Trees, entry, options, snapshot, start_receiver_of, wait};

struct Lie {
    lie: &'static str,
    /// What is said of it.
    why: &'static str,
    asked: fn(&mut Options) -> &'static str,
    message: Message,
}

fn lie(
    lie: &'static str,
    why: &'static str,
    asked: fn(&mut Options) -> &'static str,
    message: Message,
) -> Lie {
    Lie { lie, why, asked, message }
}

fn made(path: &str, kind: Kind) -> Message {
    Message::Entry(Entry { id: 0, path: path.into(), kind, metadata: Metadata::default() })
}

fn exclude(options: &mut Options, rule: &str) {
    let mut reader = RulesReader::new(false);
    reader.filter(OsStr::new(rule)).unwrap();
    options.filter = reader.finish();
}

/// `same` and `sub` are at the destination, and are hidden.
fn hiding(options: &mut Options) -> &'static str {
    exclude(options, "- s*");
    options.kinds.hard_links = true;
    options.delete =
        Some(Delete { when: DeleteWhen::During, excluded: false, most: None, ignore_errors: false });
    "source/"
}

const NOT_ASKED: &str = "it sends what it was not asked for";

fn lies() -> Vec<Lie> {
    let link = || Kind::Symlink(b"../../etc".to_vec());
    let attribute = Metadata { xattrs: Some(vec![(b"user.x".to_vec(), vec![])]), ..Metadata::default() };
    vec![
        lie("another name than that of the source", NOT_ASKED, |_| "changed", entry(0, "same", 1)),
        lie("a file that the rules leave out", NOT_ASKED, hiding, entry(0, "same", 1)),
        lie("a directory that they leave out", NOT_ASKED, hiding, made("sub", Kind::Directory)),
        lie("a file in such a directory", NOT_ASKED, hiding, entry(0, "sub/a/b", 1)),
        lie(
            "another name of what they leave out",
            "another name of a file that it may not name",
            hiding,
            made("a", Kind::HardLink(b"same".to_vec())),
        ),
        lie(
            "what a directory has that they leave out",
            "it tells of what it was not asked for",
            hiding,
            Message::Contents { directory: b"sub".to_vec(), names: vec![], is_whole: true },
        ),
        lie(
            "an attribute that they leave out",
            NOT_ASKED,
            |options| {
                exclude(options, "-x user.*");
                "source/"
            },
            Message::Entry(Entry {
                id: 0,
                path: b"new".to_vec(),
                kind: Kind::Directory,
                metadata: attribute,
            }),
        ),
        lie(
            "a file that is too large",
            "a file of a size that nobody wants",
            |options| {
                options.transfer.max_size = Some(100);
                "source/"
            },
            entry(0, "same", 101),
        ),
        lie(
            "what lies below a directory that was asked for alone",
            NOT_ASKED,
            |options| {
                options.recursive = false;
                "sub"
            },
            entry(0, "sub/new", 1),
        ),
        lie(
            "a symlink that leads out",
            "a symlink that leads out of what is sent",
            |options| {
                options.safe_links = true;
                "source/"
            },
            made("same", link()),
        ),
        lie(
            "a symlink where all are followed",
            "a symlink that nobody wants",
            |options| {
                options.kinds.follow.all = true;
                "source/"
            },
            made("same", link()),
        ),
        lie(
            "a source that is missing, and was none",
            NOT_ASKED,
            |options| {
                options.missing = Missing::Deleted;
                "sub"
            },
            made("sub/shorter", Kind::Missing),
        ),
    ]
}

#[test]
fn a_lying_sender_of_what_was_not_asked_for_ends_its_session_and_changes_nothing() {
    for Lie { lie, why, asked, message } in lies() {
        let trees = Trees::new();
        let mut options = options(Commit::Auto);
        let source = asked(&mut options);
        let asked = Asked::of(&[NamedPath::here(source)], &options);
        let target =
            Target { asked: Some(asked), ..Target::new(NamedPath::here(trees.target()), false, 0o022) };
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let received = start_receiver_of(forth.0, back.1, target, options);
        let mut liar = Liar::new(back.0, forth.1);
        liar.say(&Message::Layout { single: false });
        liar.say(&message);
        let ended = wait(&received, "receiver", lie);
        assert!(is_protocol_error(&ended), "{lie}: {ended:?}");
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(why), "{lie}: {error}");
        assert!(snapshot(&trees.target()) == trees.old, "{lie}: something changed");
    }
}
