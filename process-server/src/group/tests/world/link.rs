//! The link: messages go one by one in both directions, and it drops and comes back.

use super::*;

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
                self.group.link_compresses(job.begin.number % 16 != 7);
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
