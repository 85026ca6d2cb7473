//! A link that a seed troubles again and again, under load: it loses, doubles, delays and reorders datagrams, narrows, goes
//! dark for a moment or for longer than a connection lives, and changes the source's address (P1, P4).
//!
//! What a bad link does in an hour, a fault every twenty seconds, comes here within minutes: the pauses are left out. Now and
//! then the link is well, the clients pause, and all is judged.

use std::sync::Arc;
use std::time::Duration;

use super::history::{fail_back, judge, judge_history};
use crate::guest::Model;
use crate::load::{Load, Pace};
use crate::proxy::{Proxy, Weather};
use crate::random::Random;
use crate::site::Site;
use crate::verdict::model_with_content;

const MIB: u64 = 1 << 20;
/// Faults between two judgements.
const JUDGE_EVERY: u32 = 30;
/// From the last fault until the group is protected again: the connection is given up, made anew, and what was missed sent.
const BACK_WITHIN: Duration = Duration::from_secs(90);

/// What the link does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It loses up to a fifth of the datagrams.
    Lossy,
    /// Datagrams arrive twice and late.
    Disorderly,
    /// It is far away, and now nearer, now farther.
    Far,
    /// It carries 2 to 20 Mbit/s.
    Narrow,
    /// Nothing arrives for up to two seconds.
    Dark,
    /// Nothing arrives for longer than a connection lives.
    Dead,
    /// The source gets another address.
    Moved,
    /// It gets one while nothing arrives.
    MovedInTheDark,
}

impl Fault {
    fn drawn(random: &mut Random) -> Self {
        match random.below(40) {
            0 => Self::Dead,
            1..8 => Self::Lossy,
            8..14 => Self::Disorderly,
            14..20 => Self::Far,
            20..25 => Self::Narrow,
            25..32 => Self::Dark,
            32..36 => Self::Moved,
            _ => Self::MovedInTheDark,
        }
    }
}

/// How many, and of which seed.
#[derive(Clone, Copy, Debug)]
pub struct LinkFaults {
    /// Faults.
    pub faults: u32,
    /// Of the faults and the load.
    pub seed: u64,
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Points listed in the end.
    pub points: usize,
    /// Sessions of the process-server: one more than connections that were given up.
    pub sessions: usize,
}

impl LinkFaults {
    /// Runs it; `tell` hears of each fault.
    ///
    /// # Panics
    /// If anything is refused, lost, wrong or late.
    pub fn run(self, mut tell: impl FnMut(u32, &str)) -> Figures {
        let mut site = Site::new(&[8 * MIB, 6 * MIB]);
        let model = model_with_content(&site);
        let proxy = site.through_proxy(self.seed, Weather::default());
        site.start();
        let mut random = Random::new(self.seed);
        let mut taken = Vec::new();
        let mut load = Some(self.load(&site, &model, 0));
        for number in 1..=self.faults {
            let fault = Fault::drawn(&mut random);
            tell(number, &format!("{fault:?}"));
            trouble(&proxy, fault, &mut random);
            if number.is_multiple_of(JUDGE_EVERY) || number == self.faults {
                proxy.set_weather(Weather::default());
                let summary = load.take().expect("the load runs between judgements").stop();
                assert!(summary.refused.is_empty() && summary.dropped == 0, "the guest noticed: {summary:?}");
                site.wait_protected_within(BACK_WITHIN);
                taken.push(judge(&site, &model));
                load = (number < self.faults).then(|| self.load(&site, &model, number));
            }
        }
        judge_history(&site, &model, &taken);
        let points = site.points().len();
        let sessions = site.source.log().matches("connected to the master-target").count();
        fail_back(&site, &model);
        site.finish(&["nothing heard"]);
        Figures { points, sessions }
    }

    fn load(&self, site: &Site, model: &Arc<Model>, fault: u32) -> Load {
        let seed = self.seed.wrapping_add(u64::from(fault) << 32);
        let pace = Pace { seed, writes_per_second: 40, sectors_used: 12_288, trims: true };
        Load::start(model, &site.clients(1, 6), pace)
    }
}

/// Lets the link have a fault for as long as it lasts. Weather stays until the next one.
fn trouble(proxy: &Proxy, fault: Fault, random: &mut Random) {
    let ms = |random: &mut Random, least, most| Duration::from_millis(least + random.below(most - least));
    let pause = std::thread::sleep;
    let dark = |duration| {
        proxy.cut();
        pause(duration);
        proxy.mend();
    };
    match fault {
        Fault::Lossy => {
            let lost_ppm = 1000 + random.below(200_000);
            proxy.set_weather(Weather { delay: ms(random, 1, 20), lost_ppm, ..Weather::default() });
        }
        Fault::Disorderly => {
            let (doubled_ppm, late_ppm) = (random.below(300_000), random.below(300_000));
            proxy.set_weather(Weather { delay: ms(random, 1, 8), doubled_ppm, late_ppm, ..Weather::default() });
        }
        Fault::Far => {
            let (delay, jitter) = (ms(random, 20, 150), ms(random, 1, 20));
            proxy.set_weather(Weather { delay, jitter, ..Weather::default() });
        }
        Fault::Narrow => {
            let bits_per_second = 2_000_000 + random.below(18_000_000);
            proxy.set_weather(Weather { delay: ms(random, 1, 10), bits_per_second, ..Weather::default() });
        }
        Fault::Dark => dark(ms(random, 50, 2000)),
        Fault::Dead => dark(ms(random, 20_000, 25_000)),
        Fault::Moved => proxy.change_address(),
        Fault::MovedInTheDark => {
            proxy.cut();
            pause(ms(random, 50, 1000));
            proxy.change_address();
            proxy.mend();
        }
    }
    pause(ms(random, 300, 1200));
}
