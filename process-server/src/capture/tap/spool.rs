//! Carries out what the core asks of the spool: makes its file, writes, reads and empties it.
//!
//! All in the engine of the group's thread, but for making the file, which may hang with its volume: a thread of its own
//! does that. A guest's write never waits for any of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use blockio::{AlignedBuf, BlockFile, IoError, Op};
use bytes::Bytes;
use proto::ids::GroupName;
use tracing::{info, warn};

use super::thread::{Tap, Token};
use crate::spool::{SpoolFileError, make_file};

/// Time between two log lines that say the same of a cache volume that keeps failing.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Where a group's spool is to be.
#[derive(Debug, Clone)]
pub(super) struct SpoolPlace {
    pub(super) folder: PathBuf,
    pub(super) group: GroupName,
    pub(super) bytes: u64,
}

/// The spool's file, and what was said about it.
#[derive(Debug)]
pub(super) struct SpoolDriver {
    place: Option<SpoolPlace>,
    file: Option<Arc<BlockFile>>,
    opening: Option<Receiver<Result<Arc<BlockFile>, SpoolFileError>>>,
    is_troubled: bool,
    warned_at: Option<Duration>,
}

impl SpoolDriver {
    pub(super) fn new(place: Option<SpoolPlace>) -> Self {
        Self { place, file: None, opening: None, is_troubled: false, warned_at: None }
    }
}

impl Tap {
    /// Has a new file made, on a thread that wakes this one when it is done.
    pub(super) fn open_spool(&mut self) {
        self.spool.file = None;
        let Some(place) = self.spool.place.clone() else {
            return self.group.spool_opened(Err("no cache_dir is configured".to_owned()));
        };
        let waker = self.engine.waker();
        let (sender, opening) = sync_channel(1);
        let make = move || {
            // The group may have stopped meanwhile; the file is gone with its descriptor.
            let _ = sender.send(make_file(&place.folder, &place.group, place.bytes));
            waker.wake();
        };
        match std::thread::Builder::new().name("spool-file".to_owned()).spawn(make) {
            Ok(_) => self.spool.opening = Some(opening),
            Err(error) => self.group.spool_opened(Err(format!("a thread can't be started: {error}"))),
        }
    }

    /// Takes the new file, if it has been made.
    pub(super) fn take_spool(&mut self) {
        let Some(opening) = &self.spool.opening else { return };
        let Ok(made) = opening.try_recv() else { return };
        self.spool.opening = None;
        let result = match made {
            Ok(file) => {
                self.spool.file = Some(file);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        self.group.spool_opened(result);
    }

    pub(super) fn write_spool(&mut self, id: u64, offset: u64, len: u64, pieces: &[Bytes]) {
        let Some(file) = self.spool.file.clone() else {
            return self.group.spool_written(id, Err("it has no file".to_owned()));
        };
        let mut buf = self.pool.take(len as usize);
        let mut at = 0;
        for piece in pieces {
            buf[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        // What was in the buffer before is nobody's business on that volume.
        buf[at..].fill(0);
        self.engine.submit(Token::SpoolWrite(id).encode(), Op::Write { file, offset, data: buf.freeze() });
    }

    pub(super) fn read_spool(&mut self, id: u64, offset: u64, len: u32) {
        let Some(file) = self.spool.file.clone() else {
            return self.group.spool_read(id, Err("it has no file".to_owned()));
        };
        let buf = self.pool.take(len as usize);
        self.engine.submit(Token::SpoolRead(id).encode(), Op::Read { file, offset, buf });
    }

    pub(super) fn empty_spool(&mut self) {
        let Some(file) = self.spool.file.clone() else {
            return self.group.spool_emptied(Err("it has no file".to_owned()));
        };
        let len = file.size();
        self.engine.submit(Token::SpoolEmpty.encode(), Op::Punch { file, offset: 0, len });
    }

    pub(super) fn spool_written(&mut self, id: u64, result: Result<(), IoError>) {
        self.group.spool_written(id, result.map_err(|error| error.to_string()));
    }

    pub(super) fn spool_read_done(&mut self, id: u64, result: Result<(), IoError>, buf: Option<AlignedBuf>) {
        let result = match (result, buf) {
            (Ok(()), Some(buf)) => Ok(buf.freeze()),
            (Ok(()), None) => Err("a read gave nothing back".to_owned()),
            (Err(error), _) => Err(error.to_string()),
        };
        self.group.spool_read(id, result);
    }

    pub(super) fn spool_emptied(&mut self, result: Result<(), IoError>) {
        self.group.spool_emptied(result.map_err(|error| error.to_string()));
    }

    /// Says in the log that the cache volume fails, or works again: not more often than once a minute.
    pub(super) fn tell_spool_trouble(&mut self) {
        let now = self.clock.now().mono;
        match self.group.spool_trouble() {
            Some(why) => {
                let is_due = self.spool.warned_at.is_none_or(|at| now >= at + LOG_INTERVAL);
                if !self.spool.is_troubled && is_due {
                    warn!(
                        group = %self.name, error = why,
                        "the cache volume failed: the group goes on without a spool and tries it again; check cache_dir"
                    );
                    self.spool.warned_at = Some(now);
                    self.spool.is_troubled = true;
                }
            }
            None if self.spool.is_troubled => {
                info!(group = %self.name, "the cache volume can be used again");
                self.spool.is_troubled = false;
            }
            None => {}
        }
    }
}
