//! Which cipher carries a run over the ssh that is found in PATH: AES-GCM, unless
//! somebody else has chosen, or a processor is slow at it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holesync::remote::aes_here;
use tempfile::TempDir;

use crate::common::account::{Account, on, which};
use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::shell_word;
use crate::common::process::{Outcome, PROGRAM, holesync, run};

const FAST: &str = "aes128-gcm@openssh.com";
/// Not what an OpenSSH of any age tries first.
const NAMED: &str = "aes192-ctr";

/// A directory that comes first in PATH and has an `ssh`, a cache, and an image.
pub(super) struct Client {
    pub dir: TempDir,
    source: PathBuf,
}

impl Client {
    /// `None`, and a counted skip, where there is no sshd or there are no instructions for
    /// AES. The shell reads `first`, then calls the real ssh with its `$@`.
    pub fn new(first: &str) -> Option<Client> {
        if aes_here() != Some(true) {
            lab::skip("no instructions for AES");
            return None;
        }
        let Some(config) = config() else {
            lab::skip("no private sshd");
            return None;
        };
        let dir = lab::scratch();
        let source = dir.path().join("source");
        Layout::hole("image", 300_001).data(70_000..150_000, &mut Rng(1)).write(&source);
        let client = Client { dir, source };
        client.configure(&format!("Include {}\n", config.display()));
        let own = client.dir.path().join("config");
        let (real, own) = (shell_word(&which("ssh")), shell_word(&own));
        let script = format!("#!/bin/sh\n{first}\nexec {real} -v -F {own} \"$@\"\n");
        let written = client.dir.path().join("script");
        fs::write(&written, script).expect("write");
        fs::create_dir(client.dir.path().join("bin")).expect("create a directory");
        install(&written, &client.dir.path().join("bin/ssh"));
        Some(client)
    }

    pub fn configure(&self, text: &str) {
        fs::write(self.dir.path().join("config"), text).expect("write");
    }

    fn command(&self) -> Command {
        let mut path = vec![self.dir.path().join("bin")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = holesync();
        command.env("PATH", std::env::join_paths(path).expect("a plain path"));
        command.env("XDG_CACHE_HOME", self.cache()).arg("-vv");
        command
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// What is remembered of hosts.
    fn remembered(&self) -> usize {
        fs::read_dir(self.cache().join("holesync")).map_or(0, Iterator::count)
    }

    #[track_caller]
    pub fn push(&self, host: &str, to: &Path, flags: &[&str]) -> Outcome {
        let outcome = run(self.command().args(flags).arg(&self.source).arg(on(host, to))).ok();
        assert_same(&self.source, to);
        outcome
    }

    /// A push to several places on the lab's host.
    #[track_caller]
    pub fn run_to_several(&self) {
        let places = ["one", "two"].map(|name| self.dir.path().join(name));
        let mut command = self.command();
        command.args(["--remote-path", PROGRAM]).arg(&self.source);
        run(command.args(places.iter().flat_map(|place| ["--to".into(), on("peer", place)]))).ok();
        places.iter().for_each(|place| assert_same(&self.source, place));
    }

    /// A push to the lab's host.
    #[track_caller]
    pub fn run(&self, flags: &[&str]) -> Outcome {
        let to = self.dir.path().join("to");
        self.push("peer", &to, &[flags, &["-I", "--remote-path", PROGRAM]].concat())
    }
}

/// A script as a program. In a process of its own: see [`lab::install`].
fn install(script: &Path, program: &Path) {
    run(Command::new("install").args(["-m", "755"]).arg(script).arg(program)).ok();
}

pub(super) fn config() -> Option<PathBuf> {
    lab::root().map(|root| root.join("sshd/config")).filter(|path| path.is_file())
}

/// The cipher of the connection, as `ssh -v` names it.
#[track_caller]
fn cipher(outcome: &Outcome) -> &str {
    let named = outcome.stderr.split("kex: client->server cipher: ").nth(1);
    named.and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("no cipher in {outcome}"))
}

#[test]
fn the_fast_cipher_carries_a_run_unless_ssh_is_to_choose() {
    let Some(client) = Client::new("") else { return };
    let asked = client.run(&[]).says(&["asking ssh for aes128-gcm@openssh.com"]);
    assert_eq!(cipher(&asked), FAST, "{asked}");
    let left = client.run(&["--cipher=ssh"]);
    assert_ne!(cipher(&left), FAST, "{left}");
    assert!(!left.stderr.contains("asking ssh"), "{left}");
    let named = client.run(&["-e", client.dir.path().join("bin/ssh").to_str().expect("a plain path")]);
    assert_eq!(cipher(&named), cipher(&left), "a command that was given is left as it is: {named}");
    assert_eq!(client.remembered(), 0);
}

#[test]
fn a_configuration_that_names_ciphers_is_left_alone() {
    let Some(client) = Client::new("") else { return };
    let config = config().expect("was there");
    for names in [
        format!("Ciphers {NAMED},{FAST}\nInclude {}\n", config.display()),
        format!("Include {}\nHost peer\nCiphers {NAMED}\n", config.display()),
        format!("Include {}\nMatch user root originalhost peer\nCiphers {NAMED}\n", config.display()),
    ] {
        client.configure(&names);
        let outcome = client.run(&[]).says(&["names ciphers for peer"]);
        assert_eq!(cipher(&outcome), NAMED, "{outcome}");
    }
    client.configure(&format!("Include {}\nHost other\nCiphers {NAMED}\n", config.display()));
    let other = client.run(&[]);
    assert_eq!(cipher(&other), FAST, "named for another host: {other}");
}

#[test]
fn a_cipher_that_an_ssh_of_the_users_own_insists_on_stays() {
    for insisting in [format!("set -- -c {NAMED} \"$@\""), format!("set -- -o Ciphers={NAMED},{FAST} \"$@\"")]
    {
        let Some(client) = Client::new(&insisting) else { return };
        let outcome = client.run(&[]);
        assert_eq!(cipher(&outcome), NAMED, "{outcome}");
    }
}

#[test]
fn an_ssh_that_cannot_tell_its_configuration_still_serves() {
    for first in [
        "case \" $* \" in *' -G '*) echo unknown option -G >&2; exit 255 ;; esac",
        "case \" $* \" in *' -G '*) exit 0 ;; esac",
        "case \" $* \" in *' -G '*) echo ciphers; exit 0 ;; esac",
        "case \" $* \" in *' -V '*) exit 1 ;; esac",
    ] {
        let Some(client) = Client::new(first) else { return };
        let outcome = client.run(&[]);
        assert_ne!(cipher(&outcome), FAST, "{first}: {outcome}");
        assert!(!outcome.stderr.contains("asking ssh"), "{first}: {outcome}");
    }
}

/// Such a one takes no notice of -G, and would connect.
#[test]
fn another_ssh_than_openssh_is_called_once_for_the_connection() {
    let first = "case $1 in -V) echo 'Dropbear v2022.83' >&2; exit 0 ;; esac\n\
                 echo call >>\"${0%/*}/calls\"";
    let Some(client) = Client::new(first) else { return };
    let outcome = client.run(&[]);
    assert_ne!(cipher(&outcome), FAST, "{outcome}");
    let calls = fs::read_to_string(client.dir.path().join("bin/calls")).expect("read");
    assert_eq!(calls.lines().count(), 1, "{calls}");
}

/// An account whose shell has no instructions for AES to tell of: its grep finds none
/// in the file that lists them.
fn slow_account() -> Option<Account> {
    let account = Account::new(&which("bash"))?;
    answer(&account, "no");
    let first = shell_word(&account.home);
    account.keep(".bashrc", format!("PATH={first}:/usr/bin:/bin\nexport PATH\n").as_bytes());
    Some(account)
}

/// Has its grep tell of instructions for AES, of others, or of none at all.
fn answer(account: &Account, aes: &str) {
    let real = shell_word(&which("grep"));
    let (list, found) = match aes {
        "yes" => (0, 0),
        "no" => (0, 1),
        _ => (1, 1),
    };
    let text = format!(
        "#!/bin/sh\ncase $* in *flags*cpuinfo*) exit {list} ;; *cpuinfo*) exit {found} ;; esac\nexec {real} \"$@\"\n"
    );
    let written = account.place.path().join("script");
    fs::write(&written, text).expect("write");
    install(&written, &account.home.join("grep"));
}

#[test]
fn a_host_without_instructions_for_aes_is_remembered_until_it_has_them() {
    let Some(client) = Client::new("") else { return };
    let Some(account) = slow_account() else { return };
    let (host, to) = (account.host(), account.home.join("to"));
    let shell = || client.push(&host, &to, &["-I", "--agent=none"]);
    let dry = || run(client.command().args(["-n", "--agent=none"]).arg(&client.source).arg(on(&host, &to)));
    fs::create_dir(client.cache()).expect("create a directory");
    dry().ok();
    assert_eq!(fs::read_dir(client.cache()).expect("list").count(), 0, "a dry run remembers nothing");
    assert_eq!(cipher(&shell()), FAST, "nothing is known yet");
    assert_eq!(client.remembered(), 1);
    let cache = client.cache().join("holesync");
    let note = fs::read_dir(&cache).expect("list").next().expect("a file").expect("list").path();
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o777;
    assert_eq!((mode(&cache), mode(&note)), (0o700, 0o600), "for nobody else");
    for _ in 0..2 {
        let again = shell().says(&["had no instructions for AES"]);
        assert_ne!(cipher(&again), FAST, "{again}");
        assert_eq!(client.remembered(), 1);
    }
    let other = client.run(&[]);
    assert_eq!(cipher(&other), FAST, "another host: {other}");
    answer(&account, "unknown");
    assert_ne!(cipher(&shell()), FAST);
    assert_eq!(client.remembered(), 1, "who says nothing changes nothing");
    answer(&account, "yes");
    dry().ok();
    assert_eq!(client.remembered(), 1, "nor does it forget anything");
    assert_ne!(cipher(&shell()), FAST);
    assert_eq!(client.remembered(), 0);
    assert_eq!(cipher(&shell()), FAST);
}

#[test]
fn an_agent_tells_of_instructions_for_aes() {
    let Some(client) = Client::new("") else { return };
    let Some(account) = slow_account() else { return };
    let (host, to) = (account.host(), account.home.join("to"));
    client.push(&host, &to, &["-I", "--agent=none"]);
    assert_eq!(client.remembered(), 1);
    let program = account.program.to_str().expect("a plain path");
    for expected in [false, true] {
        let outcome = client.push(&host, &to, &["-I", "--agent=require", "--remote-path", program]);
        assert_eq!(cipher(&outcome) == FAST, expected, "{outcome}");
        assert_eq!(client.remembered(), 0);
    }
}

#[test]
fn a_cache_that_cannot_be_written_does_no_harm() {
    let Some(client) = Client::new("") else { return };
    let Some(account) = slow_account() else { return };
    fs::write(client.cache(), "no directory").expect("write");
    for _ in 0..2 {
        let outcome = client.push(&account.host(), &account.home.join("to"), &["-I", "--agent=none"]);
        assert_eq!(cipher(&outcome), FAST, "{outcome}");
    }
}
