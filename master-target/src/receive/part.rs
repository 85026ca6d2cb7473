//! One part stream: reads records, checks their content, hands them to the group's threads.
//!
//! Frames are decoded here once, so that damage is noticed before anything is stored (P6), on as many cores as there
//! are streams. A damaged part ends the connection: the source sends it again. Memory is taken from the group's budget
//! before a frame waits in a queue.

use std::sync::{Arc, Mutex, PoisonError};

use proto::frame::{DecodedFrame, Decoder, FrameError};
use proto::part_stream::{PartError, PartReader};
use proto::record::Record;
use proto::replication::{PartBegin, PartKind};
use quinn::RecvStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ports::Ports;
use super::refusals::{describe, explain};
use crate::group::{FRAME_KIB_MIN, Port, ToApply, ToJournal};

/// Decoders that wait for the next part. Their buffers are worth keeping.
const DECODERS_KEPT: usize = 16;

/// Decoders that parts share, one after the other.
#[derive(Default)]
pub struct Decoders(Mutex<Vec<Decoder>>);

impl Decoders {
    fn decode(&self, record: &Record) -> Result<DecodedFrame, FrameError> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = idle.unwrap_or_default();
        let frame = decoder.decode(record);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < DECODERS_KEPT {
            kept.push(decoder);
        }
        frame
    }
}

/// Why a part was not taken to its end.
pub enum PartEnded {
    /// The session is over, the stream was given up, or the connection is lost: nothing to complain about.
    Gone,
    /// It is damaged or can't be: the connection must end. The text says which part and where.
    Refused(String),
}

/// Takes one part.
pub async fn take_part(stream: RecvStream, ports: &Ports, decoders: &Decoders) -> Result<(), PartEnded> {
    let mut reader = PartReader::new(stream);
    let begin = reader.begin().await.map_err(|error| refused("a part", &error))?;
    let taken = match ports.find(&begin.group, begin.phase) {
        Some(port) => take_from(&mut reader, &begin, port, decoders).await,
        None => Err(PartEnded::Gone),
    };
    if let Err(PartEnded::Gone) = taken {
        // Content of a phase that is over is dropped (rule L2). The connection serves other groups: a stream that was
        // stopped would be a refusal, and end it.
        reader.discard().await;
    }
    taken
}

/// Takes the frames as long as the session lasts. Nothing of the session is held afterwards.
async fn take_from(
    reader: &mut PartReader,
    begin: &PartBegin,
    port: Port,
    decoders: &Decoders,
) -> Result<(), PartEnded> {
    let mut pass = port.pass.clone();
    tokio::select! {
        () = pass.ended() => Err(PartEnded::Gone),
        taken = take_frames(reader, begin, &port, decoders) => taken,
    }
}

async fn take_frames(
    reader: &mut PartReader,
    begin: &PartBegin,
    port: &Port,
    decoders: &Decoders,
) -> Result<(), PartEnded> {
    let disks = &port.pass.about().disks;
    let sizes: Vec<u64> = disks.iter().map(|disk| disk.size).collect();
    while let Some(record) = reader.next().await.map_err(|error| refused(&describe(begin), &error))? {
        let bytes = record.encoded().len();
        let checked = decoders.decode(&record).and_then(|frame| frame.check_disks(&sizes).map(|()| frame));
        let frame = checked.map_err(|error| PartEnded::Refused(explain(begin, disks, &error)))?;
        let held = bytes.max(frame.raw.len());
        let permit = reserve(&port.budget, held).await?;
        port.board.add_received(bytes as u64);
        give(begin, port, record, frame, permit).await?;
    }
    end(reader, begin, port).await
}

/// Waits for a share of a group's memory.
pub(super) async fn reserve(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, PartEnded> {
    let kib = bytes.div_ceil(1024).max(FRAME_KIB_MIN);
    let permits = u32::try_from(kib).map_err(|_| PartEnded::Gone)?;
    budget.clone().acquire_many_owned(permits).await.map_err(|_| PartEnded::Gone)
}

async fn give(
    begin: &PartBegin,
    port: &Port,
    record: Record,
    frame: DecodedFrame,
    permit: OwnedSemaphorePermit,
) -> Result<(), PartEnded> {
    let pass = port.pass.clone();
    match begin.kind() {
        PartKind::Ordered => {
            let command = ToJournal::Frame { pass, number: begin.number, record, permit };
            port.to_journal.send(command).await.map_err(|_| PartEnded::Gone)
        }
        PartKind::Bulk => {
            let command = ToApply::BulkFrame { pass, frame, marks: begin.marks, permit };
            port.to_apply.send(command).await.map_err(|_| PartEnded::Gone)
        }
    }
}

async fn end(reader: &PartReader, begin: &PartBegin, port: &Port) -> Result<(), PartEnded> {
    let Some(end) = reader.end() else { return Err(PartEnded::Gone) };
    let pass = port.pass.clone();
    match begin.kind() {
        PartKind::Ordered => {
            let command = ToJournal::EndPart { pass, begin: begin.clone(), end: *end };
            port.to_journal.send(command).await.map_err(|_| PartEnded::Gone)
        }
        PartKind::Bulk => {
            let command = ToApply::BulkEnd { pass, part: begin.part };
            port.to_apply.send(command).await.map_err(|_| PartEnded::Gone)
        }
    }
}

fn refused(part: &str, error: &PartError) -> PartEnded {
    match error {
        PartError::Io(_) | PartError::Truncated => PartEnded::Gone,
        _ => PartEnded::Refused(format!("{part}: {error}")),
    }
}
