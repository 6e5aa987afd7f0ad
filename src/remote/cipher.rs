//! Which cipher ssh is asked for: where processors have instructions for AES, AES-GCM
//! costs both ends much less than what ssh tries first. docs/remote.md tells when it is
//! asked for.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::location::Host;
use crate::remote::ssh::SshConfig;
use crate::report::{Event, Reporter};
use crate::working::cache_dir;

/// Among those that ssh allows by default since OpenSSH 6.2, but not its first.
const FAST: &str = "aes128-gcm@openssh.com";
/// The first of those: OpenSSH 6.9 to 9.9, ssh_config(5).
const USUAL: &str = "chacha20-poly1305@openssh.com";

/// Who chooses the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// holesync, if no other command reaches the host, the configuration of ssh names no
    /// cipher, and processors have instructions for AES.
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

/// Whether AES-GCM may be asked for on the way to a host, as far as that is known without
/// asking ssh.
pub fn may_be_asked_for(host: &Host, reporter: &dyn Reporter) -> bool {
    let is_slow = marker(host).is_some_and(|path| path.exists());
    if is_slow && aes_here() == Some(true) {
        reporter.event(Event::Note(&format!("{host} had no instructions for AES: ssh chooses the cipher")));
    }
    aes_here() == Some(true) && !is_slow
}

/// The ciphers to ask ssh for on the way to a host, as its option Ciphers takes them;
/// `None` leaves them to ssh. What is chosen is reported.
pub fn choose(host: &Host, config: &SshConfig, reporter: &dyn Reporter) -> Option<String> {
    let note = |what: String| reporter.event(Event::Note(&what));
    let (default, configured) = (config.default_value("ciphers")?, config.value("ciphers")?);
    if default != configured {
        note(format!("the configuration of ssh names ciphers for {host}: it chooses"));
        return None;
    }
    let wanted = fast_first(default)?;
    note(format!("asking ssh for {FAST}, see --cipher"));
    Some(wanted)
}

/// Remembers whether the processor of a host has instructions for AES, for the next
/// connection. Where that cannot be kept, the next connection asks as if it had them.
pub fn remember_aes(host: &Host, aes: bool) {
    if let Some(path) = marker(host) {
        let _ = if aes { fs::remove_file(path) } else { write_marker(path, host) };
    }
}

/// Writes the file of [`marker`]. Only that it exists counts, so it is never half written.
fn write_marker(path: PathBuf, host: &Host) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{host} has no instructions for AES.")
}

/// The file that exists if the processor of a host had no instructions for AES.
fn marker(host: &Host) -> Option<PathBuf> {
    let name = blake3::hash(host.to_string().as_bytes()).to_hex();
    Some(cache_dir()?.join(format!("no-aes-{}", &name[..16])))
}

/// The ciphers of a list with the fast one first. `None` where it is not among them, or
/// where the first is another one than in OpenSSH as it is released.
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
    fn every_host_is_remembered_by_itself() {
        let host = |user: Option<&str>, port| Host { user: user.map(str::to_owned), name: "h".into(), port };
        let hosts = [host(None, None), host(Some("u"), None), host(None, Some(22)), host(None, Some(23))];
        let paths: std::collections::HashSet<_> = hosts.iter().map(marker).collect();
        assert_eq!(paths.len(), hosts.len());
    }
}
