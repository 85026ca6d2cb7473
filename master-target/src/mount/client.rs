//! One client of a mount: its requests, one after the other, on a thread of its own.
//!
//! Clients that want more at a time open more connections, as nbdcopy does. What a client sends was bounded and checked
//! by the codec; a client that breaks the protocol loses its connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nbd::{Command, Errno, Request, Session, reply};

use super::image::{ImageError, SharedImage};

/// Serves a connection until its client leaves or it is shut down.
pub(super) fn serve(mut stream: UnixStream, session: Session, image: &SharedImage, disk: usize, peer: &str) {
    let conversed = converse(&mut stream, session, image, disk);
    // The mount keeps a twin of the socket: closing this one alone would not end the connection.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    match conversed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(peer, %error, "an NBD client of a mount broke the protocol");
        }
        Err(error) => tracing::debug!(peer, %error, "an NBD client of a mount is gone"),
    }
}

fn converse(stream: &mut UnixStream, session: Session, image: &SharedImage, disk: usize) -> io::Result<()> {
    let mut out = Vec::new();
    let mut payload = Vec::new();
    loop {
        let mut head = [0; Request::BYTES];
        match stream.read(&mut head)? {
            0 => return Ok(()),
            read => stream.read_exact(&mut head[read..])?,
        }
        let request = Request::parse(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        out.clear();
        match request.check(&session) {
            Err(refusal) => {
                skip(stream, request.payload_bytes())?;
                reply::failure(&mut out, session.replies, request.cookie, refusal.errno, refusal.reason);
            }
            Ok(()) if request.command == Command::Disconnect => return Ok(()),
            Ok(()) => {
                payload.resize(request.payload_bytes() as usize, 0);
                stream.read_exact(&mut payload)?;
                carry_out(&request, &payload, &session, image, disk, &mut out);
            }
        }
        stream.write_all(&out)?;
    }
}

/// Reads a payload that is not wanted.
fn skip(stream: &mut UnixStream, bytes: u32) -> io::Result<()> {
    let skipped = io::copy(&mut stream.take(bytes.into()), &mut io::sink())?;
    if skipped == u64::from(bytes) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn carry_out(
    request: &Request,
    payload: &[u8],
    session: &Session,
    image: &SharedImage,
    disk: usize,
    out: &mut Vec<u8>,
) {
    let (cookie, offset, length) = (request.cookie, request.offset, request.length);
    let failed = |out: &mut Vec<u8>, error: ImageError| {
        reply::failure(out, session.replies, cookie, error.errno(), &error.to_string());
    };
    let done = match request.command {
        Command::Read => match image.read(disk, offset, length as usize) {
            Ok(bytes) => {
                reply::read_head(out, session.replies, cookie, offset, length);
                return out.extend_from_slice(&bytes);
            }
            Err(error) => Err(error),
        },
        Command::BlockStatus => match image.allocation(disk, offset, length.into()) {
            Ok(ranges) => return reply::block_status(out, cookie, length, request.one_extent(), ranges),
            Err(error) => Err(error),
        },
        Command::Write => image.write(disk, offset, payload),
        Command::WriteZeroes if request.fast_zero() => {
            return reply::failure(out, session.replies, cookie, Errno::NotSup, "zeroes may have to be written");
        }
        Command::Trim | Command::WriteZeroes => image.zero(disk, offset, length.into()),
        // An overlay has nothing that could outlive the agent.
        Command::Flush | Command::Cache => Ok(()),
        Command::Disconnect | Command::Unknown(_) => unreachable!("neither passes the check"),
    };
    match done {
        Ok(()) => reply::success(out, cookie),
        Err(error) => failed(out, error),
    }
}
