//! The tables of how cost grows: for each row of steps one, target by target, so that growth is read downwards.

use std::fmt::Write as _;

use crate::grow::curves::{Curve, Point, Row, rows};
use crate::record::{Axis, Measure, Record};
use crate::table::{COLUMNS, Column, aligned};
use crate::verdict::{Sample, Verdict, digits};

/// A table for each row of steps in `record`, and what its columns are; nothing when there is no row.
#[must_use]
pub fn tables(record: &Record, targets: &[&str]) -> String {
    let rows = rows(record, targets);
    let mut out = String::new();
    for row in &rows {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "### {}\n", row.title);
        out.push_str(&aligned(&cells(row, targets)));
        out.push('\n');
    }
    if !rows.is_empty() {
        out.push_str("growth: the CPU of an echo over that of the target's own first step.\n");
    }
    if rows.iter().any(|row| row.axis == Axis::Size) {
        out.push_str("cpu-s/GB: each byte of a message counts there and back.\n");
    }
    out
}

fn cells(row: &Row<'_>, targets: &[&str]) -> Vec<Vec<String>> {
    let points = || row.curves.iter().flat_map(|curve| &curve.points);
    let has = |column: &Column| points().flat_map(|point| &point.entries).any(|entry| (column.value)(&entry.outcome).is_some());
    let columns: Vec<&Column> = COLUMNS.iter().filter(|column| has(column)).collect();
    let mut head = vec!["target".to_owned(), axis_name(row.axis).to_owned(), Measure::CpuPerOperation.unit().to_owned()];
    if row.axis == Axis::Size {
        head.push(Measure::CpuPerByte.unit().to_owned());
    }
    head.extend(["factor", "growth"].map(str::to_owned));
    head.extend(columns.iter().map(|column| column.name.to_owned()));
    let first = row.curves.iter().find(|curve| Some(&curve.target) == targets.first());
    let mut rows = vec![head];
    for curve in &row.curves {
        rows.extend(curve.points.iter().map(|point| line(row.axis, first, curve, point, &columns)));
    }
    rows
}

fn line(axis: Axis, first: Option<&Curve<'_>>, curve: &Curve<'_>, point: &Point<'_>, columns: &[&Column]) -> Vec<String> {
    let none = || "-".to_owned();
    let cost = point.cost();
    let mut line = vec![curve.target.to_owned(), point.at.to_string(), cost.map_or_else(none, |cost| cost.to_string())];
    if axis == Axis::Size {
        line.push(cost.map_or_else(none, |cost| per_byte(&cost, point.at).to_string()));
    }
    let other = first.filter(|first| first.target != curve.target);
    let ours = other.and_then(|first| first.cost_at(point.at));
    line.push(ours.zip(cost).map_or_else(String::new, |(ours, cost)| Verdict::of(&ours, &cost).to_string()));
    let begin = curve.points.first().and_then(Point::cost);
    line.push(begin.zip(cost).map_or_else(none, |(begin, cost)| format!("{:.2}×", cost.median / begin.median)));
    for column in columns {
        let value = Sample::of(point.entries.iter().filter_map(|entry| (column.value)(&entry.outcome)));
        line.push(value.map_or_else(none, |sample| digits(sample.median)));
    }
    line
}

/// What grows, as a column's head.
fn axis_name(axis: Axis) -> &'static str {
    match axis {
        Axis::Flows => "flows",
        Axis::Size => "B",
    }
}

/// Seconds of CPU for 10^9 bytes, from microseconds for a message of `size` there and back.
fn per_byte(cost: &Sample, size: u64) -> Sample {
    let each = |us: f64| us * 1e-6 / (2 * size) as f64 * 1e9;
    Sample { median: each(cost.median), least: each(cost.least), most: each(cost.most), rounds: cost.rounds }
}
