//! Keys that are bound to `holesync agent --root DIR`, through a real sshd, and initiators
//! that ask such an agent for more than it gives.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use holesync::confinement::RequestPath;
use holesync::error::{Error, Failure, code};
use holesync::location::Host;
use holesync::options::Options;
use holesync::protocol::{
    Frame, FrameReader, FrameWriter, MAX_NOISE, Message, Onward, OnwardRequest, Request,
};
use tempfile::TempDir;

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::at;
use crate::common::process::{Outcome, PROGRAM, holesync, run};

/// A directory that a key is bound to, beside a file that it must not reach.
struct Bound {
    place: TempDir,
    rsh: String,
}

const SECRET: &str = "nobody's business";

impl Bound {
    /// `None`, and a counted skip, where there is no sshd.
    fn new(access: &str) -> Option<Bound> {
        let Some(sshd) = lab::root().map(|root| root.join("sshd")).filter(|at| at.join("ssh").is_file())
        else {
            lab::skip("no private sshd");
            return None;
        };
        let place = place();
        let key = place.path().join("key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
        let public = fs::read_to_string(key.with_extension("pub")).expect("read the key");
        let root = place.path().join("root");
        let command = format!("{PROGRAM} agent --root {} {access}", root.display());
        let line = format!("restrict,command=\"{command}\" {public}");
        let keys = fs::File::options().append(true).open(sshd.join("more_keys"));
        keys.and_then(|mut keys| keys.write_all(line.as_bytes())).expect("add a key");
        let rsh = format!("{} -i {}", sshd.join("ssh").display(), key.display());
        Some(Bound { place, rsh })
    }

    fn root(&self, path: &str) -> PathBuf {
        self.place.path().join("root").join(path)
    }

    fn local(&self, path: &str) -> PathBuf {
        self.place.path().join(path)
    }

    fn holesync(&self, args: &[&str]) -> Command {
        let mut command = holesync();
        command.args(args.iter().take_while(|arg| !arg.starts_with('-'))).args(["-e", &self.rsh]);
        command.args(args.iter().skip_while(|arg| !arg.starts_with('-')));
        command
    }

    fn copy(&self, args: &[&str], from: impl AsRef<Path>, to: impl AsRef<Path>) -> Outcome {
        let outcome = run(self.holesync(args).arg(from.as_ref()).arg(to.as_ref()));
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        let real = self.root("").canonicalize().expect("a directory");
        let shows = text.lines().any(|line| {
            // What this end says of its own paths is its own.
            line.contains(real.to_str().expect("a plain path").trim_end_matches('/'))
        });
        assert!(!shows, "the directory shows in {outcome}");
        outcome
    }

    #[track_caller]
    fn assert_nothing_outside(&self) {
        assert_eq!(fs::read_to_string(self.local("secret")).expect("read"), SECRET);
        let mut names: Vec<_> = fs::read_dir(self.local("beside")).expect("list").flatten().collect();
        assert!(names.pop().is_none(), "{names:?}");
    }
}

/// `root` with images and ways out, `beside` it an empty directory and a secret.
fn place() -> TempDir {
    let place = lab::scratch();
    let at = |path: &str| place.path().join(path);
    for dir in ["root", "root/sub", "beside"] {
        fs::create_dir(at(dir)).expect("mkdir");
    }
    fs::write(at("secret"), SECRET).expect("write");
    // Of lengths of their own: they are made within one tick of the clock.
    let image = |path: &str, seed: u64| {
        Layout::hole("image", 300_000 + seed as usize).data(70_000..150_000, &mut Rng(seed)).write(&at(path));
    };
    image("root/image", 1);
    image("root/sub/image", 2);
    image("new", 3);
    symlink("../secret", at("root/out")).expect("symlink");
    symlink("../beside", at("root/away")).expect("symlink");
    symlink(at("beside"), at("root/sub/absolute")).expect("symlink");
    symlink("sub", at("root/in")).expect("symlink");
    place
}

#[test]
fn a_bound_key_reads_and_writes_below_its_directory() {
    let Some(bound) = Bound::new("") else { return };
    let new = bound.local("new");
    for (nth, agent) in ["--agent=auto", "--agent=require"].into_iter().enumerate() {
        for (to, arrives) in [
            ("pushed", "pushed"),
            ("/pushed", "pushed"),
            ("/sub/pushed", "sub/pushed"),
            ("in/pushed", "sub/pushed"),
            ("sub/../pushed", "pushed"),
            ("~/pushed", "pushed"),
            ("", "new"),
            ("/", "new"),
            ("~", "new"),
            ("sub", "sub/new"),
            ("made/", "made/new"),
        ] {
            bound.copy(&[agent], &new, at(to)).ok();
            assert_same(&new, &bound.root(arrives));
            fs::remove_file(bound.root(arrives)).expect("remove");
        }
        for from in ["image", "/image", "in/../image", "~/image"] {
            let to = bound.local(&format!("pulled {nth}"));
            bound.copy(&[agent], at(from), &to).ok();
            assert_same(&bound.root("image"), &to);
            fs::remove_file(to).expect("remove");
        }
        let tree = bound.local(&format!("tree {nth}"));
        bound.copy(&[agent], at("/"), &tree).ok();
        assert_same(&bound.root("sub/image"), &tree.join("sub/image"));
        assert_eq!(fs::read_link(tree.join("out")).expect("a symlink"), Path::new("../secret"));
        bound.copy(&[agent], tree.join(""), at("copy/")).ok();
        assert_same(&bound.root("sub/image"), &bound.root("copy/sub/image"));
        fs::remove_dir_all(bound.root("copy")).expect("remove");
    }
    let there = run(bound.holesync(&["digest"]).arg(at("/image"))).ok().stdout;
    let here = run(holesync().arg("digest").arg(bound.root("image"))).ok().stdout;
    assert_eq!(there.split(' ').next(), here.split(' ').next());
    bound.assert_nothing_outside();
}

#[test]
fn what_a_bound_key_does_not_run_is_said() {
    let Some(bound) = Bound::new("") else { return };
    for agent in ["--agent=push", "--agent=none"] {
        let outcome = bound.copy(&[agent], bound.local("new"), at("pushed"));
        outcome.code(code::START.into()).says(&["a forced command", agent]);
    }
    let ran = bound.local("beside/ran");
    let command = format!("--through=cat >{}", ran.display());
    let outcome = bound.copy(&[&command], bound.local("new"), at("x"));
    outcome.code(code::START.into()).says(&["runs no commands"]);
    bound.assert_nothing_outside();
}

#[test]
fn a_bound_key_does_not_lead_out_of_its_directory() {
    let Some(bound) = Bound::new("") else { return };
    let new = bound.local("new");
    for to in
        ["..", "../beside/", "../beside/x", "away/x", "away/", "sub/absolute/x", "sub/../../beside/x", "away"]
    {
        let outcome = bound.copy(&[], &new, at(to));
        // The symlink itself may be replaced by the file that was sent to its name.
        if outcome.code != 0 {
            let why = if to == ".." { "names no file" } else { "leads out of the directory" };
            outcome.says(&[why]);
        }
        bound.assert_nothing_outside();
    }
    bound.copy(&["--inplace"], &new, at("out"));
    bound.assert_nothing_outside();
    symlink("../secret", bound.root("leads")).expect("symlink");
    for from in ["../secret", "leads", "away/", "sub/absolute/", "..", "../", "/../secret"] {
        let to = bound.local("pulled");
        let outcome = bound.copy(&[], at(from), &to);
        assert_ne!(outcome.code, 0, "{from}: {outcome}");
        assert!(!to.is_file(), "{from}: {outcome}");
        assert!(!to.join("secret").exists(), "{from}: {outcome}");
        let outcome = run(bound.holesync(&["digest"]).arg(at(from)));
        assert_ne!(outcome.code, 0, "{from}: {outcome}");
    }
    // Entries of a tree go through no symlink either: a directory takes its place.
    fs::create_dir(bound.local("tree")).expect("mkdir");
    fs::create_dir(bound.local("tree/away")).expect("mkdir");
    fs::write(bound.local("tree/away/x"), "x").expect("write");
    bound.copy(&[], bound.local("tree/"), at("/")).ok();
    assert!(
        fs::symlink_metadata(bound.root("away")).expect("stat").is_dir() && bound.root("away/x").is_file()
    );
    bound.assert_nothing_outside();
}

#[test]
fn a_key_bound_to_one_direction_keeps_to_it() {
    let Some(reads) = Bound::new("--read-only") else { return };
    let refused = reads.copy(&[], reads.local("new"), at("image"));
    refused.code(code::START.into()).says(&["writes nothing"]);
    reads.copy(&["-n"], reads.local("new"), at("image")).code(code::START.into());
    reads.copy(&[], at("image"), reads.local("pulled")).ok();
    run(reads.holesync(&["digest"]).arg(at("image"))).ok();

    let Some(writes) = Bound::new("--write-only") else { return };
    let refused = writes.copy(&[], at("image"), writes.local("pulled"));
    refused.code(code::START.into()).says(&["sends nothing"]);
    assert!(!writes.local("pulled").exists());
    run(writes.holesync(&["digest"]).arg(at("image"))).code(code::START.into());
    writes.copy(&[], writes.local("new"), at("image")).ok();
    assert_same(&writes.local("new"), &writes.root("image"));
}

#[test]
fn a_key_that_may_not_remove_keeps_what_the_other_end_does_not_have() {
    let Some(keeps) = Bound::new("--no-delete") else { return };
    fs::create_dir(keeps.local("empty")).expect("create a directory");
    let refused = keeps.copy(&["--delete"], keeps.local("empty/"), at("./"));
    refused.code(code::START.into()).says(&["removes nothing"]);
    assert!(keeps.root("image").exists());
    keeps.copy(&[], keeps.local("empty/"), at("./")).ok();
    let Some(removes) = Bound::new("") else { return };
    fs::create_dir(removes.local("empty")).expect("create a directory");
    removes.copy(&["--delete"], removes.local("empty/"), at("./")).ok();
    assert!(!removes.root("image").exists());
    removes.assert_nothing_outside();
}

/// Asks an agent without ssh, as an initiator that does not keep to what holesync would ask.
fn ask(args: &[&str], request: Request) -> Result<Frame, Error> {
    say(args, &Message::Start(Box::default(), request, None))
}

/// Says this first. The first answer.
fn say(args: &[&str], first: &Message) -> Result<Frame, Error> {
    let mut agent = Command::new(PROGRAM);
    agent.arg("agent").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut agent = agent.spawn().expect("start an agent");
    let mut input: FrameReader<ChildStdout> = FrameReader::new(agent.stdout.take().expect("a pipe"), "agent");
    let mut output: FrameWriter<ChildStdin> = FrameWriter::new(agent.stdin.take().expect("a pipe"), "agent");
    input.await_greeting(MAX_NOISE).expect("a greeting");
    output.greet(None, true).expect("greet");
    output.message(first).expect("ask");
    // A receiver waits for this; whoever refused is gone.
    let _ = output.message(&Message::Layout { single: true });
    let _ = output.message(&Message::End(Box::default()));
    let _ = output.flush();
    drop(output);
    let answer = input.read();
    agent.wait().expect("an end");
    answer
}

#[test]
fn each_request_of_a_lying_initiator_is_refused_where_it_leads_out_or_is_not_given() {
    let place = place();
    let root = place.path().join("root");
    let root = root.to_str().expect("a plain path");
    let receive = |path: &str, directory| Request::Receive { destination: request_path(path), directory };
    let send = |path: &str| Request::Send {
        sources: vec![request_path("/image"), request_path(path)],
        listed: false,
    };
    let digest = |path: &str| Request::Digest { paths: vec![request_path(path)] };
    let through = || Request::Through {
        command: b"touch ../beside/ran".to_vec(),
        destination: request_path("image"),
        size: 0,
    };
    let refused = |args: &[&str], request: Request| {
        let shown = format!("{args:?}, {request:?}");
        let failure = match ask(&[&["--root", root], args].concat(), request) {
            Err(Error::Remote { failure, .. }) => failure,
            other => panic!("{shown}: {other:?}"),
        };
        assert!(!failure.message.contains(root), "{shown}: {failure:?}");
        failure
    };
    let starts = |failure: &Failure| failure.code == code::START;
    for args in [&[][..], &["--read-only"], &["--write-only"]] {
        assert!(starts(&refused(args, through())), "{args:?}");
    }
    for path in ["image", "/", "../secret"] {
        assert!(starts(&refused(&["--read-only"], receive(path, false))));
        assert!(starts(&refused(&["--read-only"], receive(path, true))));
        assert!(starts(&refused(&["--write-only"], send(path))));
        assert!(starts(&refused(&["--write-only"], digest(path))));
    }
    for path in ["../secret", "out", "away/../secret", "sub/absolute/../secret", "/../secret"] {
        for args in [&[][..], &["--read-only"]] {
            assert_eq!(refused(args, digest(path)).code, code::PARTIAL, "{path}");
        }
    }
    for path in ["../beside/x", "away/x", "sub/absolute/x", "..", "../beside"] {
        for args in [&[][..], &["--write-only"]] {
            for directory in [false, true] {
                assert_eq!(refused(args, receive(path, directory)).code, code::SELECT, "{path}");
            }
        }
    }
    let many = Request::Send { sources: vec![request_path("image"); 1025], listed: false };
    assert_eq!(refused(&["--read-only"], many).code, code::STREAM);
    let many = Request::Digest { paths: vec![request_path("image"); 1025] };
    assert_eq!(refused(&["--read-only"], many).code, code::STREAM);
    // It sends to no other host by itself.
    let send_on = |path: &str| {
        let request = OnwardRequest {
            options: Options::default(),
            run: None,
            to: Host { user: None, name: "127.0.0.1".into(), port: Some(1) },
            remote_path: None,
            sudo: false,
            cipher_of_ssh: false,
            token: [1; 16],
            destination: request_path("image"),
            directory: false,
            sources: vec![request_path(path)],
            listed: false,
        };
        Message::Onward(Onward::Send(Box::new(request)))
    };
    for args in [&[][..], &["--read-only"], &["--write-only"]] {
        let args = [&["--root", root], args].concat();
        match say(&args, &send_on("image")) {
            Ok(Frame::Message(Message::Onward(Onward::Apart(why)))) => {
                assert!(why.contains("this agent is confined"), "{args:?}: {why}");
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }
    // Of sources, each that leads out fails by itself.
    match ask(&["--root", root, "--read-only"], send("../secret")) {
        Ok(Frame::Message(Message::Layout { single: false })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_to_string(place.path().join("secret")).expect("read"), SECRET);
    assert!(fs::read_dir(place.path().join("beside")).expect("list").next().is_none());
}

/// Also by another directory than that of its file.
#[test]
fn new_data_of_a_bound_key_gathers_below_its_directory() {
    let Some(bound) = Bound::new("") else { return };
    let new = bound.local("new");
    let list = || fs::read_dir(bound.root("sub")).expect("list").count();
    let before = list();
    for (dir, fits) in [
        ("/sub", true),
        ("sub", true),
        ("/in", true),
        ("in", false),
        ("/away", false),
        ("../beside", false),
        ("/sub/absolute", false),
        ("/missing", false),
    ] {
        for option in ["--temp-dir", "--partial-dir"] {
            if option == "--partial-dir" && !dir.starts_with('/') {
                continue;
            }
            fs::write(bound.root("image"), "old").expect("write");
            let outcome = bound.copy(&["-I", &format!("{option}={dir}")], &new, at("/image"));
            if fits {
                outcome.ok();
                assert_same(&new, &bound.root("image"));
            } else {
                outcome.code(3).says(&["the directory for new data"]);
                assert_eq!(fs::read_to_string(bound.root("image")).expect("read"), "old");
            }
            assert_eq!(list(), before, "{option}={dir}");
            bound.assert_nothing_outside();
        }
    }
    // What is beside a file is not reached by way of a symlink either.
    let outcome = bound.copy(&["-I", "--partial-dir=away"], &new, at("/image"));
    outcome.code(23).says(&["is no directory"]);
    bound.assert_nothing_outside();
}

fn request_path(path: &str) -> RequestPath {
    RequestPath::from(Path::new(path))
}
