//! kill -9, again and again, at moments that a seed chooses, under load; the group comes back each time (P5).
//!
//! Every few cycles the clients pause and all is judged: the sources hold everything that was acknowledged, a point taken
//! now is what the guest saw, the VMDKs equal the sources. In the end the group is failed back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::{fail_back, judge, judge_history};
use crate::agent::Role;
use crate::guest::Model;
use crate::load::{Load, Pace};
use crate::random::Random;
use crate::site::Site;
use crate::verdict::model_with_content;

const MIB: u64 = 1 << 20;
/// Cycles between two judgements.
const JUDGE_EVERY: u32 = 5;

/// How long, and who.
#[derive(Clone, Copy, Debug)]
pub struct KillLoop {
    /// `None` lets the seed choose in each cycle.
    pub victim: Option<Role>,
    /// Kills.
    pub cycles: u32,
    /// Of the moments, the victims and the load.
    pub seed: u64,
}

impl KillLoop {
    /// Runs it; `tell` hears of each cycle and the seconds from the kill until the group was protected again.
    ///
    /// # Panics
    /// If anything is lost, wrong or late.
    pub fn run(self, mut tell: impl FnMut(u32, Role, f64)) -> Vec<f64> {
        let mut site = Site::new(&[8 * MIB, 6 * MIB]);
        let model = model_with_content(&site);
        site.start();
        let mut random = Random::new(self.seed);
        let (mut recovered, mut taken) = (Vec::new(), Vec::new());
        let mut load = Some(self.load(&site, &model, 0));
        for cycle in 1..=self.cycles {
            let victim = self.victim(&mut random);
            let seconds = blow(&mut site, victim, &mut random);
            tell(cycle, victim, seconds);
            recovered.push(seconds);
            if cycle.is_multiple_of(JUDGE_EVERY) || cycle == self.cycles {
                let summary = load.take().expect("the load runs between judgements").stop();
                assert!(summary.refused.is_empty(), "{summary:?}");
                taken.push(judge(&site, &model));
                load = (cycle < self.cycles).then(|| self.load(&site, &model, cycle));
            }
        }
        judge_history(&site, &model, &taken);
        fail_back(&site, &model);
        site.finish(&["nothing heard"]);
        recovered
    }

    fn victim(&self, random: &mut Random) -> Role {
        let drawn = if random.percent(50) { Role::Source } else { Role::Target };
        self.victim.unwrap_or(drawn)
    }

    fn load(&self, site: &Site, model: &Arc<Model>, cycle: u32) -> Load {
        let seed = self.seed.wrapping_add(u64::from(cycle) << 32);
        let pace = Pace { seed, writes_per_second: 30, sectors_used: 12_288, trims: true };
        Load::start(model, &site.clients(1, 6), pace)
    }
}

/// Kills and restarts one agent; one time in four again, before it has recovered. Returns the seconds until all was well.
fn blow(site: &mut Site, victim: Role, random: &mut Random) -> f64 {
    let pause = |random: &mut Random, most_ms| std::thread::sleep(Duration::from_millis(random.below(most_ms)));
    pause(random, 700);
    let mut killed = Instant::now();
    let blows = if random.percent(25) { 2 } else { 1 };
    for blow in 0..blows {
        if blow > 0 {
            pause(random, 400);
            killed = Instant::now();
        }
        match victim {
            Role::Source => site.source.kill(),
            Role::Target => site.target.kill(),
        }
        pause(random, 200);
        match victim {
            Role::Source => site.start_source(),
            Role::Target => site.start_target(),
        }
    }
    site.wait_protected();
    killed.elapsed().as_secs_f64()
}
