//! What `--help` and the manual say, against the documentation.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::lab;
use crate::common::process::{holesync, run};

fn documentation(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The options in the first column of the reference's tables of options.
fn options_of_reference() -> BTreeSet<String> {
    let reference = documentation("docs/reference.md");
    let (_, section) = reference.split_once("\n## Options\n").expect("a section of options");
    let section = section.split("\n## ").next().unwrap_or_default();
    let columns = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "))
        .map(|(names, _)| names);
    let quoted = columns.flat_map(|names| names.split('`').step_by(2));
    let options = quoted.filter(|word| word.starts_with('-')).map(|word| {
        let end = |c: char| !c.is_alphanumeric() && !"-@".contains(c);
        word.split(end).next().unwrap_or_default().to_owned()
    });
    options.collect()
}

#[test]
fn every_option_of_the_reference_is_in_help_and_in_the_manual() {
    let dir = lab::scratch();
    run(holesync().arg("manual").arg(dir.path())).ok();
    let manual =
        fs::read_to_string(dir.path().join("man/man1/holesync.1")).expect("a manual").replace('\\', "");
    let help = run(holesync().arg("--help")).ok().stdout;
    let options = options_of_reference();
    assert!(options.len() > 100, "{options:?}");
    for option in &options {
        let is_in = |text: &str| {
            text.split(|c: char| !c.is_alphanumeric() && !"-@".contains(c)).any(|word| word == option)
        };
        // Letters of the manual come behind marks of fonts.
        assert!(is_in(&help) && (is_in(&manual) || manual.contains(option.as_str())), "{option}");
    }
    for path in [
        "man/man1/holesync-diff.1",
        "bash-completion/completions/holesync",
        "zsh/site-functions/_holesync",
        "fish/vendor_completions.d/holesync.fish",
    ] {
        let text = fs::read_to_string(dir.path().join(path)).expect(path);
        assert!(text.contains("holesync") && text.contains("svg"), "{path}");
    }
}

#[test]
fn help_has_the_exit_codes_of_readme_and_h_alone_is_short() {
    let readme = documentation("README.md");
    let (_, section) = readme.split_once("\n## Exit codes\n").expect("a section of exit codes");
    let rows = section.split("\n## ").next().unwrap_or_default().lines();
    let codes = rows.filter_map(|row| row.strip_prefix("| ")?.split_once(" | ")).map(|(code, _)| code);
    let codes: Vec<&str> = codes.filter(|code| code.parse::<u8>().is_ok()).collect();
    let help = run(holesync().arg("--help")).ok().stdout;
    let (_, told) = help.split_once("\nExit codes").expect("exit codes");
    let told: Vec<&str> = told.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(told, codes);
    let short = run(holesync().arg("-h")).ok().stdout;
    assert!(
        short.lines().count() < 50 && short.contains("--archive") && !short.contains("--groupmap"),
        "{short}"
    );
}
