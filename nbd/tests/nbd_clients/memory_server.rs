//! An NBD server whose disks are memory: the crate's listener and codec with the simplest owner behind them.
//!
//! One blocking thread per connection. It answers reads of structured sessions in pieces (data and holes), so that
//! clients exercise the whole codec.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nbd::{
    Allocation, Command, Connected, Errno, Export, Exports, Last, Listener, Replies, Request, Session, TlsMode, reply,
};
use proto::config::NbdAddress;
use tokio::runtime::Runtime;

const PAGE: usize = 4096;

/// The content of one disk.
pub struct MemoryDisk {
    state: Mutex<State>,
    /// Flushes and durable writes seen.
    pub flushes: AtomicU32,
}

struct State {
    bytes: Vec<u8>,
    /// Per page: does it take space?
    allocated: Vec<bool>,
}

impl MemoryDisk {
    fn new(size: usize) -> Self {
        let state = State { bytes: vec![0; size], allocated: vec![false; size.div_ceil(PAGE)] };
        Self { state: Mutex::new(state), flushes: AtomicU32::new(0) }
    }

    /// A copy of the content.
    pub fn content(&self) -> Vec<u8> {
        self.state.lock().unwrap().bytes.clone()
    }
}

impl State {
    fn write(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.allocate(offset, data.len());
    }

    fn allocate(&mut self, offset: usize, len: usize) {
        if len > 0 {
            self.allocated[offset / PAGE..=(offset + len - 1) / PAGE].fill(true);
        }
    }

    fn zero(&mut self, offset: usize, len: usize, keep: bool) {
        self.bytes[offset..offset + len].fill(0);
        if keep {
            self.allocate(offset, len);
        } else {
            let (from, to) = (offset.div_ceil(PAGE), (offset + len) / PAGE);
            self.allocated[from..to.max(from)].fill(false);
        }
    }

    /// The range as pieces of one kind each.
    fn pieces(&self, offset: usize, len: usize) -> Vec<(usize, usize, Allocation)> {
        let (mut at, end) = (offset, offset + len);
        let mut pieces = Vec::new();
        while at < end {
            let next = (at / PAGE + 1) * PAGE;
            let kind = if self.allocated[at / PAGE] { Allocation::Data } else { Allocation::Hole };
            pieces.push((at, next.min(end) - at, kind));
            at = next;
        }
        pieces
    }
}

/// A running server; it ends when it is dropped.
pub struct MemoryServer {
    _runtime: Runtime,
    address: NbdAddress,
    /// In the order they were given.
    pub disks: Vec<Arc<MemoryDisk>>,
    /// Connections that reached transmission.
    pub connections: Arc<AtomicU32>,
}

impl MemoryServer {
    /// Serves disks of the given names and sizes.
    pub fn start(address: &NbdAddress, tls: TlsMode, disks: &[(&str, usize)]) -> Self {
        let exports = disks.iter().map(|(name, size)| Export {
            name: (*name).to_owned(),
            size: *size as u64,
            description: format!("memory disk {name}"),
            block_min: 1,
            block_preferred: 4096,
            block_max: 32 << 20,
            read_only: name.ends_with("-ro"),
        });
        let exports = Arc::new(Exports::new(exports.collect()).unwrap());
        let disks: Vec<_> = disks.iter().map(|(_, size)| Arc::new(MemoryDisk::new(*size))).collect();
        let connections = Arc::new(AtomicU32::new(0));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(Listener::bind(address, tls)).unwrap();
        let address = listener.address().clone();
        let (owned, counter, known) = (disks.clone(), Arc::clone(&connections), Arc::clone(&exports));
        runtime.spawn(listener.serve(exports, move |connected| {
            counter.fetch_add(1, Ordering::SeqCst);
            let session = connected.session(known.at(connected.export));
            let disk = Arc::clone(&owned[connected.export]);
            thread::spawn(move || serve(connected, session, &disk));
        }));
        Self { _runtime: runtime, address, disks, connections }
    }

    /// Where it listens.
    pub fn address(&self) -> &NbdAddress {
        &self.address
    }
}

fn serve(connected: Connected, session: Session, disk: &MemoryDisk) {
    let Connected { fd, permit, .. } = connected;
    let _permit = permit;
    // TCP and unix stream sockets read and write alike.
    let mut stream = UnixStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    let mut out = Vec::new();
    // An error is the client's end of the connection.
    while let Ok(Some((request, payload))) = next_request(&mut stream) {
        out.clear();
        match request.check(&session) {
            Err(refusal) => reply::failure(&mut out, session.replies, request.cookie, refusal.errno, refusal.reason),
            Ok(()) => carry_out(&request, &payload, session.replies, disk, &mut out),
        }
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

fn next_request(stream: &mut UnixStream) -> io::Result<Option<(Request, Vec<u8>)>> {
    let mut head = [0; Request::BYTES];
    stream.read_exact(&mut head)?;
    let request = Request::parse(&head).map_err(io::Error::other)?;
    let mut payload = vec![0; request.payload_bytes() as usize];
    stream.read_exact(&mut payload)?;
    Ok((request.command != Command::Disconnect).then_some((request, payload)))
}

fn carry_out(request: &Request, payload: &[u8], replies: Replies, disk: &MemoryDisk, out: &mut Vec<u8>) {
    let (offset, len) = (request.offset as usize, request.length as usize);
    let mut state = disk.state.lock().unwrap();
    if request.fua() || request.command == Command::Flush {
        disk.flushes.fetch_add(1, Ordering::SeqCst);
    }
    match request.command {
        Command::Read => return read(request, replies, &state, out),
        Command::BlockStatus => {
            let pieces = state.pieces(offset, len);
            let ranges = pieces.iter().map(|(_, len, kind)| (*len as u64, *kind));
            return reply::block_status(out, request.cookie, request.length, request.one_extent(), ranges);
        }
        Command::WriteZeroes if request.fast_zero() && request.no_hole() => {
            return reply::failure(out, replies, request.cookie, Errno::NotSup, "only holes are fast");
        }
        Command::Write => state.write(offset, payload),
        Command::Trim => state.zero(offset, len, false),
        Command::WriteZeroes => state.zero(offset, len, request.no_hole()),
        Command::Flush | Command::Cache => {}
        Command::Disconnect | Command::Unknown(_) => unreachable!("neither gets here"),
    }
    reply::success(out, request.cookie);
}

fn read(request: &Request, replies: Replies, state: &State, out: &mut Vec<u8>) {
    let (offset, len, cookie) = (request.offset as usize, request.length as usize, request.cookie);
    let pieces = state.pieces(offset, len);
    if replies == Replies::Simple || request.dont_fragment() || pieces.is_empty() {
        reply::read_head(out, replies, cookie, request.offset, request.length);
        return out.extend_from_slice(&state.bytes[offset..offset + len]);
    }
    let last = pieces.len() - 1;
    for (i, (at, len, kind)) in pieces.into_iter().enumerate() {
        let last = if i == last { Last::Yes } else { Last::No };
        match kind {
            Allocation::Data => {
                reply::read_ok_structured(out, cookie, at as u64, len as u32, last);
                out.extend_from_slice(&state.bytes[at..at + len]);
            }
            Allocation::Hole | Allocation::Zero => {
                reply::read_hole_structured(out, cookie, at as u64, len as u32, last);
            }
        }
    }
}
