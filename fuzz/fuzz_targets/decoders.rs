//! `fuzz/run decoders SECONDS`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unisockets_fuzz::decoders::run(data));
