//! Compares disks that were handed over with what they were then (REVIEW J6).
//!
//! Points are exact only while nobody else writes the disks. The content id and the time of the last write hint at
//! somebody; the digests of each MiB decide.

use std::ops::ControlFlow;
use std::path::Path;

use proto::time::Timestamp;

use super::Ranges;
use super::digest::{DigestError, Digests, digest};
use super::ranges::RANGES_MAX;
use super::released::{Released, ReleasedError};
use super::report::Report;
use crate::amount::amount;
use crate::group::HandedDisk;

/// Why disks could not be compared with what they were.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// What is kept of them.
    #[error(transparent)]
    Released(#[from] ReleasedError),
    /// A disk.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// More places than can be kept.
    #[error(
        "{0} places of the disks were written since they were handed over, too many to go on from: bring the disks back as they were, \
         from the machine's snapshot, or copy all from the source with `master-target reprotect --discard-points`"
    )]
    TooMany(usize),
}

/// What is not as it was, and in words what hints at who wrote.
pub(super) struct Compared {
    /// What is of no use to any point, from this time and from earlier ones.
    pub spoilt: Ranges,
    /// One sentence for each disk that differs.
    pub words: Vec<String>,
}

/// Digests the disks and keeps what they are; blocks. Gives the digest of each.
pub(super) fn keep(
    folder: &Path,
    key: u64,
    disks: &[HandedDisk],
    progress: impl Fn(u64, u64) -> ControlFlow<()>,
) -> Result<Vec<blake3::Hash>, CompareError> {
    let total = disks.iter().map(|disk| disk.size).sum();
    let mut before = 0;
    let mut hashes = Vec::with_capacity(disks.len());
    for disk in disks {
        let Digests { whole, units } = digest(disk.disk.as_ref(), disk.size, |done| progress(before + done, total))?;
        before += disk.size;
        Released { key, size: disk.size, cid: disk.cid, written_us: disk.written_us, units }
            .save(folder, disk.index as usize)?;
        hashes.push(whole);
    }
    Ok(hashes)
}

/// Compares the disks, which are locked; blocks.
pub(super) fn compare(
    folder: &Path,
    report: &Report,
    disks: &[HandedDisk],
    progress: impl Fn(u64, u64) -> ControlFlow<()>,
) -> Result<Compared, CompareError> {
    let total = disks.iter().map(|disk| disk.size).sum();
    let mut compared = Compared { spoilt: report.spoilt.clone(), words: Vec::new() };
    let mut before = 0;
    for disk in disks {
        let number = disk.index;
        let released = Released::load(folder, number as usize, report.request, disk.size)?;
        let now = digest(disk.disk.as_ref(), disk.size, |done| progress(before + done, total))?;
        before += disk.size;
        let runs = released.differences(&now.units);
        if !runs.is_empty() {
            let bytes = runs.iter().map(|(_, sectors)| sectors * 512).sum();
            compared.words.push(in_words(disk, &released, bytes));
        }
        for (sector, sectors) in runs {
            compared.spoilt.add(number, sector, sectors);
            if compared.spoilt.len() > RANGES_MAX {
                return Err(CompareError::TooMany(compared.spoilt.len()));
            }
        }
    }
    Ok(compared)
}

fn in_words(disk: &HandedDisk, released: &Released, bytes: u64) -> String {
    let mut text = format!("disk \"{}\": {} of it were written since it was handed over", disk.name, amount(bytes));
    if disk.cid != released.cid {
        text.push_str(", under a new content id");
    }
    if disk.written_us > 0 && disk.written_us != released.written_us {
        text.push_str(&format!(", last at {}", Timestamp(disk.written_us)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockio::BlockFile;

    use super::super::ranges::Range;
    use super::super::steps::Source;
    use super::*;
    use crate::target::{LinearDisk, Thickness};

    fn rig(folder: &Path) -> (Arc<BlockFile>, Vec<HandedDisk>, Report) {
        let file = Arc::new(BlockFile::create(&folder.join("x.raw"), 5 << 20).unwrap());
        let disk = LinearDisk::new("x".into(), file.clone(), 0, 5 << 20, Thickness::Thin);
        let handed = HandedDisk {
            index: 0,
            name: "os".into(),
            target: "/x".into(),
            size: 5 << 20,
            disk: Arc::new(disk),
            cid: Some(1),
            written_us: 5,
        };
        let report = Report {
            group: "web".into(),
            point: "7".into(),
            seconds: 0.0,
            fenced_at_us: None,
            disks: vec![],
            request: 9,
            source: Source::Fence,
            spoilt: Ranges::default(),
            left_as_is: vec![],
        };
        (file, vec![handed], report)
    }

    #[test]
    fn what_a_machine_wrote_is_found_and_joins_what_one_wrote_before() {
        let folder = tempfile::tempdir().unwrap();
        let (file, mut disks, mut report) = rig(folder.path());
        let go_on = |_, _| ControlFlow::Continue(());
        file.write_all_at(&[3; 4096], 2 << 20).unwrap();
        let hashes = keep(folder.path(), 9, &disks, go_on).unwrap();
        assert_eq!(hashes.len(), 1);
        let same = compare(folder.path(), &report, &disks, go_on).unwrap();
        assert!(same.spoilt.is_empty() && same.words.is_empty());

        // Zeroed, and written in the middle of zeroes.
        file.write_all_at(&[0; 4096], 2 << 20).unwrap();
        file.write_all_at(&[1; 512], (5 << 20) - 512).unwrap();
        report.spoilt.add(0, 0, 2048);
        (disks[0].cid, disks[0].written_us) = (Some(2), 1_000_000);
        let other = compare(folder.path(), &report, &disks, go_on).unwrap();
        let ranges: Vec<Range> = other.spoilt.iter().collect();
        assert_eq!(ranges, [Range(0, 0, 2048), Range(0, 2 * 2048, 2048), Range(0, 4 * 2048, 2048)]);
        assert_eq!(
            other.words,
            ["disk \"os\": 2.0 MiB of it were written since it was handed over, under a new content id, last at \
              1970-01-01T00:00:01.000000Z"]
        );
    }

    #[test]
    fn disks_of_which_nothing_is_kept_are_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let (_, disks, report) = rig(folder.path());
        let refused = compare(folder.path(), &report, &disks, |_, _| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(CompareError::Released(ReleasedError::Unusable { .. }))));
    }
}
