//! The thread that carries datagrams between the agents, and the handle that a test holds.
//!
//! ```text
//!  process-server  <--->  near socket | far socket, one for each client address  <--->  master-target
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::Weather;
use super::weather::Queue;
use crate::random::Random;

/// Orders of the test are looked at this often, and it is the longest wait.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes of the kernel's buffers: what the proxy is too slow for must not count as lost on the link.
const BUFFER_BYTES: usize = 16 << 20;
/// Client addresses that are remembered; each restart of an agent brings a new one.
const FLOWS_MAX: usize = 64;
/// Datagrams taken from one socket before the others have their turn.
const TURN: usize = 64;

/// A running proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    weather: Mutex<Weather>,
    cut: AtomicBool,
    moves: AtomicU64,
    stop: AtomicBool,
    from_source: AtomicU64,
    from_target: AtomicU64,
}

impl Proxy {
    /// Carries datagrams between whoever sends to [`Self::address`] and `target`.
    ///
    /// # Panics
    /// If there is no socket to be had.
    #[must_use]
    pub fn start(target: SocketAddr, seed: u64, weather: Weather) -> Self {
        let near = socket();
        let address = near.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            weather: Mutex::new(weather),
            cut: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            from_source: AtomicU64::new(0),
            from_target: AtomicU64::new(0),
        });
        let carrier = Carrier {
            near,
            target,
            flows: Vec::new(),
            moved: 0,
            random: Random::new(seed),
            under_way: BinaryHeap::new(),
            taken: 0,
            queues: [(Instant::now(), Queue::default()); 2],
            shared: Arc::clone(&shared),
        };
        Self { address, shared, thread: Some(std::thread::spawn(move || carrier.run())) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Other weather from now on.
    pub fn set_weather(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Swallows everything, both ways, until [`Self::mend`].
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// Ends [`Self::cut`].
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::Relaxed);
    }

    /// From now on the target sees every client at another address; what it sends to the old one is lost.
    pub fn change_address(&self) {
        self.shared.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of UDP payload that the process-server has sent.
    #[must_use]
    pub fn from_source(&self) -> u64 {
        self.shared.from_source.load(Ordering::Relaxed)
    }

    /// Bytes of UDP payload that the master-target has sent.
    #[must_use]
    pub fn from_target(&self) -> u64 {
        self.shared.from_target.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP socket");
    socket.set_nonblocking(true).expect("sockets can be non-blocking");
    // Root may go beyond the limit of the system.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES).expect("sockets have buffers");
    }
    socket
}

struct Flow {
    client: SocketAddr,
    far: UdpSocket,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    ToTarget,
    ToSource,
}

/// A datagram under way: when it is due, its turn among those due at once, and whose it is.
type Datagram = (Instant, u64, Way, SocketAddr, Vec<u8>);

struct Carrier {
    near: UdpSocket,
    target: SocketAddr,
    flows: Vec<Flow>,
    moved: u64,
    random: Random,
    under_way: BinaryHeap<Reverse<Datagram>>,
    taken: u64,
    /// Of each way, with the time of its last datagram.
    queues: [(Instant, Queue); 2],
    shared: Arc<Shared>,
}

impl Carrier {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.move_if_told();
            self.wait();
            self.take_from_source();
            self.take_from_target();
            self.deliver();
        }
    }

    fn move_if_told(&mut self) {
        let moves = self.shared.moves.load(Ordering::Relaxed);
        if moves != self.moved {
            self.moved = moves;
            self.flows.iter_mut().for_each(|flow| flow.far = socket());
        }
    }

    fn wait(&self) {
        let due = self.under_way.peek().map(|Reverse(first)| first.0);
        let wait = due.map_or(LOOK_EVERY, |due| due.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
        let timeout = Timespec::try_from(wait).expect("milliseconds");
        let sockets = std::iter::once(&self.near).chain(self.flows.iter().map(|flow| &flow.far));
        let mut watched: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        // Interrupted or not: the sockets are asked anyway.
        let _ = poll(&mut watched, Some(&timeout));
    }

    fn take_from_source(&mut self) {
        let mut buffer = [0; 65536];
        for _ in 0..TURN {
            let Ok((bytes, client)) = self.near.recv_from(&mut buffer) else { return };
            self.shared.from_source.fetch_add(bytes as u64, Ordering::Relaxed);
            if !self.flows.iter().any(|flow| flow.client == client) {
                self.flows.truncate(FLOWS_MAX - 1);
                self.flows.insert(0, Flow { client, far: socket() });
            }
            self.send_off(Way::ToTarget, client, &buffer[..bytes]);
        }
    }

    fn take_from_target(&mut self) {
        let mut buffer = [0; 65536];
        for index in 0..self.flows.len() {
            for _ in 0..TURN {
                let Ok((bytes, _)) = self.flows[index].far.recv_from(&mut buffer) else { break };
                self.shared.from_target.fetch_add(bytes as u64, Ordering::Relaxed);
                let client = self.flows[index].client;
                self.send_off(Way::ToSource, client, &buffer[..bytes]);
            }
        }
    }

    fn send_off(&mut self, way: Way, client: SocketAddr, bytes: &[u8]) {
        if self.shared.cut.load(Ordering::Relaxed) {
            return;
        }
        let weather = *self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (last, queue) = &mut self.queues[way as usize];
        let queued = queue.take(bytes.len(), now.duration_since(*last), weather.bits_per_second);
        *last = now;
        let Some(queued) = queued else { return };
        for delay in weather.fate(&mut self.random).into_iter().flatten() {
            self.taken += 1;
            self.under_way.push(Reverse((now + queued + delay, self.taken, way, client, bytes.to_vec())));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(first)) = self.under_way.peek()
            && first.0 <= now
        {
            let Some(Reverse((_, _, way, client, bytes))) = self.under_way.pop() else { return };
            // What can't be sent is lost, as on any link: the other side may be down.
            let _ = match way {
                Way::ToSource => self.near.send_to(&bytes, client),
                Way::ToTarget => match self.flows.iter().find(|flow| flow.client == client) {
                    Some(flow) => flow.far.send_to(&bytes, self.target),
                    None => Ok(0),
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ends {
        proxy: Proxy,
        source: UdpSocket,
        target: UdpSocket,
    }

    fn ends(weather: Weather) -> Ends {
        let target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let source = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        for socket in [&target, &source] {
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
        }
        let proxy = Proxy::start(target.local_addr().expect("an address"), 1, weather);
        Ends { proxy, source, target }
    }

    impl Ends {
        fn send(&self, text: &str) {
            self.source.send_to(text.as_bytes(), self.proxy.address()).expect("sent");
        }

        fn arrived(&self) -> Option<(String, SocketAddr)> {
            let mut buffer = [0; 100];
            let (bytes, from) = self.target.recv_from(&mut buffer).ok()?;
            Some((String::from_utf8_lossy(&buffer[..bytes]).into_owned(), from))
        }
    }

    #[test]
    fn datagrams_go_both_ways_and_are_counted() {
        let ends = ends(Weather::default());
        ends.send("there");
        let (text, from) = ends.arrived().expect("it arrives");
        assert_eq!(text, "there");
        ends.target.send_to(b"back!!", from).expect("sent");
        let mut buffer = [0; 100];
        assert_eq!(ends.source.recv(&mut buffer).expect("it arrives"), 6);
        assert_eq!((ends.proxy.from_source(), ends.proxy.from_target()), (5, 6));
    }

    #[test]
    fn a_cut_link_swallows_and_still_counts_what_was_sent() {
        let ends = ends(Weather::default());
        ends.proxy.cut();
        ends.send("gone");
        assert_eq!(ends.arrived(), None);
        assert_eq!(ends.proxy.from_source(), 4);
        ends.proxy.mend();
        ends.send("here");
        assert_eq!(ends.arrived().expect("it arrives").0, "here");
    }

    #[test]
    fn a_change_of_address_shows_at_the_target_and_the_old_one_is_dead() {
        let ends = ends(Weather::default());
        ends.send("a");
        let (_, old) = ends.arrived().expect("it arrives");
        ends.proxy.change_address();
        std::thread::sleep(LOOK_EVERY * 3);
        ends.send("b");
        let (_, new) = ends.arrived().expect("it arrives");
        assert_ne!(old, new);
        let _ = ends.target.send_to(b"lost", old);
        ends.source.recv(&mut [0; 10]).expect_err("the old address is dead");
    }

    #[test]
    fn a_delay_delays_and_a_double_arrives_twice() {
        let delay = Duration::from_millis(60);
        let ends = ends(Weather { delay, doubled_ppm: 1_000_000, ..Weather::default() });
        let start = Instant::now();
        ends.send("twice");
        assert!(ends.arrived().is_some() && ends.arrived().is_some());
        assert!(start.elapsed() >= delay);
        assert_eq!(ends.arrived(), None);
    }
}
