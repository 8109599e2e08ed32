//! Puts relays side by side: each workload in rounds, in which the targets take turns, each started anew on the same core.
//!
//! What always holds: no two targets run at the same time, and in each round another one is first, so that what drifts on the machine
//! drifts under all of them.

mod process;
mod target;

use std::io;

pub use process::{Running, free_port};
pub use target::Target;

use crate::cli::{self, Compare};
use crate::machine::{self, Machine};
use crate::measure::measure;
use crate::record::Record;
use crate::spec::{Destinations, Spec, Via, Workload};

/// Flows of bulk beside the echoes of `mixed`.
const BULK_BESIDE: u64 = 4;

/// Runs the comparison.
///
/// # Errors
/// When it was typed wrongly. A target that does not come up, or cannot be measured, is said in the record's doubts.
pub fn compare(asked: &Compare) -> Result<Record, String> {
    let targets = Target::parse(&asked.targets)?;
    let core = asked.target_core.or_else(|| machine::cores().last().copied()).unwrap_or(0);
    let specs: Vec<Spec> = asked.workloads.iter().map(|workload| spec(asked, *workload)).collect::<Result<_, _>>()?;
    let (machine, own) = (Machine::here(), asked.common.own_cores());
    let doubts = machine.doubts(&own, Some(core));
    machine::pin(&own).map_err(|error| error.to_string())?;
    for doubt in &doubts {
        eprintln!("warning: {doubt}");
    }
    let mut record = Record::start(machine, doubts);
    let versions: Vec<String> = targets.iter().map(Target::version).collect();
    let mut seed = asked.common.seed();
    for round in 0..asked.rounds.max(1) {
        for spec in &specs {
            for turn in 0..targets.len() {
                let index = (turn + round) % targets.len();
                // `mixed` takes two.
                seed = seed.wrapping_add(2);
                let spec = Spec { seed, ..spec.clone() };
                if let Err(error) = one(&mut record, &targets[index], &versions[index], &spec, round, core) {
                    let doubt = format!("{}, {}, round {}: {error}", targets[index].name, spec.workload.name(), round + 1);
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

fn one(record: &mut Record, target: &Target, version: &str, spec: &Spec, round: usize, core: usize) -> io::Result<()> {
    let (running, via) = target.start(core)?;
    let pids = if matches!(via, Via::Direct) { Vec::new() } else { running.pids() };
    let spec = Spec { via, pids, ..spec.clone() };
    record.entries.extend(measure(&spec, BULK_BESIDE, &target.name, version, round)?);
    Ok(())
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
