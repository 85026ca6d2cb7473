//! The list of all measures.

use crate::measures::{
    Goal, Measure, cpu, differential, far, guest_load, initial_sync, memory, pgbench, restore, sustained,
};
use crate::outcome::Figure;

const fn against(number: u32, figure: Figure, peer: &'static str, value: f64) -> Goal {
    Goal { number, figure, against: Some(peer), value }
}

const fn alone(number: u32, figure: Figure, value: f64) -> Goal {
    Goal { number, figure, against: None, value }
}

/// All measures, in the order of the table of goals.
pub const MEASURES: &[Measure] = &[
    Measure {
        name: "randwrite-link-down",
        what: "4 KiB random write, depth 32, link down, only the bitmap kept: against qemu-nbd",
        goals: &[against(1, Figure::Iops, "qemu-nbd", 3.0)],
        run: guest_load::randwrite_link_down,
    },
    Measure {
        name: "randwrite-replicating",
        what: "4 KiB random write, depth 32, both agents replicating: against qemu-nbd",
        goals: &[against(2, Figure::Iops, "qemu-nbd", 1.5)],
        run: guest_load::randwrite_replicating,
    },
    Measure {
        name: "latency-replicating",
        what: "4 KiB random write, depth 1, both agents replicating, median latency: against qemu-nbd",
        goals: &[against(3, Figure::LatencyP50, "qemu-nbd", 0.8)],
        run: guest_load::latency_replicating,
    },
    Measure {
        name: "write-replicating",
        what: "256 KiB sequential write, depth 16, both agents replicating: against qemu-nbd",
        goals: &[against(4, Figure::Throughput, "qemu-nbd", 1.0)],
        run: guest_load::write_replicating,
    },
    Measure {
        name: "randread",
        what: "4 KiB random read, depth 32, nothing to replicate: against qemu-nbd",
        goals: &[against(5, Figure::Iops, "qemu-nbd", 2.0)],
        run: guest_load::randread,
    },
    Measure {
        name: "initial-sync",
        what: "initial synchronisation of mixed data on loopback, until it is on the VMDK: against nbdcopy over TLS",
        goals: &[against(6, Figure::Throughput, "nbdcopy", 1.0)],
        run: initial_sync::loopback,
    },
    Measure {
        name: "initial-sync-1gbit",
        what: "the same at 1 Gbit/s: against nbdcopy over TLS and rsync with zstd; use of the link",
        goals: &[
            against(7, Figure::Throughput, "nbdcopy", 2.0),
            against(7, Figure::Throughput, "rsync", 1.1),
            alone(8, Figure::LinkUse, 0.95),
        ],
        run: initial_sync::gbit,
    },
    Measure {
        name: "initial-sync-100mbit",
        what: "the same at 100 Mbit/s: against nbdcopy over TLS and rsync with zstd; use of the link",
        goals: &[
            against(7, Figure::Throughput, "nbdcopy", 2.0),
            against(7, Figure::Throughput, "rsync", 1.2),
            alone(8, Figure::LinkUse, 0.95),
        ],
        run: initial_sync::mbit100,
    },
    Measure {
        name: "far-link",
        what: "use of a link of 100 Mbit/s with 40 ms round trip and 0.1 % loss, by data that doesn't compress",
        goals: &[alone(8, Figure::LinkUse, 0.80)],
        run: far::run,
    },
    Measure {
        name: "differential-sync",
        what: "synchronisation of a disk of which 1 % has changed, 1 Gbit/s: against rsync in place",
        goals: &[against(9, Figure::Throughput, "rsync", 3.0)],
        run: differential::run,
    },
    Measure {
        name: "sustained-change",
        what: "100 MB/s of changes for two minutes, half compressible: age of the newest point, no state but streaming",
        goals: &[alone(10, Figure::RpoP99, 2.0)],
        run: sustained::run,
    },
    Measure {
        name: "pgbench-wire",
        what: "bytes on the wire for each byte that PostgreSQL writes: against zstd -3 of the same blocks",
        goals: &[against(11, Figure::WireShare, "zstd -3", 0.5)],
        run: pgbench::run,
    },
    Measure {
        name: "restore",
        what: "restore of a point to a raw file: against cp of the VMDK's extent and fsync",
        goals: &[against(12, Figure::Throughput, "cp", 0.8)],
        run: restore::run,
    },
    Measure {
        name: "cpu",
        what: "CPU seconds for each GiB that doesn't compress, all processes: against QEMU's mirror over TLS",
        goals: &[against(13, Figure::CpuPerGib, "qemu mirror", 1.0)],
        run: cpu::run,
    },
    Measure {
        name: "memory-1-disk",
        what: "resident memory of each agent with one disk of 1 TiB, sparse, under random writes",
        goals: &[alone(14, Figure::Memory, 512.0)],
        run: memory::one_disk,
    },
    Measure {
        name: "memory-60-disks",
        what: "the same with 60 disks of 17 GiB, all under load at once",
        goals: &[alone(14, Figure::Memory, 512.0)],
        run: memory::many_disks,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_of_the_table_is_measured_and_no_name_comes_twice() {
        let mut numbers: Vec<u32> = MEASURES.iter().flat_map(|measure| measure.goals).map(|goal| goal.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (1..=14).collect::<Vec<u32>>());
        let names: std::collections::BTreeSet<&str> = MEASURES.iter().map(|measure| measure.name).collect();
        assert_eq!(names.len(), MEASURES.len());
    }
}
