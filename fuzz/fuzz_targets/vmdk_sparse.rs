//! A sparse VMDK, as somebody's datastore holds it: header, directories and tables. A survey that succeeds names places
//! that lie behind the tables and inside the file.

#![no_main]

use master_target::vmdk::{Header, survey};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes) else { return };
    // What lies beyond the bytes reads as zeroes, so that small inputs reach far into large files.
    let file_sectors = header.overhead + 64 * header.grain_sectors;
    let read = |at: u64, buf: &mut [u8]| {
        buf.fill(0);
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(buf.len()).min(bytes.len());
        buf[..end - start].copy_from_slice(&bytes[start..end]);
        Ok::<_, ()>(())
    };
    if header.tables() > 4096 {
        // Sound, but slow to walk.
        return;
    }
    if let Ok(found) = survey(&header, file_sectors, read) {
        assert!(found.end >= header.overhead && found.end <= file_sectors.next_multiple_of(header.grain_sectors));
        assert!(found.differing.iter().all(|&table| table < found.directory.len()));
    }
});
