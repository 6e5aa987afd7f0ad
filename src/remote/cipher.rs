//! Which cipher ssh is asked for: where processors have instructions for AES, AES-GCM
//! costs both ends much less than what ssh tries first. docs/remote.md tells when it is
//! asked for.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::location::Host;
use crate::remote::child::{SSH, destination};
use crate::report::{Event, Reporter};

/// Among those that ssh allows by default since OpenSSH 6.2, but not its first.
const FAST: &str = "aes128-gcm@openssh.com";
/// Its first: OpenSSH 6.9 to 9.9, ssh_config(5).
const USUAL: &str = "chacha20-poly1305@openssh.com";
/// How long ssh may take to tell of its configuration.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who chooses the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// We do, if ssh is ours to call, its configuration names none, and processors
    /// have instructions for AES.
    #[default]
    Auto,
    /// ssh and its configuration.
    Ssh,
}

/// Whether this processor has the instructions that make AES-GCM fast, as far as
/// that is known.
pub fn aes_here() -> Option<bool> {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let has =
        Some(std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq"));
    #[cfg(target_arch = "aarch64")]
    let has = Some(
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull"),
    );
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    let has = None;
    has
}

/// The ciphers to ask ssh for on the way to a host, as its option Ciphers takes them;
/// `None` leaves them to it. What is chosen is told.
pub fn choose(host: &Host, reporter: &dyn Reporter) -> Option<String> {
    if aes_here() != Some(true) {
        return None;
    }
    let note = |what: String| reporter.event(Event::Note(&what));
    if memory(host).is_some_and(|path| path.exists()) {
        note(format!("{host} had no instructions for AES: ssh chooses the cipher"));
        return None;
    }
    if !is_openssh() {
        return None;
    }
    let (default, configured) = lists(host)?;
    if default != configured {
        note(format!("the configuration of ssh names ciphers for {host}: it chooses"));
        return None;
    }
    let wanted = fast_first(&default)?;
    note(format!("asking ssh for {FAST}, see --cipher"));
    Some(wanted)
}

/// Remembers whether the processor of a host has instructions for AES, for the next
/// connection. Where that cannot be kept, the next one asks as if it had.
pub fn learn(host: &Host, aes: bool) {
    if let Some(path) = memory(host) {
        let _ = if aes { fs::remove_file(path) } else { note_down(path, host) };
    }
}

/// That the file is there is what counts: it is never half written.
fn note_down(path: PathBuf, host: &Host) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{host} has no instructions for AES.")
}

/// What is there if the processor of a host had no instructions for AES.
fn memory(host: &Host) -> Option<PathBuf> {
    // A relative one counts for none: XDG Base Directory Specification.
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    let name = blake3::hash(host.to_string().as_bytes()).to_hex();
    Some(cache.join("holesync").join(format!("no-aes-{}", &name[..16])))
}

/// Others take no notice of options that they do not know, and would connect.
fn is_openssh() -> bool {
    let mut command = Command::new(SSH);
    command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let version = command.spawn().ok().and_then(ended);
    version.is_some_and(|output| output.stderr.starts_with(b"OpenSSH_"))
}

/// The ciphers that ssh tries by default, and on the way to a host, by `ssh -G`.
/// `None` where it does not say.
fn lists(host: &Host) -> Option<(String, String)> {
    let start = |config: &[&str]| {
        let mut command = Command::new(SSH);
        command.args(config).arg("-G").args(destination(host));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
    };
    // Both run at the same time. Of several -F the last one counts.
    let both = [start(&["-F", "none"]), start(&[])];
    let [default, configured] = both.map(|child| child.and_then(said).as_deref().and_then(ciphers));
    default.zip(configured)
}

fn said(child: Child) -> Option<String> {
    let output = ended(child).filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// What a child came to that ends soon; one that does not is stopped. What it says
/// fits a pipe, or it would not end.
fn ended(mut child: Child) -> Option<Output> {
    let start = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if start.elapsed() > PATIENCE {
            // What cannot be stopped is left to init.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().ok()
}

/// What `ssh -G` says of ciphers.
fn ciphers(config: &str) -> Option<String> {
    config.lines().find_map(|line| line.strip_prefix("ciphers ")).map(str::to_owned)
}

/// The same ciphers, the fast one first. `None` where it is not among them, or another
/// one is first than what OpenSSH takes if nobody has decided otherwise.
fn fast_first(default: &str) -> Option<String> {
    let mut list: Vec<&str> = default.split(',').collect();
    let at = list.iter().position(|&cipher| cipher == FAST)?;
    if list[0] != USUAL {
        return None;
    }
    list[..=at].rotate_right(1);
    Some(list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_one_comes_first_and_the_others_stay_as_they_are() {
        let openssh_9_2 = "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,\
                           aes256-gcm@openssh.com";
        let wanted = "aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,\
                      aes256-gcm@openssh.com";
        assert_eq!(fast_first(openssh_9_2).as_deref(), Some(wanted));
    }

    #[test]
    fn what_is_fast_already_or_has_no_fast_one_is_left_alone() {
        for list in
            ["aes128-gcm@openssh.com,aes256-ctr", "chacha20-poly1305-mt@hpnssh.org,aes128-gcm@openssh.com"]
        {
            assert_eq!(fast_first(list), None, "{list}");
        }
        for list in ["chacha20-poly1305@openssh.com,aes128-ctr", "", "aes128-gcm"] {
            assert_eq!(fast_first(list), None, "{list}");
        }
    }

    #[test]
    fn ciphers_are_found_among_what_ssh_says() {
        assert_eq!(ciphers("host h\nciphers a,b\nmacs c\n").as_deref(), Some("a,b"));
        assert_eq!(ciphers("host h\nstderr ciphers\n"), None);
    }

    #[test]
    fn every_host_is_remembered_by_itself() {
        let host = |user: Option<&str>, port| Host { user: user.map(str::to_owned), name: "h".into(), port };
        let hosts = [host(None, None), host(Some("u"), None), host(None, Some(22)), host(None, Some(23))];
        let paths: std::collections::HashSet<_> = hosts.iter().map(memory).collect();
        assert_eq!(paths.len(), hosts.len());
    }
}
