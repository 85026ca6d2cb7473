//! Disk images as files: making them, reading them whole, comparing them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::guest::{Kind, Model};
use crate::sector::{self, SECTOR};

/// Makes a sparse file of zeroes.
///
/// # Panics
/// If the file is there already or can't be made.
#[track_caller]
pub fn create(path: &Path, size: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
    file.set_len(size).unwrap_or_else(|error| panic!("{size} bytes for {}: {error}", path.display()));
    file
}

/// Puts content on a disk as if the guest had written it before protection began, and notes it in the model.
///
/// # Panics
/// If the file can't be written.
#[track_caller]
pub fn fill(path: &Path, model: &Model, disk: u32, first_sector: u64, sectors: u64) {
    let write = model.issue(disk, first_sector, sectors, Kind::Data);
    let bytes = sector::content(write, disk, first_sector, sectors);
    let file = OpenOptions::new().write(true).open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.write_all_at(&bytes, first_sector * SECTOR as u64).expect("the image can be written");
    file.sync_all().expect("the image can be synced");
    model.acknowledge(write);
}

/// The whole content of an image.
///
/// # Panics
/// If it can't be read.
#[track_caller]
#[must_use]
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Checks that two images hold the same bytes.
///
/// # Panics
/// If they don't: with the first byte that differs.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (a, b) = (read(left), read(right));
    assert_eq!(a.len(), b.len(), "sizes of {} and {}", left.display(), right.display());
    if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
        panic!("{} and {} differ first at byte {at} (sector {})", left.display(), right.display(), at / SECTOR);
    }
}
