//! Messages on the control stream.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto::fuzz::control_message(bytes));
