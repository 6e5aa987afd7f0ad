//! The user's rules, read from options and from the files that they name.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result, in_words, printable};
use crate::filter::FilterRules;
use crate::filter::parse::{Files, Parser};
use crate::filter::rule::{Item, Modifiers, Prefixes, Style};

/// The longest file of rules, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// Reads rules in the order in which they count.
pub struct RulesReader {
    items: Vec<Item>,
    nul_separated: bool,
}

impl RulesReader {
    /// `nul_separated`: lines of files end with NUL.
    pub fn new(nul_separated: bool) -> RulesReader {
        RulesReader { items: Vec::new(), nul_separated }
    }

    /// A rule in rsync's syntax.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when it is none, or names a file that cannot be read.
    pub fn filter(&mut self, rule: &OsStr) -> Result<()> {
        self.parse(|parser| parser.line(rule.as_bytes(), Style::new(Prefixes::Full)))
    }

    /// A pattern of names to transfer, or not to.
    ///
    /// # Errors
    ///
    /// Those of [`RulesReader::filter`].
    pub fn pattern(&mut self, pattern: &OsStr, includes: bool) -> Result<()> {
        self.parse(|parser| parser.line(pattern.as_bytes(), Style::new(Prefixes::Simple { includes })))
    }

    /// A file of such patterns; `-` is stdin.
    ///
    /// # Errors
    ///
    /// Those of [`RulesReader::filter`].
    pub fn patterns_from(&mut self, path: &OsStr, includes: bool) -> Result<()> {
        let text = UserFiles.merge(path.as_bytes()).map_err(Error::Usage)?;
        self.parse(|parser| parser.file(&text, Style::new(Prefixes::Simple { includes })))
    }

    /// What CVS ignores, and `.cvsignore` in every directory.
    ///
    /// # Errors
    ///
    /// Those of [`RulesReader::filter`].
    pub fn cvs(&mut self) -> Result<()> {
        self.filter(OsStr::new(":C"))?;
        self.parse(|parser| parser.cvs(Modifiers::default()))
    }

    /// All that was read.
    pub fn finish(self) -> FilterRules {
        FilterRules { items: self.items, nul_separated: self.nul_separated }
    }

    fn parse(&mut self, read: impl FnOnce(&mut Parser) -> std::result::Result<(), String>) -> Result<()> {
        let mut files = UserFiles;
        let mut parser = Parser::new(std::mem::take(&mut self.items), self.nul_separated, &mut files);
        read(&mut parser).map_err(|why| Error::Usage(format!("cannot use a filter rule: {why}")))?;
        self.items = parser.items;
        Ok(())
    }
}

/// Files that the user named.
struct UserFiles;

impl Files for UserFiles {
    fn merge(&mut self, path: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let path = Path::new(OsStr::from_bytes(path));
        let failed = |error: std::io::Error| {
            format!("cannot read rules from {}: {}", printable(path), in_words(&error))
        };
        let mut text = Vec::new();
        if path == Path::new("-") {
            std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
        } else {
            let file = File::open(path).map_err(failed)?;
            file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
        }
        if text.len() as u64 > MAX_FILE {
            return Err(format!("{} has more than {MAX_FILE} bytes of rules", printable(path)));
        }
        Ok(text)
    }

    fn cvs(&mut self) -> std::result::Result<Vec<u8>, String> {
        let file = std::env::home_dir().map(|home| home.join(".cvsignore")).filter(|path| path.exists());
        let mut text = match file {
            Some(path) => self.merge(path.as_os_str().as_bytes())?,
            None => Vec::new(),
        };
        text.push(b' ');
        text.extend(std::env::var_os("CVSIGNORE").unwrap_or_default().as_bytes());
        Ok(text)
    }
}
