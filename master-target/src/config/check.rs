//! What the values of the configuration may be, each refusal with its line and remedy.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use proto::config::{ConfigError, Source, Spanned};
use proto::limits::{DISKS_PER_GROUP_MAX, GROUPS_PER_CONNECTION_MAX, UNIX_PATH_BYTES_MAX};

use super::file::{ConfigFile, DiskTable, GroupTable};
use super::retention;
use super::values::{Config, DiskConfig, GroupConfig};
use crate::target::{Datastore, TargetSpec};
use crate::vmdk::DiskKind;

/// Turns the file into a configuration, touching no file that it names.
pub(super) fn check(file: ConfigFile, source: &Source) -> Result<Config, ConfigError> {
    for path in [&file.state_dir, &file.control, &file.retention] {
        absolute(path, source)?;
    }
    if file.control.get_ref().as_os_str().len() > UNIX_PATH_BYTES_MAX {
        let what = format!("the path of the control socket has more than {UNIX_PATH_BYTES_MAX} bytes");
        return Err(source.invalid(&file.control, what, "choose a shorter path"));
    }
    let datastores = datastores(&file, source)?;
    let groups = groups(&file.group, &datastores, source)?;
    Ok(Config {
        name: file.name,
        listen: file.listen,
        state_dir: file.state_dir.into_inner(),
        control: file.control.into_inner(),
        retention: file.retention.into_inner(),
        tls: file.tls.into_inner(),
        nbd_tls: file.nbd_tls.map(Spanned::into_inner),
        datastores,
        groups,
    })
}

/// Checks that files and folders exist.
pub(super) fn check_files(file: &ConfigFile, source: &Source) -> Result<(), ConfigError> {
    let retention = &file.retention;
    folder(retention, "the retention volume", "mount it, or make the folder", source)?;
    for datastore in &file.datastore {
        folder(&datastore.path, "the folder of the datastore", "mount it, or correct the path", source)?;
    }
    for paths in [Some(&file.tls), file.nbd_tls.as_ref()].into_iter().flatten() {
        let tls = paths.get_ref();
        for path in [&tls.ca, &tls.cert, &tls.key] {
            if let Err(error) = std::fs::File::open(path) {
                let what = format!("{}: {error}", path.display());
                return Err(source.invalid(paths, what, "correct the path, or make the keys with `master-target pki`"));
            }
        }
    }
    for (_, disk) in file.group.iter().flat_map(GroupTable::disks) {
        if carries(Path::new(disk.target.get_ref()), retention.get_ref()) {
            let what = format!("target \"{}\" carries the retention volume", disk.target.get_ref());
            return Err(source.invalid(&disk.target, what, "keep journals on a disk that is not a target"));
        }
    }
    Ok(())
}

/// True where `device` is a block device and the file system of `folder` is on it.
fn carries(device: &Path, folder: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let (Ok(device), Ok(folder)) = (std::fs::metadata(device), std::fs::metadata(folder)) else { return false };
    device.file_type().is_block_device() && device.rdev() == folder.dev()
}

fn folder(path: &Spanned<PathBuf>, name: &str, remedy: &str, source: &Source) -> Result<(), ConfigError> {
    let shown = path.get_ref().display();
    match std::fs::metadata(path.get_ref()) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(source.invalid(path, format!("{name}, {shown}, is not a folder"), remedy)),
        Err(error) => Err(source.invalid(path, format!("{name}, {shown}: {error}"), remedy)),
    }
}

fn absolute(path: &Spanned<PathBuf>, source: &Source) -> Result<(), ConfigError> {
    if path.get_ref().is_absolute() {
        return Ok(());
    }
    let what = format!("\"{}\" is a relative path", path.get_ref().display());
    Err(source.invalid(path, what, "write the whole path, beginning with \"/\""))
}

fn datastores(file: &ConfigFile, source: &Source) -> Result<Vec<Datastore>, ConfigError> {
    let mut names = HashSet::new();
    for datastore in &file.datastore {
        absolute(&datastore.path, source)?;
        let name = datastore.name.get_ref();
        if name.is_empty() || name.contains(['[', ']']) || name.trim() != name {
            let what = format!("{name:?} is no name of a datastore");
            return Err(source.invalid(&datastore.name, what, "use a name without brackets and outer spaces"));
        }
        if !names.insert(name) {
            let what = format!("there are two datastores named \"{name}\"");
            return Err(source.invalid(&datastore.name, what, "give each a name of its own"));
        }
    }
    let checked = |table: &super::file::DatastoreTable| Datastore {
        name: table.name.get_ref().clone(),
        path: table.path.get_ref().clone(),
    };
    Ok(file.datastore.iter().map(checked).collect())
}

fn groups(tables: &[GroupTable], datastores: &[Datastore], source: &Source) -> Result<Vec<GroupConfig>, ConfigError> {
    if tables.len() > GROUPS_PER_CONNECTION_MAX {
        let what = format!("there are more than {GROUPS_PER_CONNECTION_MAX} groups");
        return Err(source.invalid_file(what, "spread them over several agents"));
    }
    let mut names = HashSet::new();
    let mut targets = HashSet::new();
    let mut groups = Vec::with_capacity(tables.len());
    for table in tables {
        let name = table.name.get_ref();
        if !names.insert(name) {
            let what = format!("there are two groups named \"{name}\"");
            return Err(source.invalid(&table.name, what, "give each a name of its own"));
        }
        groups.push(GroupConfig {
            name: name.clone(),
            process_server: table.process_server.clone(),
            retention: retention::age(table, source)?,
            when_full: table.when_full,
            retention_bytes_max: retention::size(table, source)?,
            keep_at_least: retention::floor(table, source)?,
            thin: retention::thin(table, source)?,
            app_consistent_every: retention::app_consistent_every(table, source)?,
            disks: disks(table, datastores, &mut targets, source)?,
        });
    }
    Ok(groups)
}

fn disks(
    table: &GroupTable,
    datastores: &[Datastore],
    targets: &mut HashSet<String>,
    source: &Source,
) -> Result<Vec<DiskConfig>, ConfigError> {
    let group = table.name.get_ref();
    let count = table.disks().count();
    if count == 0 {
        let what = format!("group \"{group}\" has no disk");
        let remedy = "add a [[group.disk]], or a [[group.machine]] with disks, for each of its disks";
        return Err(source.invalid(&table.name, what, remedy));
    }
    if count > DISKS_PER_GROUP_MAX {
        let what = format!("group \"{group}\" has more than {DISKS_PER_GROUP_MAX} disks");
        return Err(source.invalid(&table.name, what, "split the group"));
    }
    let mut machines = HashSet::new();
    if let Some(twice) = table.machine.iter().find(|machine| !machines.insert(machine.name.get_ref())) {
        let what = format!("group \"{group}\" has two machines named \"{}\"", twice.name.get_ref());
        return Err(source.invalid(&twice.name, what, "give each a name of its own"));
    }
    let mut names = HashSet::new();
    let mut disks = Vec::with_capacity(count);
    for (machine, disk) in table.disks() {
        let name = match machine {
            None => Ok(disk.name.get_ref().clone()),
            Some(machine) => machine.name.get_ref().disk(disk.name.get_ref()),
        };
        let name = name.map_err(|error| source.invalid(&disk.name, error.to_string(), "choose shorter names"))?;
        if !names.insert(name.clone()) {
            let what = format!("group \"{group}\" has two disks named \"{name}\"");
            return Err(source.invalid(&disk.name, what, "give each a name of its own"));
        }
        let target = target(disk, datastores, source)?;
        if !targets.insert(target.to_string()) {
            let what = format!("target \"{target}\" is that of another disk as well");
            return Err(source.invalid(&disk.target, what, "give each disk a target of its own"));
        }
        let kind = kind(disk, &target, source)?;
        disks.push(DiskConfig { name, target, kind });
    }
    Ok(disks)
}

fn target(disk: &DiskTable, datastores: &[Datastore], source: &Source) -> Result<TargetSpec, ConfigError> {
    let refused = |error: crate::target::SpecError| {
        source.invalid(&disk.target, error.to_string(), "see docs/vmdk.md for what can be a target")
    };
    let target: TargetSpec = disk.target.get_ref().parse().map_err(refused)?;
    if let TargetSpec::Vmdk { datastore, .. } = &target
        && !datastores.iter().any(|known| known.name == *datastore)
    {
        let what = format!("there is no datastore \"{datastore}\"");
        return Err(source.invalid(&disk.target, what, "add a [[datastore]] with this name, or correct the target"));
    }
    Ok(target)
}

/// What is made of a VMDK that doesn't exist: what ESXi runs, where nothing is said.
fn kind(disk: &DiskTable, target: &TargetSpec, source: &Source) -> Result<DiskKind, ConfigError> {
    let Some(kind) = &disk.kind else { return Ok(DiskKind::Vmfs) };
    if let TargetSpec::Path(_) = target {
        let what = format!("target \"{target}\" is no VMDK, so it has no kind");
        return Err(source.invalid(kind, what, "remove the kind, or name a VMDK in a datastore"));
    }
    let known = DiskKind::OF_TARGETS.into_iter().find(|known| known.create_type() == kind.get_ref());
    known.ok_or_else(|| {
        let names = DiskKind::OF_TARGETS.map(|known| format!("\"{known}\"")).join(", ");
        let what = format!("\"{}\" is no kind of VMDK that is written", kind.get_ref());
        source.invalid(kind, what, format!("choose one of {names}"))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::retention::RETENTION_DEFAULT;
    use super::*;
    use crate::journal::WhenFull;

    const GOOD: &str = r#"name = "mt-1"
listen = "0.0.0.0:9443"
state_dir = "/var/lib/master-target"
control = "/run/master-target/control.sock"
retention = "/mnt/retention"
[tls]
ca = "ca.pem"
cert = "mt-1.pem"
key = "mt-1.key"
[[datastore]]
name = "ds1"
path = "/vmfs/volumes/ds1"
[[group]]
name = "web"
process_server = "ps-1"
retention = "48h"
when_full = "pause"
[[group.disk]]
name = "os"
target = "[ds1] web/os.vmdk"
[[group.disk]]
name = "data"
target = "/dev/loop5"
[[group]]
name = "db"
process_server = "ps-2"
[[group.disk]]
name = "os"
target = "/srv/db.raw"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let source = Source::from_text(Path::new("/etc/mt.toml"), text);
        check(source.parse()?, &source)
    }

    #[test]
    fn the_contracts_file_is_taken_with_its_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.name.as_str(), config.groups.len()), ("mt-1", 2));
        assert_eq!(config.groups[0].retention, Duration::from_secs(48 * 3600));
        assert_eq!(config.groups[1].retention, RETENTION_DEFAULT);
        assert_eq!(config.groups[0].when_full, WhenFull::Pause);
        assert_eq!(config.groups[1].when_full, WhenFull::DropOldest, "replication goes on by default");
        assert_eq!(config.groups[0].disks[0].target.to_string(), "[ds1] web/os.vmdk");
        assert_eq!(config.groups[0].rules().disks, ["os", "data"]);
        assert_eq!(config.groups[0].disks[0].kind, DiskKind::Vmfs, "what ESXi runs");
    }

    #[test]
    fn the_retention_volume_has_a_default() {
        let text = GOOD.replace("retention = \"/mnt/retention\"\n", "");
        assert_ne!(text, GOOD);
        assert_eq!(parse(&text).unwrap().retention, Path::new("/mnt/retention"));
    }

    #[test]
    fn the_kind_of_a_new_vmdk_can_be_chosen() {
        for kind in ["vmfs", "monolithicFlat", "twoGbMaxExtentFlat", "monolithicSparse"] {
            let text = GOOD.replace("os.vmdk\"", &format!("os.vmdk\"\nkind = \"{kind}\""));
            assert_eq!(parse(&text).unwrap().groups[0].disks[0].kind.create_type(), kind);
        }
    }

    #[test]
    fn disks_of_several_machines_make_one_group() {
        let machines = "[[group.machine]]\nname = \"m1\"\n[[group.machine.disk]]\nname = \"os\"\ntarget = \"/srv/m1.raw\"\n\
                        [[group.machine]]\nname = \"m2\"\n[[group.machine.disk]]\nname = \"os\"\ntarget = \"/srv/m2.raw\"\n";
        let text = format!("{GOOD}{machines}");
        assert_eq!(parse(&text).unwrap().groups[1].rules().disks, ["os", "m1.os", "m2.os"]);
        for (from, to, expected) in [
            ("name = \"m2\"", "name = \"m1\"", "mt.toml:36: group \"db\" has two machines named \"m1\""),
            ("/srv/m2.raw", "/srv/m1.raw", "mt.toml:39: target \"/srv/m1.raw\" is that of another disk"),
            ("name = \"m2\"", &format!("name = \"{}\"", "m".repeat(61)), "mt.toml:38: "),
        ] {
            let error = parse(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn bad_values_are_refused_with_their_line_and_a_remedy() {
        for (from, to, expected) in [
            ("state_dir = \"/var", "state_dir = \"var", "mt.toml:3: \"var/lib/master-target\" is a relative path"),
            ("name = \"db\"", "name = \"web\"", "mt.toml:25: there are two groups named \"web\""),
            ("name = \"data\"", "name = \"os\"", "mt.toml:22: group \"web\" has two disks named \"os\""),
            ("/srv/db.raw", "/dev/loop5", "mt.toml:29: target \"/dev/loop5\" is that of another disk"),
            ("[ds1] web", "[ds2] web", "mt.toml:20: there is no datastore \"ds2\""),
            ("[ds1] web/os", "[ds1] ../os", "mt.toml:20: "),
            ("\"48h\"", "\"0s\"", "mt.toml:16: points can't be kept"),
            ("\"48h\"", "\"soon\"", "mt.toml:16: "),
            ("\"pause\"", "\"stop\"", "mt.toml:17: unknown variant `stop`, expected `drop-oldest` or `pause`"),
            (
                "\"pause\"",
                "\"pause\"\nthin = [{ after = \"2h\", keep = \"3h\" }]",
                "mt.toml:18: thin of group \"web\": points are to be",
            ),
            ("\"pause\"", "\"pause\"\nthin = [{ after = \"2h\", keep = \"5s\" }]", "mt.toml:18: "),
            ("\"pause\"", "\"pause\"\nthin = [{ after = \"72h\", keep = \"1h\" }]", "mt.toml:18: "),
            ("\"pause\"", "\"pause\"\napp_consistent_every = \"5s\"", "mt.toml:18: app_consistent_every of group"),
            ("\"pause\"", "\"pause\"\nretention_size = \"1MiB\"", "mt.toml:18: the journal of group"),
            ("\"pause\"", "\"pause\"\nkeep_at_least = \"72h\"", "mt.toml:18: "),
            ("\"0.0.0.0:9443\"", "\"somewhere\"", "mt.toml:2: "),
            ("process_server = \"ps-1\"", "process_server = \"\"", "mt.toml:15: "),
            ("name = \"ds1\"", "name = \"[ds1]\"", "mt.toml:11: "),
            (
                "os.vmdk\"",
                "os.vmdk\"\nkind = \"streamOptimized\"",
                "mt.toml:21: \"streamOptimized\" is no kind of VMDK",
            ),
            ("/dev/loop5\"", "/dev/loop5\"\nkind = \"vmfs\"", "mt.toml:24: target \"/dev/loop5\" is no VMDK"),
            ("key = \"mt-1.key\"", "key = \"mt-1.key\"\npassword = \"x\"", "mt.toml:10: unknown field `password`"),
            ("[[group.disk]]\nname = \"os\"\ntarget = \"/srv/db.raw\"\n", "", "mt.toml:25: group \"db\" has no disk"),
            ("/run/master-target", &format!("/{}", "x".repeat(200)), "mt.toml:4: the path of the control socket"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("; "), "{to}: {error}");
        }
    }

    /// A file whose folders and keys exist, but for `break_it`.
    fn files(break_it: impl Fn(&Path)) -> Result<(), ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["retention", "ds1"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["ca.pem", "mt-1.pem", "mt-1.key"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        break_it(folder.path());
        let here = |name: &str| format!("\"{}/{name}\"", folder.path().display());
        let mut text = GOOD.replace("\"/mnt/retention\"", &here("retention"));
        text = text.replace("\"/vmfs/volumes/ds1\"", &here("ds1"));
        for name in ["ca.pem", "mt-1.pem", "mt-1.key"] {
            text = text.replace(&format!("\"{name}\""), &here(name));
        }
        let source = Source::from_text(Path::new("/etc/mt.toml"), &text);
        check_files(&source.parse()?, &source)
    }

    #[test]
    fn existing_files_are_taken() {
        files(|_| ()).unwrap();
    }

    #[test]
    fn missing_folders_and_keys_are_refused_by_name() {
        let missing = |name: &'static str| files(|folder| std::fs::remove_dir(folder.join(name)).unwrap());
        let error = missing("retention").unwrap_err().to_string();
        assert!(error.contains("mt.toml:5: the retention volume") && error.contains("mount it"), "{error}");
        assert!(missing("ds1").unwrap_err().to_string().contains("mt.toml:12: "));
        let error = files(|folder| std::fs::remove_file(folder.join("mt-1.key")).unwrap()).unwrap_err().to_string();
        assert!(error.contains("mt-1.key") && error.contains("pki"), "{error}");
    }

    #[test]
    fn a_file_in_place_of_the_retention_volume_is_refused() {
        let replace = |folder: &Path| {
            std::fs::remove_dir(folder.join("retention")).unwrap();
            std::fs::write(folder.join("retention"), "").unwrap();
        };
        assert!(files(replace).unwrap_err().to_string().contains("is not a folder"));
    }
}
