//! From a request to a mount: checks it, looks the point up, binds the address, begins to serve.

use std::sync::{Arc, Mutex};

use jobs::{Cancel, Kind, Meter, Table};
use nbd::{Export, Exports, ExportsError, ListenError, Listener, TlsMode};
use proto::config::NbdAddress;
use proto::control::{MountReply, MountRequest};

use super::image::Image;
use super::limits::{BLOCK_BYTES_MAX, LOOK_EVERY, MOUNTS_MAX, QUOTA_BYTES_DEFAULT, QUOTA_BYTES_MAX};
use super::mounts::{Clients, Mount, MountedDisk};
use super::overlay::Overlay;
use crate::amount::amount;
use crate::group::{Group, GroupError, blocking};
use crate::journal::limits::BLOCK_BYTES;
use crate::journal::lock;
use crate::recover::{ChooseError, PointDisks, PointDisksError, PointReader, ReadError, RecoveryState, chosen_disks};
use crate::retention::{PointInfo, ResolveError};

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The point.
    #[error(transparent)]
    Point(#[from] ResolveError),
    /// Reading it.
    #[error("reading the point: {0}")]
    Read(#[from] ReadError),
    /// The disk.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// A failback has the disks.
    #[error("group \"{0}\" is failing back: its points can't be mounted until it is protected again")]
    FailingBack(String),
    /// The disks.
    #[error(transparent)]
    Disks(#[from] PointDisksError),
    /// Too many.
    #[error("group \"{0}\" has {MOUNTS_MAX} mounts: end one with `master-target unmount`")]
    TooMany(String),
    /// The address as it was given.
    #[error("{0}")]
    Address(String),
    /// The address can't be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS is configured, but its files can't be used.
    #[error("[nbd_tls]: {0}")]
    Tls(#[from] proto::tls::TlsError),
    /// Names or sizes that NBD does not allow.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// A quota that makes no sense.
    #[error("a quota of {}: choose one from 4 KiB to {}, or leave it out for {}", amount(*.0), amount(QUOTA_BYTES_MAX), amount(QUOTA_BYTES_DEFAULT))]
    Quota(u64),
    /// A quota for what can't be written.
    #[error("a quota is of use with --writable only: add it, or leave --quota out")]
    QuotaUnused,
    /// The file for what clients write.
    #[error("{}: can't make a file for what is written: {source}; check the folder state_dir", folder.display())]
    Overlay {
        /// Where.
        folder: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No I/O engine.
    #[error("no I/O engine can be made: {0}")]
    Engine(std::io::Error),
}

/// Makes a mount, which is served when this returns.
pub async fn open(group: Arc<Group>, request: &MountRequest, jobs: &Table) -> Result<MountReply, MountError> {
    let name = || group.name().to_owned();
    let address: NbdAddress = request.nbd.parse().map_err(MountError::Address)?;
    let quota = quota(request)?;
    let shared = group.restores().try_read_owned().map_err(|_| MountError::FailingBack(name()))?;
    if let Some(why) = group.board().failure() {
        return Err(PointDisksError::NotOpen { group: name(), why }.into());
    }
    if group.is_stopping() {
        return Err(GroupError::Closing(name()).into());
    }
    if group.mounts().count() >= MOUNTS_MAX {
        return Err(MountError::TooMany(name()));
    }
    let journal = group.journal()?;
    if let RecoveryState::FailingBack { .. } = RecoveryState::of(&journal) {
        return Err(MountError::FailingBack(name()));
    }
    let point = journal.resolve(&request.point)?;
    let chosen = chosen_disks(&group, &journal, &point, request.disk.as_deref())?;
    let disks = Arc::new(PointDisks::of(&group, &journal).await?);
    let sizes = disks.sizes().to_vec();
    let exports = exports(&group, &chosen, &sizes, &point, request.writable)?;
    let tls = match (&address, &group.site().nbd_tls) {
        // The mode of the socket says who may connect.
        (NbdAddress::Unix(_), _) | (_, None) => TlsMode::Off,
        (NbdAddress::Tcp(_), Some(paths)) => TlsMode::Required(proto::tls::nbd_server_config(paths)?),
    };
    let is_tls = matches!(tls, TlsMode::Required(_));
    let listener = Listener::bind(&address, tls).await?;
    let id = group.mounts().next_id(group.name());
    let overlay = quota.map(|bytes| overlay(&group, &id, sizes.len(), bytes)).transpose()?;
    let make_disks = {
        let disks = disks.clone();
        move || disks.make()
    };
    let first = make_disks().map_err(MountError::Engine)?;
    let reader = {
        let (journal, point) = (journal.clone(), point.clone());
        let meant: Vec<usize> = chosen.iter().map(|(disk, _)| *disk).collect();
        let looking_up = move || {
            let mut reader = PointReader::over(journal, first, &point)?;
            disks.check(&mut reader, &meant)?;
            Ok::<_, MountError>(reader)
        };
        blocking(looking_up).await?
    };
    drop(journal);
    let disks = chosen.into_iter().map(|(disk, name)| {
        let uri = uri(listener.address(), is_tls, &format!("{}/{name}", group.name()));
        MountedDisk { disk, name, uri }
    });
    let mount = Arc::new(Mount {
        disks: disks.collect(),
        group: name(),
        point: point.id.clone(),
        since: group.site().clock.wall().to_string(),
        exports: Arc::new(exports),
        image: Arc::new(Image::new(id.clone(), sizes, reader, Box::new(make_disks), overlay)),
        clients: Mutex::new(Clients::default()),
        job: Mutex::new(None),
        shared: Mutex::new(Some(shared)),
        id,
    });
    let (id, point) = (mount.id.clone(), mount.point.clone());
    tracing::info!(mount = id, point, nbd = %listener.address(), writable = request.writable, "a point is mounted");
    let uris: Vec<String> = mount.disks.iter().map(|disk| disk.uri.clone()).collect();
    let job = jobs.begin(Kind::Mount, Some(group.name()), Cancel::Taken);
    job.meter().show(&format!("exporting point {point} as mount {id}"), 0, 0);
    let (number, meter) = (job.id(), job.meter().clone());
    *lock(&mount.job) = Some(job);
    serve(&group, mount, listener, meter).await;
    Ok(MountReply { id, point, nbd: uris, job: number })
}

async fn serve(group: &Arc<Group>, mount: Arc<Mount>, listener: Listener, meter: Meter) {
    let (admitting, exports) = (mount.clone(), mount.exports.clone());
    let listening = tokio::spawn(listener.serve(exports, move |connected| admitting.admit(connected)));
    let watch = tokio::spawn(watch(Arc::downgrade(group), Arc::downgrade(&mount), meter)).abort_handle();
    group.mounts().add(mount, listening, watch).await;
}

/// Ends a mount whose point was given up, or whose job was cancelled.
async fn watch(group: std::sync::Weak<Group>, mount: std::sync::Weak<Mount>, mut meter: Meter) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = meter.cancelled() => {}
        }
        let Some((group, mount)) = group.upgrade().zip(mount.upgrade()) else { return };
        let reason = if meter.is_cancelled() {
            "its job was cancelled"
        } else if mount.image.is_given_up() {
            tracing::warn!(
                mount = mount.id,
                "a mount is ended: the retention volume is full, and its point was given up"
            );
            "its point was given up for room"
        } else {
            continue;
        };
        let id = mount.id.clone();
        drop(mount);
        // In a task of its own, since ending a mount ends this one.
        tokio::spawn(async move { group.mounts().end(&id, reason).await });
        return;
    }
}

fn quota(request: &MountRequest) -> Result<Option<u64>, MountError> {
    match (request.writable, request.quota_bytes) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(MountError::QuotaUnused),
        (true, None) => Ok(Some(QUOTA_BYTES_DEFAULT)),
        (true, Some(bytes)) if (BLOCK_BYTES..=QUOTA_BYTES_MAX).contains(&bytes) => Ok(Some(bytes)),
        (true, Some(bytes)) => Err(MountError::Quota(bytes)),
    }
}

fn exports(
    group: &Group,
    chosen: &[(usize, String)],
    sizes: &[u64],
    point: &PointInfo,
    writable: bool,
) -> Result<Exports, ExportsError> {
    let export = |(disk, name): &(usize, String)| Export {
        name: format!("{}/{name}", group.name()),
        size: sizes.get(*disk).copied().unwrap_or(0),
        description: format!("disk {name} of group {} at point {} of {}", group.name(), point.id, point.time),
        block_min: 512,
        block_preferred: BLOCK_BYTES as u32,
        block_max: BLOCK_BYTES_MAX,
        read_only: !writable,
    };
    Exports::new(chosen.iter().map(export).collect())
}

fn overlay(group: &Group, id: &str, disks: usize, quota_bytes: u64) -> Result<Overlay, MountError> {
    let folder = &group.site().state_dir;
    Overlay::create(folder, id, disks, quota_bytes)
        .map_err(|source| MountError::Overlay { folder: folder.clone(), source })
}

/// The address of an export, as NBD clients take it.
fn uri(address: &NbdAddress, is_tls: bool, export: &str) -> String {
    let export = escaped(export);
    match address {
        NbdAddress::Unix(path) => format!("nbd+unix:///{export}?socket={}", escaped(&path.to_string_lossy())),
        NbdAddress::Tcp(at) if is_tls => format!("nbds://{at}/{export}"),
        NbdAddress::Tcp(at) => format!("nbd://{at}/{export}"),
    }
}

/// What has a meaning in an address is written as %XX.
fn escaped(text: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    text.bytes()
        .map(|byte| if is_plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_such_as_clients_take() {
        let unix = NbdAddress::Unix("/run/a b/m.sock".into());
        assert_eq!(uri(&unix, false, "web/os"), "nbd+unix:///web/os?socket=/run/a%20b/m.sock");
        let tcp: NbdAddress = "tcp:127.0.0.1:10809".parse().unwrap();
        assert_eq!(uri(&tcp, false, "web/os"), "nbd://127.0.0.1:10809/web/os");
        assert_eq!(uri(&tcp, true, "web/os"), "nbds://127.0.0.1:10809/web/os");
    }

    #[test]
    fn a_quota_is_for_writable_mounts_and_within_its_bounds() {
        let request = |writable, quota_bytes| MountRequest { writable, quota_bytes, ..Default::default() };
        assert_eq!(quota(&request(true, None)).unwrap(), Some(QUOTA_BYTES_DEFAULT));
        assert_eq!(quota(&request(true, Some(4096))).unwrap(), Some(4096));
        assert_eq!(quota(&request(false, None)).unwrap(), None);
        for (writable, bytes) in [(false, 4096), (true, 0), (true, 4095), (true, u64::MAX)] {
            assert!(quota(&request(writable, Some(bytes))).is_err());
        }
    }
}
