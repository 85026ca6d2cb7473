//! Index files of a journal with right checksums: a look-up neither panics nor goes on for ever.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| master_target::journal::index::fuzz::look_ups(bytes));
