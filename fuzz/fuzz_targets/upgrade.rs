//! The body is [`ptth_fuzz::upgrade`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::upgrade(data));
