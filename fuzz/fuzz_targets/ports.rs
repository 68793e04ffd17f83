//! `fuzz/run ports SECONDS`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unisockets_fuzz::ports::run(data));
