//! The other direction: the entry dials, and the exit listens. What holds of flows, and of what is left of them, holds whoever dialled.

use crate::roles::Topology;
use crate::seeds::{attempt, run_in};

/// Odd seeds speak 0x81, even ones 0x80.
#[test]
fn both_roles_survive_two_hundred_seeds_when_the_entry_dials() {
    const SEEDS: u64 = 200;
    let one = std::env::var("ZHWKPROX_SIM_DIALLED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let reversed = |seed| run_in(seed, |topology| Topology { entry_dials: true, ..topology });
    if let Some(seed) = one {
        println!("seed {seed}: {:#?}", reversed(seed));
        return;
    }
    let failures: Vec<_> = (0..SEEDS).filter_map(|seed| Some((seed, attempt(|| reversed(seed)).err()?))).collect();
    for (seed, text) in failures.iter().take(10) {
        println!("seed {seed}: {text}\n    replay: ZHWKPROX_SIM_DIALLED={seed} cargo test --test sim -- dialled --nocapture\n");
    }
    let numbers: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(failures.is_empty(), "{} of {SEEDS} seeds failed: {numbers:?}", failures.len());
}
