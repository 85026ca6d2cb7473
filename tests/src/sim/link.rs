//! The simulated link: connections that deliver messages in order and streams in any order, late, in part, or not at all.
//!
//! What travels are bytes: messages and parts are encoded and decoded by the agents' own codec. Both ends notice the end
//! of a connection when they please, the target perhaps after the source has made the next one. It injects, and judges
//! nothing.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use master_target::group::session::{Link, Pass, Wire};
use process_server::send::{CompareJob, PartJob, frames_of, run_of};
use prost::Message;
use proto::endpoint::CloseCode;
use proto::frame::{Compression, DecodedFrame, Encoder, FrameError, Parcel};
use proto::part_stream::PartReader;
use proto::record::{Record, RecordKind};
use proto::replication::{CompareBlocks, PartBegin, PartEnd, SourceMessage, TargetMessage};
use tokio::sync::{mpsc, oneshot};

/// Answers that wait for the source to read, as in the agent.
const OUTBOX_MAX: usize = 1024;

/// The end of a connection that a group's session closes.
#[derive(Debug)]
pub struct SimWire {
    key: u64,
    closed: Mutex<Option<String>>,
}

impl SimWire {
    /// Why the target closed it, if it did.
    pub fn closed(&self) -> Option<String> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Wire for SimWire {
    fn key(&self) -> u64 {
        self.key
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.get_or_insert_with(|| format!("{code:?}: {reason}"));
    }

    fn is_open(&self) -> bool {
        self.closed().is_none()
    }
}

/// A part on its way.
pub struct Stream {
    /// Of the bytes that were sent.
    pub reader: PartReader<Cursor<Bytes>>,
    /// Once its first record has arrived.
    pub begin: Option<PartBegin>,
    /// A frame with deltas that waits for what they are laid over.
    pub base: Option<(Record, oneshot::Receiver<Vec<u8>>)>,
    /// A frame that waits for memory on the target, with how many bytes it needs.
    pub held: Option<(Record, DecodedFrame, usize)>,
}

/// One connection, from its beginning until both ends have let it go.
pub struct Connection {
    /// Different for each.
    pub key: u64,
    /// Messages of the source, in order.
    pub to_target: VecDeque<Vec<u8>>,
    /// Comparisons that are being digested: sent when that is done.
    pub digesting: Vec<SourceMessage>,
    /// Parts.
    pub streams: Vec<Stream>,
    /// Messages of the target, in order.
    pub to_source: VecDeque<Vec<u8>>,
    /// Where the target puts them.
    pub outbox: mpsc::Receiver<TargetMessage>,
    /// The target's end.
    pub link: Link,
    /// The same.
    pub wire: Arc<SimWire>,
    /// The source has noticed its end.
    pub source_gone: bool,
    /// So has the target.
    pub target_gone: bool,
    /// The session that the target has open on it.
    pub pass: Option<Pass>,
    /// An opening is not answered yet.
    pub is_opening: bool,
}

impl Connection {
    /// A fresh one.
    #[must_use]
    pub fn new(key: u64) -> Self {
        let wire = Arc::new(SimWire { key, closed: Mutex::default() });
        let (sender, outbox) = mpsc::channel(OUTBOX_MAX);
        let link = Link { outbox: sender, wire: wire.clone(), heard_ms: Arc::default() };
        Self {
            key,
            to_target: VecDeque::new(),
            digesting: Vec::new(),
            streams: Vec::new(),
            to_source: VecDeque::new(),
            outbox,
            link,
            wire,
            source_gone: false,
            target_gone: false,
            pass: None,
            is_opening: false,
        }
    }

    /// The source sends a message.
    pub fn send(&mut self, message: impl Into<SourceMessage>) {
        self.to_target.push_back(message.into().encode_to_vec());
    }

    /// The source sends a part; returns what is kept of it. The error is that of content which no longer matches its checksum.
    pub fn send_part(
        &mut self,
        encoder: &mut Encoder,
        level: Compression,
        job: PartJob,
    ) -> Result<Vec<Arc<Parcel>>, FrameError> {
        let begin = job.begin;
        let frames = frames_of(job.extents);
        let batch = encoder.encode_batch((begin.number, begin.part), &frames, level, &job.bases, job.keep)?;
        let mut bytes = BytesMut::from(&Record::encode(RecordKind::PartBegin, &begin, &[])[..]);
        let mut end = PartEnd::default();
        for frame in batch.frames {
            bytes.extend_from_slice(&frame.head);
            bytes.extend_from_slice(&frame.payload);
            end.frames += 1;
            end.sectors += frame.sectors;
        }
        bytes.extend_from_slice(&Record::encode(RecordKind::PartEnd, &end, &[]));
        let reader = PartReader::new(Cursor::new(bytes.freeze()));
        self.streams.push(Stream { reader, begin: None, base: None, held: None });
        Ok(batch.parcels)
    }

    /// The source asks for a comparison, which is sent when its content is digested.
    pub fn compare(&mut self, job: CompareJob) {
        let runs = job.extents.iter().map(|extent| run_of(&job.group, extent));
        let runs = runs.collect::<Result<_, _>>().expect("content was summed a moment ago");
        let CompareJob { group, phase, request, .. } = job;
        self.digesting.push(CompareBlocks { group, phase, request, runs }.into());
    }

    /// What the target's threads have answered is on its way.
    pub fn gather(&mut self) {
        while let Ok(message) = self.outbox.try_recv() {
            self.to_source.push_back(message.encode_to_vec());
        }
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.to_target.is_empty() && self.digesting.is_empty() && self.streams.is_empty() && self.to_source.is_empty()
    }
}

/// What a future gives that never has to wait: all its bytes are there.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing has to be waited for here"),
    }
}
