//! Tries a call of the device again while the error is one that time may mend.

use std::thread;
use std::time::{Duration, Instant};

use nitro_device::{DeviceError, DriverCode};
use tokio_util::sync::CancellationToken;

use super::BootError;

/// How long an enclave that has just ended may keep its slot and CPUs busy.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Pauses that grow, each cut short at random, so that launchers that collided
/// once do not collide again.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    until: Instant,
}

impl Pauses {
    /// Pauses until `within` from now.
    pub(super) fn within(within: Duration) -> Pauses {
        Pauses { next: FIRST_PAUSE, until: Instant::now() + within }
    }

    /// Blocks for the next pause; false when the time is over.
    pub(super) fn pause(&mut self) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::sleep(jittered(self.next).min(left));
        self.next = (self.next * 3 / 2).min(LONGEST_PAUSE);
        true
    }
}

/// Half to all of `pause`. Without random bytes, all of it.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [255];
    let _ = getrandom::fill(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

/// The result of `call`, tried again for two seconds while its error is
/// transient; a stop ends it.
pub(super) fn patiently<T>(
    stop: &CancellationToken,
    mut call: impl FnMut() -> Result<T, DeviceError>,
) -> Result<T, BootError> {
    let mut pauses = Pauses::within(PATIENCE);
    let mut before = None;
    loop {
        if stop.is_cancelled() {
            return Err(BootError::Stopped);
        }
        match call() {
            Err(error) if error.is_transient() && pauses.pause() => {
                tracing::debug!(%error, "trying again");
                before = Some(error);
            }
            Err(error) => return Err(reason(error, before).into()),
            Ok(done) => return Ok(done),
        }
    }
}

/// The driver lists a region before it hands its pages over: when that fails,
/// the next try finds the region used, and the answer before it tells why.
fn reason(last: DeviceError, before: Option<DeviceError>) -> DeviceError {
    match before {
        Some(before) if last.code == Some(DriverCode::MemRegionAlreadyUsed) => before,
        _ => last,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn error(errno: i32) -> DeviceError {
        let code = DriverCode::from_errno(errno);
        DeviceError { attempt: "test".into(), code, source: io::Error::from_raw_os_error(errno) }
    }

    #[test]
    fn a_transient_error_is_tried_again_and_any_other_is_not() {
        let stop = CancellationToken::new();
        let mut answers = vec![Ok(7), Err(error(16)), Err(error(28))];
        assert_eq!(patiently(&stop, || answers.pop().unwrap()).unwrap(), 7);
        let mut calls = 0;
        let refused: Result<(), _> = patiently(&stop, || {
            calls += 1;
            Err(error(13))
        });
        assert!(matches!(refused, Err(BootError::Device(_))));
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_region_that_is_used_after_a_failure_is_told_as_the_failure() {
        let stop = CancellationToken::new();
        let answer = |answers: &[i32]| {
            let mut answers = answers.iter();
            let refused: Result<(), _> = patiently(&stop, || Err(error(*answers.next().unwrap())));
            let Err(BootError::Device(error)) = refused else { panic!("{refused:?}") };
            error.source.raw_os_error()
        };
        assert_eq!(answer(&[16, 262]), Some(16));
        assert_eq!(answer(&[262]), Some(262), "a mistake of ours");
        assert_eq!(answer(&[16, 264]), Some(264), "another reason is the reason");
    }

    #[test]
    fn patience_ends_and_so_does_everything_after_a_stop() {
        let stop = CancellationToken::new();
        let begun = Instant::now();
        let busy: Result<(), _> = patiently(&stop, || Err(error(16)));
        assert!(matches!(busy, Err(BootError::Device(_))));
        assert!((PATIENCE..PATIENCE * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        stop.cancel();
        let stopped: Result<(), _> = patiently(&stop, || Err(error(16)));
        assert!(matches!(stopped, Err(BootError::Stopped)));
    }

    #[test]
    fn pauses_are_never_longer_than_meant() {
        for _ in 0..100 {
            let pause = jittered(LONGEST_PAUSE);
            assert!((LONGEST_PAUSE / 2..=LONGEST_PAUSE).contains(&pause), "{pause:?}");
        }
    }
}
