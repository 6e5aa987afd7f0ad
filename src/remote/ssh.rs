//! How ssh is called where no other command reaches the host: with options that its
//! configuration for that host, as `ssh -G` tells it, leaves open.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::location::Host;
use crate::remote::bootstrap::{Addresses, RemoteOptions};
use crate::remote::child::{SSH_PROGRAM, host_words};
use crate::remote::cipher::{self, Cipher};
use crate::report::Reporter;

/// How long ssh may take to print its version, or its configuration: it only ends hangs.
const QUERY_PATIENCE: Duration = Duration::from_secs(10);
/// `ServerAliveInterval` that Debian's ssh has with `BatchMode`, which nobody asked for.
const DEBIANS_INTERVAL: &str = "300";
/// The longest time that ssh takes: it keeps seconds in an int.
const MOST_SECONDS: u32 = i32::MAX as u32;
/// Where one host reaches another for somebody elsewhere: only one whose key is known there, and
/// nothing that was forwarded there goes further, or stays.
const ONWARD: [&str; 5] = [
    "StrictHostKeyChecking=yes",
    "ForwardAgent=no",
    "ClearAllForwardings=yes",
    "ControlMaster=no",
    "ControlPath=none",
];

/// How ssh is called.
#[derive(Debug, Default)]
pub struct Ssh {
    /// Options for `-o`; see ssh_config(5).
    pub options: Vec<String>,
    /// It asks its user nothing, as far as is known.
    pub is_batch: bool,
}

impl Ssh {
    /// What to call ssh with. `silence`: how long the other end may be silent. What is
    /// chosen is reported. Another command is left as it is, and so is another program of
    /// this name: it may not know these options.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when another command would have to choose among addresses, or to forward
    /// what it must not.
    pub fn prepare(
        host: &Host,
        remote: &RemoteOptions,
        silence: Option<Duration>,
        reporter: &dyn Reporter,
    ) -> Result<Ssh> {
        if remote.rsh.is_some() || !is_openssh() {
            if remote.is_onward || remote.forward_agent {
                return Err(Error::Usage("the ssh that is found here is no OpenSSH".into()));
            }
            return match remote.addresses {
                Addresses::Any => Ok(Ssh::default()),
                _ => Err(Error::Usage(
                    "-4 and -6 are for OpenSSH without --rsh and RSYNC_RSH: put them into that command"
                        .into(),
                )),
            };
        }
        let mut options = match remote.addresses {
            Addresses::Any => Vec::new(),
            Addresses::V4 => vec!["AddressFamily=inet".into()],
            Addresses::V6 => vec!["AddressFamily=inet6".into()],
        };
        if remote.contimeout > 0 {
            options.push(format!("ConnectTimeout={}", remote.contimeout.min(MOST_SECONDS)));
        }
        let asks = remote.cipher == Cipher::Auto && cipher::may_be_asked_for(host, reporter);
        if remote.asks_nothing {
            options.push("BatchMode=yes".into());
        }
        if remote.is_onward {
            options.extend(ONWARD.map(String::from));
        }
        if remote.forward_agent {
            options.push("ForwardAgent=yes".into());
        }
        let Some(config) = SshConfig::of(host, asks) else {
            return Ok(Ssh { options, is_batch: remote.asks_nothing });
        };
        let ciphers = if asks { cipher::choose(host, &config, reporter) } else { None };
        options.extend(ciphers.map(|ciphers| format!("Ciphers={ciphers}")));
        let is_configured = config.value("batchmode") == Some("yes");
        let is_batch = remote.asks_nothing || is_configured;
        let interval = config.value("serveraliveinterval");
        let is_open = interval == Some("0") || is_configured && interval == Some(DEBIANS_INTERVAL);
        if let (true, Some(silence)) = (is_open, silence) {
            // Three are sent, and waited for: two holesyncs notice before that.
            options.push(format!(
                "ServerAliveInterval={}",
                (silence.as_secs() / 3).clamp(1, MOST_SECONDS.into())
            ));
            options.push("ServerAliveCountMax=3".into());
        }
        Ok(Ssh { options, is_batch })
    }
}

/// The configuration of ssh on the way to a host.
pub struct SshConfig {
    configured: String,
    /// The same without any configuration file.
    default: String,
}

impl SshConfig {
    /// `None` where ssh does not print it. `with_default`: whether the defaults will be
    /// asked for.
    fn of(host: &Host, with_default: bool) -> Option<SshConfig> {
        let start = |config: &[&str]| {
            let mut command = Command::new(SSH_PROGRAM);
            command.args(config).arg("-G").args(host_words(host));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
        };
        // The two commands run at the same time. Of several -F the last one counts.
        let default = if with_default { start(&["-F", "none"]) } else { None };
        let configured = start(&[]);
        let default = default.and_then(printed).unwrap_or_default();
        Some(SshConfig { configured: configured.and_then(printed)?, default })
    }

    /// The value of a keyword, in small letters.
    pub fn value(&self, keyword: &str) -> Option<&str> {
        value_in(&self.configured, keyword)
    }

    /// The value that ssh has by default.
    pub fn default_value(&self, keyword: &str) -> Option<&str> {
        value_in(&self.default, keyword)
    }
}

/// A value in the output of `ssh -G`.
fn value_in<'c>(config: &'c str, keyword: &str) -> Option<&'c str> {
    config.lines().find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '))
}

/// Whether ssh is OpenSSH. Other programs of this name ignore options that they do not
/// know, and would connect.
fn is_openssh() -> bool {
    let mut command = Command::new(SSH_PROGRAM);
    command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let version = command.spawn().ok().and_then(output_in_time);
    version.is_some_and(|output| output.stderr.starts_with(b"OpenSSH_"))
}

fn printed(child: Child) -> Option<String> {
    let output = output_in_time(child).filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// The output of a child that ends soon. A child that does not is stopped: so is one whose
/// output does not fit a pipe.
fn output_in_time(mut child: Child) -> Option<Output> {
    let start = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if start.elapsed() > QUERY_PATIENCE {
            // A child that cannot be stopped is left to init.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_among_what_ssh_says() {
        let config = "host h\nciphers a,b\nciphersuites c\nbatchmode yes\n";
        assert_eq!(value_in(config, "ciphers"), Some("a,b"));
        assert_eq!(value_in(config, "batchmode"), Some("yes"));
        assert_eq!(value_in("host h\nstderr ciphers\n", "ciphers"), None);
    }
}
