//! One stretch of conversation with a source about one group: from `GroupOpened` until the next, or until the
//! connection ends.
//!
//! Everything that works for a session holds a [`Pass`] from it. Ending the session turns the passes invalid and waits
//! until the last is dropped; with the barriers of the group's workers behind it, nothing of the session can reach a
//! disk any more (rule L6).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proto::endpoint::CloseCode;
use proto::replication::target_message::Body;
use proto::replication::{DiskSpec, TargetMessage};
use tokio::sync::{mpsc, watch};

use crate::receive::admission::SourceLife;

/// The connection that carries a session.
pub trait Wire: Send + Sync {
    /// Different for every connection of this agent's life.
    fn key(&self) -> u64;
    /// Closes it with a reason in words; everything on it ends.
    fn close(&self, code: CloseCode, reason: &str);
    /// True until it is closed by either side, or lost.
    fn is_open(&self) -> bool;
}

/// Where the answers of a session go, and how its connection is ended.
#[derive(Clone)]
pub struct Link {
    /// Messages to the source, in order.
    pub outbox: mpsc::Sender<TargetMessage>,
    /// The connection.
    pub wire: Arc<dyn Wire>,
    /// When the peer was last heard, milliseconds since the agent started.
    pub heard_ms: Arc<AtomicU64>,
}

/// An open session.
pub struct Session {
    about: Arc<About>,
    ended: watch::Sender<bool>,
}

/// What does not change while a session is open.
pub struct About {
    /// Different for every session of this agent's life.
    pub key: u64,
    /// Name of the group.
    pub group: String,
    /// The phase that it opened.
    pub phase: u64,
    /// Which life of the source opened it.
    pub life: SourceLife,
    /// Disks of the group, as the source has them.
    pub disks: Arc<[DiskSpec]>,
    /// The way back.
    pub link: Link,
}

/// The right to work for a session, as long as it is valid.
#[derive(Clone)]
pub struct Pass {
    about: Arc<About>,
    ended: watch::Receiver<bool>,
}

impl Session {
    /// Opens a session.
    pub fn new(about: About) -> Self {
        Self { about: Arc::new(about), ended: watch::Sender::new(false) }
    }

    /// What the session is about.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// A pass for one more worker.
    pub fn pass(&self) -> Pass {
        Pass { about: self.about.clone(), ended: self.ended.subscribe() }
    }

    /// Ends it: returns when no pass is left.
    pub async fn end(self) {
        self.ended.send_replace(true);
        self.ended.closed().await;
    }
}

impl Pass {
    /// What the session is about.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// True until the session is ended.
    pub fn is_valid(&self) -> bool {
        !*self.ended.borrow()
    }

    /// Returns when the session is ended.
    pub async fn ended(&mut self) {
        // An error means that the session is gone, which is an end as well.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Sends an answer from a worker thread. An answer that nobody takes any more is dropped with its session.
    pub fn answer(&self, body: Body) {
        if self.is_valid() {
            let _ = self.about.link.outbox.blocking_send(TargetMessage { body: Some(body) });
        }
    }
}
