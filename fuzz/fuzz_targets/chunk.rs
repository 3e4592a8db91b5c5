//! The body is [`ptth_fuzz::chunk`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::chunk(data));
