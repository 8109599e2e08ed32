//! Each fault made on purpose is found once, and named.

use std::time::Duration;

use loadgen::fault::{Fault, What};
use loadgen::pattern::{Way, Wrong};
use loadgen::run::{Outcome, run};
use loadgen::spec::{Destinations, Spec, Via, Workload};

use crate::proxy::{self, Harm, Side};
use crate::servers::{self, Destination};

const SEED: u64 = 4711;

/// Echoes through the harm to a plain echo, and gives the one fault that is found.
fn in_echoes(harm: Harm) -> Fault {
    let echo = servers::echo(|_| ());
    let spec = Spec {
        destinations: Destinations::Plain(echo),
        flows: 4,
        size: 96,
        ..quick(Workload::Echo, Via::Forwarder(proxy::start(echo, Side::Down, harm)))
    };
    only(run(&spec, &mut |_| ()).unwrap())
}

/// Bulk through the harm to a destination of ours.
fn in_bulk(workload: Workload, side: Side, harm: Harm) -> Fault {
    let destination = Destination::start();
    let via = Via::Forwarder(proxy::start(destination.at, side, harm));
    let spec = Spec { destinations: Destinations::There(vec![destination.at]), flows: 3, size: 20_000, ..quick(workload, via) };
    only(run(&spec, &mut |_| ()).unwrap())
}

fn quick(workload: Workload, via: Via) -> Spec {
    Spec {
        time: Duration::from_millis(400),
        warm_up: Duration::from_millis(50),
        stall: Duration::from_secs(2),
        ..Spec::new(workload, via, SEED)
    }
}

fn only(outcome: Outcome) -> Fault {
    assert_eq!(outcome.faults.len(), 1, "one fault was made: {:?}", outcome.faults);
    assert!(outcome.bulk_bytes() + outcome.operations > 0, "the other flows go on");
    outcome.faults.into_iter().next().unwrap()
}

fn wrong(fault: &Fault) -> &Wrong {
    match &fault.what {
        What::Wrong(wrong) => wrong,
        other => panic!("expected wrong bytes, got {other:?}"),
    }
}

#[test]
fn a_dropped_byte_of_an_echo_is_missing_there() {
    let fault = in_echoes(Harm::Drop(1000));
    assert_eq!((wrong(&fault), fault.offset), (&Wrong::Missing { bytes: 1 }, 1000), "{fault}");
}

#[test]
fn a_repeated_byte_of_an_echo_is_repeated() {
    let fault = in_echoes(Harm::Repeat(1000));
    assert_eq!((wrong(&fault), fault.offset), (&Wrong::Repeated { bytes: 1 }, 1001), "{fault}");
}

#[test]
fn swapped_bytes_of_an_echo_are_swapped_there() {
    let fault = in_echoes(Harm::Swap(1000));
    assert_eq!((wrong(&fault), fault.offset), (&Wrong::Swapped, 1000), "{fault}");
}

#[test]
fn a_flipped_bit_of_an_echo_is_one_changed_byte() {
    let fault = in_echoes(Harm::Flip(1000));
    assert_eq!((wrong(&fault), fault.offset), (&Wrong::Changed { bytes: 1 }, 1000), "{fault}");
}

#[test]
fn an_echo_of_another_flow_is_named_with_its_owner() {
    let fault = in_echoes(Harm::Mix(1000));
    let Wrong::MixUp { flow, way: Way::Up, offset } = *wrong(&fault) else { panic!("{fault}") };
    assert!(flow < 4 && flow != fault.flow && offset % 96 == 0, "{fault}");
}

#[test]
fn a_server_that_stalls_is_named_with_the_place() {
    let fault = in_echoes(Harm::Stall(1000));
    assert!(matches!(fault.what, What::Stalled { seconds } if seconds >= 2.0), "{fault}");
    assert_eq!((fault.way, fault.offset), (Way::Down, 1000));
}

#[test]
fn a_flow_that_is_closed_early_is_named_with_the_place() {
    let fault = in_echoes(Harm::Close(1000));
    assert_eq!((&fault.what, fault.way, fault.offset), (&What::Ended, Way::Down, 1000), "{fault}");
}

#[test]
fn bulk_downwards_is_checked_by_the_client() {
    let fault = in_bulk(Workload::BulkDown, Side::Down, Harm::Drop(1_000_003));
    assert_eq!((wrong(&fault), fault.way, fault.offset), (&Wrong::Missing { bytes: 1 }, Way::Down, 1_000_003), "{fault}");
    let fault = in_bulk(Workload::BulkDown, Side::Down, Harm::Mix(1_000_000));
    let Wrong::MixUp { flow, way: Way::Down, .. } = *wrong(&fault) else { panic!("{fault}") };
    assert!(flow < 3 && flow != fault.flow, "{fault}");
}

#[test]
fn bulk_upwards_is_checked_by_the_destination() {
    // The header goes before the first byte that counts.
    let header = loadgen::wire::HEADER_LEN;
    let fault = in_bulk_up(Harm::Swap(1_000_003 + header));
    assert_eq!((wrong(&fault), fault.way, fault.offset), (&Wrong::Swapped, Way::Up, 1_000_003), "{fault}");
    let fault = in_bulk_up(Harm::Mix(1_000_000));
    let Wrong::MixUp { flow, way: Way::Up, .. } = *wrong(&fault) else { panic!("{fault}") };
    assert!(flow < 3 && flow != fault.flow, "{fault}");
}

/// The destination closes on what is wrong, so the client has its own word to say too.
fn in_bulk_up(harm: Harm) -> Fault {
    let destination = Destination::start();
    let via = Via::Forwarder(proxy::start(destination.at, Side::Up, harm));
    let spec = Spec { destinations: Destinations::There(vec![destination.at]), flows: 3, size: 20_000, ..quick(Workload::BulkUp, via) };
    let outcome = run(&spec, &mut |_| ()).unwrap();
    let (theirs, ours): (Vec<_>, Vec<_>) = outcome.faults.into_iter().partition(|fault| matches!(fault.what, What::Wrong(_)));
    assert!(theirs.len() == 1 && ours.iter().all(|fault| fault.flow == theirs[0].flow), "{theirs:?} {ours:?}");
    theirs.into_iter().next().unwrap()
}

#[test]
fn bulk_that_stalls_is_not_taken_for_the_end_of_the_measurement() {
    let fault = in_bulk(Workload::BulkDown, Side::Down, Harm::Stall(1_000_000));
    assert!(matches!(fault.what, What::Stalled { .. }), "{fault}");
    assert_eq!((fault.way, fault.offset), (Way::Down, 1_000_000));
}

#[test]
fn a_damaged_header_is_found_by_the_destination() {
    let destination = Destination::start();
    let via = Via::Forwarder(proxy::start(destination.at, Side::Up, Harm::Flip(9)));
    let spec = Spec { destinations: Destinations::There(vec![destination.at]), flows: 3, ..quick(Workload::Echo, via) };
    let faults = run(&spec, &mut |_| ()).unwrap().faults;
    assert!(faults.iter().any(|fault| fault.what == What::NoHeader), "{faults:?}");
}
