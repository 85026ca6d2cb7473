//! A small NBD client that shows exactly when a request was issued and when it was acknowledged.
//!
//! Blocking, pipelined, simple replies only: structured replies are exercised by libnbd and QEMU. It is independent of
//! the server's own codec on purpose, so that an error in one is not repeated in the other.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const HANDSHAKE_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// `NBD_CMD_FLAG_FUA`: the data is durable before the reply.
pub const FLAG_FUA: u16 = 1;
/// `NBD_CMD_FLAG_NO_HOLE`: zeroes keep their space.
pub const FLAG_NO_HOLE: u16 = 2;
/// `NBD_ESHUTDOWN`: what a fenced export answers to writes.
pub const ESHUTDOWN: u32 = 108;
/// `NBD_EPERM`: a write to what is read-only.
pub const EPERM: u32 = 1;
/// `NBD_EIO`.
pub const EIO: u32 = 5;
/// `NBD_EINVAL`.
pub const EINVAL: u32 = 22;
/// `NBD_ENOSPC`: a write beyond the end.
pub const ENOSPC: u32 = 28;

/// A server that says nothing for this long is broken. Generous: debug builds on two busy cores.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Address {
    /// The URI of an export there, for libnbd, QEMU and fio.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Make everything acknowledged durable.
    Flush = 3,
    /// Give space back.
    Trim = 4,
    /// Write zeroes without sending them.
    WriteZeroes = 6,
}

/// A request that the server has answered.
#[derive(Debug)]
pub struct Completion {
    /// As returned by [`Connection::submit`].
    pub cookie: u64,
    /// 0, or an NBD error number.
    pub error: u32,
    /// What a read returned.
    pub data: Vec<u8>,
}

trait Transport: Read + Write + Send {}
impl<T: Read + Write + Send> Transport for T {}

/// A connection in the transmission phase.
pub struct Connection {
    stream: Box<dyn Transport>,
    size: u64,
    next_cookie: u64,
    /// Cookie to the number of bytes that its reply brings.
    in_flight: HashMap<u64, usize>,
}

impl Connection {
    /// Connects and opens `export` (empty: the default export).
    ///
    /// # Errors
    /// What the socket says; `InvalidData` where the server breaks the protocol; `NotFound` where it refuses the export.
    pub fn open(address: &Address, export: &str) -> io::Result<Self> {
        let mut stream = connect(address)?;
        let size = negotiate(&mut stream, export)?;
        Ok(Self { stream, size, next_cookie: 1, in_flight: HashMap::new() })
    }

    /// The size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The cookie of the next request.
    #[must_use]
    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// Sends a request and returns its cookie. `data` is for writes only.
    ///
    /// # Errors
    /// What the socket says.
    pub fn submit(&mut self, command: Command, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut head = Vec::with_capacity(28);
        head.extend(REQUEST_MAGIC.to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend((command as u16).to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(length.to_be_bytes());
        self.in_flight.insert(cookie, if command == Command::Read { length as usize } else { 0 });
        self.stream.write_all(&head)?;
        self.stream.write_all(data)?;
        Ok(cookie)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// What the socket says; `InvalidData` for an answer to nothing.
    pub fn complete(&mut self) -> io::Result<Completion> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let magic = u32::from_be_bytes(head[0..4].try_into().expect("4 bytes"));
        let error = u32::from_be_bytes(head[4..8].try_into().expect("4 bytes"));
        let cookie = u64::from_be_bytes(head[8..16].try_into().expect("8 bytes"));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(broken(format!("reply magic {magic:#x}")));
        }
        let Some(length) = self.in_flight.remove(&cookie) else {
            return Err(broken(format!("a reply to cookie {cookie}, which is not in flight")));
        };
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Completion { cookie, error, data })
    }

    /// One request and its answer; no other may be in flight.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Self::complete`].
    pub fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<Completion> {
        assert!(self.in_flight.is_empty(), "call() is for one request at a time");
        self.submit(command, flags, offset, length, data)?;
        self.complete()
    }

    /// Writes and returns the NBD error number, 0 for success.
    ///
    /// # Errors
    /// What the socket says.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        let length = u32::try_from(data.len()).expect("a write is under 4 GiB");
        Ok(self.call(Command::Write, 0, offset, length, data)?.error)
    }

    /// Reads; a refusal is an error.
    ///
    /// # Errors
    /// What the socket says; `Other` with the NBD error number.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        let done = self.call(Command::Read, 0, offset, length, &[])?;
        if done.error == 0 { Ok(done.data) } else { Err(io::Error::other(format!("NBD error {}", done.error))) }
    }

    /// Flushes and returns the NBD error number.
    ///
    /// # Errors
    /// What the socket says.
    pub fn flush(&mut self) -> io::Result<u32> {
        Ok(self.call(Command::Flush, 0, 0, 0, &[])?.error)
    }

    /// The raw stream, for tests that break the protocol on purpose.
    pub fn raw(&mut self) -> &mut (impl Read + Write + use<>) {
        &mut self.stream
    }
}

fn connect(address: &Address) -> io::Result<Box<dyn Transport>> {
    Ok(match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            stream.set_write_timeout(Some(SILENCE_MAX))?;
            Box::new(stream)
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            stream.set_write_timeout(Some(SILENCE_MAX))?;
            Box::new(stream)
        }
    })
}

fn negotiate(stream: &mut Box<dyn Transport>, export: &str) -> io::Result<u64> {
    if (read_u64(stream)?, read_u64(stream)?) != (HANDSHAKE_MAGIC, OPTION_MAGIC) {
        return Err(broken("not a newstyle NBD server".into()));
    }
    if read_u16(stream)? & 1 == 0 {
        return Err(broken("the server is not fixed newstyle".into()));
    }
    let mut message = Vec::new();
    message.extend(3u32.to_be_bytes());
    message.extend(OPTION_MAGIC.to_be_bytes());
    message.extend(OPTION_GO.to_be_bytes());
    let name_length = u32::try_from(export.len()).expect("an export name is short");
    message.extend((name_length + 6).to_be_bytes());
    message.extend(name_length.to_be_bytes());
    message.extend(export.as_bytes());
    message.extend(0u16.to_be_bytes());
    stream.write_all(&message)?;
    let mut size = None;
    loop {
        if read_u64(stream)? != OPTION_REPLY_MAGIC {
            return Err(broken("option reply magic".into()));
        }
        let _option = read_u32(stream)?;
        let kind = read_u32(stream)?;
        let length = read_u32(stream)?;
        if length > 65536 {
            return Err(broken(format!("an option reply of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            REPLY_ACK => return size.ok_or_else(|| broken("the server told no size".into())),
            REPLY_INFO if payload.len() >= 12 && payload[0..2] == INFO_EXPORT.to_be_bytes() => {
                size = Some(u64::from_be_bytes(payload[2..10].try_into().expect("8 bytes")));
            }
            REPLY_INFO => {}
            refused => {
                let text = format!("export {export:?} refused ({refused:#x}): {}", String::from_utf8_lossy(&payload));
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
        }
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
