//! Encoding on worker threads: batches of extents in, frames out, in the order of the part.
//!
//! At most as many batches are encoded at once as there are workers, over all groups. Encoders keep
//! their zstd context for the life of their thread: making one anew costs a third of the speed. Whether
//! they compress follows [`Policy`], how hard follows [`Effort`].

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::frame::{Bases, Compression, EncodedBatch, EncodedFrame, Encoder, FrameError, Keep, Parcel, RawExtent};
use tokio::sync::Semaphore;
use tracing::info;

use super::compress::{EncodeSample, Mode, PROBE_EVERY, Policy, Window};
use super::effort::Effort;
use super::limits;
use super::occupied::Occupied;

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
}

/// The workers of a link, and the policy they work by.
#[derive(Debug)]
pub(super) struct Workshop {
    permits: Arc<Semaphore>,
    policy: Mutex<Policy>,
    effort: Mutex<Effort>,
    batches: AtomicU64,
    window: Mutex<Window>,
    link: Mutex<Occupied>,
}

/// A part that waits for the link, until this is dropped.
pub(super) struct InLink(Arc<Workshop>);

impl Drop for InLink {
    fn drop(&mut self) {
        lock(&self.0.link).leave(now());
    }
}

/// The frames of one batch, encoded.
pub(super) struct Batch {
    pub(super) frames: Vec<EncodedFrame>,
    /// What is kept of them.
    pub(super) parcels: Vec<Arc<Parcel>>,
    /// Content bytes before encoding.
    pub(super) raw_bytes: u64,
    /// Bytes on the wire, heads included.
    pub(super) wire_bytes: u64,
}

impl Workshop {
    /// A workshop with one worker per processor.
    pub(super) fn new(workers: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(workers)),
            policy: Mutex::new(Policy::new(workers)),
            effort: Mutex::new(Effort::new(workers)),
            batches: AtomicU64::new(0),
            window: Mutex::new(Window::default()),
            link: Mutex::new(Occupied::default()),
        }
    }

    /// Encodes the frames of one batch, each on its own. Waits for a free worker.
    pub(super) async fn encode(
        self: Arc<Self>,
        number: u64,
        part: u32,
        frames: Vec<Vec<RawExtent>>,
        asked: Compression,
        (bases, keep): (Arc<Bases>, Keep),
    ) -> Result<Batch, FrameError> {
        let level = self.level(asked, number > 0);
        let (batch, took) = self.run(move || encode_batch((number, part), &frames, level, &bases, keep)).await?;
        if level != Compression::Off {
            // The policy is about the level that is asked for.
            let sample = EncodeSample { raw_bytes: batch.raw_bytes, wire_bytes: batch.wire_bytes, took };
            if level == asked {
                lock(&self.policy).handle_sample(sample);
            }
            lock(&self.effort).handle_encoded(took);
        }
        Ok(batch)
    }

    /// Does other work with the processors. Waits for a free worker.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            unreachable!("the semaphore is never closed");
        };
        let job = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        match job.await {
            Ok(result) => result,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    /// Whether what is asked for is done: the link takes less than the processors compress.
    pub(super) fn compresses(&self) -> bool {
        lock(&self.policy).mode() == Mode::Zstd
    }

    fn level(&self, asked: Compression, is_ordered: bool) -> Compression {
        let count = self.batches.fetch_add(1, Ordering::Relaxed);
        let probe = count.is_multiple_of(PROBE_EVERY);
        match lock(&self.policy).mode() {
            Mode::Raw if !probe => Compression::Off,
            Mode::Zstd if is_ordered => match asked {
                Compression::Zstd(level) => Compression::Zstd(level.max(lock(&self.effort).level())),
                Compression::Off => Compression::Off,
            },
            Mode::Raw | Mode::Zstd => asked,
        }
    }

    /// Notes how long a part waited for one batch.
    pub(super) fn note(&self, raw_bytes: u64, wire_bytes: u64, encode_wait: Duration) {
        let mut window = lock(&self.window);
        window.raw_bytes += raw_bytes;
        window.wire_bytes += wire_bytes;
        window.encode_wait += encode_wait;
    }

    /// How long a part takes at least to arrive, by the round trip of now and those before.
    pub(super) fn round_trip(&self, now: Duration) -> Duration {
        lock(&self.link).round_trip(now)
    }

    /// A part is under way for longer than that.
    pub(super) fn waits_for_link(self: &Arc<Self>) -> InLink {
        lock(&self.link).enter(now());
        InLink(Arc::clone(self))
    }

    /// Ends a window that lasted for `elapsed`.
    pub(super) fn end_window(&self, elapsed: Duration) {
        lock(&self.effort).handle_window(elapsed);
        let link_busy = lock(&self.link).take(now()).min(elapsed);
        let window = Window { elapsed, link_busy, ..std::mem::take(&mut *lock(&self.window)) };
        match lock(&self.policy).handle_window(window) {
            Some(Mode::Raw) => info!("compression off: the link takes more than the processors compress"),
            Some(Mode::Zstd) => {
                info!("compression on: the link is slower than the processors compress, or both have little to do")
            }
            None => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the policy is fed with measured times")]
fn now() -> Instant {
    Instant::now()
}

/// Counters stay meaningful when a holder of the lock panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode_batch(
    place: (u64, u32),
    frames: &[Vec<RawExtent>],
    level: Compression,
    bases: &Bases,
    keep: Keep,
) -> Result<(Batch, Duration), FrameError> {
    let start = now();
    let EncodedBatch { frames, parcels } =
        ENCODER.with_borrow_mut(|encoder| encoder.encode_batch(place, frames, level, bases, keep))?;
    let raw_bytes = frames.iter().map(|frame| frame.raw_bytes).sum();
    let wire_bytes = frames.iter().map(EncodedFrame::wire_bytes).sum();
    Ok((Batch { frames, parcels, raw_bytes, wire_bytes }, start.elapsed()))
}

/// Neighbouring frames together, up to [`limits::ENCODE_BATCH_BYTES`] of data.
pub(super) fn batches(frames: Vec<Vec<RawExtent>>) -> Vec<Vec<Vec<RawExtent>>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for frame in frames {
        let bytes = frame.iter().map(RawExtent::data_bytes).sum::<usize>() as u64;
        if batch_bytes + bytes > limits::ENCODE_BATCH_BYTES && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            batch_bytes = 0;
        }
        batch_bytes += bytes;
        batch.push(frame);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::frame::RawContent;
    use proto::ids::DiskIndex;

    use super::*;

    fn extent(sector: u64, bytes: Bytes) -> RawExtent {
        let crc = blockio::crc::crc32(&bytes);
        RawExtent { disk: DiskIndex(0), sector, content: RawContent::Data { bytes, crc } }
    }

    #[test]
    fn batches_keep_the_order_and_the_bound_and_lose_nothing() {
        let sizes = [4096usize, 128 << 10, 1 << 20, 400 << 10, 100 << 10, 512, 512 << 10];
        let frames: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(index, &size)| vec![extent(index as u64, Bytes::from(vec![1; size]))])
            .collect();
        let batches = batches(frames);
        let order: Vec<u64> = batches.iter().flatten().flatten().map(|extent| extent.sector).collect();
        assert_eq!(order, (0..sizes.len() as u64).collect::<Vec<_>>());
        for batch in &batches {
            let bytes = batch.iter().flatten().map(RawExtent::data_bytes).sum::<usize>() as u64;
            assert!(bytes <= limits::ENCODE_BATCH_BYTES || batch.len() == 1);
        }
        assert!(super::batches(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn content_that_no_longer_matches_its_checksum_is_refused() {
        let workshop = Arc::new(Workshop::new(1));
        let mut bad = extent(0, Bytes::from(vec![1; 4096]));
        if let RawContent::Data { crc, .. } = &mut bad.content {
            *crc ^= 1;
        }
        assert!(
            workshop.encode(1, 0, vec![vec![bad]], Compression::Off, (Arc::default(), Keep::Nothing)).await.is_err()
        );
    }

    #[tokio::test]
    async fn zeroes_shrink_and_are_counted() {
        let workshop = Arc::new(Workshop::new(2));
        let frames = vec![vec![extent(0, Bytes::from(vec![7; 128 << 10]))]];
        let batch = workshop.encode(1, 0, frames, Compression::Zstd(1), (Arc::default(), Keep::Nothing)).await.unwrap();
        assert_eq!(batch.raw_bytes, 128 << 10);
        assert!(batch.wire_bytes < 4096);
    }
}
