//! The mounts of a group: who they are, who uses them, and how they end.
//!
//! A mount ends by command, with the agent, before the disks of its group are handed over, when its group has failed,
//! and when its point is given up for room. Its socket goes first, then its clients, then what it holds of the group.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use jobs::{Job, Outcome};
use nbd::{Connected, Exports};
use proto::control::MountStatus;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::task::AbortHandle;

use super::client;
use super::image::SharedImage;
use super::limits::CLIENTS_MAX;
use crate::group::blocking;
use crate::journal::lock;

/// There is no mount of that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no mount \"{0}\": see `master-target status`")]
pub struct NoMount(pub String);

/// A point that is exported.
pub(super) struct Mount {
    pub id: String,
    pub group: String,
    pub point: String,
    pub since: String,
    /// By the index of the export.
    pub disks: Vec<MountedDisk>,
    pub exports: Arc<Exports>,
    pub image: SharedImage,
    pub clients: Mutex<Clients>,
    /// Shows the mount among the jobs of the agent, from its begin to its end.
    pub job: Mutex<Option<Job>>,
    /// Keeps the group from being opened anew, and its disks from being handed over, before the mount has ended.
    pub shared: Mutex<Option<OwnedRwLockReadGuard<()>>>,
}

/// One export of a mount.
pub(super) struct MountedDisk {
    /// Its index in the group.
    pub disk: usize,
    pub name: String,
    pub uri: String,
}

/// The connections of a mount.
#[derive(Default)]
pub(super) struct Clients {
    open: BTreeMap<u64, Client>,
    next: u64,
    is_ended: bool,
}

struct Client {
    export: usize,
    /// The connection once more, to shut it down.
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Mount {
    /// Begins to serve a client, which has negotiated.
    pub fn admit(self: &Arc<Self>, connected: Connected) {
        let session = connected.session(self.exports.at(connected.export));
        let Connected { fd, export, peer, permit, .. } = connected;
        let mut clients = lock(&self.clients);
        clients.open.retain(|_, client| !client.thread.is_finished());
        if clients.is_ended || clients.open.len() >= CLIENTS_MAX {
            tracing::warn!(mount = self.id, peer, "an NBD client was turned away: the mount has {CLIENTS_MAX} already");
            return;
        }
        let stream = UnixStream::from(fd);
        let twin = stream.set_nonblocking(false).and_then(|()| stream.try_clone());
        let (image, disk) = (self.image.clone(), self.disks[export].disk);
        let spawned = twin.and_then(|twin| {
            let serve = move || {
                client::serve(stream, session, &image, disk, &peer);
                drop(permit);
            };
            let thread = std::thread::Builder::new().name(format!("mount-{}", self.id)).spawn(serve)?;
            Ok(Client { export, stream: twin, thread })
        });
        match spawned {
            Ok(client) => {
                let number = clients.next;
                clients.next += 1;
                clients.open.insert(number, client);
            }
            Err(error) => tracing::warn!(mount = self.id, %error, "an NBD client of the mount can't be served"),
        }
    }

    fn clients_of(&self, export: usize) -> u64 {
        let clients = lock(&self.clients);
        clients.open.values().filter(|client| client.export == export && !client.thread.is_finished()).count() as u64
    }

    /// Ends the clients and lets the group go; blocks.
    fn end(&self, reason: &str) {
        let clients: Vec<Client> = {
            let mut clients = lock(&self.clients);
            clients.is_ended = true;
            std::mem::take(&mut clients.open).into_values().collect()
        };
        for client in &clients {
            // A client that is gone already can't be shut down.
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
        }
        self.image.end();
        for client in clients {
            if client.thread.join().is_err() {
                tracing::error!(mount = self.id, "the thread of an NBD client has panicked");
            }
        }
        drop(lock(&self.shared).take());
        if let Some(job) = lock(&self.job).take() {
            let outcome = if job.meter().is_cancelled() {
                Outcome::Cancelled
            } else if self.image.is_given_up() {
                Outcome::Failed(reason.to_owned())
            } else {
                Outcome::Done(format!("point {} was exported: {reason}", self.point))
            };
            job.finish(outcome);
        }
    }

    fn status(&self) -> impl Iterator<Item = MountStatus> {
        self.disks.iter().enumerate().map(|(export, disk)| MountStatus {
            id: self.id.clone(),
            group: self.group.clone(),
            disk: disk.name.clone(),
            point: self.point.clone(),
            nbd: disk.uri.clone(),
            writable: self.image.is_writable(),
            overlay_bytes: self.image.overlay_bytes(disk.disk),
            clients: self.clients_of(export),
            since: self.since.clone(),
        })
    }
}

/// A mount and the tasks that serve it.
struct Served {
    mount: Arc<Mount>,
    listener: tokio::task::JoinHandle<()>,
    watch: AbortHandle,
}

/// The mounts of a group.
#[derive(Default)]
pub struct Mounts {
    served: tokio::sync::Mutex<Vec<Served>>,
    listed: Mutex<Vec<Arc<Mount>>>,
    numbers: AtomicU64,
}

impl Mounts {
    /// A name for a mount that is about to be made.
    pub(super) fn next_id(&self, group: &str) -> String {
        format!("{group}-{}", self.numbers.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.listed).len()
    }

    pub(super) async fn add(&self, mount: Arc<Mount>, listener: tokio::task::JoinHandle<()>, watch: AbortHandle) {
        lock(&self.listed).push(mount.clone());
        self.served.lock().await.push(Served { mount, listener, watch });
    }

    /// What there is, oldest first.
    pub fn status(&self) -> Vec<MountStatus> {
        let mounts = lock(&self.listed).clone();
        mounts.iter().flat_map(|mount| mount.status().collect::<Vec<_>>()).collect()
    }

    /// Ends a mount.
    pub async fn end(&self, id: &str, reason: &str) -> Result<(), NoMount> {
        if self.end_where(|mount| mount.id == id, reason).await == 0 {
            return Err(NoMount(id.to_owned()));
        }
        Ok(())
    }

    /// Ends all mounts of the group and says how many that were.
    pub async fn end_all(&self, reason: &str) -> usize {
        self.end_where(|_| true, reason).await
    }

    async fn end_where(&self, is_meant: impl Fn(&Mount) -> bool, reason: &str) -> usize {
        // The lock is held until all is done: who ends mounts relies upon their being gone.
        let mut served = self.served.lock().await;
        let mut ended = 0;
        while let Some(at) = served.iter().position(|served| is_meant(&served.mount)) {
            let Served { mount, listener, watch } = served.remove(at);
            tracing::info!(mount = mount.id, point = mount.point, reason, "a mount ends");
            listener.abort();
            // Its end drops the socket, whose file goes with it.
            let _ = listener.await;
            let (ending, why) = (mount.clone(), reason.to_owned());
            blocking(move || ending.end(&why)).await;
            lock(&self.listed).retain(|known| !Arc::ptr_eq(known, &mount));
            watch.abort();
            ended += 1;
        }
        ended
    }
}
