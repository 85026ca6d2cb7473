//! Every point of a site, restored and judged.

use std::sync::Arc;

use crate::guest::{Bounds, Model, Tick, Verdict};
use crate::site::{Point, Site};
use crate::{image, sector};

/// A point that a test took by command, with the moments around the command.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its id.
    pub id: String,
    before: Tick,
    after: Tick,
}

impl Taken {
    /// What the point must and must not hold.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds { must_hold_before: self.before, nothing_after: self.after }
    }
}

/// Takes a point and notes what it must hold.
#[track_caller]
pub fn take(site: &Site, model: &Model, label: Option<&str>) -> Taken {
    let before = model.now();
    let id = site.point(label);
    Taken { id, before, after: model.now() }
}

/// A model of the site's disks, each with some content on it from before protection.
#[track_caller]
#[must_use]
pub fn model_with_content(site: &Site) -> Arc<Model> {
    let sizes: Vec<u64> = site.disks.iter().map(|disk| disk.size).collect();
    let model = Model::new(&sizes);
    for (index, disk) in site.disks.iter().enumerate() {
        let third = disk.size / sector::SECTOR as u64 / 3;
        image::fill(&disk.source, &model, index as u32, 0, third);
        image::fill(&disk.source, &model, index as u32, 2 * third + 5, 100);
    }
    Arc::new(model)
}

/// Restores all disks at one point and judges them.
///
/// # Panics
/// If the point can't be restored or is not a state that the guest has seen.
#[track_caller]
pub fn judge_point(site: &Site, model: &Model, id: &str, bounds: Bounds) -> Verdict {
    let files: Vec<_> = (0..site.disks.len()).map(|disk| site.restore(disk, id)).collect();
    let images: Vec<Vec<u8>> = files.iter().map(|file| image::read(file)).collect();
    for file in &files {
        std::fs::remove_file(file).expect("a restored file can be removed");
    }
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    model.judge(&images, bounds).unwrap_or_else(|violation| panic!("point {id}: {violation:?}"))
}

/// Judges images that must hold at least what `taken` holds.
///
/// # Panics
/// If they don't.
#[track_caller]
pub fn judge_images(model: &Model, images: &[&[u8]], taken: &Taken) -> Verdict {
    let bounds = Bounds { must_hold_before: taken.before, ..Bounds::default() };
    model.judge(images, bounds).unwrap_or_else(|violation| panic!("{violation:?}"))
}

/// Restores and judges every listed point, oldest first; each must hold what the one before it held.
///
/// # Panics
/// If one fails, or one that was taken by command is not listed.
#[track_caller]
pub fn judge_all(site: &Site, model: &Model, taken: &[Taken]) -> Vec<Point> {
    let points = site.points();
    for one in taken {
        assert!(points.iter().any(|point| point.id == one.id), "{one:?} is not listed in {points:?}");
    }
    assert!(points.is_sorted_by(|a, b| a.set < b.set && a.time <= b.time), "oldest first: {points:?}");
    let mut horizon = 0;
    for point in &points {
        let mut bounds = Bounds { must_hold_before: horizon, ..Bounds::default() };
        if let Some(one) = taken.iter().find(|one| one.id == point.id) {
            bounds = Bounds { must_hold_before: horizon.max(one.before), nothing_after: one.after };
        }
        horizon = judge_point(site, model, &point.id, bounds).horizon;
    }
    points
}

/// Judges the source disks themselves: with nothing in flight, they hold all that was acknowledged.
///
/// # Panics
/// If they don't.
#[track_caller]
pub fn judge_sources(site: &Site, model: &Model) {
    let images: Vec<Vec<u8>> = site.disks.iter().map(|disk| image::read(&disk.source)).collect();
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let bounds = Bounds { must_hold_before: model.now(), ..Bounds::default() };
    model.judge(&images, bounds).unwrap_or_else(|violation| panic!("the source disks: {violation:?}"));
}

/// Checks that each VMDK is identical to its source, after all that was written is applied.
///
/// # Panics
/// If one differs.
#[track_caller]
pub fn assert_targets_equal_sources(site: &Site) {
    site.wait_applied();
    for disk in 0..site.disks.len() {
        site.assert_vmdk_equals_source(disk);
    }
}
