//! A length of time as people write it: `250ms`, `3s`, `1m 30s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest that any knob accepts: a day, so that sums never overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A length of time of at most a day.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Timespan(Duration);

impl Timespan {
    pub(crate) const fn from_secs(seconds: u64) -> Timespan {
        Timespan(Duration::from_secs(seconds))
    }

    /// This long, or a day if it is longer.
    pub(crate) fn at_most_a_day(duration: Duration) -> Timespan {
        Timespan(duration.min(LONGEST))
    }

    pub(crate) fn duration(self) -> Duration {
        self.0
    }
}

/// Why a text is no length of time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a time such as 250ms, 3s or 1m (at most 24h)")]
pub(crate) struct TimespanError {
    text: String,
}

impl FromStr for Timespan {
    type Err = TimespanError;

    fn from_str(text: &str) -> Result<Timespan, TimespanError> {
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= LONGEST => Ok(Timespan(duration)),
            _ => Err(TimespanError { text: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Timespan {
    type Error = TimespanError;

    fn try_from(text: String) -> Result<Timespan, TimespanError> {
        text.parse()
    }
}

impl From<Timespan> for String {
    fn from(span: Timespan) -> String {
        span.to_string()
    }
}

impl fmt::Display for Timespan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(formatter)
    }
}
