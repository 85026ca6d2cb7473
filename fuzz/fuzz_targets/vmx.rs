//! A machine's settings, as somebody's datastore holds them.

#![no_main]

use master_target::check::Vmx;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let vmx = Vmx::parse(bytes);
    vmx.shows_uuids();
    if let Some(slot) = vmx.slot_of("os.vmdk") {
        assert!(slot.contains(':'));
        vmx.controller_of(slot);
    }
});
