//! The rules of the two messages of a comparison by digest, `CompareBlocks` and `BlocksCompared`.
//!
//! Whether a range lies on its disk is for the target to say, which knows the disks.

use super::{MessageError, at_most, name, refused};
use crate::digest::{DIGEST_BYTES, units, units_of};
use crate::limits::{COMPARE_RUNS_MAX, COMPARE_UNITS_MAX, DISK_SECTORS_MAX, DISKS_PER_GROUP_MAX};
use crate::replication::{BlocksCompared, CompareBlocks, CompareRun};

pub(super) fn check_compare(compare: &CompareBlocks) -> Result<(), MessageError> {
    name("CompareBlocks.group", &compare.group)?;
    at_most("CompareBlocks.runs", compare.runs.len(), COMPARE_RUNS_MAX)?;
    compare.runs.iter().try_for_each(check_run)?;
    at_most("CompareBlocks.runs", units_of(&compare.runs), COMPARE_UNITS_MAX)
}

fn check_run(run: &CompareRun) -> Result<(), MessageError> {
    at_most("CompareRun.disk", run.disk as usize, DISKS_PER_GROUP_MAX - 1)?;
    let end = run.sector.checked_add(u64::from(run.sectors));
    if run.sectors == 0 || end.is_none_or(|end| end > DISK_SECTORS_MAX) {
        let what = format!("{} sectors at sector {} are not on a disk", run.sectors, run.sector);
        return refused("CompareRun.sectors", what);
    }
    let expected = units(run.sectors) * DIGEST_BYTES;
    if !run.digests.is_empty() && run.digests.len() != expected {
        return refused("CompareRun.digests", format!("{} bytes instead of {expected} or none", run.digests.len()));
    }
    Ok(())
}

pub(super) fn check_compared(compared: &BlocksCompared) -> Result<(), MessageError> {
    name("BlocksCompared.group", &compared.group)?;
    at_most("BlocksCompared.differs", compared.differs.len(), COMPARE_UNITS_MAX / 8)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::tests::{accepts, refuses};
    use super::*;
    use crate::limits::MESSAGE_BYTES_MAX;
    use crate::replication::{SourceMessage, TargetMessage};

    fn run(sectors: u32, digests: usize) -> CompareRun {
        CompareRun { disk: 63, sector: DISK_SECTORS_MAX - u64::from(sectors), sectors, digests: vec![7; digests * 16] }
    }

    fn compare(runs: Vec<CompareRun>) -> CompareBlocks {
        CompareBlocks { group: "web".to_owned(), phase: 1, request: 2, runs }
    }

    #[test]
    fn the_largest_legal_messages_are_taken() {
        let largest = CompareBlocks {
            group: "w".repeat(63),
            phase: u64::MAX,
            request: u32::MAX,
            runs: vec![run(64 * 128, 64); COMPARE_RUNS_MAX],
        };
        assert!(SourceMessage::from(largest.clone()).encoded_len() <= MESSAGE_BYTES_MAX);
        accepts::<SourceMessage>(largest);
        accepts::<SourceMessage>(compare(vec![run(129, 2), run(1, 1), run(129, 0)]));
        accepts::<SourceMessage>(compare(vec![run(1 << 21, 0)]));
        let differs = vec![0xff; COMPARE_UNITS_MAX / 8];
        accepts::<TargetMessage>(BlocksCompared { group: "web".to_owned(), differs, ..Default::default() });
    }

    #[test]
    fn a_question_beyond_its_bounds_is_refused() {
        refuses::<SourceMessage>(
            CompareBlocks { group: "../web".to_owned(), ..compare(vec![]) },
            "CompareBlocks.group",
        );
        refuses::<SourceMessage>(compare(vec![run(1, 0); COMPARE_RUNS_MAX + 1]), "CompareBlocks.runs");
        refuses::<SourceMessage>(compare(vec![run(1 << 21, 0), run(1, 0)]), "CompareBlocks.runs");
        refuses::<SourceMessage>(compare(vec![run(u32::MAX, 0); COMPARE_RUNS_MAX]), "CompareBlocks.runs");
    }

    #[test]
    fn a_range_beyond_any_disk_or_with_another_number_of_digests_is_refused() {
        let with = |change: fn(&mut CompareRun)| {
            let mut run = run(129, 2);
            change(&mut run);
            compare(vec![run])
        };
        for (change, field) in [
            ((|run| run.disk = 64) as fn(&mut CompareRun), "CompareRun.disk"),
            (|run| run.sectors = 0, "CompareRun.sectors"),
            (|run| run.sector += 1, "CompareRun.sectors"),
            (|run| run.sector = u64::MAX, "CompareRun.sectors"),
            (|run| run.digests.truncate(31), "CompareRun.digests"),
            (|run| run.digests.truncate(16), "CompareRun.digests"),
            (|run| run.digests.push(1), "CompareRun.digests"),
        ] {
            refuses::<SourceMessage>(with(change), field);
        }
    }

    #[test]
    fn an_answer_about_more_units_than_can_be_asked_for_is_refused() {
        let answer = |differs| BlocksCompared { group: "web".to_owned(), differs, ..Default::default() };
        refuses::<TargetMessage>(answer(vec![0; COMPARE_UNITS_MAX / 8 + 1]), "BlocksCompared.differs");
        let nameless = BlocksCompared { group: String::new(), ..answer(vec![]) };
        refuses::<TargetMessage>(nameless, "BlocksCompared.group");
    }
}
