//! The body is [`ptth_fuzz::conn_bytes`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::conn_bytes(data));
