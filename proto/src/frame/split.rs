//! Which extents share a frame.

use super::{RawContent, RawExtent};
use crate::limits::{FRAME_EXTENTS_MAX, FRAME_GATHER_BYTES, RANGE_SECTORS_MAX};

/// Groups extents, in their order, into frames: small data extents are gathered up to 128 KiB, a larger one has a
/// frame of its own with at most the ranges beside it, and no frame has more extents than is legal. Zero and
/// unreadable ranges longer than an extent may be are cut.
pub fn split_frames(extents: impl Iterator<Item = RawExtent>) -> Vec<Vec<RawExtent>> {
    let mut frames = Vec::new();
    let mut frame: Vec<RawExtent> = Vec::new();
    let mut frame_bytes = 0;
    for extent in extents.flat_map(cut_range) {
        let bytes = extent.data_bytes();
        let is_full = bytes > 0 && frame_bytes > 0 && frame_bytes + bytes > FRAME_GATHER_BYTES;
        if is_full || frame.len() == FRAME_EXTENTS_MAX {
            frames.push(std::mem::take(&mut frame));
            frame_bytes = 0;
        }
        frame_bytes += bytes;
        frame.push(extent);
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    frames
}

/// The extent itself, or the pieces of a range that is longer than an extent may be.
fn cut_range(extent: RawExtent) -> impl Iterator<Item = RawExtent> {
    let (is_range, total) = match &extent.content {
        RawContent::Data { .. } => (false, 1),
        RawContent::Zero { sectors } | RawContent::Unreadable { sectors } => (true, (*sectors).max(1)),
    };
    (0..total).step_by(RANGE_SECTORS_MAX as usize).map(move |at| {
        let mut piece = extent.clone();
        if is_range {
            piece.sector = extent.sector.saturating_add(u64::from(at));
        }
        if let RawContent::Zero { sectors } | RawContent::Unreadable { sectors } = &mut piece.content {
            *sectors = (*sectors - at).min(RANGE_SECTORS_MAX);
        }
        piece
    })
}
