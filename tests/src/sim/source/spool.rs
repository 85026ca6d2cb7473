//! The cache volume of the simulated source: operations that take their time, fail, and find no room.
//!
//! Nothing orders operations; what lands last stays. The file has no name, so it is gone with its process. What it gives
//! back is what was written: damage of the cache is played by the group core's own simulation.

use bytes::Bytes;
use process_server::group::Group;

use crate::random::Random;
use crate::sim::trace;

/// Bytes that move in one step.
const STEP: usize = 2048;

#[derive(Debug)]
enum Op {
    Open,
    Write { id: u64, offset: usize, data: Vec<u8>, landed: usize },
    Read { id: u64, offset: usize, len: usize, seen: Vec<u8> },
    Empty,
}

/// The volume.
#[derive(Debug)]
pub(super) struct SimSpool {
    content: Vec<u8>,
    ops: Vec<Op>,
}

impl SimSpool {
    pub(super) fn new(bytes: u64) -> Self {
        Self { content: vec![0; bytes as usize], ops: Vec::new() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    /// The process has ended, and its file with it.
    pub(super) fn process_ends(&mut self) {
        self.ops.clear();
        self.content.fill(0x77);
    }

    pub(super) fn open(&mut self) {
        assert!(self.ops.is_empty(), "a new file is made when nothing is under way in the old one");
        self.ops.push(Op::Open);
    }

    pub(super) fn write(&mut self, id: u64, offset: u64, len: u64, pieces: &[Bytes]) {
        let mut data = pieces.concat();
        data.resize(len as usize, 0);
        assert!(offset as usize + data.len() <= self.content.len(), "the spool is written within its bound");
        self.ops.push(Op::Write { id, offset: offset as usize, data, landed: 0 });
    }

    pub(super) fn read(&mut self, id: u64, offset: u64, len: u32) {
        assert!(offset as usize + len as usize <= self.content.len(), "the spool is read within its bound");
        self.ops.push(Op::Read { id, offset: offset as usize, len: len as usize, seen: Vec::new() });
    }

    pub(super) fn empty(&mut self) {
        self.ops.push(Op::Empty);
    }

    /// One operation goes on, or ends: one in `errors` of them fails, and leaves anything.
    pub(super) fn progress(&mut self, group: &mut Group, errors: u64, random: &mut Random) {
        if self.ops.is_empty() {
            return;
        }
        let index = random.below(self.ops.len() as u64) as usize;
        let step = STEP * (1 + random.below(4) as usize);
        let has_ended = match &mut self.ops[index] {
            Op::Open | Op::Empty => true,
            Op::Write { offset, data, landed, .. } => {
                let until = (*landed + step).min(data.len());
                self.content[*offset + *landed..*offset + until].copy_from_slice(&data[*landed..until]);
                *landed = until;
                until == data.len()
            }
            Op::Read { offset, len, seen, .. } => {
                let until = (seen.len() + step).min(*len);
                seen.extend_from_slice(&self.content[*offset + seen.len()..*offset + until]);
                until == *len
            }
        };
        if !has_ended {
            return;
        }
        let fails = errors > 0 && random.below(errors) == 0;
        let result = if fails { Err("no space left on device".to_owned()) } else { Ok(()) };
        match self.ops.swap_remove(index) {
            Op::Open => {
                self.content.fill(0);
                group.spool_opened(result);
            }
            Op::Empty => group.spool_emptied(result),
            Op::Write { id, offset, data, .. } => {
                trace::step("the spool is written (well)", result.is_ok().into(), data.len() as u64);
                if fails {
                    let torn = random.below(data.len() as u64) as usize;
                    self.content[offset + torn..offset + data.len()].fill(0x33);
                }
                group.spool_written(id, result);
            }
            Op::Read { id, seen, .. } => group.spool_read(id, result.map(|()| Bytes::from(seen))),
        }
    }
}
