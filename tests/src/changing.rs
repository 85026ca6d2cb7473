//! Groups whose disks change: a site's configurations with some of its disks, and points with copies of those that they have.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::guest::{Bounds, Model};
use crate::load::{Load, Pace};
use crate::mounts::{mount, unmount};
use crate::site::{GROUP, Site};
use crate::verdict::{self, judge_point, model_with_content};
use crate::{image, random, tool};

const MIB: u64 = 1 << 20;

/// The configuration with these disks of the site, in this order.
///
/// # Panics
/// If it has not got one of them.
#[must_use]
pub fn with(config: &str, disks: &[usize]) -> String {
    let (head, rest) = config.split_once("[[group.disk]]").expect("disks");
    let all: Vec<&str> = rest.split("[[group.disk]]").collect();
    let block = |disk: &usize| all.iter().find(|block| block.contains(&format!("\"disk{disk}\""))).expect("a disk");
    disks.iter().fold(head.to_owned(), |text, disk| format!("{text}[[group.disk]]{}", block(disk)))
}

/// Both configurations, of all disks of the site.
#[derive(Clone, Debug)]
pub struct Configs {
    /// `process-server.toml`.
    pub source: String,
    /// `master-target.toml`.
    pub target: String,
}

impl Configs {
    /// Those of a site that has not chosen yet.
    #[must_use]
    pub fn of(site: &Site) -> Self {
        Self { source: site.source_config.clone(), target: site.target_config.clone() }
    }

    /// Both agents have these disks from their next start on.
    pub fn choose(&self, site: &mut Site, disks: &[usize]) {
        (site.source_config, site.target_config) = (with(&self.source, disks), with(&self.target, disks));
    }
}

/// A point that nobody wrote around, with copies of the disks that it has.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// Each disk with its copy.
    pub copies: Vec<(usize, PathBuf)>,
}

impl Kept {
    /// Takes one of a group with these disks.
    ///
    /// # Panics
    /// If there is no room for the copies.
    #[track_caller]
    #[must_use]
    pub fn take(site: &Site, disks: &[usize]) -> Self {
        let id = site.point(None);
        let copy = |disk: &usize| {
            let file = site.path().join(format!("copy-{disk}-{id}.raw"));
            fs::copy(&site.disks[*disk].source, &file).expect("a copy");
            (*disk, file)
        };
        Self { copies: disks.iter().map(copy).collect(), id }
    }

    /// Restores and mounts it: it is what it was, with the disks that it had.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn check(&self, site: &Site) {
        for (disk, copy) in &self.copies {
            let restored = site.restore(*disk, &self.id);
            image::assert_same(&restored, copy);
            fs::remove_file(restored).expect("a file");
        }
        let mounted = mount(site, &self.id, &format!("m{}", self.id), &[]);
        assert_eq!(mounted.uris.len(), self.copies.len(), "{:?}", mounted.uris);
        unmount(site, &mounted);
    }

    /// What `points --json` says.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    #[must_use]
    pub fn listed(&self, site: &Site) -> Value {
        let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
        points
            .as_array()
            .expect("points")
            .iter()
            .find(|point| point["id"] == self.id.as_str())
            .expect("it is kept")
            .clone()
    }

    /// The targets hold it.
    ///
    /// # Panics
    /// If they don't.
    #[track_caller]
    pub fn is_on_targets(&self, site: &Site) {
        for (disk, copy) in &self.copies {
            let (copy, vmdk) = (copy.to_string_lossy(), site.vmdk(*disk));
            tool::run("qemu-img", ["compare", "-U", "-f", "raw", "-F", "vmdk", &copy, &vmdk.to_string_lossy()]).ok();
        }
    }
}

/// Writes to these disks for a while, and takes two points meanwhile.
///
/// # Panics
/// If a client is refused or dropped.
#[track_caller]
pub fn write(site: &Site, model: &Arc<Model>, disks: &[u32], seed: u64) -> Vec<verdict::Taken> {
    let pace = Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true };
    let clients: Vec<_> = site.clients(2, 4).into_iter().filter(|client| disks.contains(&client.disk)).collect();
    let load = Load::start(model, &clients, pace);
    let mut taken = Vec::new();
    for _ in 0..2 {
        load.wait_for_writes(100);
        taken.push(verdict::take(site, model, None));
    }
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    taken
}

/// Judges each point that has all disks of the group; each must hold what the one before it held (P1).
///
/// # Panics
/// If one does not, or one of `taken` is not there.
#[track_caller]
pub fn judge_whole(site: &Site, model: &Model, taken: &[verdict::Taken]) {
    let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
    let whole = points.as_array().expect("points").iter().filter(|point| point["disks"] == serde_json::json!([]));
    let ids: Vec<&str> = whole.filter_map(|point| point["id"].as_str()).collect();
    assert!(ids.len() > taken.len() && taken.iter().all(|one| ids.contains(&one.id.as_str())), "{ids:?}");
    let mut horizon = 0;
    for id in ids {
        let one = taken.iter().find(|one| one.id == id);
        let bounds = one.map_or_else(Bounds::default, verdict::Taken::bounds);
        let bounds = Bounds { must_hold_before: horizon.max(bounds.must_hold_before), ..bounds };
        horizon = judge_point(site, model, id, bounds).horizon;
    }
}

/// A restore of a disk that a point has not got is refused, and leaves no file.
///
/// # Panics
/// If it is not.
#[track_caller]
pub fn refuses(site: &Site, disk: usize, kept: &Kept) {
    let file = site.path().join("not.raw");
    let words = format!("was not in group \"{GROUP}\" at point {}", kept.id);
    site.restore_to(disk, &kept.id, &file, "raw").fails_with(1).says(&words);
    assert!(!Path::new(&file).exists());
}

/// Stops both agents.
#[track_caller]
pub fn stop(site: &mut Site) {
    site.source.stop();
    site.target.stop();
}

/// Three disks exist, the first two are protected and have two points.
#[track_caller]
#[must_use]
pub fn two_of_three(seed: u64) -> (Site, Configs, Arc<Model>, Kept, Kept) {
    let mut site = Site::new(&[12 * MIB, 8 * MIB, 8 * MIB]);
    let configs = Configs::of(&site);
    let model = model_with_content(&site);
    configs.choose(&mut site, &[0, 1]);
    site.start();
    let first = Kept::take(&site, &[0, 1]);
    write(&site, &model, &[0, 1], seed);
    let second = Kept::take(&site, &[0, 1]);
    (site, configs, model, first, second)
}
