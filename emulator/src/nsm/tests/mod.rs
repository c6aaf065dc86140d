//! Tests of the whole module, through [`Module::answer`] and real directories.

mod authority;
mod commands;
mod documents;
mod hostile;
mod reading;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::*;

const MODULE: &str = "i-06f4d13c6679a7232-enc019f15f1504dc31d";
/// 2026-06-30T00:33:40.694Z, the time of a genuine document.
const GENUINE_TIME: Duration = Duration::from_millis(0x019f_15f2_2d56);

struct Bench {
    // Removed when the test ends.
    _directory: TempDir,
    authority: Arc<Authority>,
}

impl Bench {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let authority = Authority::open(directory.path(), DEFAULT_REGION, UNIX_EPOCH + GENUINE_TIME).unwrap();
        Self { _directory: directory, authority: Arc::new(authority) }
    }

    fn module(&self) -> Module {
        self.module_at(Clock::from_fn(|| UNIX_EPOCH + GENUINE_TIME), false)
    }

    fn module_at(&self, clock: Clock, debug: bool) -> Module {
        Module::new(Arc::clone(&self.authority), MODULE.parse().unwrap(), &measured(), debug, clock)
    }
}

fn measured() -> Measurements {
    Measurements {
        pcr0: [0xa0; 48],
        pcr1: [0xa1; 48],
        pcr2: [0xa2; 48],
        pcr8: Some([0xa8; 48]),
        role_arn: None,
    }
}

/// A clock that a test moves by hand.
#[derive(Clone)]
struct HandClock(Arc<std::sync::Mutex<SystemTime>>);

impl HandClock {
    fn new() -> Self {
        Self(Arc::new(std::sync::Mutex::new(UNIX_EPOCH + GENUINE_TIME)))
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }

    fn clock(&self) -> Clock {
        let hand = self.clone();
        Clock::from_fn(move || hand.now())
    }
}
