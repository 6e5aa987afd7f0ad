//! `path`, `[user@]host:path`, `[user@][v6addr]:path` and
//! `ssh://[user@]host[:port]/path`, as the command line gives them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, printable};

/// The directory that a path names something in.
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What follows `scheme://`, in capitals or not (RFC 3986, section 3.1); `None`: something else is there.
pub fn behind_scheme<'a>(text: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(scheme.len())?;
    rest.strip_prefix(b"://").filter(|_| start.eq_ignore_ascii_case(scheme.as_bytes()))
}

/// Where a source or a destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A path on this machine.
    Local(PathBuf),
    /// A path on another machine.
    Remote(Host, PathBuf),
}

/// A machine that ssh can reach. Two locations on one host compare equal here. One that comes from
/// another machine is checked as one that is written here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "HostParts", into = "HostParts")]
pub struct Host {
    /// `user` of `user@host`.
    pub user: Option<String>,
    /// Name or address, without brackets. Never empty, never begins with `-`.
    pub name: String,
    /// The port of an `ssh://` address.
    pub port: Option<u16>,
}

impl Location {
    /// Reads several locations. `:path` is on the host of the one before it.
    ///
    /// # Errors
    ///
    /// Those of [`Location::parse`].
    pub fn parse_all(texts: &[OsString]) -> Result<Vec<Location>> {
        let mut locations: Vec<Location> = Vec::new();
        for text in texts {
            let location = match (text.as_bytes(), locations.last()) {
                ([b':', path @ ..], Some(Location::Remote(host, _))) if !path.starts_with(b":") => {
                    Location::Remote(host.clone(), remote_path(path))
                }
                _ => Location::parse(text)?,
            };
            locations.push(location);
        }
        Ok(locations)
    }

    /// The same, of which each path on a host is split into words, as its shell would do it.
    ///
    /// # Errors
    ///
    /// Those of [`Location::parse_all`], and [`Error::Usage`] for a quote that is not closed.
    pub fn split_all(texts: &[OsString]) -> Result<Vec<Location>> {
        let mut locations = Vec::new();
        for location in Location::parse_all(texts)? {
            let Location::Remote(host, path) = &location else {
                locations.push(location);
                continue;
            };
            let mut words = shlex::bytes::Shlex::new(path.as_os_str().as_bytes());
            let paths = words.by_ref().map(|word| Location::Remote(host.clone(), remote_path(&word)));
            locations.extend(paths);
            if words.had_error {
                let what = format!("--old-args: a quote in {} is not closed", printable(path));
                return Err(Error::Usage(what));
            }
        }
        Ok(locations)
    }

    /// The path of `:path`, which is on hosts that are named elsewhere.
    pub fn path_alone(text: &OsStr) -> Option<PathBuf> {
        let path = text.as_bytes().strip_prefix(b":").filter(|path| !path.starts_with(b":"))?;
        Some(remote_path(path))
    }

    /// Reads one of several destinations: `[user@]host[:port]`, which goes to `path`, or a
    /// location on a host, with a port between host and path if need be.
    ///
    /// # Errors
    ///
    /// Those of [`Location::parse`]; [`Error::Usage`] for a path here, and where there is no path.
    pub fn parse_destination(text: &OsStr, path: Option<&Path>) -> Result<(Host, PathBuf)> {
        let bytes = text.as_bytes();
        let (named, port, own) = split_destination(bytes)?;
        let Location::Remote(host, there) = Location::parse(&named)? else {
            return Err(Error::Usage(format!("{text:?} is a path here: several destinations are on hosts")));
        };
        let host = Host { port: port.or(host.port), ..host };
        let none = || {
            let what = "names no path there: write host:/path, or :/path as the last operand";
            Error::Usage(format!("{text:?} {what}"))
        };
        match own {
            true => Ok((host, there)),
            false => path.map(|path| (host, path.to_path_buf())).ok_or_else(none),
        }
    }

    /// Reads a location the way rsync does: a colon before the first slash
    /// makes it remote.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an empty or suspicious user or host, a bad port, or
    /// an empty path.
    pub fn parse(text: &OsStr) -> Result<Location> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(Error::Usage("an empty path names nothing".into()));
        }
        if let Some(rest) = behind_scheme(bytes, "ssh") {
            return parse_url(rest, text);
        }
        let daemon = || {
            let what =
                "names an rsync daemon, which holesync does not speak to: write [user@]host:path, for ssh";
            Error::Usage(format!("{text:?} {what}"))
        };
        if behind_scheme(bytes, "rsync").is_some() {
            return Err(daemon());
        }
        let Some(colon) = remote_colon(bytes) else {
            return Ok(Location::Local(PathBuf::from(text)));
        };
        if bytes[colon + 1..].starts_with(b":") {
            return Err(daemon());
        }
        if let Some(what) = no_path(&bytes[..colon], &bytes[colon + 1..]) {
            return Err(Error::Usage(format!("{text:?} {what}")));
        }
        let (user, host) = split_user(&bytes[..colon]);
        let host = unbracket(host);
        Ok(Location::Remote(host_of(user, host, None, text)?, remote_path(&bytes[colon + 1..])))
    }
}

/// User, name and port of a host, as they travel.
type HostParts = (Option<String>, String, Option<u16>);

impl TryFrom<HostParts> for Host {
    type Error = Error;

    fn try_from((user, name, port): HostParts) -> Result<Host> {
        host_of(user.as_deref().map(str::as_bytes), name.as_bytes(), port, OsStr::new(&name))
    }
}

impl From<Host> for HostParts {
    fn from(Host { user, name, port }: Host) -> HostParts {
        (user, name, port)
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.name)?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        Ok(())
    }
}

/// One of several destinations as a location; its port, if it has one before its path; and whether
/// it has a path of its own.
fn split_destination(bytes: &[u8]) -> Result<(OsString, Option<u16>, bool)> {
    let text = |parts: &[&[u8]]| OsString::from_vec(parts.concat());
    if let Some(rest) = behind_scheme(bytes, "ssh") {
        let own = rest.contains(&b'/');
        return Ok((text(&[bytes, if own { b"" } else { b"/" }]), None, own));
    }
    if bytes.first().is_some_and(|first| matches!(first, b'/' | b'.')) {
        return Ok((text(&[bytes]), None, true));
    }
    let whole = text(&[bytes, b":"]);
    let colon = remote_colon(whole.as_bytes()).filter(|&colon| colon < bytes.len());
    let Some(colon) = colon else { return Ok((whole, None, false)) };
    let (host, behind) = (&bytes[..colon], &bytes[colon + 1..]);
    let digits = behind.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(behind.len());
    let (port, rest) = behind.split_at(digits);
    if port.is_empty() || !matches!(rest.first(), None | Some(b':')) {
        return Ok((text(&[bytes]), None, true));
    }
    let number = std::str::from_utf8(port).ok().and_then(|digits| digits.parse().ok());
    let number = number
        .ok_or_else(|| Error::Usage(format!("{:?} has a bad port number", OsStr::from_bytes(bytes))))?;
    Ok((text(&[host, b":", rest.get(1..).unwrap_or_default()]), Some(number), !rest.is_empty()))
}

/// What the text is, if what is before its colon is no host.
fn no_path(before: &[u8], behind: &[u8]) -> Option<&'static str> {
    if let ([b'A'..=b'Z'], [b'\\' | b'/', ..]) | ([b'a'..=b'z'], [b'\\', ..]) = (before, behind) {
        return Some(
            "is a path of Windows: write /dir/file, or host:/dir/file for ssh; a host of that name is [X]:/path",
        );
    }
    match (before.to_ascii_lowercase().as_slice(), behind) {
        (b"http" | b"https" | b"s3", [b'/', b'/', ..]) => {
            Some("is no DEST: what a store has is a SRC, and holesync publish IMG STORE/NAME puts it there")
        }
        (b"ftp", [b'/', b'/', ..]) => Some(
            "is no path, and nothing is fetched from there: pipe it in, with curl -fL URL | holesync - DEST",
        ),
        (b"scp" | b"sftp", [b'/', b'/', ..]) => {
            Some("is reached over ssh: write ssh://[user@]host[:port]/path")
        }
        (b"file", [b'/', b'/', ..]) => Some("is a file here: write its path alone, without file://"),
        _ => None,
    }
}

/// The colon that separates host and path, if the text names a host.
fn remote_colon(bytes: &[u8]) -> Option<usize> {
    let (user, host) = split_user(bytes);
    let host_at = bytes.len() - host.len();
    if host.starts_with(b"[") && !user.is_some_and(|u| u.contains(&b'/')) {
        let close = host.windows(2).position(|w| w == b"]:")?;
        return Some(host_at + close + 1);
    }
    let colon = bytes.iter().position(|&b| b == b':')?;
    (!bytes[..colon].contains(&b'/')).then_some(colon)
}

/// Splits `user@host…` at the last `@` before the first `:` or `/`.
fn split_user(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let end = bytes.iter().position(|b| matches!(b, b':' | b'/')).unwrap_or(bytes.len());
    match bytes[..end].iter().rposition(|&b| b == b'@') {
        Some(at) => (Some(&bytes[..at]), &bytes[at + 1..]),
        None => (None, bytes),
    }
}

fn unbracket(host: &[u8]) -> &[u8] {
    host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")).unwrap_or(host)
}

fn parse_url(rest: &[u8], whole: &OsStr) -> Result<Location> {
    let slash = rest
        .iter()
        .position(|&b| b == b'/')
        .ok_or_else(|| Error::Usage(format!("{whole:?} has no path: write ssh://[user@]host[:port]/path")))?;
    let (user, host) = split_user(&rest[..slash]);
    let (host, port) = match host.iter().rposition(|&b| b == b':') {
        Some(colon) if !host.ends_with(b"]") => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    let port = match port {
        None => None,
        Some(digits) => Some(
            std::str::from_utf8(digits)
                .ok()
                .and_then(|d| d.parse().ok())
                .ok_or_else(|| Error::Usage(format!("{whole:?} has a bad port number")))?,
        ),
    };
    Ok(Location::Remote(host_of(user, unbracket(host), port, whole)?, remote_path(&rest[slash..])))
}

/// The path after `host:`; nothing means the home directory, as for rsync.
fn remote_path(bytes: &[u8]) -> PathBuf {
    let bytes = if bytes.is_empty() { b"." } else { bytes };
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// Checks user and host: neither may be taken for an option by ssh, and neither
/// holds anything that a host or user name cannot.
fn host_of(user: Option<&[u8]>, name: &[u8], port: Option<u16>, whole: &OsStr) -> Result<Host> {
    let checked = |part: &[u8], what: &str| -> Result<String> {
        let fine = |&b: &u8| b.is_ascii_graphic() && !b"'\"`$\\;&|<>(){}*?!#".contains(&b) || b >= 0x80;
        if part.is_empty() || part[0] == b'-' || !part.iter().all(fine) {
            return Err(Error::Usage(format!("{whole:?} has a bad {what} name")));
        }
        String::from_utf8(part.to_vec()).map_err(|_| Error::Usage(format!("{whole:?} has a bad {what} name")))
    };
    let user = user.map(|u| checked(u, "user")).transpose()?;
    Ok(Host { user, name: checked(name, "host")?, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location> {
        Location::parse(OsStr::new(text))
    }

    fn remote(user: Option<&str>, name: &str, port: Option<u16>, path: &str) -> Location {
        let host = Host { user: user.map(Into::into), name: name.into(), port };
        Location::Remote(host, path.into())
    }

    #[test]
    fn local_paths() {
        for path in ["a", "/a/b", "./a:b", "/x:y", "dir/[a]:b", "a@b", "dir/u@[x]:y"] {
            assert_eq!(parse(path).unwrap(), Location::Local(path.into()), "{path}");
        }
    }

    #[test]
    fn paths_on_a_host_are_split_as_its_shell_would() {
        let split = |text: &str| Location::split_all(&["a b".into(), text.into(), ":c  d".into()]);
        let far = |path: &str| remote(None, "h", None, path);
        let want = [Location::Local("a b".into()), far("x"), far("y z"), far("q r"), far("c"), far("d")];
        assert_eq!(split("h:x y\\ z 'q r'").unwrap(), want);
        assert_eq!(split("h:'x").unwrap_err().exit_code(), 1);
    }

    #[test]
    fn remote_paths() {
        assert_eq!(parse("h:/p").unwrap(), remote(None, "h", None, "/p"));
        assert_eq!(parse("u@h:p q").unwrap(), remote(Some("u"), "h", None, "p q"));
        assert_eq!(parse("h:").unwrap(), remote(None, "h", None, "."));
        assert_eq!(parse("h:a:b@c").unwrap(), remote(None, "h", None, "a:b@c"));
        assert_eq!(parse("u@[fe80::1%eth0]:/p").unwrap(), remote(Some("u"), "fe80::1%eth0", None, "/p"));
        assert_eq!(parse("[D]:/p").unwrap(), remote(None, "D", None, "/p"));
        assert_eq!(parse("[::1]:/p").unwrap(), remote(None, "::1", None, "/p"));
        for scheme in ["ssh", "SSH", "Ssh"] {
            let text = format!("{scheme}://u@h:22022/p");
            assert_eq!(parse(&text).unwrap(), remote(Some("u"), "h", Some(22022), "/p"));
        }
        assert_eq!(parse("ssh://[::1]:5/p").unwrap(), remote(None, "::1", Some(5), "/p"));
        assert_eq!(parse("ssh://[::1]/p").unwrap(), remote(None, "::1", None, "/p"));
    }

    #[test]
    fn a_path_without_a_host_is_on_the_one_before() {
        let all = |texts: &[&str]| {
            Location::parse_all(&texts.iter().map(OsString::from).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        let on = |path| remote(Some("u"), "h", Some(5), path);
        assert_eq!(
            all(&["ssh://u@h:5/a", ":b", ":", ":~/c"]),
            Ok(vec![on("/a"), on("b"), on("."), on("~/c")])
        );
        for bad in [&[":a"][..], &["a", ":b"], &["h:a", "::b"]] {
            assert!(all(bad).is_err(), "{bad:?}");
        }
        for daemon in ["h::module/x", "rsync://h/module", "u@[::1]::m"] {
            assert!(parse(daemon).unwrap_err().to_string().contains("rsync daemon"), "{daemon}");
        }
    }

    #[test]
    fn one_of_several_destinations_may_leave_its_path_to_all() {
        let read = |text: &str| Location::parse_destination(OsStr::new(text), Some(Path::new("/all")));
        for (text, user, port, path) in [
            ("h", None, None, "/all"),
            ("u@h", Some("u"), None, "/all"),
            ("h:22", None, Some(22), "/all"),
            ("u@h:22:/p", Some("u"), Some(22), "/p"),
            ("h:/p", None, None, "/p"),
            ("h:", None, None, "."),
            ("h:22:", None, Some(22), "."),
            ("h:22x", None, None, "22x"),
            ("h:./22", None, None, "./22"),
            ("ssh://u@h:22", Some("u"), Some(22), "/all"),
            ("ssh://h:22/p", None, Some(22), "/p"),
        ] {
            let host = Host { user: user.map(Into::into), name: "h".into(), port };
            assert_eq!(read(text).unwrap(), (host, path.into()), "{text}");
        }
        assert_eq!(read("[::1]:22").unwrap().0.port, Some(22));
        assert_eq!(read("[::1]").unwrap().0.name, "::1");
        for bad in ["/p", "./p", "", "h:99999", "-oX", "h h", "ssh://h:x", "a/b", "h::m"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(Location::parse_destination(OsStr::new("h"), None).is_err());
        let alone = |text: &str| Location::path_alone(OsStr::new(text));
        assert_eq!(
            (alone(":/p"), alone(":"), alone("::m"), alone("h:")),
            (Some("/p".into()), Some(".".into()), None, None)
        );
    }

    #[test]
    fn suspicious_hosts_are_refused() {
        for bad in [
            "-oProxyCommand=x:/p",
            "u@-h:/p",
            "-u@h:/p",
            ":/p",
            "u@:/p",
            "h h:/p",
            "$(x):/p",
            "",
            "ssh://h",
            "ssh://h:x/p",
            "ssh://-h/p",
            "[-x]:/p",
            "C:\\img",
            "D:/img",
            "https://h/x",
            "HTTPS://h/x",
            "sftp://h/x",
            "file:///x",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 1, "{bad}");
        }
    }
}
