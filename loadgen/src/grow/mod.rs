//! How cost grows: echoes in rows of steps, in which the number of flows grows or the size of the message, and all else stays.
//!
//! What always holds: at each step the targets take turns, started anew, as in a comparison; within a row two steps differ in nothing but
//! the number that grows.

mod curves;
mod plot;
mod table;

pub use plot::plot;
pub use table::tables;

use crate::cli::{self, Grow};
use crate::compare::{Target, Turns, Work, take_turns};
use crate::machine;
use crate::record::{Axis, Record, Step};
use crate::spec::{Destinations, Spec, Via, Workload};

/// Open files of a process beside those of its flows: listeners, rings, tunnels, logs.
const FILES_BESIDE: u64 = 100;

/// Echoes of each flow that a measurement should have: one of them may be cut off at its edges.
const ECHOES_EACH: f64 = 10.0;

/// Measures what was asked.
///
/// # Errors
/// When it was typed wrongly. A target that does not come up, or cannot be measured, is said in the record's doubts.
pub fn grow(asked: &Grow) -> Result<Record, String> {
    let targets = Target::parse(&asked.targets)?;
    let (flows, doubt) = allowed(&asked.flows, machine::raise_open_files(), asked.destinations as u64);
    let by_flows = flows.iter().map(|flows| work(asked, Axis::Flows, *flows, asked.size));
    let by_size = asked.sizes.iter().map(|size| work(asked, Axis::Size, asked.echo_flows, *size));
    let works = by_flows.chain(by_size).collect::<Result<_, _>>()?;
    if let Some(doubt) = &doubt {
        eprintln!("warning: {doubt}");
    }
    let mut record = take_turns(&Turns { targets, works, rounds: asked.rounds, core: asked.target_core }, &asked.common)?;
    for doubt in rough(&record) {
        eprintln!("warning: {doubt}");
        record.doubts.push(doubt);
    }
    record.doubts.extend(doubt);
    Ok(record)
}

/// Where a flow had so few echoes that those cut at the edges of the measurement weigh.
fn rough(record: &Record) -> Vec<String> {
    let mut doubts = Vec::new();
    for entry in &record.entries {
        let each = entry.outcome.operations as f64 / entry.outcome.flows.max(1) as f64;
        if each < ECHOES_EACH && entry.outcome.faults.is_empty() {
            let (target, work, round) = (&entry.target, &entry.work, entry.round + 1);
            let seconds = entry.outcome.seconds;
            doubts.push(format!(
                "{target}, {work}, round {round}: {each:.1} echoes of each flow in {seconds:.1} s, expected {ECHOES_EACH}: rough"
            ));
        }
    }
    doubts
}

/// The numbers of flows for which `limit` open files are enough, and what is said when not all were. A flow takes two, at a relay as in
/// this process, which is client and destination.
fn allowed(asked: &[u64], limit: u64, destinations: u64) -> (Vec<u64>, Option<String>) {
    let most = (limit.saturating_sub(FILES_BESIDE + destinations) / 2).max(1);
    let mut flows: Vec<u64> = Vec::new();
    for count in asked.iter().map(|count| (*count).min(most)) {
        if !flows.contains(&count) {
            flows.push(count);
        }
    }
    let beyond = asked.iter().max().filter(|count| **count > most);
    let doubt = beyond.map(|count| format!("{count} flows take 2 open files each, and the limit is {limit}: {most} in their place"));
    (flows, doubt)
}

fn work(asked: &Grow, axis: Axis, flows: u64, size: usize) -> Result<Work, String> {
    let mut spec = Spec::new(Workload::Echo, Via::Direct, 0);
    asked.common.apply(&mut spec)?;
    (spec.destinations, spec.flows, spec.size) = (Destinations::Here(asked.destinations), flows, size);
    cli::check(&spec)?;
    let places = asked.destinations;
    let (row, at) = match axis {
        Axis::Flows => (format!("echo of {size} B by flows, to {places} destinations"), flows),
        Axis::Size => (format!("echo by message size, {flows} flows to {places} destinations"), size as u64),
    };
    Ok(Work { step: Some(Step { row, axis, at }), ..Work::new(spec, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_with_few_echoes_of_each_flow_is_rough() {
        let outcome = crate::run::Outcome { seconds: 2.0, flows: 100, operations: 1000, ..Default::default() };
        let entry = |round, operations| crate::record::Entry {
            target: "direct".to_owned(),
            version: String::new(),
            work: "echo".to_owned(),
            measure: crate::record::Measure::CpuPerOperation,
            step: None,
            round,
            outcome: crate::run::Outcome { operations, ..outcome.clone() },
        };
        let record = Record { entries: vec![entry(0, 1000), entry(1, 990)], ..Record::default() };
        assert_eq!(rough(&record), ["direct, echo, round 2: 9.9 echoes of each flow in 2.0 s, expected 10: rough"]);
    }

    #[test]
    fn flows_go_as_far_as_open_files_do_and_what_does_not_is_said() {
        assert_eq!(allowed(&[1, 10, 10_000], 20_116 - 1, 16), (vec![1, 10, 9_999], allowed(&[10_000], 20_115, 16).1));
        assert_eq!(allowed(&[1, 10, 10_000], 20_116, 16), (vec![1, 10, 10_000], None));
        let (flows, doubt) = allowed(&[10, 100, 1000, 5000], 1024, 1);
        assert_eq!(flows, [10, 100, 461], "two that do not fit are one");
        assert_eq!(doubt.unwrap(), "5000 flows take 2 open files each, and the limit is 1024: 461 in their place");
    }
}
