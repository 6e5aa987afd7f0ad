//! What a server's answer says of an object: which part of it comes, of which version it is, and when to
//! ask again.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::HeaderMap;
use ureq::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName, LAST_MODIFIED, RETRY_AFTER,
};

use crate::error::escape;

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    std::str::from_utf8(value).ok().map(|text| text.trim().to_string())
}

/// How many bytes the body has, as its header says.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, CONTENT_LENGTH)?.parse().ok()
}

/// An encoding of the body, which nobody asked for.
pub fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| escape(value.as_bytes()))?;
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then_some(encoding)
}

/// The part that comes, and the length of the whole object where that is told.
///
/// # Errors
///
/// What is wrong with it, as it stands behind the URL.
pub fn part(headers: &HeaderMap, asked: &Range<u64>) -> Result<(Range<u64>, Option<u64>), String> {
    let value =
        text(headers, CONTENT_RANGE).ok_or("has no Content-Range that can be read in an answer 206")?;
    let wrong = || {
        format!("has the Content-Range \"{}\" where {} was asked for", escape(value.as_bytes()), bytes(asked))
    };
    let (part, total) = parse_part(&value).ok_or_else(wrong)?;
    if part.start != asked.start || part.end > asked.end {
        return Err(wrong());
    }
    if length(headers).is_some_and(|length| length != part.end - part.start) {
        return Err(format!("{}, and another Content-Length", wrong()));
    }
    Ok((part, total))
}

/// A range as a header has it.
pub fn bytes(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
}

/// `bytes A-B/LENGTH`; RFC 9110, 14.4.
fn parse_part(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = value.split_once(' ')?;
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let part = number(first)?..number(last)?.checked_add(1)?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    let fits = total.is_none_or(|total| part.end <= total);
    (unit.eq_ignore_ascii_case("bytes") && part.start < part.end && fits).then_some((part, total))
}

/// Of which version of an object an answer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// Its strong ETag: of equal ones all bytes are equal.
    etag: Option<String>,
    modified: Option<String>,
    length: Option<u64>,
}

impl Version {
    /// That of an object of this length, where it is known.
    pub fn of(headers: &HeaderMap, length: Option<u64>) -> Version {
        let etag = text(headers, ETAG).filter(|etag| etag.starts_with('"'));
        Version { etag, modified: text(headers, LAST_MODIFIED), length }
    }

    /// That of an object of which nothing but its length is known.
    pub fn of_length(length: Option<u64>) -> Version {
        Version { length, ..Version::default() }
    }

    /// Takes in a length that was not known.
    pub fn learn(&mut self, later: &Version) {
        self.length = self.length.or(later.length);
    }

    /// What tells that a later answer is of another version; `None`: nothing does.
    pub fn difference(&self, later: &Version) -> Option<String> {
        let shown =
            |value: &Option<String>| value.as_ref().map_or("gone".into(), |value| escape(value.as_bytes()));
        if let (Some(was), Some(is)) = (self.length, later.length)
            && was != is
        {
            return Some(format!("its length was {was} and is {is}"));
        }
        let (name, was, is) = match &self.etag {
            Some(_) => ("ETag", &self.etag, &later.etag),
            None => ("Last-Modified", &self.modified, &later.modified),
        };
        (was.is_some() && was != is).then(|| format!("its {name} was {} and is {}", shown(was), shown(is)))
    }
}

/// How long the server wants to be left alone.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let told = text(headers, RETRY_AFTER)?;
    if let Ok(seconds) = told.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // By the server's own clock, where it tells that.
    let now = text(headers, DATE).and_then(|date| parse_date(&date));
    let now = now.or_else(|| Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs()))?;
    Some(Duration::from_secs(parse_date(&told)?.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`; RFC 9110, 5.6.7.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year) = (day.parse::<u64>().ok()?, year.parse::<u64>().ok()?);
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hours > 23
        || minutes > 59
        || seconds > 60
    {
        return None;
    }
    // Years that begin in March: leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    let days = 365 * year + leaps + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_part_begins_where_it_was_asked_for_and_ends_no_later() {
        let told = |value: &str| part(&headers(&[(CONTENT_RANGE, value)]), &(10..20));
        assert_eq!(told("bytes 10-19/100"), Ok((10..20, Some(100))));
        assert_eq!(told("Bytes 10-14/*"), Ok((10..15, None)));
        for bad in [
            "bytes 11-19/100",
            "bytes 0-9/100",
            "bytes 10-20/100",
            "bytes 10-19/19",
            "bytes 10-9/100",
            "bytes */100",
            "items 10-19/100",
            "bytes 10-18446744073709551615/*",
            "bytes +10-19/100",
            "10-19/100",
            "",
            "bytes 10-19",
        ] {
            assert!(told(bad).is_err(), "{bad}");
        }
        assert!(part(&HeaderMap::new(), &(10..20)).is_err());
        let two = [(CONTENT_RANGE, "bytes 10-19/100"), (CONTENT_LENGTH, "11")];
        assert!(part(&headers(&two), &(10..20)).is_err());
    }

    #[test]
    fn versions_are_told_apart_by_strong_etags_or_else_times_and_by_lengths() {
        let version = |etag: &str, modified: &str, length| {
            let pairs = [(ETAG, etag), (LAST_MODIFIED, modified)];
            let pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            Version::of(&headers(&pairs), length)
        };
        let same = |one: &Version, other: &Version| one.difference(other).is_none();
        let strong = version("\"a\"", "then", Some(5));
        assert!(same(&strong, &version("\"a\"", "later", None)));
        assert!(!same(&strong, &version("\"b\"", "then", Some(5))));
        assert!(!same(&strong, &version("\"a\"", "then", Some(6))));
        assert!(!same(&strong, &version("", "then", Some(5))));
        let weak = version("W/\"a\"", "then", Some(5));
        assert!(same(&weak, &version("W/\"b\"", "then", Some(5))));
        assert!(!same(&weak, &version("W/\"a\"", "later", Some(5))));
        let bare = version("", "", Some(5));
        assert!(same(&bare, &strong) && !same(&bare, &version("", "", Some(4))));
        let mut unknown = Version::of_length(None);
        assert!(same(&unknown, &bare));
        unknown.learn(&bare);
        assert!(!same(&unknown, &Version::of_length(Some(4))));
    }

    #[test]
    fn a_server_says_when_to_ask_again_in_seconds_or_by_its_clock() {
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        for bad in
            ["", "yesterday", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 0 Nov 1994 08:49:37 GMT", "a b c d e GMT"]
        {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
        assert_eq!(wait(&headers(&[(RETRY_AFTER, "7")])), Some(Duration::from_secs(7)));
        let dates = [(RETRY_AFTER, "Sun, 06 Nov 1994 08:49:37 GMT"), (DATE, "Sun, 06 Nov 1994 08:49:30 GMT")];
        assert_eq!(wait(&headers(&dates)), Some(Duration::from_secs(7)));
        assert_eq!(wait(&headers(&dates[..1])), Some(Duration::ZERO));
        assert_eq!(wait(&headers(&[(RETRY_AFTER, "soon")])), None);
    }

    #[test]
    fn an_encoding_is_told_but_for_none() {
        assert_eq!(encoding(&headers(&[(CONTENT_ENCODING, "gzip")])), Some("gzip".into()));
        assert_eq!(encoding(&headers(&[(CONTENT_ENCODING, "identity")])), None);
        assert_eq!(encoding(&HeaderMap::new()), None);
    }
}
