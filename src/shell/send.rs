//! The sending role towards a shell: what is below the sources becomes commands for
//! `receiver.sh`. Names, directories and symlinks are dealt with here, regular files
//! and devices in `send/file.rs`.

mod file;

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use crate::apply::tree::Target;
use crate::confinement::NamedPath;
use crate::error::{Error, Result, Warning, printable};
use crate::options::{IdMap, KindRules, Options, SizeAndTime, TellsChanges, To};
use crate::report::{Event, Reporter, Stats};
use crate::shell::pending::PendingCommands;
use crate::shell::receiver::{FarRoot, FarRootKind, ReceivingShell};
use crate::shell::{self, FarFile, ShellSession, TempNames, Times, relative};
use crate::source::{self, Found, Kind, Metadata, Source, Walk};
use crate::working::names_working_file;

/// How many names are looked at one by one at the other end. Where there are more,
/// everything below its directory is listed.
const MAX_ROOTS: usize = 1000;

/// Sends everything below `sources` to `target` at the other end.
///
/// # Errors
///
/// What ends the run; files that fail are counted in what is returned.
pub fn run(session: ShellSession, sources: &[NamedPath], target: &Target) -> Result<Stats> {
    let ShellSession { options, host, reporter, .. } = session;
    shell::refuse_what_needs_an_agent(options, host, reporter)?;
    // Its tools make no special files.
    let kinds = KindRules { devices: false, specials: false, ..options.kinds };
    let options = &Options { kinds, ..options.clone() };
    if options.mkpath {
        return Err(Error::Usage(format!(
            "--mkpath needs a holesync on {host}: install it there, or make the directory before"
        )));
    }
    if options.tells_changes == TellsChanges::Always {
        return Err(Error::Usage(format!(
            "-i, --out-format and --log-file need a holesync on {host}, which tells what it changes: install it \
             there, bring it with --agent=push, or use -v"
        )));
    }
    let mut shell = ReceivingShell::begin(session.input, session.output, host)?;
    let path = target.path.path().as_os_str().as_bytes();
    let walk = Walk::new(sources, options);
    let single = walk.is_single() && !target.directory;
    let root = shell.open_root(path, single, options)?;
    let rename = (root.kind == FarRootKind::Name).then(|| target.path.path().file_name()).flatten();
    let rename = rename.map(|name| name.as_bytes().to_vec());
    if options.times && root.times == Times::No {
        let what = format!("touch on {host} cannot set times: the next run will send everything again");
        reporter.event(Event::Warning(&Warning::new(what).of(host)));
    }
    let mut job = SendJob {
        far_files: HashMap::new(),
        pending: PendingCommands::new(shell, host, target.path.path(), rename.is_some(), reporter),
        root,
        options,
        host,
        reporter,
        directories: Vec::new(),
        changed: HashSet::new(),
        temp_names: TempNames::default(),
    };
    job.list_far_files(sources, rename.as_deref())?;
    for found in walk {
        match found {
            Found::Failed(failure) => job.pending.fail(failure),
            Found::Skipped(what) => reporter.event(Event::Warning(&what)),
            // Nothing is removed over a shell.
            Found::Contents(_) => {}
            Found::Source(mut source) => {
                if let Some(name) = &rename {
                    source.target.clone_from(name);
                }
                job.send(*source)?;
            }
        }
    }
    job.finish()
}

/// Everything that one run sends.
struct SendJob<'a> {
    pending: PendingCommands<'a>,
    root: FarRoot,
    /// What the other end has, by its path below the root.
    far_files: HashMap<Vec<u8>, FarFile>,
    options: &'a Options,
    host: &'a str,
    reporter: &'a dyn Reporter,
    /// Directories that get their attributes when everything is in them.
    directories: Vec<Source>,
    /// Directories in which something was made, which changes their times.
    changed: HashSet<Vec<u8>>,
    temp_names: TempNames,
}

impl SendJob<'_> {
    /// Lists everything that may have to be compared, with one command.
    fn list_far_files(&mut self, sources: &[NamedPath], rename: Option<&[u8]>) -> Result<()> {
        if self.root.kind == FarRootKind::Absent {
            return Ok(());
        }
        if !self.root.can_list && self.options.transfer.look_there() {
            return Err(Error::Usage(format!(
                "find and stat on {} cannot tell what is there: leave -u, --existing and --ignore-existing out",
                self.host
            )));
        }
        if !self.root.can_list {
            let what = format!(
                "find and stat on {} cannot tell what is there: every file is sent, whether it changed or not",
                self.host
            );
            self.reporter.event(Event::Warning(&Warning::new(what).of(self.host)));
            return Ok(());
        }
        let roots: Vec<Vec<u8>> = match rename {
            Some(name) => vec![name.to_vec()],
            None => sources.iter().flat_map(source::top_names).take(MAX_ROOTS + 1).collect(),
        };
        let all: &[u8] = b"";
        self.far_files = match roots.len() {
            0 => HashMap::new(),
            1..=MAX_ROOTS => self.pending.shell.list(roots.iter().map(Vec::as_slice))?,
            _ => self.pending.shell.list(std::iter::once(all))?,
        };
        Ok(())
    }

    fn send(&mut self, mut source: Source) -> Result<()> {
        if self.options.times && !self.root.can_set_time(source.metadata.mtime) {
            let what = format!("touch on {} cannot set the time of {}", self.host, printable(&source.path));
            self.reporter.event(Event::Warning(&Warning::about(&source.path, what)));
        }
        if names_working_file(&source.target) {
            let error = Error::refused(&source.path, "is named like a working file: give it another name");
            self.pending.fail(error.to_failure());
            return Ok(());
        }
        if self.stays(&source) {
            return Ok(());
        }
        self.adjust(&mut source);
        match &source.kind {
            Kind::File { length, allocated, .. } => {
                self.pending.stats.files_total += 1;
                self.pending.stats.apparent_bytes = self.pending.stats.apparent_bytes.saturating_add(*length);
                self.reporter.event(Event::Found(*allocated));
                self.send_file(source)
            }
            _ if self.options.dry_run => Ok(()),
            Kind::Directory => self.send_directory(source),
            Kind::Symlink(link) => self.send_symlink(&source, link),
            // Nobody asked the walk for these.
            Kind::Node(_) | Kind::HardLink(_) | Kind::Missing => Ok(()),
        }
    }

    /// Makes of what an entry carries what the options make of it: at the other end nothing is
    /// known of these.
    fn adjust(&self, source: &mut Source) {
        let rules = &self.options.attributes;
        let is_directory = source.kind == Kind::Directory;
        let metadata = &mut source.metadata;
        metadata.mode = metadata.mode.map(|mode| rules.chmod.apply(mode & 0o7777, is_directory));
        let is_link = matches!(source.kind, Kind::Symlink(_));
        metadata.mtime.take_if(|_| is_directory && rules.omit_dir_times || is_link && rules.omit_link_times);
        if let Some(owner) = &mut metadata.owner {
            let give = |number: &mut u32, name: &mut String, map: &IdMap| {
                if let Some(To::Number(to)) = map.find(*number, if rules.numeric_ids { "" } else { name }) {
                    (*number, *name) = (*to, String::new());
                } else if rules.numeric_ids || *number == 0 {
                    name.clear();
                }
            };
            give(&mut owner.uid, &mut owner.user, &rules.user_map);
            give(&mut owner.gid, &mut owner.group, &rules.group_map);
        }
    }

    /// Whether what the other end has stays as it is, or nothing is made there.
    fn stays(&self, source: &Source) -> bool {
        let (far, is_directory) = (self.far_files.get(&source.target), source.kind == Kind::Directory);
        if source.target.is_empty() || is_directory && far.is_some_and(FarFile::is_directory) {
            return false;
        }
        let source = match source.kind {
            Kind::File { length, .. } => {
                SizeAndTime { time: source.metadata.mtime.map(|(seconds, _)| seconds), length: Some(length) }
            }
            _ => SizeAndTime::default(),
        };
        let there = far.map(|far| match far.is_file() {
            true => SizeAndTime { time: Some(far.mtime), length: Some(far.size) },
            false => SizeAndTime::default(),
        });
        self.options.transfer.stays(source, there, self.options.modify_window)
    }

    fn send_directory(&mut self, source: Source) -> Result<()> {
        let far = self.far_files.get(&source.target);
        if source.metadata == Metadata::default() && far.is_some_and(|far| !far.is_directory()) {
            let error = Error::refused(
                &source.path,
                "goes where something else is in the way of a directory; remove that first",
            );
            self.pending.fail(error.to_failure());
            return Ok(());
        }
        // A directory that is there may have to be opened, to be filled.
        let is_open = |far: &FarFile| far.is_directory() && (self.root.is_root || far.mode & 0o700 == 0o700);
        let is_ready = self.far_files.get(&source.target).is_some_and(is_open);
        if !is_ready && !source.target.is_empty() {
            self.mark_parent_changed(&source.target);
            self.changed.insert(source.target.clone());
            self.pending.send(&[b"dir", &relative(&source.target)], &source.target)?;
        }
        self.directories.push(source);
        Ok(())
    }

    fn send_symlink(&mut self, source: &Source, link: &[u8]) -> Result<()> {
        let far = self.far_files.get(&source.target).filter(|far| far.is_symlink());
        let same = far.is_some_and(|far| self.has_attributes(far, &source.metadata));
        let [_, mtime, user, uid, group, gid] =
            self.root.attributes(&source.metadata, false, None, self.options);
        self.mark_parent_changed(&source.target);
        let (path, temp) = (relative(&source.target), self.temp_names.of(&source.target));
        let mut command: Vec<&[u8]> = vec![b"link", if same { b"same" } else { b"set" }];
        command.extend([&mtime, &user, &uid, &group, &gid].map(|word| word.as_bytes()));
        command.extend([temp.as_slice(), &path, link]);
        self.pending.send(&command, &source.target)
    }

    fn has_attributes(&self, far: &FarFile, metadata: &Metadata) -> bool {
        far.has_attributes(metadata, self.options, self.root.times)
    }

    fn set_attributes(&mut self, source: &Source) -> Result<()> {
        let far = self.far_files.get(&source.target);
        let is_directory = source.kind == Kind::Directory;
        let mut words = self.root.attributes(&source.metadata, is_directory, far, self.options);
        if source.target.is_empty() && self.root.kind == FarRootKind::Directory {
            // It was there, and is only named as the destination.
            let [mode, time, ..] = &mut words;
            let asked = [self.options.destination_perms, self.options.destination_times];
            for word in
                [mode, time].into_iter().zip(asked).filter_map(|(word, asked)| (!asked).then_some(word))
            {
                *word = "-".into();
            }
        }
        let mut path = relative(&source.target);
        if is_directory {
            // With this end the name of anything else leads nowhere.
            path.extend(b"/.");
        }
        let mut command: Vec<&[u8]> = vec![b"attr"];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.push(&path);
        self.pending.send(&command, &source.target)
    }

    fn mark_parent_changed(&mut self, target: &[u8]) {
        let end = target.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        self.changed.insert(target[..end].to_vec());
    }

    /// Gives directories their attributes last: what is made in them changes their times.
    fn finish(mut self) -> Result<Stats> {
        self.pending.wait_for_all()?;
        // One may come first as the way to something, and then as itself, which counts.
        let mut done = HashSet::new();
        for source in std::mem::take(&mut self.directories).into_iter().rev() {
            if !done.insert(source.target.clone()) || self.pending.failed.contains(&source.target) {
                continue;
            }
            let far = self.far_files.get(&source.target);
            let same = far.is_some_and(|far| self.has_attributes(far, &source.metadata));
            if !same || self.changed.contains(&source.target) {
                self.set_attributes(&source)?;
            }
        }
        self.pending.wait_for_all()?;
        self.pending.shell.end()?;
        Ok(self.pending.stats)
    }
}
