//! Taking a mutex whose holder may have panicked.
//!
//! Every critical section of this crate leaves its data consistent at each step, so a panic in
//! another thread is no reason to panic here as well.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a panic of a holder.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
