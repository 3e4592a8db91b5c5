//! The body is [`ptth_fuzz::packed`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::packed(data));
