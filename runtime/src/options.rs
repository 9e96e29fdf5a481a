//! Values of options, parsed the same way by all programs.
//!
//! Comes in: what was typed. Goes out: the value, or what is wrong with it and what to type. Always holds: a
//! time has a unit.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A time with a unit, such as `500ms`, `20s` or `3min`.
///
/// # Errors
/// What is wrong with it, as text for a person.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a number with a unit, such as 500ms, 20s or 3min"))
}

/// A time within limits, both included.
pub fn duration_within(
    limits: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let time = duration(text)?;
        if limits.contains(&time) {
            return Ok(time);
        }
        let (least, most) =
            (humantime::format_duration(*limits.start()), humantime::format_duration(*limits.end()));
        Err(format!("give {least} to {most}"))
    }
}

/// A time that the kernel takes in whole seconds, within limits, both included.
pub fn whole_seconds(limits: RangeInclusive<u64>) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let within = duration_within(Duration::from_secs(*limits.start())..=Duration::from_secs(*limits.end()));
    move |text| {
        let time = within(text)?;
        if time.subsec_nanos() == 0 { Ok(time) } else { Err("give whole seconds".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_unit_is_refused_with_an_example() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1min 30s"), Ok(Duration::from_secs(90)));
        for text in ["20", "-1s", "soon", "inf", ""] {
            assert!(duration(text).is_err_and(|said| said.contains("20s")), "{text}");
        }
    }

    #[test]
    fn a_time_outside_of_its_limits_is_refused_with_them() {
        let stay = whole_seconds(0..=3600);
        assert_eq!(stay("0s"), Ok(Duration::ZERO));
        assert_eq!(stay("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(stay("3601s"), Err("give 0s to 1h".to_owned()));
        assert_eq!(stay("1500ms"), Err("give whole seconds".to_owned()));
    }
}
