//! The link: messages go one by one in both directions, and it drops and comes back.

use std::cell::RefCell;
use std::sync::Arc;

use proto::frame::{Compression, Encoder, Parcel};

use super::*;
use crate::send::{PartJob, frames_of};

impl World {
    /// A while in which nothing crosses the link.
    pub(in super::super) fn hold_the_link(&mut self) {
        for _ in 0..200 {
            self.disk_progress();
            self.time_us += 20_000;
            self.turn();
        }
    }

    /// Something that was sent arrives; parts overtake each other and messages.
    pub(in super::super) fn link_progress(&mut self) {
        for _ in 0..self.random.below(4) {
            if self.link.is_empty() {
                return;
            }
            let part = self.link.iter().position(|message| matches!(message, ToLink::Part(_)));
            let index = match part {
                Some(_) if self.random.one_in(2) => {
                    let parts: Vec<usize> =
                        (0..self.link.len()).filter(|index| matches!(self.link[*index], ToLink::Part(_))).collect();
                    parts[self.random.below(parts.len() as u64) as usize]
                }
                // Messages keep their order among themselves.
                _ => self.link.iter().position(|message| !matches!(message, ToLink::Part(_))).unwrap_or_default(),
            };
            let message = self.link.remove(index).unwrap();
            if let ToLink::Part(job) = &message {
                // Mostly the link takes less than the processors compress.
                let compresses = job.begin.number % 16 != 7;
                self.group.link_compresses(compresses);
                let parcels = if compresses { parcels_of(job) } else { Vec::new() };
                self.group.parcels_made(&job.begin, parcels);
            }
            self.target.receive(message);
        }
    }

    pub(in super::super) fn answer(&mut self) {
        if let Some(message) = self.target.answers.pop_front() {
            let now = self.now();
            self.group.message(message, now);
        }
    }

    pub(in super::super) fn drop_link(&mut self) {
        if !self.link_up {
            return;
        }
        self.link_up = false;
        self.link.clear();
        let crashed = self.random.one_in(3);
        self.target.session_ended(crashed);
        let now = self.now();
        self.group.link_down("the cable was pulled".into(), now);
    }

    pub(in super::super) fn raise_link(&mut self) {
        if !self.link_up {
            self.link_up = true;
            let now = self.now();
            self.group.link_up(now);
        }
    }
}

/// What the link keeps of a part, as it encodes it.
fn parcels_of(job: &PartJob) -> Vec<Arc<Parcel>> {
    thread_local! {
        static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
    }
    let PartJob { begin, extents, bases, keep, .. } = job;
    let place = (begin.number, begin.part);
    let frames = frames_of(extents.clone());
    ENCODER.with_borrow_mut(|encoder| {
        encoder.encode_batch(place, &frames, Compression::Zstd(1), bases, *keep).unwrap().parcels
    })
}
