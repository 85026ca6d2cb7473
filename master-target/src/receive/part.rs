//! One part stream: reads records, checks their content, hands them to the group's threads.
//!
//! Frames are decoded here once, so that damage is noticed before anything is stored (P6), on as many cores as there
//! are streams. A damaged part ends the connection: the source sends it again. Memory is taken from the group's budget
//! before a frame waits in a queue.

use std::sync::Arc;

use proto::frame::{DecodedFrame, Decoder, FrameError, parse_header};
use proto::part_stream::{PartError, PartReader};
use proto::record::Record;
use proto::replication::{DiskSpec, PartBegin, PartEnd, PartKind};
use quinn::RecvStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::delta::{BaseNeeded, Encoders, base_needed};
use super::ports::Ports;
use super::refusals::{describe, explain};
use super::spares::Spares;
use crate::group::session::Pass;
use crate::group::{FRAME_KIB_MIN, GroupApplier, Port, ToApply, ToJournal};

/// Decoders that wait for the next part. Their buffers are worth keeping.
const DECODERS_KEPT: usize = 16;

/// Decoders that parts share, and encoders for what has to be made whole.
#[derive(Default)]
pub struct Decoders {
    decoders: Spares<Decoder, DECODERS_KEPT>,
    encoders: Encoders,
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
    while let Some(record) = reader.next().await.map_err(|error| refused(&describe(begin), &error))? {
        port.board.add_received(record.encoded().len() as u64);
        let (record, frame) = decode(begin, port, decoders, record).await?;
        let held = record.encoded().len().max(frame.raw.len());
        let permit = reserve(&port.budget, held).await?;
        let (record, frame) = port.places.frame_inward(record, frame);
        give(port, frame_of(begin, &port.pass, record, frame, permit)).await?;
    }
    let Some(end) = reader.end() else { return Err(PartEnded::Gone) };
    give(port, end_of(begin, &port.pass, *end)).await
}

/// Decodes a frame; one with deltas is made whole.
async fn decode(
    begin: &PartBegin,
    port: &Port,
    decoders: &Decoders,
    record: Record,
) -> Result<(Record, DecodedFrame), PartEnded> {
    let disks = &port.pass.about().disks;
    let refused = |error: FrameError| PartEnded::Refused(explain(begin, disks, &error));
    let Some(needed) = base_needed(begin, &record).map_err(refused)? else {
        let frame = decoders.decoders.with(|decoder| decoder.decode(&record));
        let frame = check(begin, disks, frame).map_err(PartEnded::Refused)?;
        return Ok((record, frame));
    };
    let (reply, base) = oneshot::channel();
    let BaseNeeded { set, mut ranges } = needed;
    ranges.iter_mut().for_each(|(disk, ..)| *disk = port.places.inward(*disk));
    give(port, Piece::Apply(ToApply::Previous { pass: port.pass.clone(), set, ranges, reply })).await?;
    let base = base.await.map_err(|_| PartEnded::Gone)?;
    let frame = decoders.decoders.with(|decoder| decoder.decode_over(&record, &base));
    if let Err(FrameError::Base { .. }) = frame {
        port.board.refuse_deltas();
        tracing::error!(
            group = begin.group,
            set = begin.number,
            "the target's disks do not hold what was acknowledged, so content comes whole from now on: run \
             `process-server verify --group {} --repair`",
            begin.group
        );
    }
    let mut frame = check(begin, disks, frame).map_err(PartEnded::Refused)?;
    let whole = decoders.encoders.whole(&frame).map_err(refused)?;
    frame.header = parse_header(&whole).map_err(refused)?;
    Ok((whole, frame))
}

/// Looks whether a decoded frame fits the group. The error says which part is refused, and why.
pub fn check(
    begin: &PartBegin,
    disks: &[DiskSpec],
    decoded: Result<DecodedFrame, FrameError>,
) -> Result<DecodedFrame, String> {
    let sizes: Vec<u64> = disks.iter().map(|disk| disk.size).collect();
    let checked = decoded.and_then(|frame| frame.check_disks(&sizes).map(|()| frame));
    checked.map_err(|error| explain(begin, disks, &error))
}

/// What one of a group's threads is to do with a piece of a part.
pub enum Piece<A = GroupApplier> {
    /// Ordered content.
    Journal(ToJournal),
    /// Content of a catching-up.
    Apply(ToApply<A>),
}

/// A frame, checked.
pub fn frame_of<A>(
    begin: &PartBegin,
    pass: &Pass,
    record: Record,
    frame: DecodedFrame,
    permit: OwnedSemaphorePermit,
) -> Piece<A> {
    let pass = pass.clone();
    match begin.kind() {
        PartKind::Ordered => Piece::Journal(ToJournal::Frame { pass, number: begin.number, record, permit }),
        PartKind::Bulk => Piece::Apply(ToApply::BulkFrame { pass, frame, marks: begin.marks, permit }),
    }
}

/// The end of a part.
pub fn end_of<A>(begin: &PartBegin, pass: &Pass, end: PartEnd) -> Piece<A> {
    let pass = pass.clone();
    match begin.kind() {
        PartKind::Ordered => Piece::Journal(ToJournal::EndPart { pass, begin: begin.clone(), end }),
        PartKind::Bulk => Piece::Apply(ToApply::BulkEnd { pass, part: begin.part }),
    }
}

async fn give(port: &Port, piece: Piece) -> Result<(), PartEnded> {
    match piece {
        Piece::Journal(command) => port.to_journal.send(command).await.map_err(|_| PartEnded::Gone),
        Piece::Apply(command) => port.to_apply.send(command).await.map_err(|_| PartEnded::Gone),
    }
}

/// Waits for a share of a group's memory.
pub(super) async fn reserve(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, PartEnded> {
    let kib = bytes.div_ceil(1024).max(FRAME_KIB_MIN);
    let permits = u32::try_from(kib).map_err(|_| PartEnded::Gone)?;
    budget.clone().acquire_many_owned(permits).await.map_err(|_| PartEnded::Gone)
}

fn refused(part: &str, error: &PartError) -> PartEnded {
    match error {
        PartError::Io(_) | PartError::Truncated => PartEnded::Gone,
        _ => PartEnded::Refused(format!("{part}: {error}")),
    }
}
