//! The tables of a stream, which are written as soon as they are full: memory is one table and the directory.

use crate::vmdk::sparse::header::TABLE_ENTRIES;

/// The table that is being filled, and the directory.
pub(super) struct StreamMap {
    /// Where the grains of the current table lie; 0 for zeroes.
    table: Vec<u32>,
    directory: Vec<u32>,
}

impl StreamMap {
    pub(super) fn new() -> StreamMap {
        StreamMap { table: Vec::with_capacity(TABLE_ENTRIES as usize), directory: Vec::new() }
    }

    /// Notes where the next grain lies, in sectors; `None` for one of zeroes.
    pub(super) fn push(&mut self, at: Option<u32>) {
        assert!(!self.is_table_full(), "a full table is taken before the next grain");
        self.table.push(at.unwrap_or(0));
    }

    pub(super) fn is_table_full(&self) -> bool {
        self.table.len() as u64 == TABLE_ENTRIES
    }

    /// The bytes of the table and a new one in its place; `None` if all of its grains are zeroes, which needs no table.
    /// [`StreamMap::table_is_at`] must follow.
    pub(super) fn take_table(&mut self) -> Option<Vec<u8>> {
        let mut table = std::mem::take(&mut self.table);
        table.resize(TABLE_ENTRIES as usize, 0);
        table.iter().any(|&at| at != 0).then(|| table.iter().flat_map(|at| at.to_le_bytes()).collect())
    }

    /// Where the table that was taken lies; `None` if it needs none.
    pub(super) fn table_is_at(&mut self, at: Option<u32>) {
        self.directory.push(at.unwrap_or(0));
    }

    /// Whether grains were noted since a table was taken.
    pub(super) fn has_open_table(&self) -> bool {
        !self.table.is_empty()
    }

    /// The bytes of the directory.
    pub(super) fn directory(&self) -> Vec<u8> {
        self.directory.iter().flat_map(|at| at.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_zeroes_has_no_place_and_others_are_padded() {
        let mut map = StreamMap::new();
        (0..TABLE_ENTRIES).for_each(|_| map.push(None));
        assert!(map.is_table_full());
        assert_eq!(map.take_table(), None);
        map.table_is_at(None);
        map.push(None);
        map.push(Some(0x0102_0304));
        let table = map.take_table().unwrap();
        assert_eq!((table.len(), &table[4..8]), (2048, &[4, 3, 2, 1][..]));
        map.table_is_at(Some(9));
        assert!(!map.has_open_table());
        assert_eq!(map.directory(), [0, 0, 0, 0, 9, 0, 0, 0]);
    }
}
