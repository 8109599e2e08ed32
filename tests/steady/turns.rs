//! Both roles over the simulated network, turn by turn.

use crate::rig::{ROLES, Rig};
use crate::roles::Topology;

/// Rounds in which lists and tables come to their sizes: windows grow and timers come round too.
const WARM_UP: usize = 200;
const ROUNDS: usize = 500;

fn allocations(flows: usize, round: fn(&mut Rig)) -> [u64; 2] {
    let mut rig = Rig::new(&Topology::SECURE, flows);
    (0..WARM_UP).for_each(|_| round(&mut rig));
    for (_, role) in ROLES {
        assert_ne!(rig.meter(role).take(), 0, "the flows were opened, so something was allocated, and counted");
    }
    (0..ROUNDS).for_each(|_| round(&mut rig));
    ROLES.map(|(_, role)| rig.meter(role).take())
}

#[test]
fn an_echo_allocates_nothing() {
    for flows in [1, 64] {
        assert_eq!(allocations(flows, Rig::echo), [0, 0], "entry and exit, {ROUNDS} exchanges on each of {flows} flows");
    }
}

#[test]
fn bulk_allocates_nothing() {
    for flows in [1, 16] {
        assert_eq!(allocations(flows, Rig::down), [0, 0], "entry and exit, {ROUNDS} records down on each of {flows} flows");
        assert_eq!(allocations(flows, Rig::up), [0, 0], "entry and exit, {ROUNDS} records up on each of {flows} flows");
    }
}
