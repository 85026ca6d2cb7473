//! Records, as they come from the link and from the journal, with the frames in them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto::fuzz::record(bytes));
