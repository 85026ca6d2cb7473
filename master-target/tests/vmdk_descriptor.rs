//! The descriptor's parser and writer against golden files, rejects, and bytes that nobody meant to be a descriptor.
#![allow(clippy::unwrap_used)]

use master_target::vmdk::{
    Access, Cid, CreateType, DESCRIPTOR_BYTES_MAX, Descriptor, DiskKind, EXTENTS_MAX, ExtentKind, ExtentName, Fault,
    FlatExtent, FlatLayout, NameError, NewDisk, NewExtent, SPLIT_EXTENTS_MAX, Unsupported, check_sparse,
};
use proptest::prelude::*;

const QEMU_FLAT: &[u8] = include_bytes!("golden/vmdk/qemu-monolithic-flat.vmdk");
const ESXI_VMFS: &[u8] = include_bytes!("golden/vmdk/esxi-vmfs.vmdk");
const ESXI_SNAPSHOT: &[u8] = include_bytes!("golden/vmdk/esxi-snapshot.vmdk");
const SPLIT_FLAT: &[u8] = include_bytes!("golden/vmdk/split-flat.vmdk");
const DEVICE_MAP: &[u8] = include_bytes!("golden/vmdk/device-map.vmdk");
const WORKSTATION: &[u8] = include_bytes!("golden/vmdk/workstation-flat.vmdk");
const CREATED_VMFS: &str = include_str!("golden/vmdk/created-vmfs.vmdk");
const CREATED_SPLIT: &str = include_str!("golden/vmdk/created-two-gb-max-extent-flat.vmdk");
const CREATED_FLAT: &str = include_str!("golden/vmdk/created-monolithic-flat.vmdk");

/// A valid descriptor of which a test changes one thing.
const PLAIN: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
    RW 2048 FLAT \"os-flat.vmdk\" 0\nddb.adapterType = \"lsilogic\"\n";

fn parsed(bytes: &[u8]) -> Descriptor {
    Descriptor::parse(bytes).unwrap()
}

/// [`PLAIN`] with `from` replaced by `to`, which must be there.
fn changed(from: &str, to: &str) -> Vec<u8> {
    assert!(PLAIN.contains(from), "{from:?}");
    PLAIN.replacen(from, to, 1).into_bytes()
}

/// The fault of a changed [`PLAIN`], and its line.
fn fault(from: &str, to: &str) -> (u32, Fault) {
    let error = Descriptor::parse(&changed(from, to)).unwrap_err();
    (error.line, error.fault)
}

fn name(text: &str) -> ExtentName {
    ExtentName::parse(text).unwrap()
}

fn one_file(kind: DiskKind, name: ExtentName, size: u64) -> FlatLayout {
    FlatLayout { kind, extents: vec![FlatExtent { name, offset: 0, size }], size }
}

#[test]
fn a_flat_disk_made_by_qemu_is_understood() {
    let descriptor = parsed(QEMU_FLAT);
    assert_eq!(descriptor.cid, Cid::new(0x0259_2e34));
    assert_eq!(&QEMU_FLAT[descriptor.cid_at.clone()], b"2592e34");
    assert_eq!(descriptor.long_content_id_at, None);
    let layout = FlatLayout::of(&descriptor).unwrap();
    let expected = one_file(DiskKind::MonolithicFlat, name("os-flat.vmdk"), 10 << 20);
    assert_eq!(layout, expected);
}

#[test]
fn a_disk_made_by_esxi_is_understood_with_its_change_tracking_and_long_content_id() {
    let descriptor = parsed(ESXI_VMFS);
    assert_eq!((descriptor.version, &descriptor.create_type), (3, &CreateType::Vmfs));
    assert_eq!(descriptor.change_tracking.as_deref(), Some("os-ctk.vmdk"));
    assert_eq!(&ESXI_VMFS[descriptor.long_content_id_at.clone().unwrap()], b"cb26ab9d7c4e4bd1a0ef3e51fffffffe");
    assert_eq!(&ESXI_VMFS[descriptor.cid_at.clone()], b"fffffffe");
    let layout = FlatLayout::of(&descriptor).unwrap();
    let expected = one_file(DiskKind::Vmfs, name("os-flat.vmdk"), 40 << 30);
    assert_eq!(layout, expected);
}

#[test]
fn carriage_returns_and_spaces_in_names_are_understood() {
    let descriptor = parsed(WORKSTATION);
    assert_eq!(&WORKSTATION[descriptor.cid_at.clone()], b"7c55a3e0");
    assert_eq!(descriptor.extents[0].name, Some(name("data disk-flat.vmdk")));
    assert_eq!(FlatLayout::of(&descriptor).unwrap().size, 1 << 30);
}

#[test]
fn trailing_nul_bytes_are_padding() {
    let mut padded = PLAIN.as_bytes().to_vec();
    padded.resize(1024, 0);
    assert_eq!(parsed(&padded), parsed(PLAIN.as_bytes()));
}

#[test]
fn new_descriptors_are_written_as_the_golden_files_say() {
    let mut random = [0; 32];
    for (value, byte) in random.iter_mut().enumerate() {
        *byte = value as u8;
    }
    let vmfs = NewDisk::new(DiskKind::Vmfs, name("os-flat.vmdk"), 40 << 30, random);
    assert_eq!(vmfs.text(), CREATED_VMFS);
    let flat = NewDisk::new(DiskKind::MonolithicFlat, name("small-flat.vmdk"), 1 << 20, random);
    assert_eq!(flat.text(), CREATED_FLAT);
    let extent = |index, sectors| NewExtent { name: name(&format!("os-f{index:03}.vmdk")), sectors };
    let split = vec![extent(1, 4_192_256), extent(2, 4_192_256), extent(3, 4096)];
    let split = NewDisk::of_extents(DiskKind::TwoGbMaxExtentFlat, split, random);
    assert_eq!(split.text(), CREATED_SPLIT);
}

#[test]
fn a_split_disk_is_understood_in_the_order_of_its_files() {
    let layout = FlatLayout::of(&parsed(SPLIT_FLAT)).unwrap();
    assert_eq!((layout.kind, layout.size), (DiskKind::TwoGbMaxExtentFlat, (2 * 4_192_256 + 4096) * 512));
    let files: Vec<(String, u64)> = layout.extents.iter().map(|e| (e.name.to_string(), e.size / 512)).collect();
    let expected = [("os-f001.vmdk", 4_192_256), ("os-f002.vmdk", 4_192_256), ("os-f003.vmdk", 4096)];
    assert_eq!(files, expected.map(|(name, sectors)| (name.to_owned(), sectors)));
    let mut many = PLAIN.replace("monolithicFlat", "twoGbMaxExtentFlat");
    (0..SPLIT_EXTENTS_MAX).for_each(|index| many += &format!("RW 1 FLAT \"f{index}\" 0\n"));
    let refused = FlatLayout::of(&parsed(many.as_bytes())).unwrap_err();
    assert!(matches!(refused, Unsupported::Extents { extents: 1025, extents_max: 1024, .. }), "{refused}");
}

#[test]
fn a_sparse_disk_must_be_what_its_header_says() {
    let sparse =
        PLAIN.replace("monolithicFlat", "monolithicSparse").replace("FLAT \"os-flat.vmdk\" 0", "SPARSE \"os.vmdk\"");
    check_sparse(&parsed(sparse.as_bytes()), 2048).unwrap();
    let refused = |from: &str, to: &str, capacity| {
        assert!(sparse.contains(from));
        check_sparse(&parsed(sparse.replace(from, to).as_bytes()), capacity).unwrap_err()
    };
    assert_eq!(refused("RW", "RW", 2047), Unsupported::Capacity { descriptor: 2048, header: 2047 });
    assert!(matches!(refused("parentCID=ffffffff", "parentCID=1", 2048), Unsupported::Snapshot { .. }));
    assert!(matches!(refused("monolithicSparse", "twoGbMaxExtentSparse", 2048), Unsupported::Kind { .. }));
    assert!(matches!(refused("monolithicSparse", "monolithicFlat", 2048), Unsupported::Kind { .. }));
    assert!(matches!(refused("SPARSE", "FLAT", 2048), Unsupported::ExtentKind { .. }));
    assert!(matches!(refused("RW 2048", "RDONLY 2048", 2048), Unsupported::NotWritable("RDONLY")));
    let twice = refused("ddb.adapter", "RW 1 SPARSE \"b.vmdk\"\nddb.adapter", 2048);
    assert!(matches!(twice, Unsupported::Extents { extents: 2, .. }));
}

#[test]
fn a_snapshot_is_refused_and_its_parent_named() {
    let refused = FlatLayout::of(&parsed(ESXI_SNAPSHOT)).unwrap_err();
    assert_eq!(refused, Unsupported::Snapshot { parent: "os.vmdk".to_owned() });
    assert!(refused.to_string().contains("consolidate"));
    let only_cid = FlatLayout::of(&parsed(&changed("parentCID=ffffffff", "ParentCID=0000000a"))).unwrap_err();
    assert_eq!(only_cid, Unsupported::Snapshot { parent: "CID 0000000a".to_owned() });
}

#[test]
fn kinds_that_are_not_written_are_refused_with_their_name_and_a_remedy() {
    let mapped = FlatLayout::of(&parsed(DEVICE_MAP)).unwrap_err().to_string();
    assert!(mapped.contains("vmfsPassthroughRawDeviceMap") && mapped.contains("name the device itself"), "{mapped}");
    for kind in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse", "seSparse", "custom", "unheardOf"] {
        let bytes = changed("monolithicFlat", kind);
        let refused = FlatLayout::of(&parsed(&bytes)).unwrap_err();
        assert!(matches!(&refused, Unsupported::Kind { kind: k, .. } if k == kind), "{refused}");
    }
}

#[test]
fn an_extent_that_does_not_fit_the_disk_is_refused() {
    let refused = |from, to| FlatLayout::of(&parsed(&changed(from, to))).unwrap_err();
    assert!(matches!(refused("FLAT", "VMFS"), Unsupported::ExtentKind { .. }));
    assert!(matches!(refused("FLAT", "SPARSE"), Unsupported::ExtentKind { .. }));
    assert!(matches!(refused("FLAT \"os-flat.vmdk\" 0", "ZERO"), Unsupported::ExtentKind { .. }));
    assert_eq!(refused("RW 2048", "RDONLY 2048"), Unsupported::NotWritable("RDONLY"));
    assert_eq!(refused("RW 2048", "NOACCESS 2048"), Unsupported::NotWritable("NOACCESS"));
    let twice = refused("ddb.adapter", "RW 1 FLAT \"more.vmdk\" 0\nddb.adapter");
    assert!(matches!(twice, Unsupported::Extents { extents: 2, .. }));
    let vmfs = PLAIN.replace("monolithicFlat", "vmfs").replace("FLAT \"os-flat.vmdk\" 0", "VMFS \"os-flat.vmdk\" 8");
    assert!(matches!(FlatLayout::of(&parsed(vmfs.as_bytes())), Err(Unsupported::ExtentKind { .. })));
}

#[test]
fn encryption_filters_and_native_snapshots_are_refused() {
    for line in ["encryptionKeys=\"vmware:key/list/x\"", "ddb.sidecars = \"os_1.vmfd\"", "DDB.nativeParentCID = \"1\""]
    {
        let bytes = changed("ddb.adapterType = \"lsilogic\"", line);
        assert!(matches!(FlatLayout::of(&parsed(&bytes)), Err(Unsupported::Layer { .. })), "{line}");
    }
}

#[test]
fn a_flat_extent_may_begin_inside_its_file() {
    let layout = FlatLayout::of(&parsed(&changed("vmdk\" 0", "vmdk\" 63"))).unwrap();
    assert_eq!(layout.extents[0].offset, 63 * 512);
    let access = parsed(&changed("vmdk\" 0", "vmdk\"")).extents[0].access;
    assert_eq!(access, Access::ReadWrite);
}

#[test]
fn files_that_are_no_descriptor_are_refused() {
    let refused = |bytes: &[u8]| Descriptor::parse(bytes).unwrap_err().fault;
    assert_eq!(refused(b""), Fault::Empty);
    assert_eq!(refused(&[0; 512]), Fault::Empty);
    assert_eq!(refused(b" \n\n"), Fault::Empty);
    assert_eq!(refused(b"hello\n"), Fault::NotADescriptor);
    assert_eq!(refused(b"\nversion=1\n"), Fault::NotADescriptor);
    assert_eq!(refused(b"# Disk DescriptorFile\n\xff\xfe\n"), Fault::NotText);
    assert_eq!(refused(&[PLAIN.as_bytes(), b"\0\0RW"].concat()), Fault::NotText);
    assert_eq!(refused(&vec![b'#'; DESCRIPTOR_BYTES_MAX + 1]), Fault::TooLarge(DESCRIPTOR_BYTES_MAX + 1));
    let long = format!("# Disk DescriptorFile\n# {}\n", "x".repeat(5000));
    assert_eq!(refused(long.as_bytes()), Fault::LineTooLong);
}

#[test]
fn what_a_disk_needs_must_be_there_once_whatever_its_case() {
    assert_eq!(fault("version=1\n", ""), (0, Fault::Missing("version")));
    assert_eq!(fault("CID=12345678\n", ""), (0, Fault::Missing("CID")));
    assert_eq!(fault("parentCID=ffffffff\n", ""), (0, Fault::Missing("parentCID")));
    assert_eq!(fault("createType=\"monolithicFlat\"\n", ""), (0, Fault::Missing("createType")));
    assert_eq!(fault("RW 2048 FLAT \"os-flat.vmdk\" 0\n", ""), (0, Fault::Missing("an extent line")));
    assert_eq!(fault("CID=12345678\n", "CID=12345678\ncid=87654321\n"), (4, Fault::Twice("CID")));
    assert_eq!(fault("createType", "parentCid=0\ncreateType"), (5, Fault::Twice("parentCID")));
    assert_eq!(fault("ddb.adapter", "CREATETYPE=\"vmfs\"\nddb.adapter"), (7, Fault::Twice("createType")));
}

#[test]
fn values_that_can_not_be_are_refused_with_their_line() {
    for (from, to, line, key) in [
        ("version=1", "version=4", 2, "version"),
        ("version=1", "version=", 2, "version"),
        ("CID=12345678", "CID=123456789", 3, "CID"),
        ("CID=12345678", "CID=0x123", 3, "CID"),
        ("parentCID=ffffffff", "parentCID=none", 4, "parentCID"),
        ("\"monolithicFlat\"", "\"\"", 5, "createType"),
        ("\"monolithicFlat\"", "\"mono flat\"", 5, "createType"),
    ] {
        let (at, fault) = fault(from, to);
        assert!(at == line && matches!(fault, Fault::Value { key: k, .. } if k == key), "{to}: line {at}: {fault}");
    }
    assert_eq!(fault("\"monolithicFlat\"", "\"monolithicFlat"), (5, Fault::Quotes("createType".to_owned())));
    assert_eq!(fault("\"monolithicFlat\"", "mono\"Flat"), (5, Fault::Quotes("createType".to_owned())));
    assert_eq!(fault("version=1", "version"), (2, Fault::NotAnEntry));
}

#[test]
fn extents_with_bad_sizes_offsets_and_names_are_refused() {
    for size in ["0", "-1", "+1", "x", "99999999999999999999", "17592186044417"] {
        assert_eq!(fault("RW 2048", &format!("RW {size}")), (6, Fault::ExtentNumber("size")), "{size}");
    }
    for offset in ["-1", "x", "17592186044417"] {
        assert_eq!(fault("vmdk\" 0", &format!("vmdk\" {offset}")), (6, Fault::ExtentNumber("offset")), "{offset}");
    }
    assert_eq!(fault("\"os-flat.vmdk\"", "os-flat.vmdk"), (6, Fault::ExtentQuotes));
    assert_eq!(fault("\"os-flat.vmdk\" 0", "\"os-flat.vmdk"), (6, Fault::ExtentQuotes));
    assert_eq!(fault(" FLAT \"os-flat.vmdk\" 0", " FLAT"), (6, Fault::ExtentQuotes));
    assert!(matches!(fault(" FLAT \"os-flat.vmdk\" 0", ""), (6, Fault::Value { .. })));
    for (file, why) in [
        ("../os-flat.vmdk", NameError::Parent),
        ("a/../../os-flat.vmdk", NameError::Parent),
        ("/etc/shadow", NameError::Absolute),
        ("vsan://3f2a", NameError::Object),
        ("", NameError::Empty),
    ] {
        let expected = Fault::ExtentName { name: file.to_owned(), why };
        assert_eq!(fault("os-flat.vmdk", file), (6, expected));
    }
}

#[test]
fn more_extents_than_the_bound_are_refused() {
    let text = PLAIN.to_owned() + &"RW 1 FLAT \"\"".replace("\"\"", "\"a\"\n").repeat(EXTENTS_MAX);
    assert!(text.len() < DESCRIPTOR_BYTES_MAX);
    assert_eq!(Descriptor::parse(text.as_bytes()).unwrap_err().fault, Fault::TooManyExtents);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Descriptor::parse(&bytes);
        let _ = Descriptor::parse(&[b"# Disk DescriptorFile\n", bytes.as_slice()].concat());
    }

    #[test]
    fn arbitrary_lines_never_panic_and_never_lead_out(
        lines in prop::collection::vec("(RW|CID|ddb.longContentID|parentCID)?[ =\"0-9a-z./|\\\\]{0,40}", 0..12),
    ) {
        let text = PLAIN.to_owned() + &lines.join("\n");
        if let Ok(descriptor) = Descriptor::parse(text.as_bytes()) {
            prop_assert_eq!(&text[descriptor.cid_at.clone()], "12345678");
            for extent in descriptor.extents.iter().filter_map(|e| e.name.as_ref()) {
                prop_assert!(extent.as_path().is_relative());
                prop_assert!(!extent.to_string().split('/').any(|c| c == ".."));
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        random in any::<[u8; 32]>(),
        sectors in 1u64..1 << 37,
        file in "[a-z][a-z0-9 _-]{0,20}-flat\\.vmdk",
        vmfs in any::<bool>(),
    ) {
        let kind = if vmfs { DiskKind::Vmfs } else { DiskKind::MonolithicFlat };
        let disk = NewDisk::new(kind, name(&file), sectors * 512, random);
        let text = disk.text();
        let descriptor = parsed(text.as_bytes());
        prop_assert_eq!(descriptor.cid, disk.cid());
        prop_assert_eq!(&text[descriptor.cid_at.clone()], disk.cid().to_string());
        let long = &text[descriptor.long_content_id_at.clone().unwrap()];
        prop_assert!(long.ends_with(&disk.cid().to_string()));
        prop_assert_eq!(&descriptor.extents[0].kind, &if vmfs { ExtentKind::Vmfs } else { ExtentKind::Flat });
        let layout = FlatLayout::of(&descriptor).unwrap();
        prop_assert_eq!(layout, one_file(kind, name(&file), sectors * 512));
    }
}
