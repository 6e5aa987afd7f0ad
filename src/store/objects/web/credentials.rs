//! Who asks: a token, or a user and a password, from the environment or netrc(5). Never from a
//! command line, and told to one origin alone.

use std::fmt;
use std::path::Path;

use ureq::http::HeaderValue;

use crate::error::{Error, Result};

/// The longest netrc that is read.
const LONGEST: u64 = 1 << 20;

/// What lets somebody in. It is not shown, and not told to `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `Authorization: Bearer`
    Token(String),
    /// `Authorization: Basic`
    Password {
        /// The user.
        user: String,
        /// And the password.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Those of `HOLESYNC_TOKEN`, or of `HOLESYNC_USER` and `HOLESYNC_PASSWORD`.
    pub fn from_environment() -> Option<Credentials> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(token) = variable("HOLESYNC_TOKEN") {
            return Some(Credentials::Token(token));
        }
        let user = variable("HOLESYNC_USER")?;
        Some(Credentials::Password { user, password: variable("HOLESYNC_PASSWORD").unwrap_or_default() })
    }

    /// Those for a host in a netrc; `None`: it has none, or is not there.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub fn from_netrc(path: &Path, host: &str) -> Result<Option<Credentials>> {
        use std::io::Read;
        let mut text = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
        match read {
            Ok(_) => Ok(find(&String::from_utf8_lossy(&text), host)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// The value of `Authorization`.
    ///
    /// # Errors
    ///
    /// When it holds what no header can.
    pub fn header(&self) -> Result<HeaderValue> {
        let text = match self {
            Credentials::Token(token) => format!("Bearer {token}"),
            Credentials::Password { user, password } => basic(user, password),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            Error::Usage(
                "HOLESYNC_TOKEN has a character that no header can have: a line end, most likely".into(),
            )
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// User and password as RFC 7617 has them.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63];
            out.push(if at > three.len() { '=' } else { char::from(digit) });
        }
    }
    out
}

/// The first entry of a netrc that is for a host, or for all, as curl reads it.
fn find(text: &str, host: &str) -> Option<Credentials> {
    let mut words = Words(text);
    let mut ours = false;
    let (mut user, mut password) = (None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" | "default" => {
                if ours {
                    break;
                }
                ours = word == "default" || words.next()?.eq_ignore_ascii_case(host);
            }
            "macdef" => words.skip_macro(),
            "login" => user = words.next().filter(|_| ours).or(user),
            "password" => password = words.next().filter(|_| ours).or(password),
            "account" => drop(words.next()),
            _ => {}
        }
    }
    (user.is_some() || password.is_some()).then(|| Credentials::Password {
        user: user.unwrap_or_default(),
        password: password.unwrap_or_default(),
    })
}

/// What is left of a netrc.
struct Words<'a>(&'a str);

impl Words<'_> {
    /// The next word; in quotes it may hold spaces, and `\` before a character.
    fn next(&mut self) -> Option<String> {
        loop {
            self.0 = self.0.trim_start();
            if !self.0.starts_with('#') {
                break;
            }
            self.0 = self.0.split_once('\n').map_or("", |(_, rest)| rest);
        }
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
            let (word, rest) = self.0.split_at(end);
            self.0 = rest;
            return (!word.is_empty()).then(|| word.to_string());
        };
        let mut word = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return Some(word);
                }
                '\\' => word.push(match chars.next()?.1 {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                }),
                other => word.push(other),
            }
        }
        None
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        self.0 = self.0.split_once("\n\n").map_or("", |(_, rest)| rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn a_netrc_is_read_as_curl_reads_it() {
        let text = "# machine h login no password no\nmachine other login o password p\n\
                    macdef init\nmachine h login wrong\nquit\n\n\
                    machine H\n  login \"a b\" account x\n  password \"q\\\"\\\\\"\nmachine h login later password later\n\
                    default login anybody password any\n";
        assert_eq!(find(text, "h"), password("a b", "q\"\\"));
        assert_eq!(find(text, "other"), password("o", "p"));
        assert_eq!(find(text, "third"), password("anybody", "any"));
        for none in
            ["", "machine", "machine x login y", "login a password b", "machine h", "machine h login \"x"]
        {
            assert_eq!(find(none, "h"), None, "{none}");
        }
    }

    #[test]
    fn headers_are_those_of_the_rfcs() {
        for (bytes, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(Credentials::Token("a\nb".into()).header().is_err());
        let token = Credentials::Token("abc".into());
        assert_eq!(token.header().unwrap(), "Bearer abc");
        assert!(!format!("{token:?} {:?}", token.header().unwrap()).contains("abc"));
    }
}
