//! When a run is to end by itself.

use std::time::Duration;

use clap::Args;
use holesync::sys::{self, LocalTime};

/// When a run is to end by itself.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Minutes after which the run ends with code 30; the next one goes on from there
    #[arg(long, visible_alias = "time-limit", value_name = "MINUTES", value_parser = stop_after)]
    stop_after: Option<Duration>,
    /// The same at a time, the next that is so: 2027-12-31T23:59, 12-31, 31, 23:59, :59
    #[arg(long, value_name = "TIME", value_parser = stop_at)]
    stop_at: Option<Duration>,
}

impl StopArgs {
    /// How long the run may take; `None`: as long as it takes.
    pub fn limit(&self) -> Option<Duration> {
        [self.stop_after, self.stop_at].into_iter().flatten().min()
    }
}

/// How long a run may take; as `--stop-after` has it, in minutes.
///
/// # Errors
///
/// What is wrong with it.
fn stop_after(text: &str) -> Result<Duration, String> {
    let minutes = text.strip_prefix('+').unwrap_or(text).parse::<u32>().unwrap_or(0);
    if minutes == 0 {
        Err("minutes are a number above 0".into())
    } else {
        Ok(Duration::from_secs(60 * u64::from(minutes)))
    }
}

/// The same until a moment in local time: `Y-M-DTh:m`, of which anything may be left out; the
/// next one that is so counts.
///
/// # Errors
///
/// What is wrong with it.
fn stop_at(text: &str) -> Result<Duration, String> {
    let now = sys::now();
    let at = next_moment(text, now).ok_or("it must look like 2027-12-31T23:59, 12-31, 31, 23:59 or :59")?;
    let left = at.saturating_sub(now);
    if left <= 0 {
        return Err("that is not in the future".into());
    }
    Ok(Duration::from_secs(left.unsigned_abs()))
}

/// What was given of a moment.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Given {
    year: Option<i32>,
    month: Option<i32>,
    day: Option<i32>,
    hour: Option<i32>,
    minute: Option<i32>,
}

fn read(text: &str) -> Option<Given> {
    let mut given = Given::default();
    let (date, time) = match text.split_once(['T', 't']) {
        Some((date, time)) => (date, Some(time)),
        None if text.contains(':') => ("", Some(text)),
        None => (text, None),
    };
    let number = |text: &str, most: usize| {
        let fits = !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
        if fits { text.parse::<i32>().ok() } else { None }
    };
    if !date.is_empty() {
        let parts: Vec<&str> = date.split(['-', '/']).collect();
        let [.., day] = parts.as_slice() else { return None };
        given.day = Some(number(day, 2).filter(|day| (1..=31).contains(day))?);
        if let [.., month, _] = parts.as_slice() {
            given.month = Some(number(month, 2).filter(|month| (1..=12).contains(month))?);
        }
        if let [year, _, _] = parts.as_slice() {
            given.year =
                Some(number(year, 4).map(|number| if year.len() < 3 { 2000 + number } else { number })?);
        }
        if parts.len() > 3 {
            return None;
        }
    }
    if let Some(time) = time {
        let (hour, minute) = time.split_once(':').map_or((time, None), |(hour, minute)| (hour, Some(minute)));
        if !hour.is_empty() {
            given.hour = Some(number(hour, 2).filter(|hour| *hour < 24)?);
        }
        given.minute = match minute {
            Some(minute) => Some(number(minute, 2).filter(|minute| *minute < 60)?),
            None => None,
        };
    }
    let is_empty = given == Given::default();
    let has_no_date = date.is_empty() && text.contains(['T', 't']);
    (!is_empty && !has_no_date).then_some(given)
}

/// The next moment after `now` that is so; one in the past where all of it is given.
fn next_moment(text: &str, now: i64) -> Option<i64> {
    let given = read(text)?;
    let LocalTime { year, month, day, hour, .. } = sys::local_time(now)?;
    let has_date = given.day.is_some();
    // What is left out before what was given may be the next one.
    let most = 48;
    (0..=most).find_map(|step| {
        let mut at = LocalTime {
            year: given.year.unwrap_or(year),
            month: given.month.unwrap_or(month),
            day: given.day.unwrap_or(day),
            hour: given.hour.unwrap_or(if has_date { 0 } else { hour }),
            minute: given.minute.unwrap_or(0),
            second: 0,
        };
        match given {
            Given { year: Some(_), .. } if step > 0 => return None,
            Given { year: Some(_), .. } => {}
            Given { month: Some(_), .. } => at.year += step,
            Given { day: Some(_), .. } => {
                let months = at.month - 1 + step;
                (at.year, at.month) = (at.year + months / 12, months % 12 + 1);
            }
            Given { hour: Some(_), .. } => at.day += step,
            _ => at.hour += step,
        }
        let moment = sys::seconds_of(at)?;
        let found = sys::local_time(moment)?;
        let is_so = (!has_date || found.day == at.day) && given.hour.is_none_or(|hour| found.hour == hour);
        (is_so && (moment > now || given.year.is_some())).then_some(moment)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(year: i32, month: i32, day: i32, hour: i32, minute: i32) -> LocalTime {
        LocalTime { year, month, day, hour, minute, second: 0 }
    }

    #[test]
    fn the_next_moment_that_is_so_counts() {
        let now = sys::seconds_of(local(2027, 2, 10, 12, 30)).unwrap();
        for (text, want) in [
            ("2027-12-31T23:59", local(2027, 12, 31, 23, 59)),
            ("27/3/1", local(2027, 3, 1, 0, 0)),
            ("1-30", local(2028, 1, 30, 0, 0)),
            ("12-31T23:59", local(2027, 12, 31, 23, 59)),
            ("31", local(2027, 3, 31, 0, 0)),
            ("11", local(2027, 2, 11, 0, 0)),
            ("14:00", local(2027, 2, 10, 14, 0)),
            ("12:30", local(2027, 2, 11, 12, 30)),
            (":59", local(2027, 2, 10, 12, 59)),
            (":05", local(2027, 2, 10, 13, 5)),
            ("10T13", local(2027, 2, 10, 13, 0)),
            ("2-29", local(2028, 2, 29, 0, 0)),
            ("2026-01-01", local(2026, 1, 1, 0, 0)),
        ] {
            let found = next_moment(text, now).and_then(sys::local_time);
            assert_eq!(found, Some(want), "{text}");
        }
        for text in [
            "",
            "x",
            "T",
            "T12",
            "1-2-3-4",
            "13-1",
            "25:00",
            "1:60",
            "2027-2-30",
            "1:2:3",
            "-1",
            "1-",
            "+1:00",
        ] {
            assert_eq!(next_moment(text, now), None, "{text}");
        }
        assert!(stop_at("2020-01-01").unwrap_err().contains("future"));
        assert!(stop_after("0").is_err() && stop_after("1.5").is_err() && stop_after("-1").is_err());
        assert_eq!(stop_after("+3"), Ok(Duration::from_secs(180)));
    }
}
