//! The table of streams: traffic between two sessions that keep the rules, and any frames from a peer that keeps none. The world around the
//! sessions is that of the property tests.
#![no_main]
#![allow(dead_code, reason = "the property tests use more of the shared file")]

#[path = "../../tests/protocol/v81_traffic.rs"]
mod v81_traffic;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0..=127, operations)) => v81_traffic::run(operations),
        Some((_, operations)) => v81_traffic::hostile(operations),
        None => {}
    }
});
