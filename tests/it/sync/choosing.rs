//! What is sent of what is there, by size, by what the destination has and by file system:
//! as rsync chooses.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::lab;
use crate::common::process::{holesync, run};
use crate::common::tree::{WAYS, Way, assert_trees, mkdir, rsync, set_mtime, slash, small};

/// A source, and two equal destinations that have some of it.
fn grow(dir: &Path) -> PathBuf {
    let from = mkdir(dir.join("from"));
    for (name, length) in
        [("small", 10), ("kilo", 1024), ("large", 5000), ("new/deep/file", 3), ("both/file", 4)]
    {
        let path = from.join(name);
        mkdir(path.parent().expect("a parent").to_path_buf());
        small(path.clone(), &"s".repeat(length));
        set_mtime(&path, 1_600_000_000, 500);
    }
    symlink("small", from.join("link")).expect("symlink");
    symlink("small", from.join("link that is there")).expect("symlink");
    for to in ["ours", "theirs"] {
        let to = mkdir(dir.join(to));
        let both = mkdir(to.join("both"));
        symlink("elsewhere", to.join("link that is there")).expect("symlink");
        // Older, newer by less than a second, newer.
        for (path, seconds, nanoseconds) in [
            (to.join("small"), 1_500_000_000, 0),
            (to.join("kilo"), 1_600_000_000, 900),
            (both.join("file"), 1_700_000_000, 0),
        ] {
            small(path.clone(), "of the destination");
            set_mtime(&path, seconds, nanoseconds);
        }
    }
    from
}

#[test]
fn every_way_chooses_as_rsync_does() {
    for way in WAYS {
        for options in [
            &["--max-size=1k"][..],
            &["--min-size=1kb"],
            &["--max-size=1k-1", "--min-size=5"],
            &["-u"],
            &["--existing"],
            &["--ignore-existing"],
            &["--existing", "--ignore-existing"],
            &["--update", "--existing"],
        ] {
            let dir = lab::scratch();
            let dir = dir.path();
            let from = slash(&grow(dir));
            let args = [&["-a"][..], options].concat();
            let [ours, theirs] = ["ours/", "theirs/"].map(|name| dir.join(name));
            for dry in [&["-n"][..], &[]] {
                let args = [&args[..], dry].concat();
                let Some(outcome) = way.run(&args, &[&from], ours.as_os_str()) else { return };
                outcome.ok();
                let args = args.iter().map(OsStr::new).chain([from.as_os_str(), theirs.as_os_str()]);
                assert_eq!(rsync(dir, &args.collect::<Vec<_>>()), 0, "rsync");
                assert_trees(&ours, &theirs, true, &format!("{way:?} {options:?} {dry:?}"));
            }
        }
    }
}

/// Unlike with rsync, what is there is not taken for right.
#[test]
fn appending_completes_what_is_shorter_and_leaves_the_rest() {
    for (way, option) in WAYS.into_iter().flat_map(|way| ["--append", "--append-verify"].map(|o| (way, o))) {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        for (name, there) in [("shorter", "old"), ("as long", "0123456789"), ("longer", "0123456789abc")] {
            small(from.join(name), "the source");
            small(to.join(name), there);
        }
        small(from.join("new"), "new");
        let Some(outcome) = way.run(&["-a", option], &[&slash(&from)], &slash(&to)) else { return };
        let outcome = outcome.ok();
        let found = ["shorter", "as long", "longer", "new"].map(|name| fs::read_to_string(to.join(name)));
        let found = found.map(|text| text.expect("read"));
        assert_eq!(found, ["the source", "0123456789", "0123456789abc", "new"], "{way:?}: {outcome}");
    }
}

#[test]
fn a_symlink_that_is_named_stays_one_where_links_are_asked_for() {
    for way in [Way::Local, Way::Push, Way::Pull] {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        small(from.join("image-v2"), "an image");
        symlink("image-v2", from.join("latest")).expect("symlink");
        symlink("../outside", from.join("leaves")).expect("symlink");
        small(dir.join("outside"), "from outside");
        mkdir(from.join("sub"));
        symlink("sub", from.join("to sub")).expect("symlink");
        let names = ["image-v2", "latest", "leaves", "to sub"].map(|name| from.join(name).into_os_string());
        let sources = names.each_ref().map(OsString::as_os_str);
        for options in [&["-a"][..], &["-l"], &["-aL"], &["-ak"], &["-a", "--copy-unsafe-links"]] {
            let [ours, theirs] = ["ours/", "theirs/"].map(|name| dir.join(name));
            let Some(outcome) = way.run(options, &sources, ours.as_os_str()) else { return };
            outcome.ok();
            let args = [&["-pt"], options].concat();
            let args = args.iter().map(OsStr::new).chain(sources).chain([theirs.as_os_str()]);
            assert_eq!(rsync(dir, &args.collect::<Vec<_>>()), 0, "rsync");
            assert_trees(&ours, &theirs, true, &format!("{way:?} {options:?}"));
            [ours, theirs].into_iter().for_each(|path| fs::remove_dir_all(path).expect("remove"));
        }
        // Who asks for nothing means the image.
        let copy = dir.join("copy");
        way.run(&[], &[sources[1]], copy.as_os_str()).expect("as before").ok();
        assert!(copy.symlink_metadata().expect("stat").is_file());
    }
}

/// A file system that is mounted, until this is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn other_file_systems_are_left_out() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = grow(dir);
        let point = mkdir(from.join("mounted"));
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point)).ok();
        let _mounted = Mounted(point.clone());
        small(mkdir(point.join("deep")).join("file"), "elsewhere");
        for (nth, options) in [&["-x"][..], &["-xx"], &["-x", "--one-file-system"]].into_iter().enumerate() {
            let [ours, theirs] = ["ours", "theirs"].map(|name| mkdir(dir.join(format!("{name}{nth}/"))));
            let args = [&["-a"][..], options].concat();
            let source = slash(&from);
            let Some(outcome) = way.run(&args, &[&source], ours.as_os_str()) else { return };
            if way == Way::PullShell {
                outcome.code(1).says(&["-x needs a holesync"]);
                continue;
            }
            outcome.ok();
            let args = args.iter().map(OsStr::new).chain([source.as_os_str(), theirs.as_os_str()]);
            assert_eq!(rsync(dir, &args.collect::<Vec<_>>()), 0, "rsync");
            assert_trees(&ours, &theirs, true, &format!("{way:?} {options:?}"));
        }
    }
}

#[test]
fn nothing_that_was_not_sent_is_removed_from_the_source() {
    let dir = lab::scratch();
    let from = grow(dir.path());
    for option in ["-u", "--existing", "--ignore-existing"] {
        let mut command = holesync();
        command.args(["-a", "--remove-source-files", option]).arg(slash(&from)).arg(dir.path().join("ours"));
        run(&mut command).code(1).says(&["--remove-source-files"]);
    }
    let mut command = holesync();
    command
        .args(["-a", "--remove-source-files", "--max-size=1k"])
        .arg(slash(&from))
        .arg(dir.path().join("ours"));
    run(&mut command).ok();
    assert!(from.join("large").exists() && !from.join("kilo").exists());
    assert!(!dir.path().join("ours/large").exists() && fs::read(dir.path().join("ours/kilo")).is_ok());
}

#[test]
fn unsafe_symlinks_stay_where_they_are() {
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from/d/e"));
        for (nth, target) in
            ["x", "../x", "../../x", "/x", "d/../x", "..", "../", "../..", "./../x", "a/..", "..x"]
                .into_iter()
                .enumerate()
        {
            for at in [&from, &dir.join("from/d"), &dir.join("from")] {
                symlink(target, at.join(format!("link{nth}"))).expect("symlink");
            }
        }
        for (nth, source) in [slash(&dir.join("from")), dir.join("from").into_os_string()].iter().enumerate()
        {
            let [ours, theirs] = ["ours", "theirs"].map(|name| mkdir(dir.join(format!("{name}{nth}/"))));
            let Some(outcome) = way.run(&["-a", "--safe-links"], &[source], ours.as_os_str()) else { return };
            outcome.ok().says(&["ignoring unsafe symlink"]);
            let args = [OsStr::new("-a"), OsStr::new("--safe-links"), source, theirs.as_os_str()];
            assert_eq!(rsync(dir, &args), 0, "rsync");
            assert_trees(&ours, &theirs, true, &format!("{way:?} {source:?}"));
        }
    }
}

#[test]
fn the_way_to_the_destination_is_made_where_that_is_asked_for() {
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = grow(dir);
        let (file, tree) = (from.join("small").into_os_string(), slash(&from));
        for (source, to) in [(&file, "a/b/file"), (&file, "c/d/"), (&tree, "e/f/g"), (&tree, "h/i/")] {
            for (flags, made) in
                [(&["-a"][..], false), (&["-an", "--mkpath"], false), (&["-a", "--mkpath"], true)]
            {
                let Some(outcome) = way.run(flags, &[source], dir.join("there").join(to).as_os_str()) else {
                    return;
                };
                if way == Way::PushShell && flags.contains(&"--mkpath") {
                    outcome.code(1).says(&["--mkpath needs a holesync"]);
                    continue;
                }
                outcome.code(if flags.len() == 1 { 3 } else { 0 });
                assert_eq!(dir.join("there").join(to).exists(), made, "{way:?} {to} {flags:?}");
            }
        }
        let theirs = dir.join("theirs that are new/x/");
        let args = [OsStr::new("-a"), OsStr::new("--mkpath"), tree.as_os_str(), theirs.as_os_str()];
        assert_eq!(rsync(dir, &args), 0, "rsync");
        if way != Way::PushShell {
            assert_trees(&dir.join("there/h/i"), &theirs, true, &format!("{way:?}"));
        }
    }
}

/// It protects what is there, whatever the source has in its place.
#[test]
fn what_is_to_be_left_alone_gives_way_to_no_directory() {
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        small(mkdir(from.join("name")).join("below"), "new");
        mkdir(from.join("link"));
        let to = mkdir(dir.join("to"));
        small(to.join("name"), "old");
        symlink("name", to.join("link")).expect("symlink");
        for flags in [["-an", "--ignore-existing"], ["-a", "--ignore-existing"]] {
            let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&to)) else { return };
            // As for rsync, what lies below cannot go there.
            assert!(outcome.code == 23 || flags[0] == "-an", "{way:?} {flags:?}: {}", outcome.code);
            assert_eq!(fs::read(to.join("name")).expect("a file"), b"old", "{way:?} {flags:?}");
            assert!(to.join("link").is_symlink(), "{way:?} {flags:?}");
        }
    }
}
