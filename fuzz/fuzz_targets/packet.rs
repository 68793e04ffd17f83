//! `fuzz/run packet SECONDS`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unisockets_fuzz::packet::run(data));
