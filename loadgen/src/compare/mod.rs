//! Puts relays side by side: each workload in rounds, in which the targets take turns, each started anew on the same core.
//!
//! What always holds: no two targets run at the same time, and in each round another one is first, so that what drifts on the machine
//! drifts under all of them.

mod process;
mod target;

use std::io;

pub use process::{Running, free_port};
pub use target::Target;

use crate::cli::{self, Common, Compare};
use crate::machine::{self, Machine};
use crate::measure::{describe, measure};
use crate::procs::Usage;
use crate::record::{Record, Step};
use crate::spec::{Destinations, Spec, Via, Workload};

/// Runs the comparison.
///
/// # Errors
/// When it was typed wrongly. A target that does not come up, or cannot be measured, is said in the record's doubts.
pub fn compare(asked: &Compare) -> Result<Record, String> {
    let targets = Target::parse(&asked.targets)?;
    let works: Vec<Work> =
        asked.workloads.iter().map(|workload| Ok(Work::new(spec(asked, *workload)?, asked.bulk_flows))).collect::<Result<_, String>>()?;
    take_turns(&Turns { targets, works, rounds: asked.rounds, core: asked.target_core }, &asked.common)
}

/// What targets take turns at.
#[derive(Debug)]
pub struct Turns {
    /// Who.
    pub targets: Vec<Target>,
    /// What each does, one after the other.
    pub works: Vec<Work>,
    /// How often.
    pub rounds: usize,
    /// The core for what is measured; without it the last that may be used.
    pub core: Option<usize>,
}

/// A measurement, and its step if it is one of a row.
#[derive(Debug)]
pub struct Work {
    /// What is measured; how it gets there, its seed and its processes are set with each turn.
    pub spec: Spec,
    /// Flows of bulk beside its echoes, if it is `mixed`.
    pub bulk_flows: u64,
    /// Its step.
    pub step: Option<Step>,
}

impl Work {
    /// One that is no step of a row.
    #[must_use]
    pub const fn new(spec: Spec, bulk_flows: u64) -> Self {
        Self { spec, bulk_flows, step: None }
    }
}

/// Has each work done by each target in turn, in rounds.
///
/// # Errors
/// When the cores cannot be had. A target that does not come up, or cannot be measured, is said in the record's doubts.
pub fn take_turns(turns: &Turns, common: &Common) -> Result<Record, String> {
    let targets = &turns.targets;
    let core = turns.core.or_else(|| machine::cores().last().copied()).unwrap_or(0);
    let (machine, own) = (Machine::here(), common.own_cores());
    let doubts = machine.doubts(&own, Some(core));
    machine::pin(&own).map_err(|error| error.to_string())?;
    for doubt in &doubts {
        eprintln!("warning: {doubt}");
    }
    let mut record = Record::start(machine, doubts);
    let versions: Vec<String> = targets.iter().map(Target::version).collect();
    let mut seed = common.seed();
    for round in 0..turns.rounds.max(1) {
        for work in &turns.works {
            for turn in 0..targets.len() {
                let index = (turn + round) % targets.len();
                // `mixed` takes two.
                seed = seed.wrapping_add(2);
                let work = Work { spec: Spec { seed, ..work.spec.clone() }, bulk_flows: work.bulk_flows, step: work.step.clone() };
                if let Err(error) = one(&mut record, &targets[index], &versions[index], &work, round, core) {
                    let what = describe(&work.spec, work.spec.workload.name());
                    let doubt = format!("{}, {what}, round {}: {error}", targets[index].name, round + 1);
                    eprintln!("warning: {doubt}");
                    record.doubts.push(doubt);
                }
            }
        }
    }
    // In the order that was typed, whatever the order of the turns.
    let place = |name: &str| targets.iter().position(|target| target.name == name);
    record.entries.sort_by_key(|entry| (entry.round, place(&entry.target)));
    Ok(record)
}

fn one(record: &mut Record, target: &Target, version: &str, work: &Work, round: usize, core: usize) -> io::Result<()> {
    let (mut running, via) = target.start(core)?;
    let pids = if matches!(via, Via::Direct) { Vec::new() } else { running.pids() };
    let spec = Spec { via, pids, ..work.spec.clone() };
    let entries = measure(&spec, work.bulk_flows, &target.name, version, round);
    let dead = running.ended();
    let mut entries = match (entries, &dead) {
        (Err(_), Some(dead)) => return Err(io::Error::other(dead.clone())),
        (entries, _) => entries?,
    };
    for entry in &mut entries {
        entry.step.clone_from(&work.step);
        if dead.is_some() {
            // It took its numbers with it: what is left of them would be far too little.
            entry.outcome.usage = Usage::default();
        }
    }
    record.entries.extend(entries);
    dead.map_or(Ok(()), |dead| Err(io::Error::other(dead)))
}

fn spec(asked: &Compare, workload: Workload) -> Result<Spec, String> {
    let mut spec = Spec::new(workload, Via::Direct, 0);
    asked.common.apply(&mut spec)?;
    spec.destinations = Destinations::Here(asked.destinations);
    spec.flows = match workload {
        Workload::Echo | Workload::Mixed => asked.echo_flows,
        Workload::Idle => asked.idle_flows,
        Workload::Connect | Workload::BulkDown | Workload::BulkUp | Workload::BulkBoth => asked.flows,
    };
    if workload.is_bulk() {
        spec.size = crate::spec::BULK_SIZE;
    } else {
        spec.size = asked.size;
        spec.rate = asked.rate.filter(|_| workload != Workload::Idle);
    }
    cli::check(&spec)?;
    Ok(spec)
}
