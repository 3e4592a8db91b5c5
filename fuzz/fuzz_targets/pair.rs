//! The body is [`ptth_fuzz::pair`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::pair(data));
