//! The guest: what it writes and where, and the points that are asked for.

use super::*;

impl World {
    /// A point as an operator asks for it, or of machines that are quiesced, perhaps no longer.
    pub(super) fn ask_for_point(&mut self, label: Option<String>) {
        let now = self.now();
        let asked = match self.random.below(3) {
            0 => PointAsked::App { frozen_until: now.mono + Duration::from_secs(1) },
            1 if self.random.one_in(4) => PointAsked::App { frozen_until: now.mono },
            _ => PointAsked::Crash,
        };
        let epoch = self.group.epochs.current().0;
        let is_cut = self.group.request_point(self.asked, label, asked, now);
        match asked {
            PointAsked::App { frozen_until } if frozen_until == now.mono => assert!(!is_cut, "nothing is quiesced"),
            PointAsked::App { .. } if is_cut => _ = self.quiesced.insert(epoch),
            _ => {}
        }
    }

    pub(super) fn guest_writes(&mut self) {
        if self.guest.len() > 12 {
            return;
        }
        let disk = self.random.below(u64::from(DISKS)) as u32;
        let sectors = match self.slow.1 {
            true => [1, 8, 24, 40][self.random.below(4) as usize],
            false => [1, 3, 8, 8, 8, 20][self.random.below(6) as usize],
        };
        // Mostly in one place for a while, so that other regions come to rest and are unmarked; and elsewhere while that
        // is being written down.
        let marking = self.ops.iter().any(|op| matches!(op, DiskOp::Marks { .. }));
        if self.random.one_in(if marking || self.slow.1 { 4 } else { 40 }) {
            self.hot = self.random.below(SECTORS);
        }
        // What is being mended is what a guest should overwrite.
        if let Some((_, sector)) = self.target.to_be_mended() {
            self.hot = sector;
        }
        let sector = match self.random.one_in(30) {
            true => self.random.below(SECTORS - sectors + 1),
            false => (self.hot + self.random.below(16)).min(SECTORS - sectors),
        };
        let sector = if sectors == 8 { (sector / 8 * 8).min(SECTORS - 8) } else { sector };
        let zero = self.random.one_in(6);
        self.guest_writes_at(disk, sector, sectors, zero);
    }

    pub(in super::super) fn guest_writes_at(&mut self, disk: u32, sector: u64, sectors: u64, zero: bool) {
        self.versions += 1;
        let content: Vec<Content> =
            (0..sectors).map(|index| if zero { 0 } else { self.versions * 100 + index }).collect();
        let change = if zero { Change::Zero } else { Change::Data(bytes_of(&content)) };
        let epoch = self.group.epochs.current().0;
        let Ok(admitted) = self.group.admit(DiskIndex(disk), sector, sectors, change) else { return };
        let (Admitted::Submit(id) | Admitted::Wait(id)) = admitted;
        self.guest.insert(id, Guest { epoch, disk, sector, content });
        if matches!(admitted, Admitted::Submit(_)) {
            self.submit(id);
        }
    }

    pub(super) fn submit(&mut self, id: WriteId) {
        let guest = &self.guest[&id];
        let lands = guest.content.clone();
        self.ops.push(DiskOp::Write { id, landed: 0, lands, disk: guest.disk, sector: guest.sector });
    }
}
