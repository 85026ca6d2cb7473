//! How to run: the options of the command line, and the sizes that follow from them.

use std::path::PathBuf;

use clap::Args;

/// How to run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Pairs of peer and agents for each measure.
    #[arg(long, default_value_t = 5)]
    pub pairs: usize,
    /// Seconds of load in each run of fio, after one second to settle.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// One pair with little data and short loads: shows that everything works, and nothing about speed.
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// The sizes of the goals. Takes over an hour and 60 GiB.
    #[arg(long)]
    pub full: bool,
    /// A folder on the file system to measure on; needs 16 GiB.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub dir: PathBuf,
    /// The folder where the report and the JSON lines go.
    #[arg(long, default_value = "target/bench")]
    pub output: PathBuf,
}

/// How much, in MiB and seconds.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Pairs for each measure.
    pub pairs: usize,
    /// Load by fio.
    pub load_seconds: u64,
    /// Initial synchronisation on loopback.
    pub sync_mib: u64,
    /// The same at 1 Gbit/s.
    pub gbit_mib: u64,
    /// The same at 100 Mbit/s; with a rate that is this low, the size doesn't change the ratio.
    pub mbit100_mib: u64,
    /// Noise over the far link.
    pub far_mib: u64,
    /// Disk of the differential synchronisation.
    pub differential_mib: u64,
    /// Sustained change.
    pub sustained_seconds: u64,
    /// pgbench.
    pub pgbench_seconds: u64,
    /// Disk that is restored.
    pub restore_mib: u64,
    /// Noise that is replicated for its CPU time.
    pub cpu_mib: u64,
    /// Disks that share 1 TiB, under load at once.
    pub memory_disks: usize,
}

impl Options {
    /// The sizes.
    pub fn scale(&self) -> Scale {
        let usual = Scale {
            pairs: self.pairs,
            load_seconds: 3,
            sync_mib: 2048,
            gbit_mib: 1024,
            mbit100_mib: 192,
            far_mib: 96,
            differential_mib: 3072,
            sustained_seconds: 120,
            pgbench_seconds: 12,
            restore_mib: 1024,
            cpu_mib: 1024,
            memory_disks: 60,
        };
        let mut scale = match (self.quick, self.full) {
            (true, _) => Scale {
                pairs: 1,
                load_seconds: 1,
                sync_mib: 256,
                gbit_mib: 128,
                mbit100_mib: 24,
                far_mib: 24,
                differential_mib: 512,
                sustained_seconds: 8,
                pgbench_seconds: 4,
                restore_mib: 256,
                cpu_mib: 256,
                memory_disks: 60,
            },
            (_, true) => Scale {
                load_seconds: 10,
                sync_mib: 4096,
                mbit100_mib: 1024,
                far_mib: 256,
                differential_mib: 16384,
                pgbench_seconds: 60,
                ..usual
            },
            _ => usual,
        };
        scale.load_seconds = self.seconds.unwrap_or(scale.load_seconds);
        scale
    }
}
