//! The body is [`ptth_fuzz::conn_ops`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptth_fuzz::conn_ops(data));
