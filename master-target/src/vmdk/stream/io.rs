//! [`StreamWriter`]: writes a disk as a `streamOptimized` VMDK, from its first byte to its last.
//!
//! The file is made by the caller, who also removes it when this fails. Nothing is durable before
//! [`StreamWriter::finish`].

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
};

use blockio::{IoError, SECTOR};
use flate2::{Compress, Compression, FlushCompress, Status};

use super::{
    header::{GRAIN_MARKER_BYTES, Marker, OVERHEAD, footer, grain_marker, header, marker},
    map::StreamMap,
};
use crate::vmdk::{
    CreateError, DiskKind, ExtentName, NewDisk,
    compose::RANDOM_BYTES,
    sparse::header::{DESCRIPTOR_AT, DESCRIPTOR_SECTORS, FILE_SECTORS_MAX, GRAIN_SECTORS, TABLE_SECTORS},
};

/// Bytes of a grain.
const GRAIN_BYTES: usize = (GRAIN_SECTORS * SECTOR) as usize;
/// Memory between compressor and file, bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// What a compressed grain may have: deflate adds at most 5 bytes for each 16 KiB, and a frame of 6.
const COMPRESSED_BYTES_MAX: usize = GRAIN_BYTES + 1024;
/// Between speed and size: an export is read once or twice.
const LEVEL: u32 = 3;

/// Why a stream can't be written.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The file can't be written.
    #[error("writing the VMDK: {0}; make room, or choose another volume")]
    Io(#[from] io::Error),
    /// 32 bits can't address what is to be written.
    #[error(
        "the compressed disk is larger than 2 TiB, which is all that streamOptimized can address: restore it as raw or vmdk"
    )]
    TooLarge,
}

/// A stream that is being written.
pub struct StreamWriter {
    file: BufWriter<File>,
    /// Sectors written.
    at: u64,
    capacity: u64,
    /// Sectors of the disk taken so far.
    taken: u64,
    map: StreamMap,
    compress: Compress,
    compressed: Vec<u8>,
    grain: Vec<u8>,
}

impl StreamWriter {
    /// Begins a disk of `size` bytes, a multiple of 512, in the empty file `file`, which is `path`, with ids of its own.
    ///
    /// # Errors
    /// The path can't be a VMDK's, or the file can't be written.
    pub fn create(file: File, path: &Path, size: u64) -> Result<Self, CreateError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = ExtentName::parse(name).map_err(|why| CreateError::Flat { path: path.to_owned(), why })?;
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(CreateError::Random)?;
        Self::begin(file, name, size, random)
            .map_err(|source| CreateError::Io(IoError::new("write", path, io::Error::other(source))))
    }

    /// Begins a disk of `size` bytes, a multiple of 512, in the empty file `file` of this name; its ids are made of `random`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn begin(file: File, name: ExtentName, size: u64, random: [u8; RANDOM_BYTES]) -> Result<Self, StreamError> {
        let descriptor = NewDisk::new(DiskKind::StreamOptimized, name, size, random).text();
        let mut writer = StreamWriter {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            at: 0,
            capacity: size / SECTOR,
            taken: 0,
            map: StreamMap::new(),
            compress: Compress::new(Compression::new(LEVEL), true),
            compressed: Vec::with_capacity(COMPRESSED_BYTES_MAX),
            grain: Vec::with_capacity(GRAIN_BYTES),
        };
        assert!(descriptor.len() as u64 <= DESCRIPTOR_SECTORS * SECTOR, "the descriptor of one file is small");
        writer.put(&header(writer.capacity))?;
        assert_eq!(writer.at, DESCRIPTOR_AT, "the descriptor follows the header");
        writer.put(descriptor.as_bytes())?;
        while writer.at < OVERHEAD {
            writer.put(&[0; SECTOR as usize])?;
        }
        Ok(writer)
    }

    /// Takes the next bytes of the disk, whole sectors.
    ///
    /// # Errors
    /// The file can't be written, or would become too large.
    pub fn append(&mut self, mut content: &[u8]) -> Result<(), StreamError> {
        self.taken += content.len() as u64 / SECTOR;
        assert!(self.taken <= self.capacity && content.len().is_multiple_of(SECTOR as usize), "no more than the disk");
        while !content.is_empty() {
            let (part, rest) = content.split_at(content.len().min(GRAIN_BYTES - self.grain.len()));
            self.grain.extend_from_slice(part);
            content = rest;
            if self.grain.len() == GRAIN_BYTES {
                self.put_grain(self.taken - content.len() as u64 / SECTOR - GRAIN_SECTORS)?;
            }
        }
        Ok(())
    }

    /// Writes what ends the stream, and makes it durable.
    ///
    /// # Errors
    /// The file can't be written, or would become too large.
    pub fn finish(mut self) -> Result<(), StreamError> {
        assert_eq!(self.taken, self.capacity, "the whole disk was given");
        if !self.grain.is_empty() {
            let first = self.capacity - self.grain.len() as u64 / SECTOR;
            // Readers expect whole grains; what lies behind the disk's end they don't show.
            self.grain.resize(GRAIN_BYTES, 0);
            self.put_grain(first)?;
        }
        if self.map.has_open_table() {
            self.put_table()?;
        }
        let directory = self.map.directory();
        self.put(&marker(Marker::Directory, (directory.len() as u64).div_ceil(SECTOR)))?;
        let directory_at = self.at;
        self.put(&directory)?;
        self.put(&marker(Marker::Footer, 1))?;
        self.put(&footer(self.capacity, directory_at))?;
        self.put(&marker(Marker::End, 0))?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(file.sync_all()?)
    }

    /// Writes the whole grain that has gathered, which begins at sector `first` of the disk.
    fn put_grain(&mut self, first: u64) -> Result<(), StreamError> {
        if blockio::is_zero(&self.grain) {
            self.map.push(None);
        } else {
            let at = self.place()?;
            self.compress.reset();
            self.compressed.clear();
            // Room for the marker, which needs the length first.
            self.compressed.resize(GRAIN_MARKER_BYTES, 0);
            self.compressed.reserve(COMPRESSED_BYTES_MAX);
            let status = self.compress.compress_vec(&self.grain, &mut self.compressed, FlushCompress::Finish);
            assert!(matches!(status, Ok(Status::StreamEnd)), "there is room for the largest result");
            let len = (self.compressed.len() - GRAIN_MARKER_BYTES) as u32;
            self.compressed[..GRAIN_MARKER_BYTES].copy_from_slice(&grain_marker(first, len));
            let bytes = std::mem::take(&mut self.compressed);
            self.put(&bytes)?;
            self.compressed = bytes;
            self.map.push(Some(at));
        }
        self.grain.clear();
        if self.map.is_table_full() { self.put_table() } else { Ok(()) }
    }

    fn put_table(&mut self) -> Result<(), StreamError> {
        let mut at = None;
        if let Some(table) = self.map.take_table() {
            self.put(&marker(Marker::Table, TABLE_SECTORS))?;
            at = Some(self.place()?);
            self.put(&table)?;
        }
        self.map.table_is_at(at);
        Ok(())
    }

    /// Where the next bytes come to lie, as an entry names it.
    fn place(&self) -> Result<u32, StreamError> {
        if self.at >= FILE_SECTORS_MAX {
            return Err(StreamError::TooLarge);
        }
        u32::try_from(self.at).map_err(|_| StreamError::TooLarge)
    }

    /// Writes bytes and zeroes up to the next sector.
    fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.file.write_all(bytes)?;
        let sectors = (bytes.len() as u64).div_ceil(SECTOR);
        self.file.write_all(&[0; SECTOR as usize][..(sectors * SECTOR) as usize - bytes.len()])?;
        self.at += sectors;
        Ok(())
    }
}
