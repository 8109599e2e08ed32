//! Where the second engine is not the first, by design: the tests that are about the first alone, and why.

use super::support::engine;
use zhwkprox::shard::engine::Engine;

/// What is not run on tokio-uring, and why.
const OF_RING: &[(&str, &str)] = &[
    (
        "a_cancel_that_comes_between_the_failure_and_its_report_is_not_lost",
        "no slot is posted ahead, so no receive fails for want of one while the arena has more, and nothing comes in between",
    ),
    (
        "with_queues_far_too_small_nothing_is_lost_and_the_overflow_is_counted",
        "the sizes of its queues are no parameter, and tokio-uring does not say when the kernel kept completions back",
    ),
];

/// `true` on tokio-uring: the test of this name is about the ring alone, and says why.
pub(crate) fn skipped_on_tokio_uring(test: &str) -> bool {
    let (_, why) = OF_RING.iter().find(|(name, _)| *name == test).unwrap_or_else(|| panic!("{test} is not in the list"));
    let skipped = engine() == Engine::TokioUring;
    if skipped {
        eprintln!("skipped on tokio-uring: {test}: {why}");
    }
    skipped
}
