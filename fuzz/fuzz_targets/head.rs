//! The body is [`ptth_fuzz::head`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::head(data));
