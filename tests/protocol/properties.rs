//! Random traffic between two sessions, and random headers from a peer without rules.

use proptest::prelude::*;

/// A failure prints its smallest input; nothing is written into the tree.
pub(crate) fn config() -> proptest::test_runner::Config {
    proptest::test_runner::Config { failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_traffic_cut_anywhere_arrives_whole_and_frees_every_key(operations in prop::collection::vec(any::<u8>(), 0..1500)) {
        crate::traffic::run(&operations);
    }

    #[test]
    fn a_peer_without_rules_cannot_confuse_a_table_of_keys(operations in prop::collection::vec(any::<u8>(), 0..600)) {
        crate::traffic::hostile(&operations);
    }

    #[test]
    fn any_traffic_of_0x81_arrives_whole_and_leaves_nothing_behind(operations in prop::collection::vec(any::<u8>(), 0..2000)) {
        crate::v81_traffic::run(&operations);
    }

    #[test]
    fn a_peer_without_rules_cannot_confuse_a_table_of_streams(plaintexts in prop::collection::vec(any::<u8>(), 0..1000)) {
        crate::v81_traffic::hostile(&plaintexts);
    }
}
