//! Part streams: one unidirectional stream per part of a change set, as records.
//!
//! ```text
//!  PartBegin | Frame | Frame | ... | PartEnd | end of stream
//! ```
//!
//! The writer hands shared memory to QUIC without copying it. The reader takes record by record into buffers of
//! bounded size, and checks that the frames belong to the part and that none is missing; it does not decode content.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, WriteError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::frame::{EncodedFrame, FrameError, parse_header};
use crate::limits::{PART_BYTES_MAX, PART_FRAMES_MAX, RECORD_PREFIX_BYTES};
use crate::message::{MessageError, WireMessage};
use crate::record::{Prefix, Record, RecordError, RecordKind};
use crate::replication::{PartBegin, PartEnd, PartKind};

/// Why a part can't be read. The set that it belongs to does not count.
#[derive(Debug, Error)]
pub enum PartError {
    /// Bytes are not a record, or damaged.
    #[error("a part is refused: {0}")]
    Record(#[from] RecordError),
    /// A frame is malformed.
    #[error("a part is refused: {0}")]
    Frame(#[from] FrameError),
    /// Its first record has illegal values.
    #[error("a part is refused: {0}")]
    Begin(#[from] MessageError),
    /// Records are in a wrong order, missing or too many.
    #[error("a part is refused: {what}")]
    Sequence {
        /// What is wrong.
        what: String,
    },
    /// The stream ends before the part does.
    #[error("a part ends early: the stream was closed inside it")]
    Truncated,
    /// The stream is lost with its connection, or was reset.
    #[error("a part is lost: {0}")]
    Io(#[from] io::Error),
}

fn sequence<T>(what: impl Into<String>) -> Result<T, PartError> {
    Err(PartError::Sequence { what: what.into() })
}

/// What was handed to QUIC for one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartWritten {
    /// Frames of the part.
    pub frames: u32,
    /// Sectors of all extents, ranges included.
    pub sectors: u64,
    /// Bytes of the stream.
    pub wire_bytes: u64,
}

/// Parts of a connection that get a priority of their own; those behind them share the last one.
const TURNS: u32 = 1 << 30;

/// Priority of the stream of the part with this turn in its connection: content with an order goes before bulk, messages
/// ([`crate::control_stream::CONTROL_PRIORITY`]) before both, and among parts of one kind the older one first, so that it
/// is durable soonest.
///
/// QUIC is asked to be fair to streams of one priority, because without that it finishes a stream that it has begun
/// before it looks at any other, whatever their priorities: a heartbeat would wait behind megabytes.
#[must_use]
pub fn priority(kind: PartKind, turn: u32) -> i32 {
    let back = i32::try_from(turn.min(TURNS)).expect("far below the largest");
    match kind {
        PartKind::Ordered => TURNS as i32 - back,
        PartKind::Bulk => -1 - back,
    }
}

/// Writes a whole part and finishes the stream.
pub async fn write_part(
    send: &mut SendStream,
    begin: &PartBegin,
    frames: impl Iterator<Item = EncodedFrame>,
) -> Result<PartWritten, WriteError> {
    let mut writer = PartWriter::begin(send, begin).await?;
    for frame in frames {
        writer.frame(frame).await?;
    }
    writer.end().await
}

/// Writes a part whose frames become ready one by one.
pub struct PartWriter<'a> {
    send: &'a mut SendStream,
    written: PartWritten,
}

impl<'a> PartWriter<'a> {
    /// Sets the stream's priority, as that of the connection's first part, and writes the first record.
    pub async fn begin(send: &'a mut SendStream, begin: &PartBegin) -> Result<Self, WriteError> {
        Self::begin_in_turn(send, begin, 0).await
    }

    /// As [`Self::begin`], behind all parts of its kind with a lower turn.
    pub async fn begin_in_turn(send: &'a mut SendStream, begin: &PartBegin, turn: u32) -> Result<Self, WriteError> {
        send.set_priority(priority(begin.kind(), turn))?;
        let mut writer = Self { send, written: PartWritten { frames: 0, sectors: 0, wire_bytes: 0 } };
        writer.write(&mut [Record::encode(RecordKind::PartBegin, begin, &[])]).await?;
        Ok(writer)
    }

    /// Writes one frame; waits while the connection's window is full.
    ///
    /// # Panics
    /// If the part gets more frames than the target takes: who makes parts keeps to `limits::PART_AIM_BYTES`.
    pub async fn frame(&mut self, frame: EncodedFrame) -> Result<(), WriteError> {
        self.written.frames += 1;
        assert!(self.written.frames <= PART_FRAMES_MAX, "a part of more than {PART_FRAMES_MAX} frames");
        self.written.sectors += frame.sectors;
        self.write(&mut [frame.head, frame.payload]).await
    }

    /// Writes the last record and finishes the stream.
    pub async fn end(mut self) -> Result<PartWritten, WriteError> {
        let end = PartEnd { frames: self.written.frames, sectors: self.written.sectors };
        self.write(&mut [Record::encode(RecordKind::PartEnd, &end, &[])]).await?;
        self.send.finish()?;
        Ok(self.written)
    }

    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), WriteError> {
        self.written.wire_bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.send.write_all_chunks(pieces).await
    }
}

/// Reads a part. Its futures may be dropped at any time without losing bytes.
pub struct PartReader<R = RecvStream> {
    stream: R,
    received: BytesMut,
    begin: Option<PartBegin>,
    end: Option<PartEnd>,
    frames: u32,
    sectors: u64,
    wire_bytes: u64,
}

impl<R: AsyncRead + Unpin> PartReader<R> {
    /// A reader of a stream that the peer has opened.
    pub fn new(stream: R) -> Self {
        Self { stream, received: BytesMut::new(), begin: None, end: None, frames: 0, sectors: 0, wire_bytes: 0 }
    }

    /// Reads the first record: which part of which set of which group follows. To be called once, first.
    pub async fn begin(&mut self) -> Result<PartBegin, PartError> {
        assert!(self.begin.is_none(), "a part begins once");
        let Some(record) = self.record().await? else { return Err(PartError::Truncated) };
        if record.kind != RecordKind::PartBegin {
            return sequence(format!("it begins with a {:?} record", record.kind));
        }
        if !record.payload.is_empty() {
            return sequence("its PartBegin record has a payload");
        }
        let begin: PartBegin = record.header_as()?;
        begin.check()?;
        self.begin = Some(begin.clone());
        Ok(begin)
    }

    /// The next frame: its checksums are right, its header is valid and names this part; its content is still
    /// encoded. `None` when the part is complete, its counts are right and the stream has ended.
    pub async fn next(&mut self) -> Result<Option<Record>, PartError> {
        assert!(self.begin.is_some(), "begin() comes first");
        if self.end.is_some() {
            return Ok(None);
        }
        let Some(record) = self.record().await? else { return Err(PartError::Truncated) };
        match record.kind {
            RecordKind::Frame => self.check_frame(&record).map(|()| Some(record)),
            RecordKind::PartEnd => self.check_end(&record).await.map(|()| None),
            kind => sequence(format!("a {kind:?} record stands in its middle")),
        }
    }

    /// The last record, once [`Self::next`] has returned `None`.
    #[must_use]
    pub fn end(&self) -> Option<&PartEnd> {
        self.end.as_ref()
    }

    /// Takes the rest of the stream and forgets it. Dropping the reader would stop the stream, which the sender has to
    /// take for a refusal of its part; a part that merely came too late is none.
    pub async fn discard(mut self) {
        // Whatever ends the stream ends this as well.
        let _ = tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await;
    }

    /// Bytes of the part that have arrived so far.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    fn check_frame(&mut self, record: &Record) -> Result<(), PartError> {
        let header = parse_header(record)?;
        let begin = self.begin.as_ref().expect("begin() has been called");
        // Bulk parts count through a phase, so both numbers tell the part in either kind.
        if (header.number, header.part) != (begin.number, begin.part) {
            let (number, part) = (header.number, header.part);
            let what =
                format!("a frame of set {number}, part {part} stands in set {}, part {}", begin.number, begin.part);
            return sequence(what);
        }
        self.frames += 1;
        if self.frames > PART_FRAMES_MAX {
            return sequence(format!("it has more than {PART_FRAMES_MAX} frames"));
        }
        self.sectors += header.extents.iter().map(|extent| u64::from(extent.sectors)).sum::<u64>();
        Ok(())
    }

    async fn check_end(&mut self, record: &Record) -> Result<(), PartError> {
        if !record.payload.is_empty() {
            return sequence("its PartEnd record has a payload");
        }
        let end: PartEnd = record.header_as()?;
        if (end.frames, end.sectors) != (self.frames, self.sectors) {
            let declared = format!("{} frames and {} sectors", end.frames, end.sectors);
            return sequence(format!("it declares {declared}, {} and {} came", self.frames, self.sectors));
        }
        if self.record().await?.is_some() {
            return sequence("a record follows its end");
        }
        self.end = Some(end);
        Ok(())
    }

    /// The next record, or `None` at the end of the stream between two records.
    async fn record(&mut self) -> Result<Option<Record>, PartError> {
        if !self.fill(RECORD_PREFIX_BYTES).await? {
            return if self.received.is_empty() { Ok(None) } else { Err(PartError::Truncated) };
        }
        let prefix = Prefix::parse(self.received.first_chunk().expect("filled"))?;
        if !prefix.kind.is_wire() {
            return sequence(format!("{:?} records stand in journals only", prefix.kind));
        }
        let record_len = prefix.record_len();
        if self.wire_bytes + record_len as u64 > PART_BYTES_MAX {
            return sequence(format!("it is longer than {PART_BYTES_MAX} bytes"));
        }
        if !self.fill(record_len).await? {
            return Err(PartError::Truncated);
        }
        self.wire_bytes += record_len as u64;
        let (record, _) = Record::parse(&self.received.split().freeze())?;
        Ok(Some(record))
    }

    /// Reads until `len` bytes are there and never more; false if the stream ends before.
    async fn fill(&mut self, len: usize) -> Result<bool, PartError> {
        self.received.reserve(len.saturating_sub(self.received.len()));
        while self.received.len() < len {
            let missing = len - self.received.len();
            if self.stream.read_buf(&mut (&mut self.received).limit(missing)).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
