//! Clients that write at random: several connections, sizes from a sector to megabytes, overlaps, zeroes, trims, FUA.
//!
//! Each connection has a thread of its own that keeps some requests in flight and notes every step in the
//! [`Model`]. A connection that drops, because its agent was stopped or killed, is made again. What the load
//! does not do: judge.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::guest::{Kind, Model};
use crate::nbd::{Address, Command, Connection, FLAG_FUA, FLAG_NO_HOLE};
use crate::random::Random;
use crate::sector::SECTOR;

/// One client connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the agent listens.
    pub address: Address,
    /// `GROUP/DISK`.
    pub export: String,
    /// The disk's index in the model.
    pub disk: u32,
    /// Requests in flight.
    pub depth: usize,
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Seed of all clients' choices.
    pub seed: u64,
    /// Upper bound for the writes per second of one client: two cores run both agents, the clients and other tests.
    pub writes_per_second: u64,
    /// All writes stay below this many sectors, so that they overlap often.
    pub sectors_used: u64,
    /// Trims too, on servers that zero all of what is trimmed.
    pub trims: bool,
}

/// Running clients. They stop when this is dropped; [`Load::stop`] also says what happened.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Summary>>,
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Bytes in them, zeroes not counted.
    pub data_bytes: u64,
    /// Replies with an error, by NBD error number.
    pub refused: HashMap<u32, u64>,
    /// Times that a connection dropped.
    pub dropped: u64,
}

impl Load {
    /// Starts `clients`.
    #[must_use]
    pub fn start(model: &Arc<Model>, clients: &[Client], pace: Pace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = clients.iter().cloned().enumerate().map(|(index, client)| {
            let worker = Worker {
                model: Arc::clone(model),
                client,
                pace,
                random: Random::new(pace.seed.wrapping_add(index as u64 * 7919)),
                stop: Arc::clone(&stop),
                done: Arc::clone(&done),
                in_flight: HashMap::new(),
                summary: Summary::default(),
            };
            std::thread::spawn(move || worker.run())
        });
        let threads = threads.collect();
        Self { stop, done, threads }
    }

    /// Waits until `writes` more were acknowledged.
    ///
    /// # Panics
    /// If that takes more than a minute.
    #[track_caller]
    pub fn wait_for_writes(&self, writes: u64) {
        let goal = self.done.load(Ordering::Relaxed) + writes;
        crate::wait::until(&format!("{writes} writes"), Duration::from_secs(60), || {
            let done = self.done.load(Ordering::Relaxed);
            if done >= goal { Ok(()) } else { Err(format!("{done} of {goal}")) }
        });
    }

    /// Stops the clients, waits for all their answers, and says what they saw.
    ///
    /// # Panics
    /// If a client panicked.
    #[must_use]
    pub fn stop(mut self) -> Summary {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Summary::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().expect("a client does not panic");
            total.acknowledged += one.acknowledged;
            total.data_bytes += one.data_bytes;
            total.dropped += one.dropped;
            for (error, count) in one.refused {
                *total.refused.entry(error).or_default() += count;
            }
        }
        total
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It matters only to `stop`, which has taken the threads by then.
            let _ = thread.join();
        }
    }
}

struct Worker {
    model: Arc<Model>,
    client: Client,
    pace: Pace,
    random: Random,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// Cookie to the write's number in the model and its data bytes; `None` for a flush.
    in_flight: HashMap<u64, Option<(u64, u64)>>,
    summary: Summary,
}

impl Worker {
    fn run(mut self) -> Summary {
        while !self.stopping() {
            let Ok(mut connection) = Connection::open(&self.client.address, &self.client.export) else {
                // The agent is down or starting.
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            if self.write_until_stopped(&mut connection).is_err() {
                self.summary.dropped += 1;
            }
            // Only now, with the agent gone: until then the lost writes may still land.
            for (write, _) in self.in_flight.drain().filter_map(|(_, write)| write) {
                self.model.give_up(write);
            }
        }
        self.summary
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn write_until_stopped(&mut self, connection: &mut Connection) -> io::Result<()> {
        let started = Instant::now();
        let mut issued = 0;
        while !self.stopping() {
            let due = started.elapsed().as_millis() as u64 * self.pace.writes_per_second / 1000;
            if issued > due {
                std::thread::sleep(Duration::from_millis(1));
            }
            while connection.in_flight() < self.client.depth && issued <= due {
                self.issue(connection)?;
                issued += 1;
            }
            if connection.in_flight() > 0 {
                self.complete(connection)?;
            }
        }
        while connection.in_flight() > 0 {
            self.complete(connection)?;
        }
        Ok(())
    }

    fn issue(&mut self, connection: &mut Connection) -> io::Result<()> {
        if self.random.percent(2) {
            let cookie = connection.submit(Command::Flush, 0, 0, 0, &[])?;
            self.in_flight.insert(cookie, None);
            return Ok(());
        }
        let used = self.pace.sectors_used.min(self.model.sectors(self.client.disk));
        let sectors = self.sectors().min(used);
        let aligned = self.random.percent(60) && sectors >= 8;
        let mut first = self.random.below(used - sectors + 1);
        if aligned {
            first -= first % 8;
        }
        let command = match self.random.below(100) {
            0..80 => Command::Write,
            80..90 if self.pace.trims => Command::Trim,
            _ => Command::WriteZeroes,
        };
        let kind = if command == Command::Write { Kind::Data } else { Kind::Zero };
        let mut flags = if self.random.percent(10) { FLAG_FUA } else { 0 };
        if command == Command::WriteZeroes && self.random.percent(50) {
            flags |= FLAG_NO_HOLE;
        }
        let write = self.model.issue(self.client.disk, first, sectors, kind);
        let data = if kind == Kind::Data { self.model.content(write) } else { Vec::new() };
        let bytes = data.len() as u64;
        let length = u32::try_from(sectors * SECTOR as u64).expect("a write is a few MiB");
        // Noted first: a request that fails half way may still have been received.
        self.in_flight.insert(connection.next_cookie(), Some((write, bytes)));
        connection.submit(command, flags, first * SECTOR as u64, length, &data)?;
        Ok(())
    }

    /// Mostly small, as databases write; now and then what is split on its way (over 1 MiB).
    fn sectors(&mut self) -> u64 {
        match self.random.below(100) {
            0..15 => 1 + self.random.below(7),
            15..70 => 8,
            70..90 => 8 * (1 + self.random.below(16)),
            90..99 => 1 + self.random.below(1024),
            _ => 1 + self.random.below(5000),
        }
    }

    fn complete(&mut self, connection: &mut Connection) -> io::Result<()> {
        let completion = connection.complete()?;
        let Some(Some((write, bytes))) = self.in_flight.remove(&completion.cookie) else { return Ok(()) };
        if completion.error == 0 {
            self.model.acknowledge(write);
            self.summary.acknowledged += 1;
            self.summary.data_bytes += bytes;
            self.done.fetch_add(1, Ordering::Relaxed);
        } else {
            self.model.give_up(write);
            *self.summary.refused.entry(completion.error).or_default() += 1;
        }
        Ok(())
    }
}
