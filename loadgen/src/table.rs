//! The table: markdown that is readable as it stands. Made from a [`Record`] only, so that what is in the docs can be made again.

use std::fmt::Write as _;

use crate::grow;
use crate::latency::Latency;
use crate::record::{Entry, Measure, Record};
use crate::run::Outcome;
use crate::verdict::{Sample, Verdict, digits};

/// Faults shown of each measurement; the JSON has them all.
const FAULTS_SHOWN: usize = 5;

/// The whole record as text. The first target is the one that the others are put beside.
#[must_use]
pub fn table(record: &Record) -> String {
    let mut out = String::new();
    let (works, targets) = record.works_and_targets();
    out.push_str(&grow::tables(record, &targets));
    for work in works {
        let rows = rows(record, work, &targets);
        // Writing into a string cannot fail.
        let _ = writeln!(out, "### {work}\n");
        out.push_str(&aligned(&rows));
        out.push('\n');
    }
    if targets.len() > 1 {
        let _ = writeln!(
            out,
            "Medians of the rounds, least and most in brackets. The factor is the target's need over that of {}:",
            targets[0]
        );
        let _ = writeln!(out, "above 1, {} needs less. Where the rounds overlap, it says so.", targets[0]);
    }
    if record.entries.iter().any(|entry| entry.measure == Measure::MemoryPerFlow) {
        let _ =
            writeln!(out, "KiB/flow: what resident memory grew by from before the first flow (before MiB) to with all flows (RSS MiB).");
        let _ = writeln!(out, "all KiB/flow: all that is resident with all flows, over their number.");
    }
    for (index, entry) in record.entries.iter().enumerate() {
        if !entry.version.is_empty() && record.entries[..index].iter().all(|before| before.target != entry.target) {
            let _ = writeln!(out, "{}: {}", entry.target, entry.version);
        }
    }
    for entry in record.entries.iter().filter(|entry| !entry.outcome.faults.is_empty()) {
        let count = entry.outcome.faults.len();
        let _ = writeln!(out, "\n{}, {}, round {}: {count} faults", entry.target, entry.work, entry.round + 1);
        for fault in entry.outcome.faults.iter().take(FAULTS_SHOWN) {
            let _ = writeln!(out, "  {fault}");
        }
    }
    let machine = &record.machine;
    let memory = machine.memory_bytes as f64 / f64::from(1 << 30);
    let _ = writeln!(
        out,
        "\n{} × {}, {memory:.1} GiB, Linux {}; others took {:.0} % of its CPU time before the start; loadgen {}",
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.busy * 100.0,
        record.loadgen
    );
    for doubt in &record.doubts {
        let _ = writeln!(out, "warning: {doubt}");
    }
    out
}

fn rows(record: &Record, work: &str, targets: &[&str]) -> Vec<Vec<String>> {
    let entries = |target: &str| record.of(work, target);
    let headline = |target: &str| Sample::of(entries(target).iter().filter_map(|entry| entry.measure.of(&entry.outcome)));
    let Some(measure) = record.entries.iter().find(|entry| entry.work == work).map(|entry| entry.measure) else { return Vec::new() };
    let all: Vec<&Entry> = targets.iter().flat_map(|target| entries(target)).collect();
    let of_memory = if measure == Measure::MemoryPerFlow { COLUMNS_OF_MEMORY } else { &[] };
    let columns: Vec<&Column> =
        of_memory.iter().chain(COLUMNS).filter(|column| all.iter().any(|entry| (column.value)(&entry.outcome).is_some())).collect();
    let mut head = vec!["target".to_owned(), measure.unit().to_owned(), "factor".to_owned()];
    head.extend(columns.iter().map(|column| column.name.to_owned()));
    let mut rows = vec![head];
    let ours = targets.first().and_then(|first| headline(first));
    for (index, target) in targets.iter().enumerate().filter(|(_, target)| !entries(target).is_empty()) {
        let sample = headline(target);
        let factor = match (&ours, &sample) {
            (Some(ours), Some(sample)) if index > 0 => Verdict::of(ours, sample).to_string(),
            _ => String::new(),
        };
        let mut row = vec![(*target).to_owned(), sample.map_or_else(|| "-".to_owned(), |sample| sample.to_string()), factor];
        for column in &columns {
            let value = Sample::of(entries(target).iter().filter_map(|entry| (column.value)(&entry.outcome)));
            row.push(value.map_or_else(|| "-".to_owned(), |sample| digits(sample.median)));
        }
        rows.push(row);
    }
    rows
}

/// A column beside the headline: the median of a number that not every outcome has.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) value: fn(&Outcome) -> Option<f64>,
}

/// What stands first where memory is the headline.
const COLUMNS_OF_MEMORY: &[Column] = &[
    Column { name: "before MiB", value: |o| accounted(o, o.rss_before_bytes as f64 / f64::from(1 << 20)) },
    Column { name: "all KiB/flow", value: |o| accounted(o, o.usage.rss_bytes as f64 / 1024.0 / o.flows as f64) },
];

/// The columns of every workload.
pub(crate) const COLUMNS: &[Column] = &[
    Column { name: "MB/s", value: |o| (o.bulk_bytes() > 0).then(|| o.bulk_bytes() as f64 / o.seconds / 1e6) },
    Column { name: "op/s", value: |o| (o.operations > 0).then(|| o.operations as f64 / o.seconds) },
    Column { name: "p50 µs", value: |o| of_latency(o, |l| l.p50) },
    Column { name: "p90 µs", value: |o| of_latency(o, |l| l.p90) },
    Column { name: "p99 µs", value: |o| of_latency(o, |l| l.p99) },
    Column { name: "p99.9 µs", value: |o| of_latency(o, |l| l.p99_9) },
    Column { name: "p99.99 µs", value: |o| of_latency(o, |l| l.p99_99) },
    Column { name: "max µs", value: |o| of_latency(o, |l| l.max) },
    Column { name: "cpu %", value: |o| accounted(o, 100.0 * o.usage.cpu_seconds / o.seconds) },
    Column { name: "RSS MiB", value: |o| accounted(o, o.usage.rss_bytes as f64 / f64::from(1 << 20)) },
    Column { name: "peak MiB", value: |o| accounted(o, o.usage.peak_rss_bytes as f64 / f64::from(1 << 20)) },
    Column { name: "switches/s", value: |o| accounted(o, (o.usage.voluntary_switches + o.usage.forced_switches) as f64 / o.seconds) },
    Column { name: "loadgen cpu %", value: |o| Some(100.0 * o.own_cpu_seconds / o.seconds) },
    Column { name: "faults", value: |o| (!o.faults.is_empty()).then_some(o.faults.len() as f64) },
];

fn of_latency(outcome: &Outcome, number: fn(&Latency) -> f64) -> Option<f64> {
    outcome.latency.as_ref().map(number)
}

fn accounted(outcome: &Outcome, number: f64) -> Option<f64> {
    (outcome.usage.processes > 0).then_some(number)
}

/// A markdown table whose columns are as wide as their widest cell; the first to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let _ = if column == 0 { write!(out, "| {cell}{pad} ") } else { write!(out, "| {pad}{cell} ") };
        }
        out.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let line = "-".repeat(*width);
                let _ = if column == 0 { write!(out, "|:{line}-") } else { write!(out, "|-{line}:") };
            }
            out.push_str("|\n");
        }
    }
    out
}
