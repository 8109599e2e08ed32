//! One seed, one world: topology, traffic and faults are drawn from it, both roles run in it, and at its end everything must be as it was.
//! `ZHWKPROX_SIM_SEED=n` runs only that one (with `ZHWKPROX_SIM_TRACE=1` it tells what happens), `ZHWKPROX_SIM_SEEDS=n` as many.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use zhwkprox::shard::inbox::Message;

use crate::client::{ClientPlan, Manner, name_of};
use crate::destination::Kind;
use crate::duplex::{Abort, AbortWhen, Begin, Finish, Plan};
use crate::engine::{Temper, address};
use crate::harness::{Fault, Simulation};
use crate::rng::Rng;
use crate::roles::{ENTRY, EXIT, Topology, Version, build, socks_at};
use crate::traffic::{NAME_BYTES, Pace};
use crate::verdict::{Plans, Shown, check_flows, difference, is_empty, resting};
use crate::world::{Link, MICROSECOND, MILLISECOND, Nanos, Path, SECOND};

/// What a seed came to, for the curious.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Outcome {
    pub(crate) flows: u64,
    pub(crate) bytes: u64,
    pub(crate) no_buffers: u64,
    pub(crate) most_turns: u64,
    pub(crate) simulated: Nanos,
    pub(crate) history: u64,
    pub(crate) shown: Shown,
}

fn link(rng: &mut Rng, most_latency: Nanos) -> Link {
    let latency = rng.pick(&[(20, 40), (1_000, 2_000), (5_000, 30_000), (75_000, 85_000)]);
    let latency = ((latency.0 * MICROSECOND).min(most_latency), (latency.1 * MICROSECOND).min(most_latency));
    let segment = rng.pick(&[100, 1_448, 16_384, 65_536]);
    let (outbox, inbox) = (rng.pick(&[2_048, 16_384, 131_072]), rng.pick(&[2_048, 16_384, 131_072]));
    Link { latency, segment: segment.max(outbox / 32), outbox, inbox, rate: None }
}

fn topology(rng: &mut Rng) -> Topology {
    let temper = Temper {
        short_receives: rng.pick(&[0, 20, 60]),
        delayed: rng.pick(&[0, 10, 40]),
        late_cancels: 50,
        posted: rng.pick(&[2, 4, 32]),
        per_turn: rng.pick(&[1, 5, 256, 256]),
    };
    Topology {
        shards: rng.pick(&[[1, 1], [1, 1], [1, 1], [2, 1], [1, 2], [2, 2]]),
        slots: [rng.pick(&[4, 5, 8, 16, 64]), rng.pick(&[4, 5, 8, 16, 64])],
        temper: [temper, temper],
        slowness: rng.pick(&[0, 10, 200]) * MICROSECOND,
        tunnel_link: link(rng, 100 * MILLISECOND),
        max_tunnels: rng.pick(&[1, 2, 3, 256, 256, 256]),
        ..Topology::PLAIN
    }
}

fn pace(rng: &mut Rng) -> Pace {
    if rng.chance(75) {
        return Pace::FULL;
    }
    let hold = if rng.chance(30) { rng.below(3 * SECOND) } else { 0 };
    Pace { hold, piece: rng.size(500, 8_000), pause: rng.between(1, 20) * MILLISECOND }
}

fn amount(rng: &mut Rng) -> usize {
    let bytes = match rng.below(20) {
        0 => rng.spread(300_000),
        1..8 => rng.size(1_000, 60_000),
        _ => rng.spread(60_000),
    };
    NAME_BYTES + bytes
}

fn abort(rng: &mut Rng, about: usize) -> Abort {
    let when = match rng.below(3) {
        0 => AbortWhen::Sent(rng.size(0, about)),
        1 => AbortWhen::Received(rng.size(0, about)),
        _ => AbortWhen::Time(rng.below(200 * MILLISECOND)),
    };
    Abort { when, reset: rng.chance(60) }
}

/// What is at a destination, and what its clients do so that both come to an end.
fn conversation(rng: &mut Rng) -> (Kind, Plan) {
    let (to, back) = (amount(rng), amount(rng));
    let finish = rng.pick(&[Finish::WhenSent, Finish::AfterEnd]);
    // Longer than it takes until a tunnel on which nothing moves would be dropped, were it a spare.
    let gap = match rng.below(100) {
        0..15 => rng.below(2 * SECOND),
        15..20 => rng.between(50, 150) * SECOND,
        _ => 0,
    };
    let (destination, client) = match rng.below(6) {
        0 => (Plan::echo(), Plan { gap, ..Plan::send(to) }),
        // It speaks first.
        1 => (Plan { finish: Finish::AfterEnd, ..Plan::send(back) }, Plan { begin: Begin::After(NAME_BYTES), gap, ..Plan::send(to) }),
        2 => (Plan { begin: Begin::After(NAME_BYTES), ..Plan::send(back) }, Plan { finish, ..Plan::send(to) }),
        // It answers when it has heard everything.
        3 => (Plan { begin: Begin::AfterEnd, ..Plan::send(back) }, Plan { gap, ..Plan::send(to) }),
        // It ends first.
        4 => (Plan::send(back), Plan { begin: Begin::AfterEnd, ..Plan::send(to) }),
        _ => (Plan::send(back), Plan { finish, ..Plan::send(to) }),
    };
    let destination = Plan { read: pace(rng), write: pace(rng), ..destination };
    let kind = match rng.below(20) {
        0 => Kind::Path(Path::Refused),
        1 => Kind::Path(Path::Unreachable),
        2 => Kind::Path(Path::Silent),
        3 => Kind::Flaky(destination, 50),
        4 | 5 => Kind::Serves(Plan { abort: Some(abort(rng, back)), ..destination }),
        _ => Kind::Serves(destination),
    };
    (kind, client)
}

fn destination_address(rng: &mut Rng, number: u16) -> SocketAddr {
    let [_, low] = number.to_be_bytes();
    if rng.chance(30) {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 1 + number)), 443)
    } else {
        SocketAddr::new(IpAddr::from([93, 184, 216, 1 + low]), rng.pick(&[80, 443, 22]))
    }
}

fn faults(rng: &mut Rng, from: Nanos) -> Vec<(Nanos, Fault)> {
    let count = if rng.chance(50) { 0 } else { rng.between(1, 8) };
    let fault = |rng: &mut Rng| match rng.below(18) {
        0..10 => Fault::Kill,
        10 | 11 => Fault::Lose,
        12 | 13 => Fault::Stall(rng.below(4 * SECOND)),
        14 | 15 => Fault::NoDescriptors(rng.pick(&[ENTRY, EXIT]), rng.below(3 * SECOND)),
        _ => Fault::Crash(rng.pick(&[ENTRY, EXIT]), rng.below(3 * SECOND)),
    };
    let most = rng.pick(&[5, 50, 500, 500, 3_000]) * MILLISECOND;
    let time = |rng: &mut Rng| from + rng.below(most);
    (0..count).map(|_| (time(rng), fault(rng))).collect()
}

/// Gives a destination a name, sometimes: how many addresses that do not work stand before its own.
fn name(rng: &mut Rng, simulation: &mut Simulation, number: u16, at: SocketAddr) -> Option<u8> {
    if rng.chance(70) {
        return None;
    }
    let dead = rng.pick(&[0, 1, 2]);
    let low = number.to_be_bytes()[1];
    let mut addresses: Vec<IpAddr> = (0..dead).map(|dead| IpAddr::from([198, 18, low, dead + 1])).collect();
    for address in &addresses {
        simulation.world().set_path(*address, Some(rng.pick(&[Path::Refused, Path::Unreachable])));
    }
    addresses.push(at.ip());
    simulation.names.insert(name_of(at), addresses);
    Some(dead)
}

/// The seeds take turns in what they speak.
const fn version_of(seed: u64) -> Version {
    if seed % 2 == 1 { Version::V81 } else { Topology::PLAIN.version }
}

/// Runs one seed to its end. Panics with what is wrong.
pub(crate) fn run(seed: u64) -> Outcome {
    run_in(seed, |topology| topology)
}

/// The same with another topology.
pub(crate) fn run_in(seed: u64, change: impl Fn(Topology) -> Topology) -> Outcome {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let topology = change(Topology { version: version_of(seed), ..topology(&mut rng) });
    let secure = topology.version == Version::V81;
    let mut simulation = build(seed, &topology);
    assert!(simulation.run_until(30 * SECOND, |simulation| simulation.state(ENTRY).tunnels > 0), "no tunnel within 30 s");
    // Spares are complete, and nothing else is under way.
    simulation.run_for(10 * SECOND);
    let before = [ENTRY, EXIT].map(|host| resting(&simulation.state(host)));

    let mut plans = Plans { secure, ..Plans::default() };
    let most = rng.pick(&[8, 32, 64, 100]);
    let flows = rng.spread(most);
    let conversations: Vec<_> = (0..rng.between(1, 4))
        .map(|number| {
            let number = u16::try_from(number).expect("few");
            let at = destination_address(&mut rng, number);
            let (kind, client) = conversation(&mut rng);
            simulation.world().set_link(at.ip(), link(&mut rng, 30 * MILLISECOND));
            simulation.add_destination(at, kind);
            plans.destinations.insert(at, kind);
            let dead = name(&mut rng, &mut simulation, number, at);
            (at, client, dead)
        })
        .collect();
    // A burst from cold needs several rounds of dialling within the 5 s that a client waits for a tunnel of its own.
    plans.ample = topology.max_tunnels > 2 * flows && topology.tunnel_link.latency.1 <= 30 * MILLISECOND;
    let spread = rng.pick(&[0, MILLISECOND, SECOND]);
    let start = simulation.now() + MILLISECOND;
    for _ in 0..flows {
        let (target, plan, dead) = rng.pick(&conversations);
        let start = start + rng.below(spread + 1);
        let plan = client(&mut rng, start, target, plan, &mut plans);
        let number = simulation.add_client(ClientPlan { by_name: dead.is_some(), ..plan });
        if dead.is_some_and(|dead| dead > 0) {
            plans.dead_first.insert(number);
        }
    }
    plans.calm = plans.is_calm();
    let mut faults = faults(&mut rng, start);
    if secure && rng.chance(10) {
        faults.push((start + rng.below(SECOND), Fault::Freeze(rng.pick(&[ENTRY, EXIT]), rng.below(40 * SECOND))));
    }
    simulation.add_faults(faults);

    let deadline = simulation.now() + 1_000 * SECOND;
    simulation.run_until(deadline, |simulation| simulation.stage.book.borrow().unfinished().is_empty());
    let shown = check_flows(&simulation, &plans);
    // What the last flows left is gone after the linger, and spares are back to their number after a minute and a bit.
    let deadline = simulation.now() + 400 * SECOND;
    let at_rest = |simulation: &Simulation| [ENTRY, EXIT].map(|host| resting(&simulation.state(host)));
    if !simulation.run_until(deadline, |simulation| at_rest(simulation) == before) {
        let [entry, exit] = [ENTRY, EXIT].map(|host| difference(&before[host], &at_rest(&simulation)[host]));
        panic!("not back where it was: at the entry {entry}, at the exit {exit}");
    }
    let outcome = finish(&simulation);
    if secure {
        stop(&mut simulation);
    }
    Outcome { shown, ..outcome }
}

/// On 0x81 a server that stops and its inter-server tell each other, and neither waits for anything else.
fn stop(simulation: &mut Simulation) {
    // By now a path that was lost has been noticed.
    simulation.run_for(60 * SECOND);
    simulation.tell(EXIT, || Message::Stop);
    let deadline = simulation.now() + 5 * SECOND;
    assert!(simulation.run_until(deadline, |simulation| simulation.is_finished(EXIT)), "a server without flows stops in seconds");
}

fn client(rng: &mut Rng, start: Nanos, target: SocketAddr, plan: Plan, plans: &mut Plans) -> ClientPlan {
    let number = u32::try_from(plans.aborts.len()).expect("few");
    let plan = Plan { read: pace(rng), write: pace(rng), ..plan };
    let aborts = if rng.chance(10) { Some(abort(rng, 20_000)) } else { None };
    let hang_up_at = if rng.chance(4) { Some(rng.size(0, 13)) } else { None };
    plans.aborts.insert(number, aborts);
    plans.hang_ups.extend(hang_up_at.map(|at| (number, at)));
    ClientPlan {
        start,
        entry: socks_at(),
        from: address(9),
        target,
        by_name: false,
        manner: rng.pick(&[Manner::Polite, Manner::Polite, Manner::Glued, Manner::Drip]),
        hang_up_at,
        plan: Plan { abort: aborts, ..plan },
    }
}

/// The numbers of a simulation that is at rest; nothing may be held.
pub(crate) fn finish(simulation: &Simulation) -> Outcome {
    for host in [ENTRY, EXIT] {
        let state = simulation.state(host);
        assert!(is_empty(&state), "host {host} is not empty: {state:#?}");
        let (free, all) = simulation.free_slots(host);
        assert_eq!(free, all, "host {host} has not given every slot back");
    }
    let records = &simulation.stage.book.borrow().records;
    Outcome {
        flows: records.len() as u64,
        bytes: records.values().map(|record| record.received as u64).sum(),
        no_buffers: [ENTRY, EXIT].iter().map(|process| simulation.count(*process, |gauge| gauge.no_buffers)).sum(),
        most_turns: simulation.most_turns,
        simulated: simulation.now(),
        history: simulation.stage.world.history(),
        shown: Shown::default(),
    }
}

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs one seed; what is wrong comes back as text and is not printed.
pub(crate) fn try_run(seed: u64) -> Result<Outcome, String> {
    attempt(|| run(seed))
}

/// Runs one simulation; what is wrong comes back as text and is not printed.
pub(crate) fn attempt(run: impl FnOnce() -> Outcome) -> Result<Outcome, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic without words".to_owned())
    })
}

/// The command that replays a seed.
pub(crate) fn replay(seed: u64) -> String {
    format!("ZHWKPROX_SIM_SEED={seed} cargo test --test sim -- seeds::both_roles --nocapture")
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn both_roles_survive_every_seed_and_are_where_they_were() {
    if let Some(seed) = number_from_environment("ZHWKPROX_SIM_SEED") {
        #[cfg(feature = "mutants")]
        zhwkprox::mutants::set(crate::mutants::from_environment());
        println!("seed {seed}: {:#?}", run(seed));
        return;
    }
    let seeds = number_from_environment("ZHWKPROX_SIM_SEEDS").unwrap_or(2_000);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicU64::new(0);
    let mut failures = Vec::new();
    let mut total = Outcome::default();
    let worker = || {
        let mut mine = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return mine;
            }
            mine.push((seed, try_run(seed)));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            for (seed, result) in worker.join().expect("a worker catches what a seed throws") {
                match result {
                    Ok(outcome) => {
                        total.flows += outcome.flows;
                        total.bytes += outcome.bytes;
                        total.no_buffers += outcome.no_buffers;
                        total.simulated += outcome.simulated;
                        total.shown.whole += outcome.shown.whole;
                        total.shown.cut += outcome.shown.cut;
                        total.most_turns = total.most_turns.max(outcome.most_turns);
                    }
                    Err(text) => failures.push((seed, text)),
                }
            }
        }
    });
    let Outcome { flows, bytes, no_buffers, most_turns, simulated, shown, .. } = total;
    let hours = simulated / SECOND / 3_600;
    println!("{seeds} seeds: {flows} flows, {bytes} bytes, {no_buffers} times no slot, {most_turns} turns at most in a second, {hours} h");
    println!("shown whole at both ends: {} flows; shown cut to their readers: {} streams", shown.whole, shown.cut);
    failures.sort();
    for (seed, text) in failures.iter().take(10) {
        println!("seed {seed}: {text}\n    replay: {}\n", replay(*seed));
    }
    let numbers: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds failed: {numbers:?}; replay the first: {}", failures.len(), replay(numbers[0]));
    // A search that meets too little would show too little.
    assert!(seeds < 1_000 || (no_buffers > 0 && shown.whole > flows / 10 && shown.cut > 100), "the seeds do not test enough: {total:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let (first, second) = (try_run(seed), try_run(seed));
        let history = |result: Result<Outcome, String>| result.map(|outcome| outcome.history);
        assert_eq!(history(first), history(second), "seed {seed} ran in two ways");
    }
}
