//! Who owns at the destination what somebody owns in the source, as `--usermap` and
//! `--groupmap` of rsync(1) have it: `FROM:TO` pairs, separated by commas, of which the first
//! that fits counts. FROM is a name, in which `*`, `?` and `[...]` stand for others, a number
//! or a range of numbers, or nothing, for owners without a name; TO is a name or a number
//! there.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::filter;

/// Pairs, in the order in which they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap(Vec<Pair>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    from: From,
    to: To,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum From {
    /// Names like this.
    Named(String),
    /// From this number to that.
    Numbers(u32, u32),
    /// Owners without a name.
    Nameless,
    Anyone,
}

/// Who owns something at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum To {
    /// Who has this name there.
    Name(String),
    /// Who has this number.
    Number(u32),
}

impl IdMap {
    /// Reads pairs. `option`: what they were given with, for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what is none.
    pub fn parse(text: &str, option: &str) -> Result<IdMap> {
        let pairs = text.split(',').map(|pair| {
            Pair::parse(pair).ok_or_else(|| {
                Error::Usage(format!("{option}={text}: \"{pair}\" is no FROM:TO of names or numbers"))
            })
        });
        Ok(IdMap(pairs.collect::<Result<_>>()?))
    }

    /// All owners become this one.
    pub fn everyone_to(name: &str) -> IdMap {
        IdMap(vec![Pair { from: From::Anyone, to: To::read(name) }])
    }

    /// Whether owners stay who they are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it takes a name that only the destination knows.
    pub fn has_names(&self) -> bool {
        self.0.iter().any(|pair| matches!(pair.to, To::Name(_)))
    }

    /// All owners that something may become.
    pub fn targets(&self) -> impl Iterator<Item = &To> {
        self.0.iter().map(|pair| &pair.to)
    }

    /// Who owns what this owner has; `name`: empty where there is none.
    pub fn find(&self, number: u32, name: &str) -> Option<&To> {
        let fits = |pair: &&Pair| match &pair.from {
            From::Anyone => true,
            From::Nameless => name.is_empty(),
            From::Numbers(first, last) => (*first..=*last).contains(&number),
            From::Named(pattern) => !name.is_empty() && filter::is_like(pattern.as_bytes(), name.as_bytes()),
        };
        self.0.iter().find(fits).map(|pair| &pair.to)
    }
}

impl Pair {
    fn parse(text: &str) -> Option<Pair> {
        let (from, to) = text.split_once(':')?;
        let number = |text: &str| text.parse::<u32>().ok();
        let from = match from.split_once('-') {
            _ if from == "*" => From::Anyone,
            _ if from.is_empty() => From::Nameless,
            _ if from.starts_with(|first: char| first.is_ascii_digit()) => match from.split_once('-') {
                Some((first, last)) => From::Numbers(number(first)?, number(last)?),
                None => From::Numbers(number(from)?, number(from)?),
            },
            _ => From::Named(from.into()),
        };
        (!to.is_empty() && !to.contains(':')).then(|| Pair { from, to: To::read(to) })
    }
}

impl To {
    fn read(text: &str) -> To {
        text.parse().map_or_else(|_| To::Name(text.into()), To::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pair_that_fits_counts() {
        let map = IdMap::parse("root:0,we*:users,100-199:7,:nobody,7:bin,*:99", "--usermap").unwrap();
        let name = |name: &str| To::Name(name.into());
        for (number, from, to) in [
            (5, "root", To::Number(0)),
            (5, "web", name("users")),
            (150, "x", To::Number(7)),
            (200, "", name("nobody")),
            (7, "x", name("bin")),
            (200, "x", To::Number(99)),
        ] {
            assert_eq!(map.find(number, from), Some(&to), "{number} {from}");
        }
        assert_eq!(IdMap::parse("a:b", "--usermap").unwrap().find(1, "c"), None);
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        for text in ["", "a", "a:", "1-:x", "1-a:x", "a:b:c", "a:b,", "1x:y"] {
            assert!(IdMap::parse(text, "--usermap").is_err(), "{text:?}");
        }
    }
}
