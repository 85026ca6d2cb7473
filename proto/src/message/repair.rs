//! The rules of `RepairBlock` and `BlocksMissing`: whole sectors of one 4 KiB block, and ranges, inside the largest disk.

use super::{MessageError, at_most, name, refused};
use crate::limits::{DISK_SECTORS_MAX, DISKS_PER_GROUP_MAX, MISSING_RUNS_MAX, SECTOR_BYTES};
use crate::replication::{BlocksMissing, MissingRun, RepairBlock};

/// Sectors of a block.
const BLOCK_SECTORS: u64 = 8;

pub(super) fn check_repair(repair: &RepairBlock) -> Result<(), MessageError> {
    name("RepairBlock.group", &repair.group)?;
    at_most("RepairBlock.disk", repair.disk as usize, DISKS_PER_GROUP_MAX - 1)?;
    let (len, sectors) = (repair.data.len() as u64, repair.data.len() as u64 / SECTOR_BYTES);
    if sectors == 0 || sectors > BLOCK_SECTORS || !len.is_multiple_of(SECTOR_BYTES) {
        return refused("RepairBlock.data", format!("{len} bytes are not whole sectors of one block"));
    }
    if !repair.sector.is_multiple_of(BLOCK_SECTORS) || repair.sector > DISK_SECTORS_MAX - sectors {
        return refused("RepairBlock.sector", format!("no block begins at sector {}", repair.sector));
    }
    Ok(())
}

pub(super) fn check_missing(missing: &BlocksMissing) -> Result<(), MessageError> {
    name("BlocksMissing.group", &missing.group)?;
    at_most("BlocksMissing.runs", missing.runs.len(), MISSING_RUNS_MAX)?;
    missing.runs.iter().try_for_each(check_run)
}

fn check_run(run: &MissingRun) -> Result<(), MessageError> {
    at_most("MissingRun.disk", run.disk as usize, DISKS_PER_GROUP_MAX - 1)?;
    let end = run.sector.checked_add(run.sectors);
    if run.sectors == 0 || end.is_none_or(|end| end > DISK_SECTORS_MAX) {
        let what = format!("{} sectors at sector {} are not on a disk", run.sectors, run.sector);
        return refused("MissingRun.sectors", what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranges_lie_on_the_largest_disk_and_are_not_too_many() {
        let run = MissingRun { disk: 63, sector: 0, sectors: DISK_SECTORS_MAX };
        let message = |runs| BlocksMissing { group: "web".to_owned(), phase: 1, runs };
        assert_eq!(check_missing(&message(vec![run; MISSING_RUNS_MAX])), Ok(()));
        assert!(check_missing(&message(vec![run; MISSING_RUNS_MAX + 1])).is_err());
        for bad in [
            MissingRun { disk: 64, ..run },
            MissingRun { sectors: 0, ..run },
            MissingRun { sector: 1, ..run },
            MissingRun { sector: u64::MAX, ..run },
        ] {
            assert!(check_missing(&message(vec![bad])).is_err(), "{bad:?}");
        }
    }

    fn repair(sector: u64, len: usize) -> RepairBlock {
        RepairBlock { group: "web".to_owned(), sector, data: vec![1; len], ..RepairBlock::default() }
    }

    #[test]
    fn a_block_and_a_short_last_one_are_accepted() {
        for repair in [repair(0, 4096), repair(8, 512), repair(DISK_SECTORS_MAX - 8, 4096)] {
            assert_eq!(check_repair(&repair), Ok(()));
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let nameless = RepairBlock { group: "../web".to_owned(), ..repair(0, 512) };
        let beyond = RepairBlock { disk: 64, ..repair(0, 512) };
        let all = [repair(0, 0), repair(0, 511), repair(0, 4608), repair(1, 512), repair(u64::MAX - 7, 512)];
        for repair in all.into_iter().chain([repair(DISK_SECTORS_MAX, 512), nameless, beyond]) {
            assert!(check_repair(&repair).is_err(), "{repair:?}");
        }
    }
}
