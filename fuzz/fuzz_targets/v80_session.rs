//! The table of keys: traffic between two sessions that keep the rules, over pipes that cut anywhere, and any headers from a peer that keeps
//! none. The world around the sessions is that of the property tests.
#![no_main]
#![allow(dead_code, reason = "the property tests use more of the shared files")]

#[path = "../../tests/protocol/support.rs"]
mod support;
#[path = "../../tests/protocol/traffic.rs"]
mod traffic;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0..=127, operations)) => traffic::run(operations),
        Some((_, operations)) => traffic::hostile(operations),
        None => {}
    }
});
