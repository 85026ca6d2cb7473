//! [`DiskIo`]: moves data to and from disks in batches, for one thread.
//!
//! A batch goes to the I/O engine as a whole, which keeps as much of it in flight as its depth allows; a call returns
//! when all of the batch has ended, also after an error, so that no write of a failed batch can land later. What isn't
//! on a file's alignment is read, changed and written back after the rest of the batch is done: two writes may share a
//! block, and nothing else may be in flight there meanwhile.
//!
//! Nothing here is durable before [`Disk::sync`]. Who may write, and in what order batches go, is `apply`'s part.

use std::{io, path::Path, sync::Arc};

use blockio::{AlignedBuf, BlockFile, BufPool, Engine, EngineKind, Event, IO_BYTES_MAX, IoError, Op, Run, SECTOR};
use bytes::Bytes;

use super::{
    Disk, Location, Thickness,
    batch::{Span, cut, pieces, rounded_out, waves},
};

/// Longest range of one zeroing operation: an error or a slow device is noticed after this much, in bytes.
const ZERO_BYTES_MAX: u64 = 1 << 30;
/// Most runs that [`DiskIo::allocated`] returns at once.
const RUNS_MAX: usize = 4096;
const WAITING: &str = "wait for the I/O of";
const ENGINE: &str = "the target's I/O engine";
/// "Operation not supported", on every Linux architecture that we build for.
const EOPNOTSUPP: i32 = 95;

/// An I/O engine and its buffers, for one thread.
pub struct DiskIo {
    engine: Engine,
    pool: BufPool,
    events: Vec<Event>,
    /// The engine couldn't be waited for: what it has in flight may still land, and nothing more is begun.
    is_broken: bool,
}

/// Where the bytes of a read come to lie: `len` bytes after the first `skip` that are read, at `at` of range `range`.
struct Landing {
    range: usize,
    at: usize,
    skip: usize,
    len: usize,
}

/// A part of a write that isn't on the alignment.
struct Edge {
    file: Arc<BlockFile>,
    offset: u64,
    data: Bytes,
}

impl DiskIo {
    /// An engine of this kind with up to `depth` operations in flight, and buffers from `pool`.
    ///
    /// # Errors
    /// The engine can't be set up.
    pub fn new(kind: EngineKind, depth: u32, pool: BufPool) -> io::Result<Self> {
        Ok(DiskIo { engine: Engine::new(kind, depth)?, pool, events: Vec::new(), is_broken: false })
    }

    /// Keeps at most this many operations in flight from now on.
    pub fn set_depth(&mut self, depth: u32) {
        self.engine.set_depth(depth);
    }

    /// The pool that buffers come from.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// Reads ranges (offset and length, multiples of 512) and returns one buffer for each, of its length.
    ///
    /// Holes read as zeroes. The buffers of a batch are all taken at once: bounding its size is the caller's part.
    ///
    /// # Errors
    /// The first error of any read, when all have ended.
    pub fn read_many(&mut self, disk: &dyn Disk, ranges: &[(u64, usize)]) -> Result<Vec<AlignedBuf>, IoError> {
        let mut whole: Vec<Option<AlignedBuf>> = ranges.iter().map(|_| None).collect();
        self.read_as_they_come(disk, ranges, |range, buf| whole[range] = Some(buf))?;
        Ok(whole.into_iter().map(|buf| buf.unwrap_or_else(|| AlignedBuf::zeroed(0))).collect())
    }

    /// Reads ranges as [`DiskIo::read_many`] does and gives each by its index as soon as all of it is there, while the
    /// others are being read.
    ///
    /// # Errors
    /// The first error of any read, when all have ended; some ranges may have been given.
    pub fn read_each(
        &mut self,
        disk: &dyn Disk,
        ranges: &[(u64, usize)],
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), IoError> {
        self.read_as_they_come(disk, ranges, |range, buf| each(range, &buf))
    }

    fn read_as_they_come(
        &mut self,
        disk: &dyn Disk,
        ranges: &[(u64, usize)],
        mut whole: impl FnMut(usize, AlignedBuf),
    ) -> Result<(), IoError> {
        self.check_usable()?;
        // All are located before the first is begun: an error leaves nothing in flight.
        let mut located = Vec::with_capacity(ranges.len());
        for (range, &(offset, len)) in ranges.iter().enumerate() {
            assert_sectors(disk, offset, len as u64);
            for piece in pieces(disk, offset, len as u64, IO_BYTES_MAX as u64) {
                let (at, location) = piece?;
                located.push((range, at, location));
            }
        }
        let mut bufs: Vec<Option<AlignedBuf>> = ranges.iter().map(|_| None).collect();
        let mut left: Vec<usize> = vec![0; ranges.len()];
        let mut landings: Vec<Landing> = Vec::with_capacity(located.len());
        for (range, at, location) in located {
            match self.submit_read(&location, range, at as usize, landings.len() as u64) {
                Some(landing) => {
                    landings.push(landing);
                    left[range] += 1;
                }
                None => {
                    let whole = bufs[range].get_or_insert_with(|| self.pool.take(ranges[range].1));
                    whole[at as usize..][..location.len() as usize].fill(0);
                }
            }
        }
        for range in (0..ranges.len()).filter(|range| left[*range] == 0) {
            bufs[range].take().into_iter().for_each(|buf| whole(range, buf));
        }
        let pool = self.pool.clone();
        self.drain(|token, result, buf| {
            result?;
            let buf = buf.expect("a read gives its buffer back");
            let landing = &landings[token as usize];
            let (range, (_, wanted)) = (landing.range, ranges[landing.range]);
            left[range] -= 1;
            // One read that fills the whole range is the answer, without a copy.
            if landing.len == wanted && buf.len() == wanted {
                whole(range, buf);
                return Ok(());
            }
            let mut gathered = bufs[range].take().unwrap_or_else(|| pool.take(wanted));
            gathered[landing.at..][..landing.len].copy_from_slice(&buf[landing.skip..][..landing.len]);
            match left[range] {
                0 => whole(range, gathered),
                _ => bufs[range] = Some(gathered),
            }
            Ok(())
        })
    }

    /// Submits the read of a piece, rounded out to its file's alignment; a hole needs none.
    fn submit_read(&mut self, location: &Location, range: usize, at: usize, token: u64) -> Option<Landing> {
        let Location::File { file, offset, len } = location else { return None };
        let span = rounded_out(*offset, *len, u64::from(file.alignment()));
        let buf = self.pool.take(span.len as usize);
        self.engine.submit(token, Op::Read { file: Arc::clone(file), offset: span.offset, buf });
        Some(Landing { range, at, skip: (*offset - span.offset) as usize, len: *len as usize })
    }

    /// Writes each of the data at its offset (both multiples of 512). Where writes overlap, the later one wins.
    ///
    /// # Errors
    /// The first error of any write, when all that were started have ended; which others were done is not known.
    pub fn write_many(&mut self, disk: &dyn Disk, writes: Vec<(u64, Bytes)>) -> Result<(), IoError> {
        self.check_usable()?;
        let ranges: Vec<(u64, u64)> = writes.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect();
        for &(offset, len) in &ranges {
            assert_sectors(disk, offset, len);
            disk.prepare(offset, len)?;
        }
        for wave in waves(&ranges) {
            let mut located = Vec::with_capacity(wave.len());
            for index in wave {
                let (offset, len) = ranges[index];
                for piece in pieces(disk, offset, len, IO_BYTES_MAX as u64) {
                    let (at, location) = piece?;
                    located.push((index, at, location));
                }
            }
            let mut edges = Vec::new();
            for (index, at, location) in located {
                let Location::File { file, offset, len } = location else {
                    panic!("{}: a hole at {} after it was prepared", disk.describe(), ranges[index].0 + at)
                };
                let part = writes[index].1.slice(at as usize..(at + len) as usize);
                self.submit_write(file, offset, &part, &mut edges);
            }
            self.drain(|_, result, _| result)?;
            for edge in edges {
                edge.file.write_all_at(&edge.data, edge.offset)?;
            }
        }
        Ok(())
    }

    /// Begins the write of a piece; what isn't on the file's alignment is left to be done after it.
    fn submit_write(&mut self, file: Arc<BlockFile>, place: u64, data: &Bytes, edges: &mut Vec<Edge>) {
        let part = |span: Span| {
            let start = (span.offset - place) as usize;
            data.slice(start..start + span.len as usize)
        };
        let cut = cut(place, data.len() as u64, u64::from(file.alignment()));
        for edge in [cut.head, cut.tail] {
            if edge.len > 0 {
                edges.push(Edge { file: Arc::clone(&file), offset: edge.offset, data: part(edge) });
            }
        }
        if cut.middle.len > 0 {
            self.engine.submit(0, Op::Write { file, offset: cut.middle.offset, data: part(cut.middle) });
        }
    }

    /// Makes ranges (offset and length, multiples of 512) read as zeroes; thin disks give their place back.
    ///
    /// # Errors
    /// The first error of any range, when all have ended.
    pub fn zero_many(&mut self, disk: &dyn Disk, ranges: &[(u64, u64)]) -> Result<(), IoError> {
        self.check_usable()?;
        let mut middles: Vec<(Arc<BlockFile>, Span)> = Vec::new();
        let mut edges: Vec<(Arc<BlockFile>, Span)> = Vec::new();
        for &(offset, len) in ranges {
            assert_sectors(disk, offset, len);
            for piece in pieces(disk, offset, len, ZERO_BYTES_MAX) {
                // A hole reads as zeroes already.
                let (_, Location::File { file, offset, len }) = piece? else { continue };
                let cut = cut(offset, len, u64::from(file.alignment()));
                edges.extend([cut.head, cut.tail].iter().filter(|e| e.len > 0).map(|e| (Arc::clone(&file), *e)));
                if cut.middle.len > 0 {
                    middles.push((file, cut.middle));
                }
            }
        }
        self.zero_middles(disk.thickness(), middles)?;
        for (file, edge) in edges {
            file.write_all_at(&AlignedBuf::zeroed(edge.len as usize), edge.offset)?;
        }
        Ok(())
    }

    fn zero_middles(&mut self, thickness: Thickness, middles: Vec<(Arc<BlockFile>, Span)>) -> Result<(), IoError> {
        let mut kept = Vec::new();
        for (index, (file, span)) in middles.iter().enumerate() {
            if thickness == Thickness::Thick || file.is_block_device() {
                kept.push(index);
                continue;
            }
            let punch = Op::Punch { file: Arc::clone(file), offset: span.offset, len: span.len };
            self.engine.submit(index as u64, punch);
        }
        self.drain(|index, result, _| match result {
            // A file system without holes, such as NFS before 4.2: the zeroes are written.
            Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => {
                kept.push(index as usize);
                Ok(())
            }
            other => other,
        })?;
        for index in kept {
            let (file, span) = &middles[index];
            self.engine.submit(0, Op::Zero { file: Arc::clone(file), offset: span.offset, len: span.len });
        }
        self.drain(|_, result, _| result)
    }

    /// Which parts of a range may hold something other than zeroes, in order.
    ///
    /// At most 4096 runs are returned: the last may end before the range does, and the rest is asked for from there.
    ///
    /// # Errors
    /// The system can't tell.
    pub fn allocated(&self, disk: &dyn Disk, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        let mut runs: Vec<Run> = Vec::new();
        for piece in pieces(disk, offset, len, u64::MAX) {
            let (at, location) = piece?;
            let (found, whole, shift) = match &location {
                Location::Hole { len } => (vec![Run { offset: 0, len: *len, is_data: false }], *len, 0),
                Location::File { file, offset, len } => (file.allocated(*offset, *len)?, *len, *offset),
            };
            let covered: u64 = found.iter().map(|run| run.len).sum();
            for run in found {
                let run = Run { offset: offset + at + (run.offset - shift), ..run };
                let is_full = runs.len() == RUNS_MAX;
                match runs.last_mut() {
                    Some(last) if last.is_data == run.is_data => last.len += run.len,
                    _ if is_full => return Ok(runs),
                    _ => runs.push(run),
                }
            }
            if covered < whole {
                break;
            }
        }
        Ok(runs)
    }

    /// Waits until everything in flight has ended, and returns the first error that `on_end` lets through.
    fn drain(
        &mut self,
        mut on_end: impl FnMut(u64, Result<(), IoError>, Option<AlignedBuf>) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let mut first_error = None;
        while self.engine.in_flight() > 0 {
            self.events.clear();
            let waited = self.engine.wait(None, &mut self.events);
            for event in self.events.drain(..) {
                if let Event::Done { token, result, buf } = event
                    && let Err(error) = on_end(token, result, buf)
                {
                    first_error.get_or_insert(error);
                }
            }
            if let Err(source) = waited {
                self.is_broken = true;
                return Err(IoError::new(WAITING, Path::new(ENGINE), source));
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn check_usable(&self) -> Result<(), IoError> {
        if !self.is_broken {
            return Ok(());
        }
        let source = io::Error::other("it failed before; restart the agent");
        Err(IoError::new(WAITING, Path::new(ENGINE), source))
    }
}

/// A range that isn't made of sectors or exceeds the disk is the caller's mistake, never the peer's.
fn assert_sectors(disk: &dyn Disk, offset: u64, len: u64) {
    let fits = offset.checked_add(len).is_some_and(|end| end <= disk.size());
    assert!(fits && (offset | len).is_multiple_of(SECTOR), "{}: {len} bytes at {offset}", disk.describe());
}
