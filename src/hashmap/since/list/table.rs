//! Lists with a line for each range.

use std::io::{BufRead, Read};

use super::{Ranges, Says, unread};

/// Bytes of a line.
const LINE: u64 = 4096;

/// Reads lines of an offset and a length, decimal or hexadecimal; behind them what `rbd diff` or
/// `nbdinfo --map` says of the range.
pub fn read(mut input: impl BufRead, ranges: &mut Ranges) -> Result<(), String> {
    let (mut line, mut number) = (Vec::new(), 0u32);
    loop {
        line.clear();
        if input.by_ref().take(LINE).read_until(b'\n', &mut line).map_err(unread)? == 0 {
            break;
        }
        number = number.saturating_add(1);
        let told = match line.len() as u64 == LINE {
            true => Err("it is too long".into()),
            false => read_line(&line, ranges, number),
        };
        told.map_err(|why| format!("line {number}: {why}"))?;
    }
    match number {
        0 => Err("there is nothing in it: see whether the command that wrote it has failed".into()),
        _ => Ok(()),
    }
}

fn read_line(line: &[u8], ranges: &mut Ranges, at: u32) -> Result<(), String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is no text")?;
    let text = text.split('#').next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let (offset, length, says) = match words.as_slice() {
        [] | ["Offset", "Length", "Type"] => return Ok(()),
        [offset, length] | [offset, length, "data" | "zero"] => (offset, length, Says::Changed),
        [offset, length, kind, description] => (offset, length, Says::of_nbd(number(kind)?, description)?),
        _ => return Err("it is not an offset and a length, as in 1048576 65536".into()),
    };
    ranges.add((number(offset)?, number(length)?), 1, says, at)
}

fn number(word: &str) -> Result<u64, String> {
    let digits = word.strip_prefix("0x").map_or((word, 10), |digits| (digits, 16));
    let is_plain = digits.0.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let number = u64::from_str_radix(digits.0, digits.1).ok().filter(|_| is_plain);
    number.ok_or_else(|| format!("{word} is no number of bytes"))
}
