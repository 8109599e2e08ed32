//! The other direction: the entry dials, and the exit listens. What holds of flows and of what is left holds whoever dialled.

use crate::roles::{Topology, Version};
use crate::seeds::{attempt, run_in};

/// Runs seeds with the direction turned round; what only this turns up is told with its seed.
fn all_seeds_hold(seeds: u64, change: impl Fn(Topology) -> Topology + Copy) {
    let mut failures = Vec::new();
    for seed in 0..seeds {
        let result = attempt(|| run_in(seed, |topology| Topology { entry_dials: true, ..change(topology) }));
        failures.extend(result.err().map(|text| format!("seed {seed}: {text}")));
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed:\n{}", failures.len(), failures[..failures.len().min(5)].join("\n"));
}

#[test]
fn flows_keep_their_promises_when_the_entry_dials_on_0x80() {
    all_seeds_hold(200, |topology| topology);
}

#[test]
fn flows_keep_their_promises_when_the_entry_dials_on_0x81() {
    all_seeds_hold(200, |topology| Topology { version: Version::V81, ..topology });
}
