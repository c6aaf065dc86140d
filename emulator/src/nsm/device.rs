//! A module behind a lock: one request at a time, each as slow as it is told to be.

use std::sync::{Mutex, PoisonError};
use std::thread;

use super::faults::Faults;
use super::module::Module;

/// What a transport serves. Blocks: hardware is serial, so is this.
pub struct Device(Mutex<Module>);

impl Device {
    /// Takes the module over.
    pub fn new(module: Module) -> Self {
        Self(Mutex::new(module))
    }

    /// Waits for its turn, then for [`Faults::delay`], then answers.
    pub fn serve(&self, request: &[u8]) -> Vec<u8> {
        let mut module = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = module.faults().delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        module.answer(request)
    }

    /// Replaces the faults once the request in hand is answered.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).set_faults(faults);
    }
}
