//! Faults made on purpose in the production code, one at a time: the seeds have to notice each of them, or what they say about the code
//! without faults is worth nothing.

use zhwkprox::mutants::{self, Mutant};

use crate::seeds::{replay, try_run};

/// How far to look for a seed that notices.
const SEEDS: u64 = 1_000;

#[test]
fn every_mutant_is_caught_by_some_seed_that_passes_without_it() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let caught = (0..SEEDS).find_map(|seed| {
            mutants::set(Some(mutant));
            let result = try_run(seed);
            mutants::set(None);
            result.err().map(|seen| (seed, seen))
        });
        let Some((seed, seen)) = caught else {
            println!("{mutant:?}: not caught by {SEEDS} seeds");
            survivors.push(mutant);
            continue;
        };
        let seen = seen.lines().next().unwrap_or_default();
        let command = replay(seed).replace("--test", "--features mutants --test");
        println!("{mutant:?}: caught by seed {seed}: {seen}\n    ZHWKPROX_SIM_MUTANT={mutant:?} {command}");
        if let Err(text) = try_run(seed) {
            panic!("seed {seed} fails without {mutant:?} too: {text}");
        }
    }
    assert!(survivors.is_empty(), "not caught by {SEEDS} seeds: {survivors:?}");
}

/// The mutant named in `ZHWKPROX_SIM_MUTANT`, for replaying.
pub(crate) fn from_environment() -> Option<Mutant> {
    let name = std::env::var("ZHWKPROX_SIM_MUTANT").ok()?;
    Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name)
}
