//! How a life of the simulated source ends and the next begins: clean stops, kills and losses of power.

use process_server::dirty::{Exact, Intent, PAGE_BYTES};
use process_server::group::{CatchUpReason, Group, GroupOptions, Now, Tracking};

use super::{Op, Source, layout, put_page};
use crate::random::Random;
use crate::sim::history::History;
use crate::sim::trace;

impl Source {
    /// The agent stops, cleanly where it can; the next start begins at once.
    pub fn stop(&mut self, now: Now) {
        let exact = self.group.marks_settled().filter(|_| self.is_idle()).and_then(|commit| {
            let (dirty, suspect) = self.group.exact();
            Exact::new(commit, self.group.key(), Vec::new(), dirty, suspect)
        });
        trace::step("source stops (cleanly)", exact.is_some().into(), self.starts);
        if exact.is_none() {
            self.land_some(&mut Random::new(self.tick));
        }
        self.start(exact, now);
    }

    /// The agent is killed, or the machine loses its power.
    pub fn crash(&mut self, power: bool, random: &mut Random, now: Now) {
        trace::step("source crashes (power)", power.into(), self.starts);
        self.land_some(random);
        if power {
            self.disks.iter_mut().for_each(|disk| disk.lose_power(random));
            let life = self.lives.last().expect("there is always one");
            life.check_disks(&self.image()).unwrap_or_else(|why| panic!("after a loss of power: {why}"));
            let pages = self.marks.chunks_exact_mut(PAGE_BYTES).zip(self.synced_marks.chunks_exact(PAGE_BYTES));
            for (page, kept) in pages {
                match random.below(3) {
                    0 => page.copy_from_slice(kept),
                    // Torn: some sectors are new.
                    1 => page[..2048].copy_from_slice(&kept[..2048]),
                    _ => {}
                }
            }
        }
        self.start(None, now);
    }

    /// What is under way lands in part.
    fn land_some(&mut self, random: &mut Random) {
        for op in std::mem::take(&mut self.ops) {
            match op {
                Op::Write { id, landed } => {
                    let write = &self.writes[&id];
                    let until = landed + random.below((write.content.len() - landed) as u64 + 1) as usize;
                    for at in landed..until {
                        self.disks[write.disk as usize].put(write.sector as usize + at, write.content[at]);
                    }
                }
                Op::Marks { pages, written } => {
                    for (page, bytes) in pages[written..].iter().filter(|_| random.percent(50)) {
                        put_page(&mut self.marks, *page, bytes);
                    }
                }
                Op::Read { .. } | Op::Flush { .. } | Op::GuestFlush { .. } => {}
            }
        }
        self.writes.clear();
    }

    fn start(&mut self, exact: Option<Exact>, now: Now) {
        // A starting agent flushes each disk before it trusts anything (rule S14).
        self.disks.iter_mut().for_each(|disk| disk.unflushed.clear());
        self.synced_marks.clone_from(&self.marks);
        let (intent, is_known) = match Intent::read(layout(&self.sizes), &self.marks) {
            Some(intent) => (intent, true),
            None => {
                let mut intent = Intent::unknown(layout(&self.sizes));
                self.marks = intent.whole();
                intent.whole_is_durable();
                self.synced_marks.clone_from(&self.marks);
                (intent, false)
            }
        };
        let tracking = match exact.filter(|exact| exact.commit == intent.committed()) {
            Some(exact) if is_known => Tracking::exact(intent, exact),
            _ if is_known => Tracking::marked(intent, CatchUpReason::SourceCrash),
            _ => Tracking::marked(intent, CatchUpReason::SourceDoubt),
        };
        self.spool.process_ends();
        self.starts += 1;
        let mut source_instance = [0; 16];
        source_instance[..8].copy_from_slice(&self.starts.to_le_bytes());
        let (source_start, (fenced, fence_request)) = (self.starts, self.fenced);
        let options = GroupOptions { source_start, source_instance, fenced, fence_request, ..self.options.clone() };
        self.group = Group::new(options, tracking, now);
        self.ops.clear();
        self.writes.clear();
        self.lives.push(History::new(&self.image()));
        for (disk, sector) in self.unread.clone() {
            self.life().unreadable(disk, sector..sector + 1);
        }
    }
}
