//! Pages of indexes in memory: the ones used last, within a bound.

use std::collections::HashMap;
use std::sync::Arc;

use super::format::Page;

/// Pages by file and number. Half of the bound is for pages that were used lately, half for those used before.
#[derive(Debug)]
pub(crate) struct PageCache {
    young: HashMap<(u64, u32), Arc<Page>>,
    old: HashMap<(u64, u32), Arc<Page>>,
    half: usize,
    next_file: u64,
}

impl PageCache {
    /// Keeps at most so many pages.
    pub fn new(pages_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: pages_max / 2, next_file: 0 }
    }

    /// A number for a file that is about to be read: one that is replaced gets another.
    pub(super) fn file(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file
    }

    pub(super) fn page(&mut self, file: u64, number: u32) -> Option<Arc<Page>> {
        if let Some(page) = self.young.get(&(file, number)) {
            return Some(page.clone());
        }
        let page = self.old.remove(&(file, number))?;
        self.keep(file, number, page.clone());
        Some(page)
    }

    pub(super) fn keep(&mut self, file: u64, number: u32, page: Arc<Page>) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert((file, number), page);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
