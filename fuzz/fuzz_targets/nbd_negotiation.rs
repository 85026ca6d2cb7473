//! What an NBD client may send before it has agreed on an export.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd::fuzz::negotiation(bytes));
