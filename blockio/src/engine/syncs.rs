//! One sync per file at a time; those that come meanwhile share the next one.
//!
//! Two syncs in flight on one descriptor are a trap: a failed write-back is reported to one of them
//! only, and the other would vouch for data that is lost. Sharing also saves flushes. A sync never
//! joins one that has begun before it was asked for, since that may have missed its writes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::file::BlockFile;

/// Who waits for which sync of which file.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// By address of the file, which the sync in flight keeps in place.
    files: HashMap<usize, Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    /// Tokens that the sync in flight answers.
    current: Vec<u64>,
    /// Tokens that the one after it will answer.
    next: Vec<u64>,
}

impl Syncs {
    /// Whether the sync is to be started now; otherwise it waits for its turn.
    pub(super) fn begin(&mut self, file: &Arc<BlockFile>, token: u64) -> bool {
        match self.files.entry(address(file)) {
            Entry::Vacant(none) => {
                none.insert(Waiters { current: vec![token], next: Vec::new() });
                true
            }
            Entry::Occupied(mut waiters) => {
                waiters.get_mut().next.push(token);
                false
            }
        }
    }

    /// A sync has ended: the tokens that it answers, and whether another is to be started now.
    pub(super) fn end(&mut self, file: &Arc<BlockFile>) -> (Vec<u64>, bool) {
        let Entry::Occupied(mut waiters) = self.files.entry(address(file)) else {
            unreachable!("a sync of {} ended that never began", file.path().display());
        };
        let next = std::mem::take(&mut waiters.get_mut().next);
        if next.is_empty() {
            return (waiters.remove().current, false);
        }
        let answered = std::mem::replace(&mut waiters.get_mut().current, next);
        (answered, true)
    }
}

fn address(file: &Arc<BlockFile>) -> usize {
    Arc::as_ptr(file).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Access;

    #[test]
    fn syncs_that_come_during_one_share_the_next() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let open = || Arc::new(BlockFile::open(temporary.path(), Access::ReadWrite).unwrap());
        let (file, other) = (open(), open());
        let mut syncs = Syncs::default();
        assert!(syncs.begin(&file, 1));
        assert!(syncs.begin(&other, 9), "another file has its own turn");
        assert!(!syncs.begin(&file, 2));
        assert!(!syncs.begin(&file, 3));
        assert_eq!(syncs.end(&file), (vec![1], true));
        assert!(!syncs.begin(&file, 4), "the second has begun without it");
        assert_eq!(syncs.end(&file), (vec![2, 3], true));
        assert_eq!(syncs.end(&file), (vec![4], false));
        assert!(syncs.begin(&file, 5));
    }
}
