//! Numbers of any size as few bytes: LEB128.

use std::io::{self, Read};

/// Appends a number as LEB128: 7 bits a byte, the lowest first, the top bit where more follow.
pub fn add(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number of LEB128 off the front; `None` where it does not fit 64 bits.
pub fn take(bytes: &mut &[u8]) -> Option<u64> {
    read(bytes).ok()
}

/// Reads one.
///
/// # Errors
///
/// `InvalidData` where it does not fit 64 bits; what reading reports.
pub fn read(input: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        let bits = u64::from(byte[0] & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        number |= bits << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
