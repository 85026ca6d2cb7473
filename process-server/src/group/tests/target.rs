//! A target as the protocol wants it, as small as possible: parts, seals, phases, bulk; durable when it says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::frame::{BASE_BYTES, Bases, Decoder, RawContent, RawExtent};
use proto::replication::target_message::Body;
use proto::replication::{
    BlockRepaired, BlocksCompared, BlocksMissing, BulkBegun, FailbackCancelled, FenceRequest, GroupLost, GroupOpened,
    MarksVoid, MarksVoided, MissingRun, OpenGroup, PartBegin, PartDurable, PartKey, PartKind, RepairBlock, SealSet,
    SetDurable, TargetMessage, VoidNote,
};

use super::judge::Content;
use crate::send::{CompareJob, PartJob, ToLink};

/// Key of the one failback of a world.
const FENCE_REQUEST: u64 = 77;

/// A set that became durable: its cut time (which names the point) and whether it is one.
#[derive(Debug)]
pub(super) struct Durable {
    pub(super) seal: SealSet,
}

/// The conversation about the group on the connection that is up.
#[derive(Debug, Default, PartialEq, Eq)]
enum Session {
    #[default]
    None,
    Open,
    /// The target has lost the group while the connection goes on.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) content: BTreeMap<(u32, u64), Content>,
    pub(super) last_set: u64,
    pub(super) phase: u64,
    /// Parts that arrived.
    arrived: Vec<PartJob>,
    /// Parts that are durable.
    parts: BTreeMap<(u64, u32), (Vec<RawExtent>, Bases)>,
    seals: BTreeMap<u64, SealSet>,
    bulk_open: bool,
    session: Session,
    pub(super) counter: u64,
    has_history: bool,
    /// Bulk parts that arrived and are not written yet.
    bulk: VecDeque<(u64, PartJob)>,
    /// Repairs that arrived and are not written yet.
    repairs: VecDeque<RepairBlock>,
    /// Sectors whose content has rotted since it was written.
    pub(super) rotten: BTreeSet<(u32, u64)>,
    /// Comparisons that arrived and are not answered yet.
    compares: VecDeque<CompareJob>,
    /// The disks were there before.
    existed: bool,
    /// The highest `marks` of durable content.
    marks: u64,
    /// Time of the newest point.
    newest_cut_us: u64,
    /// The source's marks are void: start and number of the note.
    pub(super) void: Option<(u64, u64)>,
    /// How often it was noted that they are.
    pub(super) notes: u64,
    /// Start of the source that opened the session.
    source_start: u64,
    /// Sectors that comparisons found equal, and all that were compared.
    pub(super) same: (u64, u64),
    /// Blocks whose content before a set the source knew.
    pub(super) bases: usize,
    pub(super) answers: VecDeque<TargetMessage>,
    pub(super) newly_durable: Vec<Durable>,
    /// Numbers of the sets that became points.
    pub(super) listed: BTreeSet<u64>,
    /// The last set before the fence, as the source said.
    pub(super) fenced: Option<u64>,
}

/// What an image of the target keeps.
#[derive(Debug, Clone)]
pub(super) struct Image {
    content: BTreeMap<(u32, u64), Content>,
    rotten: BTreeSet<(u32, u64)>,
    pub(super) last_set: u64,
    counter: u64,
    marks: u64,
    pub(super) void: Option<(u64, u64)>,
    bulk_open: bool,
    has_history: bool,
}

/// What each sector of an extent holds.
fn contents(content: &RawContent) -> Vec<Content> {
    match content {
        RawContent::Data { bytes, .. } => {
            bytes.chunks(512).map(|sector| Content::from_le_bytes(*sector.first_chunk().unwrap())).collect()
        }
        RawContent::Zero { sectors } | RawContent::Unreadable { sectors } => vec![0; *sectors as usize],
    }
}

fn message(body: Body) -> TargetMessage {
    TargetMessage { body: Some(body) }
}

impl Target {
    /// A target whose disks hold this: something of their own, or zeroes because they were made for the group.
    pub(super) fn new(content: BTreeMap<(u32, u64), Content>, existed: bool) -> Self {
        Self { content, existed, ..Self::default() }
    }

    pub(super) fn receive(&mut self, received: ToLink) {
        match received {
            ToLink::Open(open) => self.open(open),
            _ if self.session == Session::Lost => {}
            ToLink::BeginBulk(begin) if begin.phase == self.phase => {
                self.bulk_open = true;
                self.answers.push_back(message(Body::BulkBegun(BulkBegun { group: begin.group, phase: begin.phase })));
            }
            ToLink::Part(job) if job.begin.phase == self.phase => {
                if job.begin.kind == PartKind::Bulk as i32 {
                    assert!(self.bulk_open, "bulk data only inside a bulk generation");
                    self.bulk.push_back((self.phase, job));
                } else {
                    let newest = job.bases.iter().map(|(.., base)| base.set).max();
                    assert!(newest.is_none_or(|set| set <= self.last_set), "a base is of a set that was acknowledged");
                    self.arrived.push(job);
                }
            }
            ToLink::Compare(job) if job.phase == self.phase => self.compares.push_back(job),
            ToLink::Repair(repair) if repair.phase == self.phase => {
                assert!(!self.bulk_open, "nothing is repaired in a catching-up");
                self.repairs.push_back(repair);
            }
            ToLink::MarksVoid(void) if void.phase == self.phase => self.note(void),
            ToLink::Seal(seal) if seal.phase == self.phase => {
                assert_eq!(seal.parent + 1, seal.number);
                self.seals.entry(seal.number).or_insert(seal);
            }
            ToLink::Fenced(fenced) => {
                assert_eq!(fenced.request, FENCE_REQUEST);
                assert!(self.last_set >= fenced.last_set, "what is named as the last set is durable");
                self.fenced = Some(fenced.last_set);
            }
            _ => {}
        }
    }

    /// What a target says that has cancelled the failback, or one before it.
    pub(super) fn cancel_failback(&mut self, is_older: bool) {
        let request = FENCE_REQUEST - u64::from(is_older);
        let cancelled = FailbackCancelled { group: "web".into(), request };
        self.answers.push_back(message(Body::FailbackCancelled(cancelled)));
    }

    /// Notes durably what the source's marks are worth.
    fn note(&mut self, void: MarksVoid) {
        let MarksVoid { group, phase, number, valid, marks } = void;
        let note = (self.source_start, number);
        if self.void.is_none_or(|known| known <= note) {
            self.void = (!valid).then_some(note);
            self.notes += u64::from(!valid);
        }
        self.marks = self.marks.max(marks);
        self.counter += 1;
        self.answers.push_back(MarksVoided { group, phase, number, valid, counter: self.counter }.into());
    }

    /// A failback begins.
    pub(super) fn ask_fence(&mut self) {
        let request = FenceRequest { group: "web".into(), request: FENCE_REQUEST };
        self.answers.push_back(message(Body::FenceRequest(request)));
    }

    /// A fault of the target's machine ends the session of the group, but not the connection.
    pub(super) fn lose_group(&mut self) {
        if self.session != Session::Open {
            return;
        }
        self.session = Session::Lost;
        self.arrived.clear();
        self.bulk.clear();
        self.repairs.clear();
        self.seals.clear();
        let (reason, message) = ("failed".to_owned(), "a disk is gone".to_owned());
        self.answers.push_back(GroupLost { group: "web".into(), phase: self.phase, reason, message }.into());
    }

    fn open(&mut self, open: OpenGroup) {
        assert!(self.session != Session::Lost || open.phase != self.phase, "a lost group is opened in a new phase");
        self.session = Session::Open;
        self.source_start = open.source_start;
        if open.phase != self.phase {
            assert!(open.phase > self.phase, "phases never repeat");
            self.phase = open.phase;
            self.arrived.clear();
            self.parts.clear();
            self.seals.clear();
            self.bulk.clear();
            self.repairs.clear();
            self.compares.clear();
        }
        let durable_parts = self.parts.keys().map(|(number, part)| PartKey { number: *number, part: *part }).collect();
        self.answers.push_back(message(Body::GroupOpened(GroupOpened {
            group: open.group,
            phase: open.phase,
            lineage: vec![7; 16],
            counter: self.counter,
            last_set: self.last_set,
            durable_parts,
            bulk_open: self.bulk_open,
            has_history: self.has_history,
            comparable: self.has_history || self.existed,
            marks: self.marks,
            newest_cut_us: self.newest_cut_us,
            app_consistent_every_s: None,
            marks_void: self.void.map(|(source_start, number)| VoidNote { source_start, number }),
        })));
    }

    /// Disk and sector of the oldest repair that waits.
    pub(super) fn to_be_mended(&self) -> Option<(u32, u64)> {
        self.repairs.front().map(|repair| (repair.disk, repair.sector))
    }

    /// Writes the oldest repair that waits, whatever has become durable since.
    pub(super) fn mend(&mut self) {
        let Some(repair) = self.repairs.pop_front() else { return };
        assert_eq!(blockio::crc32(&repair.data), repair.crc);
        for (index, sector) in (repair.sector..).zip(repair.data.chunks(512)) {
            let content = Content::from_le_bytes(*sector.first_chunk().unwrap());
            self.put(repair.disk, index, content);
        }
        self.counter += 1;
        let RepairBlock { group, phase, request, .. } = repair;
        self.answers.push_back(BlockRepaired { group, phase, request, counter: self.counter }.into());
    }

    /// A sector of a disk rots.
    pub(super) fn rot(&mut self, disk: u32, sector: u64) {
        if self.rotten.insert((disk, sector)) {
            *self.content.get_mut(&(disk, sector)).unwrap() ^= 1 << 63;
        }
    }

    /// Says which blocks rotted: the target knows it where the journal or the sums of its blocks tell.
    pub(super) fn tell_missing(&mut self) {
        if self.session != Session::Open || self.rotten.is_empty() {
            return;
        }
        let run = |(disk, sector): &(u32, u64)| MissingRun { disk: *disk, sector: sector / 8 * 8, sectors: 8 };
        let runs = self.rotten.iter().map(run).collect();
        self.answers.push_back(BlocksMissing { group: "web".into(), phase: self.phase, runs }.into());
    }

    fn put(&mut self, disk: u32, sector: u64, content: Content) {
        self.content.insert((disk, sector), content);
        self.rotten.remove(&(disk, sector));
    }

    /// What the source takes for the content of blocks before a set must be it, but where the disk has rotted.
    fn check_bases(&mut self, bases: &Bases, number: u64) {
        self.bases += bases.iter().count();
        let mut decoder = Decoder::new();
        for (disk, block, base) in bases.iter() {
            let parcel = base.parcel.open(&mut decoder).expect("nothing damages memory here");
            let content = &parcel[base.at as usize..][..BASE_BYTES];
            for (sector, base) in (block * 8..).zip(content.chunks(512)) {
                let place = (disk.0, sector);
                if !self.rotten.contains(&place) {
                    let held = self.content.get(&place).copied().unwrap_or_default();
                    let base = Content::from_le_bytes(*base.first_chunk().unwrap());
                    assert_eq!(base, held, "the base of set {number} at disk {disk}, sector {sector}");
                }
            }
        }
    }

    /// Makes something durable: what arrived, then whole sets in order, then one bulk part.
    pub(super) fn work(&mut self) {
        for job in std::mem::take(&mut self.arrived) {
            let PartBegin { group, phase, kind, number, part, .. } = job.begin;
            self.parts.insert((number, part), (job.extents, job.bases));
            let durable = PartDurable { group, phase, kind, number, part, counter: self.counter };
            self.answers.push_back(message(Body::PartDurable(durable)));
        }
        while let Some(seal) = self.seals.get(&(self.last_set + 1)) {
            let number = seal.number;
            let parts: Vec<u32> = (0..seal.parts).collect();
            if !parts.iter().all(|part| self.parts.contains_key(&(number, *part))) {
                break;
            }
            let seal = self.seals.remove(&number).unwrap();
            if self.bulk_open {
                assert!(seal.closes_bulk, "the first set after a bulk ends it");
                assert!(self.bulk.is_empty(), "the last cut waits for all bulk acknowledgements");
                self.bulk_open = false;
            }
            let mut sectors = 0;
            for part in parts {
                let (extents, bases) = self.parts.remove(&(number, part)).unwrap();
                self.check_bases(&bases, number);
                for extent in extents {
                    sectors += self.apply(&extent);
                }
            }
            assert_eq!(sectors, seal.sectors, "a set has as many sectors as its seal says");
            self.last_set = number;
            self.marks = self.marks.max(seal.marks);
            assert!(seal.cut_time_us > self.newest_cut_us, "times of points never go back");
            self.newest_cut_us = seal.cut_time_us;
            self.has_history = true;
            self.counter += 1;
            let durable = SetDurable {
                group: seal.group.clone(),
                phase: self.phase,
                number,
                counter: self.counter,
                takes_deltas: true,
            };
            self.answers.push_back(message(Body::SetDurable(durable)));
            if seal.is_point && seal.unreadable_bytes == 0 {
                self.listed.insert(number);
            }
            self.newly_durable.push(Durable { seal });
        }
        self.compare();
        if let Some((phase, job)) = self.bulk.pop_front() {
            self.marks = self.marks.max(job.begin.marks);
            for extent in &job.extents {
                self.apply(extent);
            }
            self.counter += 1;
            self.has_history = true;
            self.answers.push_back(message(Body::PartDurable(PartDurable {
                group: job.begin.group,
                phase,
                kind: PartKind::Bulk as i32,
                number: 0,
                part: job.begin.part,
                counter: self.counter,
            })));
        }
    }

    /// Answers one comparison. Everything that came before it is in the content.
    fn compare(&mut self) {
        let Some(job) = self.compares.pop_front() else { return };
        assert!(self.bulk.is_empty(), "nothing is compared while bulk content is on its way");
        let mut differs: Vec<u8> = Vec::new();
        let mut unit = 0;
        for extent in &job.extents {
            let there = contents(&extent.content);
            for (index, sectors) in there.chunks(128).enumerate() {
                let first = extent.sector + index as u64 * 128;
                let holds = |at: usize| self.content[&(extent.disk.0, first + at as u64)];
                let same = sectors.iter().enumerate().all(|(at, content)| holds(at) == *content);
                differs.resize(unit / 8 + 1, 0);
                differs[unit / 8] |= u8::from(!same) << (unit % 8);
                unit += 1;
                self.same.0 += if same { sectors.len() as u64 } else { 0 };
                self.same.1 += sectors.len() as u64;
            }
        }
        self.counter += 1;
        let answer =
            BlocksCompared { group: job.group, phase: job.phase, request: job.request, differs, counter: self.counter };
        self.answers.push_back(message(Body::BlocksCompared(answer)));
    }

    /// What is in an image of now.
    pub(super) fn image(&self) -> Image {
        Image {
            content: self.content.clone(),
            rotten: self.rotten.clone(),
            last_set: self.last_set,
            counter: self.counter,
            marks: self.marks,
            void: self.void,
            bulk_open: self.bulk_open,
            has_history: self.has_history,
        }
    }

    /// The target is restored from an image; whoever was connected is not any more.
    pub(super) fn restore(&mut self, image: Image) {
        let Image { content, rotten, last_set, counter, marks, void, bulk_open, has_history } = image;
        let phase = self.phase;
        let (same, existed, notes) = (self.same, self.existed, self.notes);
        *self = Self {
            content,
            rotten,
            last_set,
            counter,
            marks,
            void,
            bulk_open,
            has_history,
            phase,
            same,
            existed,
            notes,
            ..Self::default()
        };
    }

    /// The session ends; what was not written of a bulk is gone. What arrived may become durable all the same, unless
    /// the target has crashed.
    pub(super) fn session_ended(&mut self, crashed: bool) {
        if !crashed {
            self.work();
        }
        self.arrived.clear();
        self.bulk.clear();
        self.repairs.clear();
        self.compares.clear();
        self.answers.clear();
        // A seal that has arrived is kept with the parts, unless it was not durable yet.
        if crashed {
            self.seals.clear();
        }
        self.session = Session::None;
    }

    fn apply(&mut self, extent: &RawExtent) -> u64 {
        let disk = extent.disk.0;
        match &extent.content {
            RawContent::Data { bytes, crc } => {
                assert_eq!(blockio::crc32(bytes), *crc);
                for (index, sector) in bytes.chunks(512).enumerate() {
                    let content = Content::from_le_bytes(*sector.first_chunk().unwrap());
                    self.put(disk, extent.sector + index as u64, content);
                }
                bytes.len() as u64 / 512
            }
            RawContent::Zero { sectors } => {
                for sector in extent.sector..extent.sector + u64::from(*sectors) {
                    self.put(disk, sector, 0);
                }
                u64::from(*sectors)
            }
            RawContent::Unreadable { sectors } => u64::from(*sectors),
        }
    }
}
