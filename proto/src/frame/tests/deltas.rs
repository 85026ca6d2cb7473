//! Deltas and what they are laid over: what comes back is what was sent, and nothing is kept but that.

use std::sync::Arc;

use super::*;

/// A page with a few other bytes than `old`.
fn touched(old: &[u8], at: usize) -> Vec<u8> {
    let mut new = old.to_vec();
    new[at..at + 16].fill(0x5a);
    new
}

/// What is kept of extents that are sent as one frame.
fn parcels_of(extents: &[RawExtent], keep: Keep) -> Vec<Arc<Parcel>> {
    let frames = [extents.to_vec()];
    let batch = Encoder::new().encode_batch((6, 0), &frames, Compression::Zstd(1), &Bases::default(), keep);
    batch.unwrap().parcels
}

/// The blocks of parcels as bases, as if all were of this set.
fn bases_in(parcels: &[Arc<Parcel>], set: u64) -> Bases {
    let mut bases = Bases::default();
    for (parcel, run) in parcels.iter().flat_map(|parcel| parcel.runs().iter().map(move |run| (parcel, run))) {
        for index in 0..run.blocks {
            let at = run.at + index * BASE_BYTES as u32;
            let base = Base { parcel: Arc::clone(parcel), at, set };
            bases.insert(run.disk, run.block + u64::from(index), base);
        }
    }
    bases
}

/// Blocks 1 and 2 of disk 0, and the bases of both.
fn known_blocks() -> (Vec<u8>, Bases) {
    let old = noise(2 * BASE_BYTES);
    let mut bases = bases_in(&parcels_of(&[data(0, 8, old[..BASE_BYTES].to_vec())], Keep::Pages), 4);
    for (disk, block, base) in bases_in(&parcels_of(&[data(0, 16, old[BASE_BYTES..].to_vec())], Keep::Pages), 6).iter()
    {
        bases.insert(disk, block, base.clone());
    }
    (old, bases)
}

fn encode_over(extents: &[RawExtent], level: Compression, bases: &Bases) -> EncodedFrame {
    let frames = [extents.to_vec()];
    Encoder::new().encode_batch((7, 3), &frames, level, bases, Keep::Nothing).unwrap().frames.remove(0)
}

#[test]
fn a_page_of_which_little_changed_is_sent_as_what_changed_and_comes_back_whole() {
    let (old, bases) = known_blocks();
    let extents = [
        zero(0, 8),
        data(0, 8, touched(&old, 5000)),
        data(0, 24, noise(4096)),
        data(1, 8, touched(&old[..BASE_BYTES], 7)),
    ];
    let frame = encode_over(&extents, Compression::Zstd(1), &bases);
    assert!(frame.payload.len() < 8500, "noise of two blocks and a few bytes: {}", frame.payload.len());
    let record = record_of(&frame);
    let header = parse_header(&record).unwrap();
    assert_eq!((header.base_set, delta_ranges(&header).collect::<Vec<_>>()), (6, vec![(0, 8, 16)]));
    let decoded = Decoder::new().decode_over(&record, &old).unwrap();
    assert_eq!(back(&decoded), extents);
    // What is stored needs nothing else.
    let stored = Encoder::new().encode(7, 3, &decoded.to_raw(), Compression::Zstd(1)).unwrap();
    assert_eq!(back(&Decoder::new().decode(&stored.to_record()).unwrap()), extents);
}

#[test]
fn deltas_over_other_content_and_without_any_are_refused() {
    let (old, bases) = known_blocks();
    let frame = encode_over(&[data(0, 8, touched(&old, 100))], Compression::Zstd(1), &bases);
    let record = record_of(&frame);
    let other = touched(&old, 8000);
    for base in [&other[..], &old[..BASE_BYTES], &[]] {
        let error = Decoder::new().decode_over(&record, base).unwrap_err();
        assert_eq!(error, FrameError::Base { disk: DiskIndex(0), sector: 8 });
    }
    assert!(matches!(Decoder::new().decode(&record), Err(FrameError::Header { .. })));
}

#[test]
fn what_gains_nothing_from_its_base_is_sent_whole() {
    let (old, bases) = known_blocks();
    let whole = |extent: RawExtent, level, bases: &Bases| {
        let record = record_of(&encode_over(std::slice::from_ref(&extent), level, bases));
        assert_eq!(back(&Decoder::new().decode(&record).unwrap()), [extent]);
    };
    whole(data(0, 8, noise(8192 + 512)[512..].to_vec()), Compression::Zstd(1), &bases);
    whole(data(0, 8, touched(&old, 100)), Compression::Off, &bases);
    whole(data(0, 8, touched(&old, 100)), Compression::Zstd(1), &Bases::default());
    // A part of a block.
    whole(data(0, 8, touched(&old[..512], 100)), Compression::Zstd(1), &bases);
}

#[test]
fn of_an_extent_of_which_some_blocks_are_known_these_are_deltas() {
    let (old, bases) = known_blocks();
    let new = [noise(4096), touched(&old, 5000), noise(8192)[4096..].to_vec()].concat();
    let frame = encode_over(&[data(0, 0, new.clone())], Compression::Zstd(1), &bases);
    let record = record_of(&frame);
    let header = parse_header(&record).unwrap();
    assert_eq!(delta_ranges(&header).collect::<Vec<_>>(), vec![(0, 8, 16)]);
    let decoded = Decoder::new().decode_over(&record, &old).unwrap();
    assert_eq!(
        back(&decoded),
        [(0, 0..4096), (8, 4096..12288), (24, 12288..16384)]
            .map(|(sector, range)| { data(0, sector, new[range].to_vec()) })
    );
    // Content that is damaged is not given a new sum by it.
    let mut damaged = data(0, 0, new);
    if let RawContent::Data { crc, .. } = &mut damaged.content {
        *crc ^= 1;
    }
    let batch = Encoder::new().encode_batch((7, 3), &[vec![damaged]], Compression::Zstd(1), &bases, Keep::Pages);
    assert!(matches!(batch, Err(FrameError::ExtentCrc { .. })));
}

/// Content that shrinks to about a third.
fn prose(len: usize) -> Vec<u8> {
    noise(len).chunks(8).flat_map(|piece| [piece[0], piece[1], 0, 0, 0, 7, 7, 7]).take(len).collect()
}

/// What parcels hold: disk, block, content.
fn held(parcels: &[Arc<Parcel>]) -> Vec<(u32, u64, Vec<u8>)> {
    let one = |(disk, block, base): (DiskIndex, u64, &Base)| {
        let content = base.parcel.open(&mut Decoder::new()).unwrap();
        (disk.0, block, content[base.at as usize..][..BASE_BYTES].to_vec())
    };
    bases_in(parcels, 1).iter().map(one).collect()
}

#[test]
fn a_frame_that_went_out_compressed_is_its_own_parcel_and_parts_of_blocks_are_not_in_it() {
    let pages = prose(5 * 4096);
    let extents = [
        data(0, 3, pages[..4096].to_vec()),
        data(0, 16, pages[..8192].to_vec()),
        zero(32, 8),
        data(2, 15, pages[..512 + 4096].to_vec()),
    ];
    let frames = [extents.to_vec()];
    let level = Compression::Zstd(1);
    let batch = Encoder::new().encode_batch((1, 0), &frames, level, &Bases::default(), Keep::Pages).unwrap();
    let [parcel] = &batch.parcels[..] else { panic!("{} parcels", batch.parcels.len()) };
    assert_eq!(parcel.packed_bytes(), batch.frames[0].payload.len());
    let block = |at: usize| pages[at..at + 4096].to_vec();
    assert_eq!(held(&batch.parcels), [(0, 2, block(0)), (0, 3, block(4096)), (2, 2, block(512))]);
}

#[test]
fn deltas_are_kept_whole_and_a_large_frame_as_several_parcels() {
    let old = prose(1 << 20);
    let parcels = parcels_of(&[data(0, 8, old.clone())], Keep::Shrinking);
    assert_eq!(parcels.iter().map(|parcel| parcel.raw_bytes()).collect::<Vec<_>>(), [PARCEL_BYTES_MAX; 8]);
    let new = touched(&old, 77_777);
    let frames = [vec![data(0, 8, new.clone())]];
    let (level, bases) = (Compression::Zstd(1), bases_in(&parcels, 3));
    let batch = Encoder::new().encode_batch((4, 0), &frames, level, &bases, Keep::Pages).unwrap();
    assert!(batch.frames[0].payload.len() < 1024);
    let all: Vec<u8> = held(&batch.parcels).into_iter().flat_map(|(.., content)| content).collect();
    assert!(all == new, "what is kept is what the target makes of it");
}

#[test]
fn of_guests_writes_only_pages_are_kept_and_of_all_else_what_shrinks() {
    let file = [data(0, 0, prose(256 << 10))];
    assert_eq!((parcels_of(&file, Keep::Pages).len(), parcels_of(&file, Keep::Shrinking).len()), (0, 2));
    let encrypted = [data(0, 0, noise(8192))];
    assert_eq!((parcels_of(&encrypted, Keep::Pages).len(), parcels_of(&encrypted, Keep::Shrinking).len()), (1, 0));
    assert_eq!(parcels_of(&file, Keep::Nothing), []);
    let frames = [encrypted.to_vec()];
    let raw = Encoder::new().encode_batch((1, 0), &frames, Compression::Off, &Bases::default(), Keep::Pages);
    assert_eq!(raw.unwrap().parcels, []);
}

#[test]
fn a_parcel_is_opened_only_for_as_many_blocks_as_are_worth_it() {
    let old = prose(PARCEL_BYTES_MAX);
    let bases = bases_in(&parcels_of(&[data(0, 0, old.clone())], Keep::Shrinking), 3);
    let deltas = |blocks: usize| {
        let frame = encode_over(&[data(0, 0, touched(&old[..blocks * 4096], 9))], Compression::Zstd(1), &bases);
        delta_ranges(&parse_header(&record_of(&frame)).unwrap()).count()
    };
    assert_eq!((deltas(1), deltas(2)), (0, 1));
}

#[test]
fn a_header_with_deltas_that_say_nothing_of_their_bases_is_refused() {
    let bytes = noise(4096);
    let delta = Extent { is_delta: true, ..extent_of(&bytes) };
    let header = header_of(vec![delta], Encoding::Raw, 4096);
    assert!(parse_header(&forged(&header, &bytes)).is_err());
    let zero = Extent { disk: 0, sector: 0, sectors: 8, crc: 0, content: Content::Zero.into(), is_delta: true };
    let header = FrameHeader { base_set: 1, ..header_of(vec![zero], Encoding::Raw, 0) };
    assert!(parse_header(&forged(&header, &[])).is_err());
}
