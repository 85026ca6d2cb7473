//! Decoders and encoders that part streams share, one after the other: their buffers and contexts are worth keeping.

use std::sync::{Mutex, PoisonError};

/// At most `KEPT` things that are not in use.
pub struct Spares<T, const KEPT: usize>(Mutex<Vec<T>>);

impl<T, const KEPT: usize> Default for Spares<T, KEPT> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default, const KEPT: usize> Spares<T, KEPT> {
    /// Does something with one of them, or with a new one, while no other is kept waiting.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut spare = spare.unwrap_or_default();
        let result = work(&mut spare);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(spare);
        }
        result
    }
}
