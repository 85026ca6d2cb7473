//! What the clients of a mount see: the point, and over it what they wrote.
//!
//! Called by the threads of the clients. Writes of a mount go one after the other, since a part of a block is completed
//! from what lies under it; reads of the point go on beside each other, within a bound.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use nbd::{Allocation, Errno};

use super::limits::{ERROR_LINES_MAX, READERS_MAX};
use super::overlay::{Kept, Overlay, OverlayError};
use crate::apply::GroupDisks;
use crate::journal::limits::BLOCK_BYTES;
use crate::journal::{Pin, Volume, lock};
use crate::recover::{PointReader, ReadError};

/// Why a request of a client fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// The point can't be read there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The mount is ending.
    #[error("the mount ends")]
    Ended,
    /// A reader more can't be made.
    #[error("no more I/O engines can be made: {0}")]
    Engine(std::io::Error),
}

impl ImageError {
    /// What the client is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Overlay(OverlayError::Full) => Errno::NoSpc,
            Self::Ended => Errno::Shutdown,
            _ => Errno::Io,
        }
    }
}

/// Makes the disks once more, for another reader.
type MakeDisks<D> = Box<dyn Fn() -> std::io::Result<D> + Send + Sync>;

/// The disks of a mount.
pub(super) struct Image<V: Volume, D> {
    name: String,
    sizes: Vec<u64>,
    readers: Mutex<Readers<V, D>>,
    reader_free: Condvar,
    make_disks: MakeDisks<D>,
    overlay: Option<RwLock<Overlay>>,
    pin: Arc<Pin>,
    error_lines: AtomicU32,
}

struct Readers<V: Volume, D> {
    idle: Vec<PointReader<V, D>>,
    made: usize,
    is_ended: bool,
}

impl<V: Volume, D: GroupDisks> Image<V, D> {
    /// Disks of these sizes, by index.
    pub fn new(
        name: String,
        sizes: Vec<u64>,
        reader: PointReader<V, D>,
        make_disks: MakeDisks<D>,
        overlay: Option<Overlay>,
    ) -> Self {
        Self {
            name,
            sizes,
            pin: reader.pin(),
            readers: Mutex::new(Readers { idle: vec![reader], made: 1, is_ended: false }),
            reader_free: Condvar::new(),
            make_disks,
            overlay: overlay.map(RwLock::new),
            error_lines: AtomicU32::new(0),
        }
    }

    /// Whether clients may write.
    pub fn is_writable(&self) -> bool {
        self.overlay.is_some()
    }

    /// True once the point was given up for room.
    pub fn is_given_up(&self) -> bool {
        self.pin.is_revoked()
    }

    /// Bytes of the overlay that a disk takes.
    pub fn overlay_bytes(&self, disk: usize) -> u64 {
        let overlay = self.overlay.as_ref().map(|overlay| overlay.read().unwrap_or_else(PoisonError::into_inner));
        overlay.map_or(0, |overlay| overlay.bytes_of(disk))
    }

    /// Lets the journal and the disks go. Clients get errors from now on.
    pub fn end(&self) {
        let idle = {
            let mut readers = lock(&self.readers);
            readers.is_ended = true;
            std::mem::take(&mut readers.idle)
        };
        self.reader_free.notify_all();
        drop(idle);
    }

    /// Reads bytes, also such as are no whole sectors.
    pub fn read(&self, disk: usize, offset: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        let from = offset / BLOCK_BYTES * BLOCK_BYTES;
        let to = (offset + len as u64).next_multiple_of(BLOCK_BYTES).min(self.sizes[disk]);
        let mut bytes = vec![0; (to - from) as usize];
        match &self.overlay {
            None => self.read_point(disk, from, &mut bytes)?,
            Some(overlay) => {
                let overlay = overlay.read().unwrap_or_else(PoisonError::into_inner);
                self.read_blocks(&overlay, disk, from, &mut bytes)?;
            }
        }
        bytes.drain(..(offset - from) as usize);
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Writes bytes, also such as are no whole blocks.
    pub fn write(&self, disk: usize, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut overlay = self.writing()?;
        let end = offset + bytes.len() as u64;
        let (from, to) = (offset / BLOCK_BYTES * BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES));
        let mut blocks = vec![0; (to - from) as usize];
        let block = BLOCK_BYTES as usize;
        if from < offset {
            self.read_block(&overlay, disk, from, &mut blocks[..block])?;
        }
        let last = to - BLOCK_BYTES;
        if end < to && (last > from || from == offset) {
            let at = (last - from) as usize;
            self.read_block(&overlay, disk, last, &mut blocks[at..at + block])?;
        }
        let at = (offset - from) as usize;
        blocks[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(overlay.write(disk, from / BLOCK_BYTES, &blocks)?)
    }

    /// Makes bytes zero: whole blocks without taking room where they have none.
    pub fn zero(&self, disk: usize, offset: u64, len: u64) -> Result<(), ImageError> {
        let (end, size) = (offset + len, self.sizes[disk]);
        let first = offset.next_multiple_of(BLOCK_BYTES).min(end);
        // The short block at the end of a disk is whole when it is zero to the end.
        let last = if end == size { end } else { (end / BLOCK_BYTES * BLOCK_BYTES).max(first) };
        self.write(disk, offset, &vec![0; (first - offset) as usize])?;
        if last > first {
            let blocks = last.div_ceil(BLOCK_BYTES) - first / BLOCK_BYTES;
            self.writing()?.zero(disk, first / BLOCK_BYTES, blocks)?;
        }
        self.write(disk, last, &vec![0; (end - last) as usize])
    }

    /// What is allocated from an offset on, as (bytes, what), perhaps of less than was asked for.
    pub fn allocation(&self, disk: usize, offset: u64, asked: u64) -> Result<Vec<(u64, Allocation)>, ImageError> {
        let from = offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = (offset + asked).next_multiple_of(BLOCK_BYTES).min(self.sizes[disk]);
        let mut ranges: Vec<(u64, u64, Allocation)> = Vec::new();
        let mut told = from;
        for (at, len, kept) in self.parts(disk, from, end) {
            match kept {
                Some(Kept::Slot(_)) => ranges.push((at, len, Allocation::Data)),
                Some(Kept::Zero) => ranges.push((at, len, Allocation::Hole)),
                None => {
                    let runs = self.with_reader(|reader| reader.allocated(disk as u32, at, len))?;
                    let kind = |is_data| if is_data { Allocation::Data } else { Allocation::Hole };
                    ranges.extend(runs.iter().map(|run| (run.offset, run.len, kind(run.is_data))));
                    told = runs.last().map_or(at, |run| run.offset + run.len);
                    if told < at + len {
                        break;
                    }
                }
            }
            told = at + len;
        }
        let cut = |(at, len, kind): (u64, u64, Allocation)| {
            let from = at.max(offset);
            ((at + len).min(told).min(offset + asked).saturating_sub(from), kind)
        };
        Ok(ranges.into_iter().map(cut).filter(|(len, _)| *len > 0).collect())
    }

    /// A range of whole blocks, cut where what is written begins and ends; `end` may be that of the disk.
    fn parts(&self, disk: usize, from: u64, end: u64) -> Vec<(u64, u64, Option<Kept>)> {
        let overlay = self.overlay.as_ref().map(|overlay| overlay.read().unwrap_or_else(PoisonError::into_inner));
        overlay.map_or_else(|| vec![(from, end - from, None)], |overlay| parts_of(&overlay, disk, from, end))
    }

    fn read_blocks(&self, overlay: &Overlay, disk: usize, from: u64, bytes: &mut [u8]) -> Result<(), ImageError> {
        for (at, len, kept) in parts_of(overlay, disk, from, from + bytes.len() as u64) {
            let part = &mut bytes[(at - from) as usize..(at - from + len) as usize];
            match kept {
                Some(kept) => {
                    overlay.read(kept, part).map_err(OverlayError::from).map_err(|error| self.noted(error.into()))?
                }
                None => self.read_point(disk, at, part)?,
            }
        }
        Ok(())
    }

    /// A whole block; behind the end of the disk there are zeroes.
    fn read_block(&self, overlay: &Overlay, disk: usize, at: u64, block: &mut [u8]) -> Result<(), ImageError> {
        let len = (self.sizes[disk] - at).min(BLOCK_BYTES) as usize;
        self.read_blocks(overlay, disk, at, &mut block[..len])
    }

    fn read_point(&self, disk: usize, offset: u64, bytes: &mut [u8]) -> Result<(), ImageError> {
        self.with_reader(|reader| reader.read(disk as u32, offset, bytes))
    }

    fn writing(&self) -> Result<std::sync::RwLockWriteGuard<'_, Overlay>, ImageError> {
        // The export of a mount without overlay is read-only, so its clients' writes never come here.
        let overlay = self.overlay.as_ref().ok_or(ImageError::Ended)?;
        Ok(overlay.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_reader<T>(
        &self,
        work: impl FnOnce(&mut PointReader<V, D>) -> Result<T, ReadError>,
    ) -> Result<T, ImageError> {
        let mut reader = self.take_reader()?;
        let done = work(&mut reader);
        let mut readers = lock(&self.readers);
        if !readers.is_ended {
            readers.idle.push(reader);
        }
        drop(readers);
        self.reader_free.notify_one();
        done.map_err(|error| self.noted(error.into()))
    }

    fn take_reader(&self) -> Result<PointReader<V, D>, ImageError> {
        let mut readers = lock(&self.readers);
        loop {
            if readers.is_ended {
                return Err(ImageError::Ended);
            }
            // The first one stays, to make others from.
            if readers.idle.len() > 1
                && let Some(reader) = readers.idle.pop()
            {
                return Ok(reader);
            }
            if readers.made <= READERS_MAX {
                let disks = (self.make_disks)().map_err(ImageError::Engine)?;
                let fork = readers.idle[0].fork(disks);
                readers.made += 1;
                return Ok(fork);
            }
            readers = self.reader_free.wait(readers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says what went wrong, within a bound.
    fn noted(&self, error: ImageError) -> ImageError {
        let said = self
            .error_lines
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lines| (lines < ERROR_LINES_MAX).then_some(lines + 1));
        let mount = &self.name;
        match said {
            Ok(lines) if lines + 1 == ERROR_LINES_MAX => {
                tracing::error!(mount, "a client of the mount got an I/O error, no more of which are logged: {error}");
            }
            Ok(_) => tracing::error!(mount, "a client of the mount got an I/O error: {error}"),
            Err(_) => {}
        }
        error
    }
}

fn parts_of(overlay: &Overlay, disk: usize, from: u64, end: u64) -> Vec<(u64, u64, Option<Kept>)> {
    let (first, last) = (from / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
    let (mut parts, mut at) = (Vec::new(), from);
    for (block, blocks, kept) in overlay.find(disk, first, last - first) {
        let (start, stop) = (block * BLOCK_BYTES, ((block + blocks) * BLOCK_BYTES).min(end));
        if start > at {
            parts.push((at, start - at, None));
        }
        parts.push((start, stop - start, Some(kept)));
        at = stop;
    }
    if at < end {
        parts.push((at, end - at, None));
    }
    parts
}

/// The image of a mount of the agent.
pub(super) type SharedImage = Arc<Image<crate::journal::DirVolume, crate::group::TargetDisks>>;

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_oneof, proptest};
    use proptest::strategy::Strategy;

    use super::*;
    use crate::apply::MemDisks;
    use crate::journal::MemVolume;
    use crate::journal::tests::rig::{Rig, filled, options, zeroes};

    /// A disk that ends within a block.
    const SIZE: u64 = 16 * 4096 + 3 * 512;

    type MemImage = Image<MemVolume, MemDisks>;

    /// A group with one set, and its point as an image.
    fn mounted(quota_blocks: Option<u64>) -> (Rig, MemImage, Vec<u8>) {
        let mut rig = Rig::new(1, &[SIZE], options());
        rig.open(1);
        rig.set(1, 1, &[filled(0, 3, 50, 7), zeroes(0, 60, 4), filled(0, SIZE / 512 - 2, 2, 9)]);
        let content = rig.image(1, 0);
        let disks = rig.disks.clone();
        let overlay = quota_blocks.map(|blocks| {
            let folder = tempfile::tempdir().unwrap();
            Overlay::create(folder.path(), "m", 1, blocks * BLOCK_BYTES).unwrap()
        });
        let image = Image::new("m".to_owned(), vec![SIZE], rig.reader(1), Box::new(move || Ok(disks.clone())), overlay);
        (rig, image, content)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64),
        /// A set is received, and perhaps applied.
        Set(u64, u8, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..SIZE).prop_flat_map(|at| (0..=(SIZE - at).min(20_000)).prop_map(move |len| (at, len)));
        prop_oneof![
            (range.clone(), any::<u8>()).prop_map(|((at, len), value)| Step::Write(at, len, value)),
            range.prop_map(|(at, len)| Step::Zero(at, len)),
            (0..SIZE / 512 - 8, any::<u8>(), any::<bool>()).prop_map(|(at, value, apply)| Step::Set(at, value, apply)),
        ]
    }

    proptest! {
        #[test]
        fn clients_see_the_point_and_what_they_wrote_whatever_is_replicated(
            steps in prop::collection::vec(step(), 1..25),
            asked in prop::collection::vec((0..SIZE, 0u64..9000), 8),
        ) {
            let (mut rig, image, mut model) = mounted(Some(64));
            let mut number = 1;
            for step in steps {
                match step {
                    Step::Write(at, len, value) => {
                        image.write(0, at, &vec![value; len as usize]).unwrap();
                        model[at as usize..(at + len) as usize].fill(value);
                    }
                    Step::Zero(at, len) => {
                        image.zero(0, at, len).unwrap();
                        model[at as usize..(at + len) as usize].fill(0);
                    }
                    Step::Set(at, value, is_applied) => {
                        number += 1;
                        rig.set(1, number, &[filled(0, at, 8, value)]);
                        if is_applied {
                            rig.apply_all();
                        }
                    }
                }
            }
            for (at, len) in asked {
                let len = len.min(SIZE - at);
                let expected = &model[at as usize..(at + len) as usize];
                assert!(image.read(0, at, len as usize).unwrap() == expected);
                let mut told = at;
                for (len, kind) in image.allocation(0, at, len).unwrap() {
                    let part = &model[told as usize..(told + len) as usize];
                    assert!(kind == Allocation::Data || part.iter().all(|byte| *byte == 0), "data is called a hole");
                    told += len;
                }
                assert!(told <= at + len);
            }
        }
    }

    #[test]
    fn a_full_overlay_is_no_space_and_an_ended_mount_is_a_shutdown() {
        let (_rig, image, model) = mounted(Some(2));
        image.write(0, 100, &[1; 8000]).unwrap();
        assert_eq!(image.write(0, 8192, &[1; 1]).unwrap_err().errno(), Errno::NoSpc);
        assert!(image.read(0, 8192, 5000).unwrap() == model[8192..13192]);
        assert_eq!(image.overlay_bytes(0), 8192);
        image.end();
        assert_eq!(image.read(0, 20_000, 512).unwrap_err().errno(), Errno::Shutdown);
    }

    #[test]
    fn what_an_ended_mount_held_is_free() {
        let (rig, image, _) = mounted(None);
        assert_eq!(rig.journal.state().pins.len(), 1);
        image.end();
        assert!(rig.journal.state().pins.is_empty());
        assert!(!image.is_writable() && !image.is_given_up());
    }

    #[test]
    fn a_point_that_was_given_up_is_an_error_and_told() {
        let (rig, image, _) = mounted(None);
        rig.journal.state().pins.drain(..).for_each(|pin| pin.revoke());
        assert!(image.is_given_up());
        assert_eq!(image.read(0, 0, 512).unwrap_err().errno(), Errno::Io);
    }

    #[test]
    fn readers_are_made_within_their_bound_and_shared() {
        let (_rig, image, model) = mounted(None);
        std::thread::scope(|scope| {
            for _ in 0..3 * READERS_MAX {
                scope.spawn(|| assert!(image.read(0, 0, SIZE as usize).unwrap() == model));
            }
        });
        assert!(lock(&image.readers).made <= READERS_MAX + 1);
    }
}
