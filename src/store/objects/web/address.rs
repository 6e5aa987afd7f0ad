//! URLs: that of a store, those of its objects, and where a server sends on to.

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::error::{Error, Result, escape};

/// What a password may be told to: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    /// In lower case, an IPv6 address without its brackets.
    pub host: String,
    port: u16,
}

impl Origin {
    /// That of a URL.
    pub fn of(uri: &Uri) -> Origin {
        let secure = is_secure(uri);
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Origin { secure, host: host.to_ascii_lowercase(), port }
    }
}

/// Whether it is reached by TLS.
pub fn is_secure(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

/// Refuses a URL of a web server with what may be a secret, and does not repeat it.
pub fn refuse_secrets(text: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::Usage(why.into()));
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(()) };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        return refuse(
            "a URL with a user or password in it is seen by everybody on this machine: put \
             \"machine HOST login USER password PASSWORD\" into ~/.netrc, or set HOLESYNC_USER and \
             HOLESYNC_PASSWORD, or HOLESYNC_TOKEN",
        );
    }
    if rest.contains(['?', '#']) {
        return refuse(
            "a URL with a query (?) or a fragment (#) names no store: objects lie below a path; what a query \
             signs belongs into HOLESYNC_TOKEN, or HOLESYNC_USER and HOLESYNC_PASSWORD; a ? or # that is part of \
             a name is written %3F or %23",
        );
    }
    Ok(())
}

/// The URL below which objects lie. What may hold a secret is refused, and not repeated.
pub fn parse_base(text: &str) -> Result<Uri> {
    let refuse = |why: &str| Err(Error::Usage(why.into()));
    let Some((scheme, rest)) = text.split_once("://") else {
        return refuse("the address of a web server begins with http:// or https://");
    };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return refuse("the address of a web server begins with http:// or https://");
    }
    refuse_secrets(text)?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = encode(path.trim_end_matches('/'), |byte| byte.is_ascii_graphic() && !is_delimiter(byte));
    let shown = escape(text.as_bytes());
    let parsed = format!("{}://{authority}{path}", scheme.to_ascii_lowercase()).parse::<Uri>();
    let parsed = parsed.map_err(|error| Error::Usage(format!("{shown} is no URL: {error}")))?;
    if parsed.host().is_none_or(str::is_empty) || has_bad_port(&parsed) {
        return Err(Error::Usage(format!(
            "{shown} names no host, or a bad port: write https://host[:port]/path"
        )));
    }
    Ok(parsed)
}

/// What a URL may not have as it is, without what gives a path its meaning.
fn is_delimiter(byte: u8) -> bool {
    b"\"<>\\^`{|}".contains(&byte)
}

fn has_bad_port(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let port = authority.rsplit(']').next().and_then(|rest| rest.split_once(':'));
    port.is_some_and(|(_, port)| port.parse::<u16>().map_or(true, |port| port == 0))
}

fn encode(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The URL of an object.
///
/// # Errors
///
/// When a part of the name would lead elsewhere.
pub fn of_object(base: &Uri, name: &str) -> Result<Uri> {
    let mut path = base.path().trim_end_matches('/').to_string();
    for part in name.split('/') {
        if ["", ".", ".."].contains(&part) {
            return Err(Error::refused(
                shown(base),
                format!("{} is no name of an object", escape(name.as_bytes())),
            ));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
        path.push('/');
        path.push_str(&encode(part, plain));
    }
    let of_uri = |_| Error::refused(shown(base), format!("{} is too long a name", escape(name.as_bytes())));
    with_path(base, &path).map_err(of_uri)
}

fn with_path(base: &Uri, path: &str) -> Result<Uri, ureq::http::Error> {
    let mut builder = Uri::builder().path_and_query(path);
    if let Some(scheme) = base.scheme() {
        builder = builder.scheme(scheme.clone());
    }
    if let Some(authority) = base.authority() {
        builder = builder.authority(authority.clone());
    }
    builder.build()
}

/// Where a `Location` leads from a URL (RFC 3986, 5.2); `None`: nowhere that is spoken here.
pub fn follow(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default().trim();
    let location = encode(location, |byte| byte.is_ascii_graphic() && !is_delimiter(byte));
    let scheme = from.scheme_str()?;
    let to: Uri = if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}").parse().ok()?
    } else if location.starts_with('/') {
        with_path(from, &location).ok()?
    } else if location.split(['/', '?']).next()?.contains(':') {
        location.parse().ok()?
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        let path = match location.as_str() {
            "" => from.path().to_string(),
            query if query.starts_with('?') => format!("{}{query}", from.path()),
            relative => without_dots(&format!("{directory}/{relative}")),
        };
        with_path(from, &path).ok()?
    };
    let spoken = matches!(to.scheme_str(), Some("http" | "https"));
    let named = to.host().is_some_and(|host| !host.is_empty()) && !has_bad_port(&to);
    let bare = to.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (spoken && named && bare).then_some(to)
}

/// A path and its query without `.` and `..`.
fn without_dots(path: &str) -> String {
    let (path, query) = path.find('?').map_or((path, ""), |at| path.split_at(at));
    let mut parts: Vec<&str> = Vec::new();
    let last = path.rsplit('/').next().unwrap_or_default();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let slash = if [".", ".."].contains(&last) && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}{query}", parts.join("/"))
}

/// A URL for messages. A query may be what lets in, and is not shown.
pub fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let query = if uri.query().is_some() { "?…" } else { "" };
    let text = format!("{}://{authority}{}{query}", uri.scheme_str().unwrap_or_default(), uri.path());
    escape(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_lead_below_the_base_alone() {
        let base = parse_base("HTTPS://Host:8443/a%20b/ü//").unwrap();
        assert_eq!(base.to_string(), "https://Host:8443/a%20b/%C3%BC");
        let url = of_object(&base, "packs/50% #1?.ü").unwrap();
        assert_eq!(url.to_string(), "https://Host:8443/a%20b/%C3%BC/packs/50%25%20%231%3F.%C3%BC");
        assert_eq!(of_object(&parse_base("http://h").unwrap(), "x").unwrap().to_string(), "http://h/x");
        for bad in ["", "a//b", "../x", "a/..", ".", "/x"] {
            assert!(of_object(&base, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_may_hold_a_secret_is_refused_and_not_repeated() {
        for bad in ["https://u:sesame@h/x", "http://sesame@h", "https://h/x?sig=sesame", "https://h/x#sesame"]
        {
            let error = parse_base(bad).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(
                !error.to_string().contains("sesame") && error.to_string().contains("HOLESYNC_USER"),
                "{error}"
            );
        }
        for bad in [
            "ftp://h/x",
            "h/x",
            "https:///x",
            "https://h:x/y",
            "https://h:0/y",
            "https://a b/",
            "http://h:99999/",
        ] {
            assert_eq!(parse_base(bad).unwrap_err().exit_code(), 1, "{bad}");
        }
        assert_eq!(shown(&"https://h:1/x?sig=sesame".parse().unwrap()), "https://h:1/x?…");
    }

    #[test]
    fn a_location_is_followed_from_where_it_was_told() {
        let from: Uri = "https://h:1/a/b/c?q".parse().unwrap();
        let to = |location: &str| follow(&from, location).map(|uri| uri.to_string());
        for (location, expected) in [
            ("http://other/x?y#z", "http://other/x?y"),
            ("//other/x", "https://other/x"),
            ("/x", "https://h:1/x"),
            ("x?y=http://z", "https://h:1/a/b/x?y=http://z"),
            ("../../../x", "https://h:1/x"),
            ("./", "https://h:1/a/b/"),
            ("?x", "https://h:1/a/b/c?x"),
            ("", "https://h:1/a/b/c"),
            ("ü", "https://h:1/a/b/%C3%BC"),
        ] {
            assert_eq!(to(location).as_deref(), Some(expected), "{location}");
        }
        for bad in ["ftp://h/x", "file:///x", "http://", "http://u:p@h/", "mailto:x", "http://h:x/", "//"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://H/a"), origin("https://h:443/b"));
        assert_ne!(origin("https://h/a"), origin("http://h:443/a"));
        assert_ne!(origin("https://h/a"), origin("https://h:444/a"));
        assert_eq!(origin("http://[::1]/").host, "::1");
    }
}
