//! A VMDK's descriptor, as somebody's datastore holds it. No extent name that is accepted leads out of its folder.

#![no_main]

use std::path::Component;

use master_target::vmdk::{Descriptor, ExtentName, FileKind, FlatLayout};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(refusal) = FileKind::of(bytes, bytes.len() as u64).refusal() {
        assert!(!refusal.to_string().is_empty());
    }
    let Ok(descriptor) = Descriptor::parse(bytes) else { return };
    if let Err(refusal) = FlatLayout::of(&descriptor) {
        assert!(!refusal.to_string().is_empty());
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = ExtentName::parse(text)
    {
        assert!(name.as_path().components().all(|part| matches!(part, Component::Normal(_))));
    }
});
