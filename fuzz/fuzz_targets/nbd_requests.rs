//! What an NBD client may send once it has an export.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd::fuzz::requests(bytes));
