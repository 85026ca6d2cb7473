//! What lies on the disks: content with a known compressibility, the same in every run, and no two blocks alike.
//!
//! It is put together from a pool, so that making it costs no more than writing it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use tests::random::Random;

use crate::process;

const BLOCK: usize = 4096;
const POOL_BLOCKS: usize = 4096;
const CHUNK_BLOCKS: usize = 256;
/// A stretch of one kind: data comes in files, not in blocks.
const RUN_BLOCKS: usize = 16;

/// How content compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Runs of 64 KiB of noise and of text, so that zstd at level 1 leaves about half. No zeroes.
    Mixed,
    /// Noise.
    Noise,
}

/// Makes blocks.
pub struct Blocks {
    pool: Vec<u8>,
    stamp: u64,
}

impl Blocks {
    /// Blocks of a kind; another `seed` gives others.
    pub fn new(content: Content, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut pool = Vec::with_capacity(POOL_BLOCKS * BLOCK);
        let words: Vec<Vec<u8>> = (0..2048).map(|_| word(&mut random)).collect();
        for run in 0..POOL_BLOCKS / RUN_BLOCKS {
            let end = (run + 1) * RUN_BLOCKS * BLOCK;
            // Two runs of ten are noise: with text at two fifths, half of all is left.
            let noise = content == Content::Noise || run % 5 == 0;
            while pool.len() < end {
                if noise {
                    pool.extend(random.next_u64().to_le_bytes());
                } else {
                    // Squaring makes some words frequent, as in any text.
                    let pick = random.below(2048) * random.below(2048) / 2048;
                    pool.extend(&words[pick as usize]);
                }
            }
            pool.truncate(end);
        }
        Self { pool, stamp: seed << 32 }
    }

    /// Fills whole blocks, as they follow each other on a disk.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for block in buffer.chunks_exact_mut(BLOCK) {
            let from = (self.stamp as usize % POOL_BLOCKS) * BLOCK;
            block.copy_from_slice(&self.pool[from..from + BLOCK]);
            // No two blocks are alike: nothing gains from having seen one before.
            block[..8].copy_from_slice(&self.stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            self.stamp += 1;
        }
    }
}

fn word(random: &mut Random) -> Vec<u8> {
    let letters = 2 + random.below(9);
    let mut word: Vec<u8> = (0..letters).map(|_| b'a' + random.below(26) as u8).collect();
    word.push(b' ');
    word
}

/// A new file, written everywhere: no server gains from holes.
pub fn create(path: &Path, bytes: u64, content: Content, seed: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut blocks = Blocks::new(content, seed);
    let mut buffer = vec![0; CHUNK_BLOCKS * BLOCK];
    let mut left = bytes;
    while left > 0 {
        process::check_interrupt()?;
        let now = left.min(buffer.len() as u64);
        blocks.fill(&mut buffer[..now as usize]);
        file.write_all(&buffer[..now as usize]).with_context(|| format!("write {}", path.display()))?;
        left -= now;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// Changes `permille` of 1000 blocks, in stretches of up to 64 KiB all over the file, and returns the bytes changed.
pub fn change(path: &Path, permille: u64, seed: u64) -> Result<u64> {
    let file = OpenOptions::new().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    let blocks_all = file.metadata()?.len() / BLOCK as u64;
    let wanted = blocks_all * permille / 1000;
    let (mut random, mut blocks) = (Random::new(seed), Blocks::new(Content::Mixed, seed));
    let mut changed = 0;
    let mut buffer = [0; 16 * BLOCK];
    while changed < wanted {
        process::check_interrupt()?;
        let run = (1 + random.below(16)).min(wanted - changed).min(blocks_all);
        let bytes = run as usize * BLOCK;
        blocks.fill(&mut buffer[..bytes]);
        file.write_all_at(&buffer[..bytes], random.below(blocks_all - run + 1) * BLOCK as u64)?;
        changed += run;
    }
    file.sync_all()?;
    Ok(changed * BLOCK as u64)
}

/// Drops a file from the page cache, so that each contestant reads it from the disk.
pub fn evict(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests_of_content {
    use super::*;

    fn left_by_zstd(content: Content) -> f64 {
        let mut bytes = vec![0; 16 << 20];
        Blocks::new(content, 1).fill(&mut bytes);
        let packed: usize =
            bytes.chunks(1 << 20).map(|chunk| zstd::bulk::compress(chunk, 1).expect("packed").len()).sum();
        packed as f64 / bytes.len() as f64
    }

    #[test]
    fn mixed_content_shrinks_to_about_half_and_noise_does_not_shrink() {
        let mixed = left_by_zstd(Content::Mixed);
        assert!((0.42..0.58).contains(&mixed), "{mixed}");
        assert!(left_by_zstd(Content::Noise) > 0.99);
    }

    #[test]
    fn no_block_comes_twice() {
        let mut bytes = vec![0; 8192 * BLOCK];
        Blocks::new(Content::Mixed, 3).fill(&mut bytes);
        let different: std::collections::HashSet<&[u8]> = bytes.chunks_exact(BLOCK).collect();
        assert_eq!(different.len(), 8192);
    }
}
