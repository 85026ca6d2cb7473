//! An NBD server for one client on a unix socket, with the old handshake that libnbd still speaks: reads and writes a
//! file, and keeps a copy of each write while it records.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Write;
use crate::process;

const OLD_MAGIC: u64 = 0x0000_4202_8186_1253;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// `HAS_FLAGS`, `SEND_FLUSH`, `SEND_FUA`.
const FLAGS: u32 = 1 | 4 | 8;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const EINVAL: u32 = 22;
/// The largest request; libnbd and the kernel stay far below.
const REQUEST_MAX: usize = 32 << 20;
/// What is kept at most: more is not needed, and it is memory.
const KEPT_MAX: u64 = 2 << 30;

/// A running server.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// Since when, and what.
    recording: Option<(Instant, Vec<Write>, u64)>,
}

impl Recorder {
    /// Serves `image` to the first client that connects to `socket`. It ends with that client.
    pub fn start(image: &Path, socket: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image);
        let file = file.with_context(|| format!("open {}", image.display()))?;
        let size = file.metadata()?.len();
        let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
        let shared = Arc::new(Mutex::new(Shared { file, recording: None }));
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            let session = listener.accept().and_then(|(stream, _)| serve(stream, size, &served));
            // A client that goes away without a word is one that was killed.
            if let Err(error) =
                session.or_else(|error| if error.kind() == ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) })
            {
                eprintln!("the recording NBD server: {error}");
            }
        });
        Ok(Self { shared })
    }

    /// Keeps all writes from now on. The image as it is now is copied to `base`: no write comes in between.
    pub fn begin(&self, image: &Path, base: &Path) -> Result<()> {
        let mut shared = lock(&self.shared);
        let mut command = process::command(None, "cp");
        command.arg("--sparse=always").arg(image).arg(base);
        process::run(command, std::time::Duration::from_secs(120))?;
        shared.recording = Some((Instant::now(), Vec::new(), 0));
        Ok(())
    }

    /// Ends the recording.
    pub fn end(&self) -> Vec<Write> {
        lock(&self.shared).recording.take().map(|(_, trace, _)| trace).unwrap_or_default()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: UnixStream, size: u64, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut hello = Vec::with_capacity(152);
    hello.extend(b"NBDMAGIC");
    hello.extend(OLD_MAGIC.to_be_bytes());
    hello.extend(size.to_be_bytes());
    hello.extend(FLAGS.to_be_bytes());
    hello.resize(152, 0);
    stream.write_all(&hello)?;
    let mut data = Vec::new();
    loop {
        let request = Request::read(&mut stream)?;
        let mut error = 0;
        let mut answer: &[u8] = &[];
        if request.length > REQUEST_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "a request beyond 32 MiB"));
        }
        match request.command {
            READ => {
                data.resize(request.length, 0);
                lock(shared).file.read_exact_at(&mut data, request.offset)?;
                answer = &data;
            }
            WRITE => {
                data.resize(request.length, 0);
                stream.read_exact(&mut data)?;
                lock(shared).write(request.offset, &data)?;
            }
            FLUSH => {}
            DISCONNECT => return Ok(()),
            _ => error = EINVAL,
        }
        let mut reply = Vec::with_capacity(16);
        reply.extend(REPLY_MAGIC.to_be_bytes());
        reply.extend(u32::to_be_bytes(error));
        reply.extend(request.cookie);
        stream.write_all(&reply)?;
        stream.write_all(answer)?;
    }
}

impl Shared {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        if let Some((since, trace, kept)) = &mut self.recording
            && *kept < KEPT_MAX
        {
            *kept += data.len() as u64;
            trace.push(Write { at: since.elapsed(), offset, data: data.to_vec() });
        }
        Ok(())
    }
}

struct Request {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    length: usize,
}

impl Request {
    fn read(stream: &mut UnixStream) -> io::Result<Self> {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let magic = u32::from_be_bytes(head[0..4].try_into().expect("4 bytes"));
        if magic != REQUEST_MAGIC {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("request magic {magic:#x}")));
        }
        Ok(Self {
            command: u16::from_be_bytes(head[6..8].try_into().expect("2 bytes")),
            cookie: head[8..16].try_into().expect("8 bytes"),
            offset: u64::from_be_bytes(head[16..24].try_into().expect("8 bytes")),
            length: u32::from_be_bytes(head[24..28].try_into().expect("4 bytes")) as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, offset: u64, data: &[u8], length: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend([7; 8]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn writes_are_served_and_kept_only_while_it_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let [image, base, socket] = ["image", "base", "socket"].map(|name| folder.path().join(name));
        std::fs::write(&image, [0; 8192]).expect("an image");
        let recorder = Recorder::start(&image, &socket).expect("a server");
        let mut client = UnixStream::connect(&socket).expect("a connection");
        client.read_exact(&mut [0; 152]).expect("a handshake");
        let mut ask = |bytes: Vec<u8>, answer: usize| {
            client.write_all(&bytes).expect("sent");
            let mut reply = vec![0; 16 + answer];
            client.read_exact(&mut reply).expect("answered");
            assert_eq!(reply[4..16], [&[0; 4], &[7; 8][..]].concat());
            reply.split_off(16)
        };
        ask(request(WRITE, 0, &[1; 512], 512), 0);
        recorder.begin(&image, &base).expect("recording");
        ask(request(WRITE, 4096, &[2; 512], 512), 0);
        assert_eq!(ask(request(READ, 4096, &[], 512), 512), [2; 512]);
        let trace = recorder.end();
        ask(request(WRITE, 0, &[3; 512], 512), 0);
        assert_eq!(trace.len(), 1);
        assert_eq!((trace[0].offset, trace[0].data.as_slice()), (4096, &[2; 512][..]));
        let kept = std::fs::read(&base).expect("the image before the recording");
        assert_eq!((kept[0], kept[4096]), (1, 0));
    }
}
