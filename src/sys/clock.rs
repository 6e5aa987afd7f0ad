//! Moments in local time, as the environment and the machine have it (tzset(3)).

use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Of the common era.
    pub year: i32,
    /// From 1.
    pub month: i32,
    /// Of the month, from 1.
    pub day: i32,
    /// From 0, as those that follow.
    pub hour: i32,
    pub minute: i32,
    pub second: i32,
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A moment, in seconds since 1970; localtime_r(3). `None`: its year has no number there.
pub fn local_time(seconds: i64) -> Option<LocalTime> {
    let mut found = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both point to what outlives the call; it has filled `found` where it returns
    // something else than null.
    let found = unsafe {
        if libc::localtime_r(&seconds, found.as_mut_ptr()).is_null() {
            return None;
        }
        found.assume_init()
    };
    Some(LocalTime {
        year: found.tm_year.checked_add(1900)?,
        month: found.tm_mon + 1,
        day: found.tm_mday,
        hour: found.tm_hour,
        minute: found.tm_min,
        second: found.tm_sec,
    })
}

/// The reverse; mktime(3). What is beyond a month or a day goes on into the next one.
pub fn seconds_of(time: LocalTime) -> Option<i64> {
    // SAFETY: all bytes zero are a valid `struct tm`, and the call fills it in.
    let seconds = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        tm.tm_year = time.year.checked_sub(1900)?;
        tm.tm_mon = time.month - 1;
        tm.tm_mday = time.day;
        tm.tm_hour = time.hour;
        tm.tm_min = time.minute;
        tm.tm_sec = time.second;
        // Whether it is summer then is not known.
        tm.tm_isdst = -1;
        libc::mktime(&mut tm)
    };
    (seconds != -1).then_some(seconds)
}
