//! The body is [`ptth_fuzz::comet`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::comet(data));
