//! A target as the protocol wants it, as small as possible: parts, seals, phases, bulk; durable when it says so.

use std::collections::{BTreeMap, VecDeque};

use proto::frame::{RawContent, RawExtent};
use proto::replication::target_message::Body;
use proto::replication::{
    BulkBegun, FenceRequest, GroupLost, GroupOpened, OpenGroup, PartBegin, PartDurable, PartKey, PartKind, SealSet,
    SetDurable, TargetMessage,
};

use super::judge::Content;
use crate::send::{PartJob, ToLink};

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
    parts: BTreeMap<(u64, u32), Vec<RawExtent>>,
    seals: BTreeMap<u64, SealSet>,
    bulk_open: bool,
    session: Session,
    counter: u64,
    has_history: bool,
    /// Bulk parts that arrived and are not written yet.
    bulk: VecDeque<(u64, PartJob)>,
    pub(super) answers: VecDeque<TargetMessage>,
    pub(super) newly_durable: Vec<Durable>,
    /// The last set before the fence, as the source said.
    pub(super) fenced: Option<u64>,
}

fn message(body: Body) -> TargetMessage {
    TargetMessage { body: Some(body) }
}

impl Target {
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
                    self.arrived.push(job);
                }
            }
            ToLink::Seal(seal) if seal.phase == self.phase => {
                assert_eq!(seal.parent + 1, seal.number);
                self.seals.insert(seal.number, seal);
            }
            ToLink::Fenced(fenced) => {
                assert_eq!(fenced.request, FENCE_REQUEST);
                assert!(self.last_set >= fenced.last_set, "what is named as the last set is durable");
                self.fenced = Some(fenced.last_set);
            }
            _ => {}
        }
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
        self.seals.clear();
        let (reason, message) = ("failed".to_owned(), "a disk is gone".to_owned());
        self.answers.push_back(GroupLost { group: "web".into(), phase: self.phase, reason, message }.into());
    }

    fn open(&mut self, open: OpenGroup) {
        assert!(self.session != Session::Lost || open.phase != self.phase, "a lost group is opened in a new phase");
        self.session = Session::Open;
        if open.phase != self.phase {
            assert!(open.phase > self.phase, "phases never repeat");
            self.phase = open.phase;
            self.arrived.clear();
            self.parts.clear();
            self.seals.clear();
            self.bulk.clear();
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
        })));
    }

    /// Makes something durable: what arrived, then whole sets in order, then one bulk part.
    pub(super) fn work(&mut self) {
        for job in std::mem::take(&mut self.arrived) {
            let PartBegin { group, phase, kind, number, part } = job.begin;
            self.parts.insert((number, part), job.extents);
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
                for extent in self.parts.remove(&(number, part)).unwrap() {
                    sectors += self.apply(&extent);
                }
            }
            assert_eq!(sectors, seal.sectors, "a set has as many sectors as its seal says");
            self.last_set = number;
            self.has_history = true;
            self.counter += 1;
            let durable = SetDurable { group: seal.group.clone(), phase: self.phase, number, counter: self.counter };
            self.answers.push_back(message(Body::SetDurable(durable)));
            self.newly_durable.push(Durable { seal });
        }
        if let Some((phase, job)) = self.bulk.pop_front() {
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

    /// The session ends; what was not written of a bulk is gone. What arrived may become durable all the same, unless
    /// the target has crashed.
    pub(super) fn session_ended(&mut self, crashed: bool) {
        if !crashed {
            self.work();
        }
        self.arrived.clear();
        self.bulk.clear();
        self.answers.clear();
        self.seals.clear();
        self.session = Session::None;
    }

    fn apply(&mut self, extent: &RawExtent) -> u64 {
        let disk = extent.disk.0;
        match &extent.content {
            RawContent::Data { bytes, crc } => {
                assert_eq!(blockio::crc32(bytes), *crc);
                for (index, sector) in bytes.chunks(512).enumerate() {
                    let content = Content::from_le_bytes(*sector.first_chunk().unwrap());
                    self.content.insert((disk, extent.sector + index as u64), content);
                }
                bytes.len() as u64 / 512
            }
            RawContent::Zero { sectors } => {
                for sector in extent.sector..extent.sector + u64::from(*sectors) {
                    self.content.insert((disk, sector), 0);
                }
                u64::from(*sectors)
            }
            RawContent::Unreadable { sectors } => u64::from(*sectors),
        }
    }
}
