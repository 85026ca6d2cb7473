//! Plays a recorded trace to an NBD export, at the times at which it was recorded, and compresses it for comparison.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::nbd::{Address, Connection};

use super::Write;
use crate::process;

/// The agents compress up to this much at once; zstd beside them gets the same.
const CHUNK: usize = 128 << 10;

/// Plays it. A server that is slower than the recorded one delays what follows.
pub fn replay(trace: &[Write], address: &Address, export: &str) -> Result<()> {
    let mut connection = Connection::open(address, export).with_context(|| format!("open {export}"))?;
    let started = Instant::now();
    for write in trace {
        process::check_interrupt()?;
        thread::sleep(write.at.saturating_sub(started.elapsed()));
        let error = connection.write(write.offset, &write.data)?;
        ensure!(error == 0, "a write of the trace failed with NBD error {error}");
    }
    Ok(())
}

/// Bytes that zstd at `level` leaves of all writes, one after the other.
pub fn compressed(trace: &[Write], level: i32) -> Result<u64> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    let (mut chunk, mut left) = (Vec::with_capacity(CHUNK), 0);
    let mut pack = |chunk: &mut Vec<u8>| -> Result<u64> {
        let packed = compressor.compress(chunk)?.len() as u64;
        chunk.clear();
        Ok(packed)
    };
    for piece in trace.iter().flat_map(|write| write.data.chunks(CHUNK)) {
        if chunk.len() + piece.len() > CHUNK {
            left += pack(&mut chunk)?;
        }
        chunk.extend(piece);
    }
    Ok(left + pack(&mut chunk)?)
}

#[cfg(test)]
mod tests_of_compression {
    use super::*;
    use std::time::Duration;

    #[test]
    fn writes_are_compressed_together_and_none_is_left_out() {
        let write = |byte| Write { at: Duration::ZERO, offset: 0, data: vec![byte; 4096] };
        let alike: Vec<Write> = (0..320).map(|index| write(index as u8 % 2)).collect();
        let left = compressed(&alike, 3).expect("compressed");
        assert!(left > 10 && left < 4096, "{left}");
        let mut noise = vec![0; 1 << 20];
        crate::data::Blocks::new(crate::data::Content::Noise, 1).fill(&mut noise);
        let whole = Write { at: Duration::ZERO, offset: 0, data: noise };
        assert!(compressed(&[whole], 3).expect("compressed") >= 1 << 20);
    }
}
