//! Restore: one disk as it was at a point, written into a new file while replication goes on.
//!
//! Reads through the point reader, writes a sparse file, hashes what it reads; reading, hashing and writing each have a
//! thread, so that none of them waits for another. The file must not exist, is durable when the report is made, and is
//! removed when anything fails or the work is ended.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use blockio::{AlignedBuf, BlockFile, IoError};

use crate::vmdk::{StreamError, StreamWriter};

/// Bytes read, hashed and written at a time: several reads of a disk.
const STEP_BYTES: usize = 4 << 20;
/// Steps in memory: one that is read, one that is hashed, one that is written, one that waits.
const STEPS_MAX: usize = 4;
/// Zeroes are left out of the file in pieces of this size: small enough for sparse file systems, large enough to check fast.
const HOLE_BYTES: usize = 64 << 10;

/// Format of a restored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// A monolithicFlat VMDK: descriptor and data.
    Vmdk,
    /// A streamOptimized VMDK: one compressed file.
    StreamOptimized,
}

impl Format {
    /// The word on the control interface.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "raw" => Some(Self::Raw),
            "vmdk" => Some(Self::Vmdk),
            "streamOptimized" => Some(Self::StreamOptimized),
            _ => None,
        }
    }
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The path is relative: it would be relative to the agent, not to the operator.
    #[error("{}: is a relative path; give the whole path", .0.display())]
    Relative(PathBuf),
    /// Restore never overwrites.
    #[error("{}: exists already; choose another name, or remove it", .0.display())]
    Exists(PathBuf),
    /// A VMDK by another ending would not be found by its data file.
    #[error("{}: the name of a VMDK ends in \".vmdk\"", .0.display())]
    NotVmdk(PathBuf),
    /// The file can't be made or written.
    #[error(transparent)]
    Write(#[from] IoError),
    /// A file of the VMDK can't be made.
    #[error(transparent)]
    Create(#[from] crate::vmdk::CreateError),
    /// The compressed VMDK can't be written.
    #[error("{}: {why}", path.display())]
    Stream {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: StreamError,
    },
    /// The point can't be read at all.
    #[error("{0}")]
    NotReadable(String),
    /// The point can't be read.
    #[error("reading the point at byte {offset}: {what}")]
    Read {
        /// Where on the disk.
        offset: u64,
        /// What happened.
        what: String,
    },
    /// Its job was cancelled, or the group or the agent has ended.
    #[error("the restore was cancelled, or its group or the agent has ended; the file is removed")]
    Cancelled,
}

/// Writes `size` bytes, which `read` gives by offset, into a new file. Returns their BLAKE3 digest.
///
/// `progress` is told after each step how many bytes are done, and may end the work.
pub fn restore<E: std::fmt::Display>(
    to: &Path,
    format: Format,
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<blake3::Hash, RestoreError> {
    if !to.is_absolute() {
        return Err(RestoreError::Relative(to.to_owned()));
    }
    if format != Format::Raw && to.extension().is_none_or(|extension| extension != "vmdk") {
        return Err(RestoreError::NotVmdk(to.to_owned()));
    }
    if to.symlink_metadata().is_ok() {
        return Err(RestoreError::Exists(to.to_owned()));
    }
    let (sink, made) = create(to, format, size)?;
    let copied = copy(sink, size, &mut read, progress);
    match copied {
        Ok(digest) => {
            made.keep();
            Ok(digest)
        }
        Err(error) => Err(error),
    }
}

/// Files that are removed again unless they are kept.
struct Made(Vec<PathBuf>);

impl Made {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an unfinished restore can't be removed");
                }
                _ => {}
            }
        }
    }
}

/// Where a restored disk goes, from its first byte to its last.
enum Sink {
    /// A file with the bytes of the disk, from its start.
    Flat(BlockFile),
    /// A compressed stream.
    Stream { path: PathBuf, writer: Box<StreamWriter> },
}

impl Sink {
    fn take(&mut self, offset: u64, content: &[u8]) -> Result<(), RestoreError> {
        match self {
            Sink::Flat(file) => Ok(write_sparse(file, offset, content)?),
            Sink::Stream { path, writer } => {
                writer.append(content).map_err(|why| RestoreError::Stream { path: path.clone(), why })
            }
        }
    }

    /// Makes all of it durable.
    fn finish(self) -> Result<(), RestoreError> {
        match self {
            Sink::Flat(file) => Ok(file.sync()?),
            Sink::Stream { path, writer } => writer.finish().map_err(|why| RestoreError::Stream { path, why }),
        }
    }
}

fn create(to: &Path, format: Format, size: u64) -> Result<(Sink, Made), RestoreError> {
    match format {
        Format::Raw => {
            let file = BlockFile::create(to, size).map_err(exists_or(to))?;
            Ok((Sink::Flat(file), Made(vec![to.to_owned()])))
        }
        Format::Vmdk => {
            crate::vmdk::create_vmdk(to, size)?;
            let data = crate::vmdk::flat_path(to)?;
            let made = Made(vec![to.to_owned(), data.clone()]);
            Ok((Sink::Flat(BlockFile::open(&data, blockio::Access::ReadWrite)?), made))
        }
        Format::StreamOptimized => {
            // Makes the name durable; the stream then grows the file as it likes.
            drop(BlockFile::create(to, 0).map_err(exists_or(to))?);
            let made = Made(vec![to.to_owned()]);
            let failed = |source| RestoreError::Write(IoError::new("open", to, source));
            let file = std::fs::File::options().write(true).open(to).map_err(failed)?;
            let writer = StreamWriter::create(file, to, size)?;
            Ok((Sink::Stream { path: to.to_owned(), writer: Box::new(writer) }, made))
        }
    }
}

fn exists_or(to: &Path) -> impl Fn(IoError) -> RestoreError {
    |error| match error.kind() {
        io::ErrorKind::AlreadyExists => RestoreError::Exists(to.to_owned()),
        _ => RestoreError::Write(error),
    }
}

/// A piece of the disk on its way.
struct Step {
    offset: u64,
    buffer: AlignedBuf,
    bytes: usize,
}

/// Reads on this thread, hashes on a second and writes on a third. Each ends when the one before it has, or when there
/// is nobody left to take what it has done; the reader then has the writer's error.
fn copy<E: std::fmt::Display>(
    sink: Sink,
    size: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<blake3::Hash, RestoreError> {
    let (to_hash, hashing) = mpsc::sync_channel(STEPS_MAX);
    let (to_write, writing) = mpsc::sync_channel(STEPS_MAX);
    let (give_back, free) = mpsc::sync_channel(STEPS_MAX);
    for _ in 0..STEPS_MAX {
        let buffer = AlignedBuf::zeroed(size.min(STEP_BYTES as u64) as usize);
        // There is room for all of them.
        let _ = give_back.send(buffer);
    }
    thread::scope(|scope| {
        let hasher = scope.spawn(move || hash_steps(&hashing, &to_write));
        let writer = scope.spawn(move || write_steps(sink, &writing, &give_back));
        let done = read_steps(size, read, progress, &free, &to_hash);
        // The end of the content for the other two. What they got is not the whole disk unless all was read.
        drop(to_hash);
        let digest = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done?;
        // Durable before anybody hears of it.
        written?.finish()?;
        Ok(digest)
    })
}

/// Reads the disk from its first byte to its last. Ends early, without an error of its own, when the writer has failed.
fn read_steps<E: std::fmt::Display>(
    size: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
    free: &Receiver<AlignedBuf>,
    to_hash: &SyncSender<Step>,
) -> Result<(), RestoreError> {
    let mut offset = 0;
    while offset < size {
        let Ok(mut buffer) = free.recv() else { return Ok(()) };
        let bytes = (size - offset).min(STEP_BYTES as u64) as usize;
        read(offset, &mut buffer[..bytes]).map_err(|error| RestoreError::Read { offset, what: error.to_string() })?;
        if to_hash.send(Step { offset, buffer, bytes }).is_err() {
            return Ok(());
        }
        offset += bytes as u64;
        if progress(offset).is_break() {
            return Err(RestoreError::Cancelled);
        }
    }
    Ok(())
}

/// Digests the steps in their order.
fn hash_steps(steps: &Receiver<Step>, to_write: &SyncSender<Step>) -> blake3::Hash {
    let mut digest = blake3::Hasher::new();
    while let Ok(step) = steps.recv() {
        digest.update(&step.buffer[..step.bytes]);
        if to_write.send(step).is_err() {
            break;
        }
    }
    digest.finalize()
}

/// Writes the steps in their order, and gives the sink back when there are no more.
fn write_steps(
    mut sink: Sink,
    steps: &Receiver<Step>,
    give_back: &SyncSender<AlignedBuf>,
) -> Result<Sink, RestoreError> {
    while let Ok(Step { offset, buffer, bytes }) = steps.recv() {
        sink.take(offset, &buffer[..bytes])?;
        // Nobody wants it after the last step.
        let _ = give_back.send(buffer);
    }
    Ok(sink)
}

/// Writes what is not zero, in runs as long as possible.
fn write_sparse(file: &BlockFile, offset: u64, content: &[u8]) -> Result<(), IoError> {
    let mut run: Option<usize> = None;
    for (index, piece) in content.chunks(HOLE_BYTES).enumerate() {
        let at = index * HOLE_BYTES;
        match (blockio::is_zero(piece), run) {
            (false, None) => run = Some(at),
            (true, Some(from)) => {
                file.write_all_at(&content[from..at], offset + from as u64)?;
                run = None;
            }
            _ => {}
        }
    }
    match run {
        Some(from) => file.write_all_at(&content[from..], offset + from as u64),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// 3.5 MiB and a sector: two holes, data at both ends.
    fn sample() -> Vec<u8> {
        let mut disk = vec![0; (7 << 19) + 512];
        disk[..4096].fill(1);
        disk[(1 << 20) + 70_000..(1 << 20) + 80_000].fill(2);
        let end = disk.len();
        disk[end - 512..].fill(3);
        disk
    }

    fn run(to: &Path, format: Format, disk: &[u8]) -> Result<blake3::Hash, RestoreError> {
        let read = |offset: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&disk[offset as usize..][..buffer.len()]);
            Ok::<_, String>(())
        };
        restore(to, format, disk.len() as u64, read, |_| ControlFlow::Continue(()))
    }

    #[test]
    fn a_raw_restore_is_identical_sparse_and_digested() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("x.raw");
        let digest = run(&to, Format::Raw, &sample()).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), sample());
        assert_eq!(digest, blake3::hash(&sample()));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "zeroes take no place");
    }

    #[test]
    fn a_vmdk_restore_has_a_descriptor_and_identical_data() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("x.vmdk");
        run(&to, Format::Vmdk, &sample()).unwrap();
        assert!(std::fs::read_to_string(&to).unwrap().contains("monolithicFlat"));
        assert_eq!(std::fs::read(folder.path().join("x-flat.vmdk")).unwrap(), sample());
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let formats = [("x.raw", Format::Raw), ("x.vmdk", Format::Vmdk), ("y.vmdk", Format::StreamOptimized)];
        for (name, format) in formats {
            let to = folder.path().join(name);
            std::fs::write(&to, "mine").unwrap();
            assert!(matches!(run(&to, format, &sample()), Err(RestoreError::Exists(_))));
            assert_eq!(std::fs::read(&to).unwrap(), b"mine");
        }
    }

    #[test]
    fn existing_data_of_a_vmdk_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("x-flat.vmdk");
        std::fs::write(&data, "mine").unwrap();
        run(&folder.path().join("x.vmdk"), Format::Vmdk, &sample()).unwrap_err();
        assert_eq!(std::fs::read(&data).unwrap(), b"mine");
    }

    #[test]
    fn paths_that_can_not_be_meant_are_refused() {
        assert!(matches!(run(Path::new("x.raw"), Format::Raw, &[0; 512]), Err(RestoreError::Relative(_))));
        for format in [Format::Vmdk, Format::StreamOptimized] {
            assert!(matches!(run(Path::new("/tmp/x.raw"), format, &[0; 512]), Err(RestoreError::NotVmdk(_))));
        }
        assert_eq!(Format::parse("qcow2"), None);
    }

    /// More steps than there are buffers, each with content of its own: a buffer that came back too early, or a step out
    /// of its order, would show in the file or in the digest.
    #[test]
    fn many_steps_arrive_each_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("x.raw");
        let disk: Vec<u8> = (0..(12 * STEP_BYTES + 4096) / 8).flat_map(|at| (at as u64 + 1).to_le_bytes()).collect();
        let digest = run(&to, Format::Raw, &disk).unwrap();
        assert!(std::fs::read(&to).unwrap() == disk);
        assert_eq!(digest, blake3::hash(&disk));
    }

    #[test]
    fn a_write_that_fails_ends_the_restore_with_its_error() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("x.raw");
        // The file is smaller than what is to be restored: the second step does not fit.
        let file = BlockFile::create(&to, STEP_BYTES as u64).unwrap();
        let mut reads = 0;
        let mut read = |_: u64, buffer: &mut [u8]| {
            reads += 1;
            buffer.fill(7);
            Ok::<_, String>(())
        };
        let size = 100 * STEP_BYTES as u64;
        let failed = copy(Sink::Flat(file), size, &mut read, |_| ControlFlow::Continue(()));
        assert!(matches!(failed, Err(RestoreError::Write(_))), "{failed:?}");
        assert!(reads < 100, "it went on reading");
    }

    #[test]
    fn nothing_is_left_when_a_read_fails_or_the_restore_is_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("x.vmdk");
        let fail = |offset: u64, _: &mut [u8]| if offset == 0 { Ok(()) } else { Err("rotten") };
        let error = restore(&to, Format::Vmdk, 6 << 20, fail, |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains("byte 4194304: rotten"), "{error}");
        for format in [Format::Raw, Format::Vmdk, Format::StreamOptimized] {
            let gone = restore(&to, format, 2 << 20, |_, _| Ok::<_, String>(()), |_| ControlFlow::Break(()));
            assert!(matches!(gone, Err(RestoreError::Cancelled)));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
