//! What was measured as curves: for each row of steps one of each target. Made from a [`Record`] only, for the table and the picture.

use crate::record::{Axis, Entry, Record};
use crate::verdict::Sample;

/// A row of steps.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// The work, without the number that grows.
    pub(crate) title: &'a str,
    /// What grows.
    pub(crate) axis: Axis,
    /// The targets', in the order of the record.
    pub(crate) curves: Vec<Curve<'a>>,
}

/// One target in a row.
#[derive(Debug)]
pub(crate) struct Curve<'a> {
    /// Whose it is.
    pub(crate) target: &'a str,
    /// Its steps, the least first.
    pub(crate) points: Vec<Point<'a>>,
}

/// One target at one step.
#[derive(Debug)]
pub(crate) struct Point<'a> {
    /// The number that grows.
    pub(crate) at: u64,
    /// Its rounds.
    pub(crate) entries: Vec<&'a Entry>,
}

impl Curve<'_> {
    /// The headline number at a step.
    pub(crate) fn cost_at(&self, at: u64) -> Option<Sample> {
        self.points.iter().find(|point| point.at == at)?.cost()
    }
}

impl Point<'_> {
    /// The headline number: microseconds of CPU for an echo. Nothing when no process was accounted.
    pub(crate) fn cost(&self) -> Option<Sample> {
        Sample::of(self.entries.iter().filter_map(|entry| entry.measure.of(&entry.outcome)))
    }
}

/// The rows of a record, in the order of appearance.
pub(crate) fn rows<'a>(record: &'a Record, targets: &[&'a str]) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    for step in record.entries.iter().filter_map(|entry| entry.step.as_ref()) {
        if rows.iter().all(|row| row.title != step.row) {
            let curve = |target: &&'a str| Curve { target, points: points(record, &step.row, target) };
            let curves = targets.iter().map(curve).filter(|curve| !curve.points.is_empty()).collect();
            rows.push(Row { title: &step.row, axis: step.axis, curves });
        }
    }
    rows
}

fn points<'a>(record: &'a Record, row: &str, target: &str) -> Vec<Point<'a>> {
    let mut points: Vec<Point<'a>> = Vec::new();
    for entry in record.entries.iter().filter(|entry| entry.target == target) {
        let Some(step) = entry.step.as_ref().filter(|step| step.row == row) else { continue };
        match points.iter_mut().find(|point| point.at == step.at) {
            Some(point) => point.entries.push(entry),
            None => points.push(Point { at: step.at, entries: vec![entry] }),
        }
    }
    points.sort_by_key(|point| point.at);
    points
}
