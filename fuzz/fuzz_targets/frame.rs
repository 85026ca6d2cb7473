//! Frames behind right checksums: headers that lie, payloads that decompress to anything.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto::fuzz::frame(bytes));
