//! What `-h` and `--help` say: which option stands where, what SRC and DEST are, examples, exit
//! codes. The manual is made of the same.

pub mod version;

use clap::{Command, CommandFactory, ValueHint};

use crate::cli::Cli;

/// The options that `-h` alone shows, the most used first.
const OFTEN: (&str, &str) = (
    "Often used",
    "archive dry_run verbose progress checksum delete exclude inplace whole_file compress bwlimit agent rsh stats json \
     help version",
);

/// All others, by purpose.
const PURPOSES: [(&str, &str); 8] = [
    (
        "Which files",
        "recursive no_recursive include exclude_from include_from filter dir-filter cvs_exclude from0 files_from \
         max_size min_size update existing ignore_existing append one_file_system relative no_relative \
         implied_dirs no_implied_dirs dirs no_dirs old_dirs prune_empty_dirs ignore_missing_args \
         delete_missing_args copy_links copy_unsafe_links copy_dirlinks safe_links old_args",
    ),
    (
        "What is kept of them",
        "links no_links perms no_perms times no_times owner no_owner group no_group nodes \
         devices specials hard_links acls xattrs atimes omit_dir_times omit_link_times executability chmod chown \
         usermap groupmap numeric_ids superuser no_superuser open_noatime",
    ),
    (
        "How they are compared",
        "ignore_times size_only modify_window fuzzy basis since changed compare_dest copy_dest link_dest block_size leaf_size \
         save_map no_map_cache no_hole_map threads",
    ),
    (
        "How DEST is written",
        "commit verify no_fsync preallocate sparse mkpath keep_dirlinks temp_dir partial_dir delay_updates backup \
         backup_dir suffix force_in_use as_is through",
    ),
    (
        "What is removed",
        "delete_before delete_during delete_after delete_delay delete_excluded max_delete force ignore_errors \
         remove_source_files",
    ),
    (
        "The other machine",
        "to hosts jobs together failed relay forward_agent remote_path agent_program sudo ipv4 ipv6 cipher compress_level contimeout timeout \
         retries stop_after stop_at",
    ),
    ("SRC in a store", "root trust ca chunks"),
    (
        "What is told",
        "quiet itemize_changes out_format list_only log_file log_file_format human_readable info debug",
    ),
];

/// What stands above the options.
const ABOUT: &str = "\
Make a disk image or directory on one machine equal to one on another, at the cost of the data that is allocated and \
changed.

SRC is what is to be sent: a file, a block device, a directory, or \"-\", a plain image from stdin; \"dir/\" means what \
is in it. DEST becomes equal to it: a file, a directory that gets it under its name, or a block device. Either may be on \
another machine, which ssh reaches: [user@]host:path, or ssh://[user@]host[:port]/path. A SRC without a DEST is listed.";

/// Command lines, and what they do.
pub const EXAMPLES: [(&str, &str); 3] = [
    ("holesync vm.img host:/images/vm.img", "deploy an image; again: only what changed"),
    ("holesync -nv images/ host:/images", "see what would be sent of a directory"),
    ("holesync --agent=push vm.img host:/dev/vg0/vm", "onto a device of a host without a holesync"),
];

/// What exit codes mean, as far as a script has to tell them apart. README has the same.
pub const EXIT_CODES: [(u8, &str); 14] = [
    (0, "everything is equal now"),
    (1, "the command line makes no sense"),
    (2, "the two ends share no version of the protocol"),
    (3, "the destination as a whole cannot be used"),
    (5, "nobody answered on the host, or its tools are not enough"),
    (10, "the connection failed"),
    (11, "file I/O failed: the disk is full, or broken"),
    (12, "the other end closed the connection, or sent what it must not"),
    (20, "SIGINT, SIGTERM or SIGHUP"),
    (23, "some files, or some of several hosts, could not be transferred; the others were"),
    (24, "some source files vanished before they were read"),
    (25, "--max-delete kept some entries from being removed"),
    (30, "the other end was silent for --timeout, or --stop-after or --stop-at ended the run"),
    (255, "ssh failed"),
];

/// The command line, options in their places.
pub fn command() -> Command {
    let mut command = Cli::command().mut_arg("paths", |paths| paths.value_hint(ValueHint::AnyPath));
    let mut place = 0;
    for (heading, ids) in [OFTEN].into_iter().chain(PURPOSES) {
        for id in ids.split_whitespace() {
            place += 1;
            let often = heading == OFTEN.0;
            command = command
                .mut_arg(id, |arg| arg.help_heading(heading).display_order(place).hide_short_help(!often));
        }
    }
    command
        .long_about(ABOUT)
        .after_help("holesync --help has all options, and examples.")
        .after_long_help(tail())
}

/// What `-h` alone shows.
pub fn short() -> String {
    command().render_help().to_string()
}

fn tail() -> String {
    let wide = EXAMPLES.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let examples = EXAMPLES.map(|(line, what)| format!("  {line:<wide$}  {what}\n"));
    let codes = EXIT_CODES.map(|(code, what)| format!("  {code:>3}  {what}\n"));
    format!(
        "Examples:\n{}\nExit codes (of diff: 0 equal, 1 different, 2 and more trouble):\n{}",
        examples.concat(),
        codes.concat().trim_end()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_option_has_one_place() {
        let placed: Vec<&str> =
            [OFTEN].iter().chain(&PURPOSES).flat_map(|(_, ids)| ids.split_whitespace()).collect();
        let places: BTreeSet<&str> = placed.iter().copied().collect();
        assert_eq!(placed.len(), places.len());
        let mut command = Cli::command();
        command.build();
        let shown =
            command.get_arguments().filter(|arg| !arg.is_hide_set()).map(|arg| arg.get_id().to_string());
        let shown: BTreeSet<String> = shown.collect();
        assert_eq!(places, shown.iter().map(String::as_str).collect());
    }

    #[test]
    fn alone_h_is_short_and_says_where_the_rest_is() {
        let short = short();
        assert!(short.lines().count() < 60, "{short}");
        assert!(
            short.contains("--archive") && short.contains("holesync --help") && !short.contains("--groupmap")
        );
    }
}
