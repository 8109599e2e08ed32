//! Latencies agree with delays that are known, and a server that stands still cannot hide it when starts are fixed in advance.

use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use loadgen::latency::Latency;
use loadgen::run::run;
use loadgen::spec::{Destinations, Spec, Via, Workload};

use crate::servers;

fn measure(pause: impl Fn(u64) + Send + Sync + 'static, change: impl FnOnce(&mut Spec)) -> Latency {
    let echo = servers::echo(pause);
    let mut spec = Spec { destinations: Destinations::Plain(echo), warm_up: Duration::ZERO, ..Spec::new(Workload::Echo, Via::Direct, 3) };
    change(&mut spec);
    let outcome = run(&spec, &mut |_| ()).unwrap();
    assert_eq!(outcome.faults, []);
    outcome.latency.unwrap()
}

/// Of 20 answers 16 come after 2 ms, 3 after 20 ms, 1 after 200 ms. No percentile may lie below its delay, by nothing; above it there is
/// room for a busy machine, but not as far as the next delay.
#[test]
fn percentiles_agree_with_a_known_distribution() {
    let pause = |number: u64| {
        thread::sleep(Duration::from_millis(match number % 20 {
            7 => 200,
            3 | 11 | 16 => 20,
            _ => 2,
        }));
    };
    let latency = measure(pause, |spec| (spec.flows, spec.time) = (40, Duration::from_secs(3)));
    let between = |value: f64, least: f64, most: f64| (least * 0.999..most).contains(&value);
    assert!(latency.count > 400, "{latency:?}");
    assert!(between(latency.p50, 2e3, 20e3), "half of them took 2 ms: {latency:?}");
    assert!(between(latency.p90, 20e3, 200e3), "those at 90 % took 20 ms: {latency:?}");
    assert!(between(latency.p99, 200e3, 2e6), "those at 99 % took 200 ms: {latency:?}");
    assert!(latency.p99 <= latency.p99_9 && latency.p99_9 <= latency.p99_99 && latency.p99_99 <= latency.max);
    // 16 × 2 + 3 × 20 + 200 of 20.
    assert!(between(latency.mean, 14.6e3 * 0.8, 146e3), "{latency:?}");
}

/// 0.7 s after its first message the server answers nobody for a second.
fn hiccup() -> impl Fn(u64) + Send + Sync + 'static {
    let (first, turn) = (OnceLock::new(), Mutex::new(false));
    move |_| {
        let begun = *first.get_or_init(Instant::now);
        let mut over = turn.lock().unwrap();
        if !*over && begun.elapsed() > Duration::from_millis(700) {
            *over = true;
            thread::sleep(Duration::from_secs(1));
        }
    }
}

#[test]
fn a_server_cannot_hide_a_hiccup_from_starts_fixed_in_advance() {
    let change = |spec: &mut Spec| (spec.flows, spec.time) = (4, Duration::from_secs(3));
    let closed = measure(hiccup(), change);
    let open = measure(hiccup(), |spec| {
        change(spec);
        spec.rate = Some(200.0);
    });
    // A third of the starts fall into the hiccup, and half of these wait for more than half of it.
    assert!(open.p90 > 400e3, "from the intended start: {open:?}");
    assert!(closed.p90 < 400e3 && closed.max > 900e3, "each flow waits once, and nobody else is there to see it: {closed:?}");
    assert!((500..=620).contains(&open.count), "200 a second for 3 s: {open:?}");
}
