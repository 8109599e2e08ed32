//! One workload from start to end: as one measurement, or as two for `mixed`, with progress on a terminal.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressStyle};

use crate::record::{Entry, Measure};
use crate::run::{Outcome, Progress, run};
use crate::spec::{Spec, Workload};

/// Steps of the bar while measuring.
const STEPS: u64 = 1000;

/// Measures `spec`, of which `mixed` becomes two measurements with `bulk_flows` beside the second.
///
/// # Errors
/// When nothing could be measured.
pub fn measure(spec: &Spec, bulk_flows: u64, target: &str, version: &str, round: usize) -> io::Result<Vec<Entry>> {
    let entry = |work: String, measure: Measure, outcome: Outcome| Entry {
        target: target.to_owned(),
        version: version.to_owned(),
        work,
        measure,
        step: None,
        round,
        outcome,
    };
    let watched = |spec: &Spec, work: &str| {
        let bar = Bar::new(format!("{target}, {work}"));
        run(spec, &mut |progress| bar.show(progress))
    };
    if spec.workload != Workload::Mixed {
        let work = describe(spec, spec.workload.name());
        return Ok(vec![entry(work.clone(), headline(spec.workload), watched(spec, &work)?)]);
    }
    let mut entries = Vec::new();
    for (bulk_beside, seed) in [(0, spec.seed), (bulk_flows, spec.seed.wrapping_add(1))] {
        let spec = Spec { workload: Workload::Echo, bulk_beside, seed, ..spec.clone() };
        let what = if bulk_beside == 0 { "mixed: alone".to_owned() } else { format!("mixed: beside {bulk_beside} flows of bulk") };
        let work = describe(&spec, &what);
        entries.push(entry(work.clone(), Measure::CpuPerOperation, watched(&spec, &work)?));
    }
    Ok(entries)
}

fn headline(workload: Workload) -> Measure {
    match workload {
        Workload::BulkDown | Workload::BulkUp | Workload::BulkBoth => Measure::CpuPerByte,
        Workload::Echo | Workload::Connect | Workload::Mixed => Measure::CpuPerOperation,
        Workload::Idle => Measure::MemoryPerFlow,
    }
}

/// The work in words: what makes two measurements comparable.
pub(crate) fn describe(spec: &Spec, name: &str) -> String {
    use crate::spec::Destinations;
    let places = match &spec.destinations {
        Destinations::Here(1) | Destinations::Plain(_) => String::new(),
        Destinations::Here(count) => format!(" to {count} destinations"),
        Destinations::There(at) => format!(" to {} destinations elsewhere", at.len()),
    };
    let rate = spec.rate.map_or_else(String::new, |rate| format!(", {rate} per second"));
    format!("{name}, {} flows, {} B{places}{rate}", spec.flows, spec.size)
}

/// A line that tells how far it is, on a terminal only.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(what: String) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(STEPS);
            if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {prefix}") {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        }))
    }

    fn show(&self, progress: Progress) {
        let Some(bar) = &self.0 else { return };
        match progress {
            Progress::Opening(open, all) => bar.set_prefix(format!("{open}/{all} open")),
            Progress::Running(part) => {
                bar.set_prefix("measuring");
                bar.set_position(per_mille(part));
            }
            Progress::Ending => {
                bar.set_prefix("ending");
                bar.set_position(STEPS);
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn per_mille(part: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 … 1000")]
    let steps = (part.clamp(0.0, 1.0) * STEPS as f64) as u64;
    steps
}
