//! The events of `--json`, held against the table of them in the reference: every field that comes
//! is named there, and every field that is named of an entry, an error and the summary comes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::json_lines;
use crate::common::lab;
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, holesync, run};
use crate::common::tree::{Way, mkdir, set_mode, slash, small};

/// What the table's row of each event has in backquotes: its fields, and what they may be.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let page = fs::read_to_string(page).expect("the reference");
    let (_, section) = page.split_once("\n## JSON\n").expect("a section");
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let rows = rows.flat_map(|(events, fields)| {
        let words: BTreeSet<String> = quoted(fields).into_iter().collect();
        quoted(&format!("`{events}")).into_iter().map(move |event| (event, words.clone()))
    });
    rows.collect()
}

/// The fields of each event, and the words that are their values.
fn seen(outcomes: &[Outcome]) -> BTreeMap<String, [BTreeSet<String>; 2]> {
    let mut seen = BTreeMap::<String, [BTreeSet<String>; 2]>::new();
    for line in outcomes.iter().flat_map(json_lines) {
        let [fields, values] = seen.entry(line["event"].as_str().expect("an event").into()).or_default();
        for (field, value) in
            line.as_object().expect("an object").iter().filter(|(field, _)| *field != "event")
        {
            fields.insert(field.clone());
            values.extend(value.as_str().map(str::to_owned));
        }
    }
    seen
}

/// Runs that show all kinds of things: new, changed, equal, removed, failed, listed.
fn runs(dir: &Path) -> Option<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for way in [Way::Push, Way::Pull, Way::Local, Way::PushShell] {
        let name = |what: &str| mkdir(dir.join(format!("{way:?} {what}")));
        let (from, to) = (name("from"), name("to"));
        small(from.join("new"), "1");
        small(mkdir(from.join("directory")).join("file"), &"x".repeat(100_000));
        symlink("new", from.join("link")).expect("a link");
        small(mkdir(to.join("full")).join("file"), "in the way");
        small(from.join("full"), "a file");
        let delete: &[&str] = if way.has_agent() { &["--delete", "--filter=P full"] } else { &[] };
        let go = |flags: &[&str]| {
            way.run(&[&["-a", "--json", "--progress"], flags].concat(), &[&slash(&from)], to.as_os_str())
        };
        outcomes.push(go(&[])?.code(23));
        fs::remove_file(from.join("full")).expect("remove");
        set_mode(&from.join("new"), 0o600);
        set_mode(&from.join("directory"), 0o700);
        fs::remove_file(from.join("link")).expect("remove");
        outcomes.push(go(delete)?.ok());
        outcomes.push(go(&["-n"])?.ok());
        let nowhere: &OsStr = OsStr::new("/no/such/place/anywhere");
        outcomes.push(way.run(&["--json"], &[from.join("new").as_os_str()], nowhere)?);
    }
    let listed = dir.join("Push from");
    symlink("new", listed.join("link")).expect("a link");
    outcomes.push(run(holesync().args(["--json", "-r"]).arg(slash(&listed))).ok());
    let there = ["--json", "-r", "--remote-path", PROGRAM, "-e"];
    outcomes.push(run(holesync().args(there).arg(Peer::sshd()?.rsh()).arg(at(slash(&listed)))).ok());
    let store = dir.join("store/file");
    run(holesync().arg("publish").arg(listed.join("new")).arg(&store)).ok();
    let url = format!("file://{}", store.display());
    outcomes.push(run(holesync().args(["--json", &url]).arg(dir.join("pulled"))).ok());
    Some(outcomes)
}

#[test]
fn the_table_of_events_is_what_comes() {
    let dir = lab::scratch();
    let Some(outcomes) = runs(dir.path()) else { return };
    for outcome in &outcomes {
        let last = json_lines(outcome).pop().expect("a line");
        let is_listing = last["event"] == "listed";
        assert!(is_listing || ["summary", "error"].map(Value::from).contains(&last["event"]), "{outcome}");
    }
    let (table, seen) = (table(), seen(&outcomes));
    for (event, [fields, values]) in &seen {
        let named = table.get(event).unwrap_or_else(|| panic!("{event} is not in the table"));
        assert!(fields.is_subset(named), "{event}: {fields:?} are not all among {named:?}");
        if ["file", "entry", "listed", "error", "summary"].contains(&event.as_str()) {
            let come: BTreeSet<String> = fields.union(values).cloned().collect();
            let missing: Vec<_> = named.difference(&come).collect();
            assert!(missing.is_empty(), "{event}: {missing:?} never came");
        }
    }
    for event in ["file", "entry", "listed", "error", "summary"] {
        assert!(seen.contains_key(event), "{event}");
    }
}

/// A symlink that is left out, a device that is skipped: on this machine, and as an agent tells of
/// them.
#[test]
fn a_warning_tells_what_it_is_about_and_where() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    symlink("/etc/passwd", from.join("link")).expect("a link");
    nix::unistd::mkfifo(&from.join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
    for way in [Way::Local, Way::Push, Way::Pull, Way::PushShell, Way::PullShell] {
        let flags = ["-rl", "--safe-links", "--json"];
        let Some(outcome) = way.run(&flags, &[&slash(&from)], to.as_os_str()) else { return };
        let lines = json_lines(&outcome);
        let warnings: Vec<_> = lines.iter().filter(|line| line["event"] == "warning").collect();
        for name in ["link", "fifo"] {
            let path = from.join(name);
            let found = warnings.iter().find(|line| line["path"].as_str() == path.to_str());
            let found = found.unwrap_or_else(|| panic!("{way:?}: no warning about {name}: {outcome}"));
            let host = matches!(way, Way::Pull | Way::PullShell).then_some("peer");
            assert_eq!(found["host"].as_str(), host, "{way:?}: {outcome}");
        }
    }
}
