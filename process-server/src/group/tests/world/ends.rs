//! How a life of the source ends and the next begins: clean stops, kills and losses of power, and targets that come back
//! from an image meanwhile.

use super::*;

impl World {
    /// The source ends and starts again: cleanly, killed, or by a loss of power; in rare cases the target comes back
    /// from an image at the same time.
    pub(in super::super) fn restart(&mut self) {
        if !self.may_crash() {
            return;
        }
        self.drop_link();
        // Sets of the life that ends may still become durable; they are judged by its epochs.
        self.judge_points();
        let clean = self.guest.is_empty() && self.ops.is_empty();
        self.cache.process_ends();
        let exact = self.group.marks_settled().filter(|_| clean && self.random.one_in(2)).map(|commit| {
            let (dirty, suspect) = self.group.exact();
            Exact::new(commit, self.group.key(), Vec::new(), dirty, suspect).unwrap()
        });
        if exact.is_none() {
            self.crash();
        }
        let exact = if self.maybe_restore_source() { None } else { exact };
        self.start(exact);
        match self.image.take() {
            None => self.image = Some(self.target.image()),
            // What nobody could notice: see `images`.
            Some(image) if self.target.void.is_some() && image.void != self.target.void => self.image = Some(image),
            Some(image) if self.random.one_in(4) => self.target.restore(image),
            Some(image) if self.random.one_in(2) => self.image = Some(image),
            Some(_) => {}
        }
    }

    /// Disks and marks as they are now.
    pub(in super::super) fn source_image(&self) -> SourceImage {
        (self.disks.clone(), self.marks.clone())
    }

    /// The source is killed while nothing is under way, and starts again: with what it has, or from an image.
    pub(in super::super) fn is_killed(&mut self, image: Option<SourceImage>) {
        assert!(self.guest.is_empty() && self.ops.is_empty(), "nothing is under way");
        self.drop_link();
        self.judge_points();
        self.cache.process_ends();
        if let Some((disks, marks)) = image {
            (self.disks, self.marks) = (disks, marks);
        }
        self.start(None);
    }

    /// A life begins, with the disks and the marks as they are.
    fn start(&mut self, exact: Option<Exact>) {
        self.flushed.clone_from(&self.disks);
        self.synced_marks.clone_from(&self.marks);
        let (intent, is_known) = match Intent::read(layout(), &self.marks) {
            Some(intent) => (intent, true),
            None => {
                let mut intent = Intent::unknown(layout());
                self.marks = intent.whole();
                intent.whole_is_durable();
                self.synced_marks.clone_from(&self.marks);
                (intent, false)
            }
        };
        let tracking = match exact {
            Some(exact) => {
                assert_eq!(exact.commit, intent.committed());
                Tracking::exact(intent, exact)
            }
            None if is_known => Tracking::marked(intent, CatchUpReason::SourceCrash),
            None => Tracking::marked(intent, CatchUpReason::SourceDoubt),
        };
        self.starts += 1;
        self.verifying = None;
        let options = GroupOptions { source_start: self.starts, ..self.group.options.clone() };
        self.unmarked += self.group.regions_unmarked();
        self.group = Group::new(options, tracking, self.now());
        self.guest.clear();
        self.ops.clear();
        self.answered = self.asked;
        self.quiesced.clear();
        self.judge = Judge::default();
        for (disk, sectors) in self.disks.iter().enumerate() {
            for (sector, content) in sectors.iter().enumerate() {
                self.judge.initial(disk as u32, sector as u64, *content);
            }
        }
    }

    /// What is under way lands in part; without power, what was not flushed may be lost, and pages be torn.
    fn crash(&mut self) {
        let power = self.random.one_in(2);
        for op in std::mem::take(&mut self.ops) {
            match op {
                DiskOp::Write { landed, lands, disk, sector, .. } => {
                    let until = landed + self.random.below(lands.len() as u64 - landed + 1);
                    for at in landed..until {
                        self.disks[disk as usize][(sector + at) as usize] = lands[at as usize];
                    }
                }
                DiskOp::Marks { pages, written } => {
                    for (page, bytes) in &pages[written..] {
                        if self.random.one_in(2) {
                            put_page(&mut self.marks, *page, bytes);
                        }
                    }
                }
                DiskOp::Read { .. } | DiskOp::Flush { .. } => {}
            }
        }
        if !power {
            return;
        }
        for (disk, flushed) in self.disks.iter_mut().zip(&self.flushed) {
            for (content, kept) in disk.iter_mut().zip(flushed) {
                if self.random.one_in(2) {
                    *content = *kept;
                }
            }
        }
        let pages = self.marks.chunks_exact_mut(PAGE_BYTES).zip(self.synced_marks.chunks_exact(PAGE_BYTES));
        for (page, kept) in pages {
            match self.random.below(3) {
                0 => page.copy_from_slice(kept),
                // Torn: some sectors are new.
                1 => page[..2048].copy_from_slice(&kept[..2048]),
                _ => {}
            }
        }
    }
}
