//! What is right is not blamed, and counted as what it is.

use std::time::Duration;

use loadgen::fault::What;
use loadgen::run::{Outcome, run};
use loadgen::spec::{Destinations, Spec, Via, Workload};

use crate::proxy::{self, Harm, Side};
use crate::servers::{self, Destination};

fn through_socks(workload: Workload, change: impl FnOnce(&mut Spec)) -> Outcome {
    let mut spec = Spec {
        time: Duration::from_millis(300),
        warm_up: Duration::from_millis(50),
        ..Spec::new(workload, Via::Socks(servers::socks(0)), 12)
    };
    change(&mut spec);
    let outcome = run(&spec, &mut |_| ()).unwrap();
    assert_eq!(outcome.faults, []);
    assert_eq!(outcome.flows, spec.flows + spec.bulk_beside);
    outcome
}

#[test]
fn bulk_through_a_proxy_arrives_each_way() {
    let down = through_socks(Workload::BulkDown, |_| ());
    assert!(down.down_bytes > 0 && down.up_bytes == 0, "{down:?}");
    let up = through_socks(Workload::BulkUp, |_| ());
    assert!(up.up_bytes > 0 && up.down_bytes == 0, "{up:?}");
    let both = through_socks(Workload::BulkBoth, |spec| spec.size = 1001);
    assert!(both.up_bytes > 0 && both.down_bytes > 0, "{both:?}");
}

#[test]
fn echoes_of_any_size_come_back_from_many_destinations() {
    for size in [1, 64, 100_001] {
        let outcome = through_socks(Workload::Echo, |spec| {
            (spec.size, spec.flows, spec.destinations) = (size, 30, Destinations::Here(10));
        });
        // Each is counted where it ends, and the window's edges are seen by the threads a moment apart: at either edge a flow has one at most.
        let apart = outcome.latency.unwrap().count.abs_diff(outcome.operations);
        assert!(outcome.operations > 0 && apart <= 2 * 30, "{size} bytes: {apart} of {} without a time", outcome.operations);
    }
}

#[test]
fn bulk_runs_beside_echoes() {
    let outcome = through_socks(Workload::Echo, |spec| spec.bulk_beside = 2);
    assert!(outcome.operations > 0 && outcome.down_bytes > 0, "{outcome:?}");
}

#[test]
fn each_connect_is_a_flow_of_its_own() {
    let destination = Destination::start();
    let there = Destinations::There(vec![destination.at]);
    let outcome = through_socks(Workload::Connect, |spec| spec.destinations = there);
    assert!(outcome.operations > 0 && outcome.latency.is_some(), "{outcome:?}");
    let came = loadgen::destination::ask(destination.at, 12).unwrap().flows;
    assert!(came >= outcome.operations + outcome.flows, "{came} flows came: {outcome:?}");
}

#[test]
fn idle_flows_are_open_at_their_end() {
    let destination = Destination::start();
    let there = Destinations::There(vec![destination.at]);
    let outcome = through_socks(Workload::Idle, |spec| (spec.flows, spec.destinations) = (100, there));
    assert_eq!((outcome.flows, outcome.operations), (100, 0), "nothing moves while they are held");
}

#[test]
fn an_idle_flow_that_is_lost_is_blamed() {
    let destination = Destination::start();
    // Its message goes through, and with the next byte the connection ends.
    let via = Via::Forwarder(proxy::start(destination.at, Side::Down, Harm::Close(64)));
    let spec = Spec {
        destinations: Destinations::There(vec![destination.at]),
        flows: 5,
        time: Duration::from_millis(200),
        ..Spec::new(Workload::Idle, via, 5)
    };
    let faults = run(&spec, &mut |_| ()).unwrap().faults;
    assert!(faults.len() == 1 && faults[0].what == What::Ended && faults[0].offset == 64, "{faults:?}");
}

#[test]
fn two_threads_share_the_work() {
    let core = loadgen::machine::cores()[0];
    let outcome = through_socks(Workload::Echo, |spec| (spec.cores, spec.flows) = (vec![core, core], 8));
    assert!(outcome.operations > 0, "{outcome:?}");
}

#[test]
fn a_proxy_that_refuses_is_quoted() {
    let spec = Spec { flows: 2, ..Spec::new(Workload::Echo, Via::Socks(servers::socks(4)), 1) };
    let error = run(&spec, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("host unreachable (0x04)"), "{error}");
}

#[test]
fn a_proxy_that_is_not_there_is_no_measurement() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spec = Spec { flows: 2, ..Spec::new(Workload::Echo, Via::Socks(nobody), 1) };
    let error = run(&spec, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("no flow could be opened") && error.contains("refused"), "{error}");
}
