//! Accounts with any login shell, and what is needed to reach them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::lab;
use super::peer::{Peer, shell_word};
use super::process::{PROGRAM, run};

/// An account of the test's own; it goes with its home when it is dropped.
pub struct Account {
    name: String,
    pub home: PathBuf,
    /// Holds home and program, where the account can reach both.
    pub place: TempDir,
    pub program: PathBuf,
}

impl Account {
    /// `None`, and a counted skip, where there can be none.
    pub fn new(shell: &Path) -> Option<Account> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        if !lab::is_root() {
            return None;
        }
        if !shell.exists() {
            lab::skip(&format!("no {}", shell.display()));
            return None;
        }
        let place = lab::scratch();
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let program = lab::install(PROGRAM.as_ref(), place.path());
        let home = place.path().join("home");
        fs::create_dir(&home).expect("create a home");
        let name = format!("hstest{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let account = Account { name, home, place, program };
        // "*" is no password either, but unlike "!" does not lock the account.
        let mut useradd = Command::new("useradd");
        useradd.args(["--no-create-home", "--no-user-group", "--password", "*", "--home-dir"]);
        run(useradd.arg(&account.home).arg("--shell").arg(shell).arg(&account.name)).ok();
        account.owns(&account.home);
        Some(account)
    }

    pub fn owns(&self, path: &Path) {
        run(Command::new("chown").arg("-R").arg(&self.name).arg(path)).ok();
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name, at the host.
    pub fn host(&self) -> String {
        format!("{}@peer", self.name)
    }

    /// Puts a file into its home.
    pub fn keep(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("create a directory");
        fs::write(&path, content).expect("write");
        self.owns(&self.home);
        path
    }

    /// The same of a script, which can be run at once.
    pub fn keep_script(&self, name: &str, text: &str) {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("create a directory");
        lab::script(&path, text);
        self.owns(&self.home);
    }

    pub fn holesync(&self, peer: &Peer) -> Command {
        peer.clone().with_program(&self.program).holesync()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // -f: its last session may take a moment to end.
        let removed = Command::new("userdel").arg("-f").arg(&self.name).output();
        if !removed.is_ok_and(|output| output.status.success()) {
            eprintln!("cannot remove the account {}", self.name);
        }
    }
}

/// Where a command is, if it is anywhere.
pub fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| PathBuf::from(name))
}

/// `host:path`, for a path of any bytes.
pub fn on(host: &str, path: impl AsRef<Path>) -> OsString {
    let mut location = OsString::from(format!("{host}:"));
    location.push(path.as_ref());
    location
}

/// Names that a shell between us and the file would break.
pub fn odd_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "a b",
        " lead",
        "trail ",
        "it's",
        "\"quoted\"",
        "$HOME",
        "`id`",
        "$(id)",
        "a;b",
        "a&b",
        "a|b",
        "*",
        "?",
        "back\\slash",
        "new\nline",
        "-rf",
        "--",
        "~",
        "#",
        "!",
        "{a,b}",
        "%s",
        "a:b",
        "^x",
        "=x",
        "ünï",
    ]
    .map(OsString::from)
    .into();
    names
        .extend([b"\xff\xfe".to_vec(), b"latin-\xe9".to_vec(), b"\x1b[31m".to_vec()].map(OsString::from_vec));
    names
}

/// A script in the place of ssh, that notes its arguments and passes them on.
pub fn noting_ssh(dir: &Path, peer: &Peer) -> (PathBuf, PathBuf) {
    let (script, log) = (dir.join("noting ssh"), dir.join("noted"));
    let body = format!("printf '%s\\n' \"$*\" >>{}\nexec {} \"$@\"\n", shell_word(&log), peer.rsh());
    fs::write(&script, body).expect("write");
    (script, log)
}
