//! Reads what the kernel says of mounts, volumes and devices: [`MachineFiles`].
//!
//! All of it through one root folder, `/` but in tests. Nothing is changed, and what can't be read counts as not there.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::Access;

use super::{
    facts::{Uses, Volume},
    mounts::{self, DeviceNumber, Mount},
};

/// File systems of the kernel that hold no files of anybody.
const PSEUDO: [&str; 23] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.lxcfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// The kernel's files below a root.
pub struct MachineFiles {
    root: PathBuf,
    mounts: Vec<Mount>,
}

impl MachineFiles {
    /// Those of this machine.
    pub fn of_this_machine() -> MachineFiles {
        Self::below(Path::new("/"))
    }

    /// Those in a tree that looks like a machine's.
    pub fn below(root: &Path) -> MachineFiles {
        let table = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
        MachineFiles { root: root.to_owned(), mounts: mounts::parse(&table) }
    }

    /// The mount that holds a path, of which a part may not exist yet.
    pub fn mount_of(&self, path: &Path) -> Option<&Mount> {
        let mut there = path;
        let real = loop {
            match fs::canonicalize(self.at(there)) {
                Ok(real) => break real,
                Err(_) => there = there.parent()?,
            }
        };
        // Below another root, names are those that the tree's machine would have.
        let root = fs::canonicalize(&self.root).ok()?;
        mounts::holding(&self.mounts, &Path::new("/").join(real.strip_prefix(root).ok()?))
    }

    /// Every mounted volume that could hold files, in order of its path.
    pub fn volumes(&self) -> Vec<(DeviceNumber, Volume)> {
        let mut volumes: Vec<_> = self
            .mounts
            .iter()
            .filter(|mount| !PSEUDO.contains(&mount.file_system.as_str()) && self.at(&mount.point).is_dir())
            .map(|mount| (mount.device, self.volume(mount)))
            .collect();
        volumes.sort_by(|a, b| a.1.path.cmp(&b.1.path));
        volumes
    }

    /// One volume, without what it is used for.
    pub fn volume(&self, mount: &Mount) -> Volume {
        let at = self.at(&mount.point);
        let stat = rustix::fs::statvfs(&at).ok();
        let bytes = |blocks: u64, unit: u64| blocks.saturating_mul(unit);
        Volume {
            path: mount.point.clone(),
            file_system: self.kind_of(mount),
            size: stat.as_ref().map_or(0, |stat| bytes(stat.f_blocks, stat.f_frsize)),
            free: stat.as_ref().map_or(0, |stat| bytes(stat.f_bavail, stat.f_frsize)),
            is_read_only: mount.is_read_only,
            is_write_protected: self.device_says(mount.device, "ro").is_some_and(|ro| ro == "1"),
            is_writable: Self::is_writable(&at),
            uses: Uses::default(),
        }
    }

    /// The kind of a mount's file system; FUSE says only that it is one, so FAT is told by its first sector.
    fn kind_of(&self, mount: &Mount) -> String {
        let kind = &mount.file_system;
        if kind != "fuseblk" {
            return kind.clone();
        }
        let mut first = [0; 512];
        let read =
            fs::File::open(self.at(Path::new(&mount.source))).and_then(|mut device| device.read_exact(&mut first));
        match first {
            _ if read.is_err() => kind.clone(),
            _ if &first[3..11] == b"EXFAT   " => format!("exfat ({kind})"),
            _ if &first[54..57] == b"FAT" || &first[82..87] == b"FAT32" => format!("vfat ({kind})"),
            _ => kind.clone(),
        }
    }

    /// Whether this user may make files in a folder.
    pub fn is_writable(folder: &Path) -> bool {
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }

    /// Who uses a block device or a partition of it: mounts, swap, and devices that are made of it.
    pub fn uses_of(&self, device: DeviceNumber) -> Vec<String> {
        let family = self.family(device);
        let mut uses = Vec::new();
        for mount in &self.mounts {
            let is_source = family.iter().any(|member| mount.source.strip_prefix("/dev/") == Some(&member.name));
            if is_source || family.iter().any(|member| member.device == mount.device) {
                uses.push(format!("mounted at {}", mount.point.display()));
            }
        }
        let swaps = fs::read_to_string(self.root.join("proc/swaps")).unwrap_or_default();
        for swap in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            if family.iter().any(|member| swap.strip_prefix("/dev/") == Some(&member.name)) {
                uses.push(format!("swap on {swap}"));
            }
        }
        for member in &family {
            let holders = fs::read_dir(member.folder.join("holders")).into_iter().flatten().flatten();
            uses.extend(holders.map(|holder| format!("held by {}", holder.file_name().to_string_lossy())));
        }
        uses
    }

    /// Whether a volume's device is a block device, or a partition of it.
    pub fn is_on(&self, volume: DeviceNumber, device: DeviceNumber) -> bool {
        self.family(device).iter().any(|member| member.device == volume)
    }

    /// The process that has a file locked as a whole for itself alone, if one has.
    pub fn locked_by(&self, file: &Path) -> Option<u32> {
        let found = fs::metadata(file).ok()?;
        let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
        let name = format!("{major:02x}:{minor:02x}:{}", found.ino());
        let locks = fs::read_to_string(self.root.join("proc/locks")).ok()?;
        // `1: FLOCK  ADVISORY  WRITE 2741 08:01:131074 0 EOF`
        locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_it =
                fields.get(1) == Some(&"FLOCK") && fields.get(3) == Some(&"WRITE") && fields.get(5) == Some(&&name[..]);
            is_it.then(|| fields.get(4)?.parse().ok()).flatten()
        })
    }

    /// A device and its partitions.
    fn family(&self, device: DeviceNumber) -> Vec<Member> {
        let folder = self.device_folder(device);
        let name_of = |folder: &Path| {
            fs::canonicalize(folder).ok().and_then(|real| Some(real.file_name()?.to_string_lossy().into_owned()))
        };
        let mut family = vec![Member { device, name: name_of(&folder).unwrap_or_default(), folder: folder.clone() }];
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let folder = entry.path();
            let number = fs::read_to_string(folder.join("dev")).ok().and_then(|text| DeviceNumber::parse(&text));
            if let Some(device) = number.filter(|_| folder.join("partition").is_file()) {
                family.push(Member { device, name: entry.file_name().to_string_lossy().into_owned(), folder });
            }
        }
        family
    }

    fn device_folder(&self, device: DeviceNumber) -> PathBuf {
        self.root.join(format!("sys/dev/block/{}:{}", device.major, device.minor))
    }

    fn device_says(&self, device: DeviceNumber, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.device_folder(device).join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    /// An absolute path as it is below the root.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// A block device in a family of a disk and its partitions.
struct Member {
    device: DeviceNumber,
    name: String,
    folder: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDB: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    /// A machine with the disk sdb and its partitions sdb1 and sdb2.
    fn tree(mountinfo: &str, swaps: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in [
            "proc/self",
            "sys/block/sdb/holders",
            "sys/block/sdb/sdb1/holders",
            "sys/block/sdb/sdb2/holders",
            "sys/dev/block",
            "mnt/retention",
            "srv",
        ] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("proc/self/mountinfo"), mountinfo).unwrap();
        fs::write(at("proc/swaps"), format!("Filename Type Size Used Priority\n{swaps}")).unwrap();
        for (part, number) in [("sdb1", "8:17\n"), ("sdb2", "8:18\n")] {
            fs::write(at(&format!("sys/block/sdb/{part}/dev")), number).unwrap();
            fs::write(at(&format!("sys/block/sdb/{part}/partition")), "1\n").unwrap();
        }
        std::os::unix::fs::symlink("../../block/sdb", at("sys/dev/block/8:16")).unwrap();
        std::os::unix::fs::symlink("../../block/sdb/sdb1", at("sys/dev/block/8:17")).unwrap();
        root
    }

    #[test]
    fn mounts_swap_and_holders_of_a_device_and_its_partitions_are_found() {
        let quiet = tree("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "/dev/sda2 partition 1 0 -2\n");
        assert!(MachineFiles::below(quiet.path()).uses_of(SDB).is_empty());
        // A file system that shows another device number than its disk's, as btrfs does.
        let mounted = "22 1 8:17 / /srv rw - ext4 /dev/sdb1 rw\n23 1 0:40 / /mnt/b rw - btrfs /dev/sdb2 rw\n";
        let busy = tree(mounted, "/dev/sdb2 partition 1 0 -2\n");
        fs::create_dir(busy.path().join("sys/block/sdb/sdb1/holders/dm-0")).unwrap();
        let uses = MachineFiles::below(busy.path()).uses_of(SDB);
        assert_eq!(uses, ["mounted at /srv", "mounted at /mnt/b", "swap on /dev/sdb2", "held by dm-0"]);
    }

    #[test]
    fn volumes_are_listed_without_the_kernels_own() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:25 / /proc rw - proc proc rw\n\
            31 22 8:17 / /mnt/retention ro - xfs /dev/sdb1 rw\n32 22 8:33 / /gone rw - ext4 /dev/sdc1 rw\n";
        let root = tree(table, "");
        fs::write(root.path().join("sys/block/sdb/sdb1/ro"), "1\n").unwrap();
        let machine = MachineFiles::below(root.path());
        let volumes = machine.volumes();
        let paths: Vec<_> = volumes.iter().map(|(_, volume)| volume.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/mnt/retention"]);
        let (device, volume) = &volumes[1];
        assert!(volume.is_read_only && volume.is_write_protected && volume.size > 0);
        assert!(machine.is_on(*device, SDB) && !machine.is_on(volumes[0].0, SDB));
        assert_eq!(machine.mount_of(Path::new("/mnt/retention/web/new")).unwrap().source, "/dev/sdb1");
        assert_eq!(machine.mount_of(Path::new("/srv")).unwrap().source, "/dev/sda1");
    }

    #[test]
    fn fat_behind_fuse_is_told_by_its_first_sector() {
        for (at, name, expected) in [
            (3, "EXFAT   ", "exfat (fuseblk)"),
            (54, "FAT16   ", "vfat (fuseblk)"),
            (82, "FAT32   ", "vfat (fuseblk)"),
            (3, "NTFS    ", "fuseblk"),
        ] {
            let root = tree("31 22 8:17 / /mnt/retention rw - fuseblk /dev/sdb1 rw\n", "");
            fs::create_dir(root.path().join("dev")).unwrap();
            let mut sector = [0; 512];
            sector[at..at + 8].copy_from_slice(name.as_bytes());
            fs::write(root.path().join("dev/sdb1"), sector).unwrap();
            assert_eq!(MachineFiles::below(root.path()).volumes()[0].1.file_system, expected);
        }
    }

    #[test]
    fn a_file_that_a_process_has_locked_names_it() {
        let root = tree("", "");
        let file = root.path().join("lock");
        fs::write(&file, "").unwrap();
        let machine = MachineFiles::below(root.path());
        assert_eq!(machine.locked_by(&file), None);
        let found = fs::metadata(&file).unwrap();
        let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
        let line = format!(
            "1: POSIX  ADVISORY  WRITE 1 00:00:1 0 EOF\n2: FLOCK  ADVISORY  WRITE 2741 {major:02x}:{minor:02x}:{} 0 EOF\n",
            found.ino()
        );
        fs::write(root.path().join("proc/locks"), line).unwrap();
        assert_eq!(machine.locked_by(&file), Some(2741));
    }

    #[test]
    fn this_machine_has_a_root_volume() {
        let machine = MachineFiles::of_this_machine();
        assert!(machine.volumes().iter().any(|(_, volume)| volume.path == Path::new("/")));
        assert!(machine.mount_of(Path::new("/proc/self")).is_some_and(|mount| mount.file_system == "proc"));
    }
}
