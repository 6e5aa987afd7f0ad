//! One pattern of a rule, and what it matches. Paths are bytes. A match takes time that
//! follows the product of both lengths, whatever the pattern.

/// The longest pattern, in bytes: that of a path.
pub(super) const MAX_PATTERN: usize = 4096;

/// A pattern, as it was written and taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: Vec<u8>,
    tokens: Vec<Token>,
    /// It ends in a slash.
    only_directories: bool,
    /// It begins with a slash.
    anchored: bool,
    /// It has a slash or `**`: all of a path counts, and not only the last name.
    of_paths: bool,
    /// It begins with `**`.
    begins_anywhere: bool,
    /// It ends with `***`: a directory counts as if a slash were behind it.
    takes_contents: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    NoSlash,
    /// `*`
    Star,
    /// `**`
    Stars,
    /// `[...]`: a bit for each byte.
    Class(Box<[u64; 4]>),
    /// A class that is broken, and matches nothing.
    Nothing,
}

impl Token {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Token::Byte(own) => *own == byte,
            Token::NoSlash | Token::Star => byte != b'/',
            Token::Stars => true,
            Token::Class(bits) => byte != b'/' && bits[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0,
            Token::Nothing => false,
        }
    }

    fn repeats(&self) -> bool {
        matches!(self, Token::Star | Token::Stars)
    }
}

impl Pattern {
    /// Takes a pattern apart. A backslash means something only beside `*`, `?` or `[`.
    pub fn new(text: &[u8]) -> Pattern {
        let (only_directories, body) = match text {
            [body @ .., b'/'] if !body.is_empty() => (true, body),
            _ => (false, text),
        };
        let wild = body.iter().any(|byte| b"*?[".contains(byte));
        let anywhere = body.windows(2).any(|pair| pair == b"**");
        let (anchored, rest) = body.strip_prefix(b"/").map_or((false, body), |rest| (true, rest));
        Pattern {
            text: text.to_vec(),
            tokens: if wild { tokens(rest) } else { rest.iter().copied().map(Token::Byte).collect() },
            only_directories,
            anchored,
            of_paths: anywhere || body.contains(&b'/'),
            begins_anywhere: body.starts_with(b"**"),
            takes_contents: body.ends_with(b"***"),
        }
    }

    pub fn text(&self) -> &[u8] {
        &self.text
    }

    pub fn is_anchored(&self) -> bool {
        self.anchored
    }

    /// Whether all of a path counts, and not only the last name of it.
    pub fn is_of_paths(&self) -> bool {
        self.of_paths
    }

    /// Whether it matches a path, which is relative to what the pattern is anchored at.
    pub fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.only_directories && !is_directory {
            return false;
        }
        let name = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) if !self.of_paths => &path[slash + 1..],
            _ => path,
        };
        let (before, behind) = (self.begins_anywhere, self.takes_contents && is_directory);
        if !before && !behind {
            return self.matches_bytes(name);
        }
        let slash = |wanted: bool| if wanted { &b"/"[..] } else { b"" };
        self.matches_bytes(&[slash(before), name, slash(behind)].concat())
    }

    /// One step for each byte and token: `reached[i]` tells whether the first `i` tokens
    /// match what was read. What is not anchored may begin behind each slash.
    fn matches_bytes(&self, subject: &[u8]) -> bool {
        if let (Some(Token::Byte(last)), Some(end)) = (self.tokens.last(), subject.last())
            && last != end
        {
            return false;
        }
        let restarts = !self.anchored && self.of_paths && !self.begins_anywhere;
        let mut reached = vec![false; self.tokens.len() + 1];
        reached[0] = true;
        self.skip_repeated(&mut reached);
        for (at, &byte) in subject.iter().enumerate() {
            let mut before = reached[0];
            reached[0] = restarts && subject[at] == b'/';
            for (index, token) in self.tokens.iter().enumerate() {
                let here = reached[index + 1];
                let from = if token.repeats() { here } else { before };
                reached[index + 1] = (from && token.takes(byte)) || (token.repeats() && reached[index]);
                before = here;
            }
        }
        reached[self.tokens.len()]
    }

    /// A star may match nothing.
    fn skip_repeated(&self, reached: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate() {
            reached[index + 1] = reached[index] && token.repeats();
        }
    }
}

fn tokens(mut rest: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let [first, behind @ ..] = rest {
        let (token, left) = match first {
            b'\\' => match behind {
                [escaped, left @ ..] => (Token::Byte(*escaped), left),
                [] => (Token::Nothing, behind),
            },
            b'?' => (Token::NoSlash, behind),
            b'*' => match behind.iter().take_while(|&&byte| byte == b'*').count() {
                0 => (Token::Star, behind),
                more => (Token::Stars, &behind[more..]),
            },
            b'[' => class(behind).unwrap_or((Token::Nothing, &[])),
            byte => (Token::Byte(*byte), behind),
        };
        tokens.push(token);
        rest = left;
    }
    tokens
}

/// A class, and what is left behind it. `None`: it does not end, or names a kind of
/// characters that is none.
fn class(mut rest: &[u8]) -> Option<(Token, &[u8])> {
    let mut bits = [0u64; 4];
    let mut add = |byte: u8| bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    let negated = matches!(rest, [b'!' | b'^', ..]);
    rest = &rest[usize::from(negated)..];
    let mut is_first = true;
    loop {
        rest = match rest {
            [b']', left @ ..] if !is_first => {
                let bits = if negated { bits.map(|word| !word) } else { bits };
                return Some((Token::Class(Box::new(bits)), left));
            }
            [b'[', b':', named @ ..] => {
                let end = named.iter().position(|&byte| byte == b']')?;
                let kind = named[..end].strip_suffix(b":");
                match kind {
                    Some(kind) => {
                        let is_one = kind_of_characters(kind)?;
                        (0..=255).filter(is_one).for_each(&mut add);
                        &named[end + 1..]
                    }
                    None => {
                        add(b'[');
                        &rest[1..]
                    }
                }
            }
            _ => {
                let (from, left) = class_byte(rest)?;
                match left {
                    [b'-', end @ ..] if !matches!(end, [] | [b']', ..]) => {
                        let (to, left) = class_byte(end)?;
                        (from..=to).for_each(&mut add);
                        left
                    }
                    _ => {
                        add(from);
                        left
                    }
                }
            }
        };
        is_first = false;
    }
}

/// A byte of a class, which may be escaped.
fn class_byte(rest: &[u8]) -> Option<(u8, &[u8])> {
    match rest {
        [b'\\', byte, left @ ..] | [byte, left @ ..] => Some((*byte, left)),
        [] => None,
    }
}

fn kind_of_characters(name: &[u8]) -> Option<fn(&u8) -> bool> {
    Some(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let (path, is_directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        Pattern::new(pattern.as_bytes()).matches(path.as_bytes(), is_directory)
    }

    #[test]
    fn what_each_pattern_matches() {
        for (pattern, yes, no) in [
            ("foo", &["foo", "a/foo", "foo/"][..], &["afoo", "foo/a", "fo"][..]),
            ("/foo", &["foo", "foo/"], &["a/foo", "foo/b"]),
            ("foo/", &["foo/", "a/foo/"], &["foo"]),
            ("a/b", &["a/b", "x/a/b"], &["xa/b", "a/b/c"]),
            ("*.o", &["x.o", "a/x.o", ".o"], &["x.o/y", "x.oo"]),
            ("a/*/b", &["a/x/b", "y/a/x/b"], &["a/b", "a/x/y/b"]),
            ("/a/**/b", &["a/x/b", "a/x/y/b"], &["a/b", "z/a/x/b"]),
            ("a**b", &["a/x/b", "ab", "c/ab", "c/a/b"], &["ca/b"]),
            ("**/b", &["b", "a/b", "x/y/b"], &["ab"]),
            ("d/***", &["d/", "d/x", "d/x/y", "e/d/x"], &["d", "dd/"]),
            ("?", &["a", "x/b"], &["", "ab"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "/x"]),
            ("[!a]x", &["bx"], &["ax"]),
            ("[]a]", &["]", "a"], &["b"]),
            ("[a-]", &["-", "a"], &["b"]),
            ("[[:digit:]x]", &["7", "x"], &["y"]),
            ("[\\]]", &["]"], &["\\"]),
            ("[", &[], &["[", ""]),
            ("[[:no:]]", &[], &["n"]),
            ("a\\b", &["a\\b"], &["ab"]),
            ("a\\b*", &["abc"], &["a\\bc"]),
            ("\\*", &["*"], &["a"]),
            ("***", &["a", "a/"], &[]),
            ("/", &[], &["a"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(pattern, path), "{pattern} {path}"));
            no.iter().for_each(|path| assert!(!matches(pattern, path), "{pattern} {path}"));
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time_to_speak_of() {
        let pattern = Pattern::new(&b"*a**a".repeat(400));
        assert!(!pattern.matches(&[b'a'; 4000], false) || pattern.matches(&[b'a'; 4000], true));
        assert!(!Pattern::new(&[&b"**a".repeat(400)[..], b"b?"].concat()).matches(&[b'a'; 4000], false));
    }
}
