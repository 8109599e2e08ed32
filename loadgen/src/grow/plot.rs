//! The picture of how cost grows: a panel for each row of steps, both axes logarithmic, a line for each target through its medians, and
//! on it a whisker from the least to the most. On a ground of its own, so that it can be read on a dark page too.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::grow::curves::{Curve, Row, rows};
use crate::plot::OURS;
use crate::record::{Axis, Record};
use crate::verdict::{Sample, digits};

/// The room of a panel, its labels within.
const PANEL: (i32, i32) = (500, 400);
/// From its edges to the axes: left, right, top, bottom.
const INSET: (i32, i32, i32, i32) = (70, 25, 45, 60);
/// A target in the legend.
const LEGEND_ROW: i32 = 22;
/// The least from one label of the horizontal axis to the next.
const LABEL_ROOM: i32 = 44;

const INK: RGBColor = RGBColor(0x20, 0x24, 0x28);
const GRID: RGBColor = RGBColor(0xdd, 0xe1, 0xe5);

/// Colours that differ for those too who see fewer, the first target's first. Each has a mark of its own beside.
const COLOURS: &[RGBColor] =
    &[OURS, RGBColor(0xc8, 0x4e, 0x00), RGBColor(0x00, 0x80, 0x5c), RGBColor(0x9c, 0x3d, 0x7a), RGBColor(0x6b, 0x6b, 0x00), INK];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn Error + Send + Sync>;

/// One axis: from the least to the most, as powers of e, on so many pixels.
struct Scale {
    least: f64,
    most: f64,
    from: i32,
    to: i32,
}

/// Draws the rows of `record` into an SVG file.
///
/// # Errors
/// When there is nothing to draw, or the file cannot be written.
pub fn plot(record: &Record, file: &Path) -> Result<(), Failure> {
    let (_, all) = record.works_and_targets();
    let rows: Vec<Row<'_>> = rows(record, &all).into_iter().filter(|row| !costs(&row.curves).is_empty()).collect();
    let has_line =
        |target: &&str| rows.iter().flat_map(|row| &row.curves).any(|curve| curve.target == *target && !points(curve).is_empty());
    let targets: Vec<&str> = all.into_iter().filter(has_line).collect();
    if rows.is_empty() {
        return Err("nothing to draw: no process was accounted".into());
    }
    let said = |error: Failure| -> Failure { format!("{}: {error}", file.display()).into() };
    let beside = i32::try_from(rows.len())?.min(2);
    let below = i32::try_from(rows.len().div_ceil(2))?;
    let legend = LEGEND_ROW * i32::try_from(targets.len())? + 10;
    let size = (u32::try_from(PANEL.0 * beside)?, u32::try_from(PANEL.1 * below + legend)?);
    let root = SVGBackend::new(file, size).into_drawing_area();
    draw(&root, &rows, &targets, legend).map_err(said)
}

fn draw(root: &Area<'_>, rows: &[Row<'_>], targets: &[&str], legend: i32) -> Result<(), Failure> {
    root.fill(&WHITE)?;
    for (index, target) in targets.iter().enumerate() {
        let middle = 16 + LEGEND_ROW * i32::try_from(index)?;
        root.draw(&PathElement::new(vec![(20, middle), (60, middle)], stroke(index)))?;
        mark(root, index, (40, middle))?;
        text(root, target, (70, middle), HPos::Left)?;
    }
    for (index, row) in rows.iter().enumerate() {
        let index = i32::try_from(index)?;
        let corner = (index % 2 * PANEL.0, legend + index / 2 * PANEL.1);
        panel(root, row, targets, corner)?;
    }
    root.present()?;
    Ok(())
}

fn panel(root: &Area<'_>, row: &Row<'_>, targets: &[&str], corner: (i32, i32)) -> Result<(), Failure> {
    let (left, right) = (corner.0 + INSET.0, corner.0 + PANEL.0 - INSET.1);
    let (top, bottom) = (corner.1 + INSET.2, corner.1 + PANEL.1 - INSET.3);
    let steps = steps(row);
    let ticks = ticks(&costs(&row.curves));
    let across = Scale::new(steps.iter().map(|step| *step as f64), (left + 20, right - 20));
    let up = Scale::new(ticks.iter().copied(), (bottom, top));
    text(root, &format!("CPU of an {}", row.title), (corner.0 + PANEL.0 / 2, top - 22), HPos::Center)?;
    for tick in &ticks {
        let at = up.place(*tick);
        root.draw(&PathElement::new(vec![(left, at), (right, at)], GRID))?;
        text(root, &number(*tick), (left - 8, at), HPos::Right)?;
    }
    let mut free = left;
    for step in &steps {
        let at = across.place(*step as f64);
        root.draw(&PathElement::new(vec![(at, bottom), (at, bottom + 5)], INK))?;
        if at >= free {
            text(root, &step_name(row.axis, *step), (at, bottom + 16), HPos::Center)?;
            free = at + LABEL_ROOM;
        }
    }
    root.draw(&PathElement::new(vec![(left, top), (left, bottom), (right, bottom)], INK))?;
    let what = match row.axis {
        Axis::Flows => "flows",
        Axis::Size => "size of a message",
    };
    text(root, what, (i32::midpoint(left, right), bottom + 40), HPos::Center)?;
    let turned = ("sans-serif", FONT).into_font().transform(FontTransform::Rotate270).color(&INK).pos(Pos::new(HPos::Center, VPos::Center));
    root.draw(&Text::new("µs of CPU per echo", (corner.0 + 18, i32::midpoint(top, bottom)), turned))?;
    for curve in &row.curves {
        if let Some(index) = targets.iter().position(|target| *target == curve.target) {
            line(root, curve, index, &across, &up)?;
        }
    }
    Ok(())
}

/// A target's line, whiskers and marks.
fn line(root: &Area<'_>, curve: &Curve<'_>, index: usize, across: &Scale, up: &Scale) -> Result<(), Failure> {
    let points: Vec<(i32, Sample)> = points(curve).into_iter().map(|(at, cost)| (across.place(at as f64), cost)).collect();
    root.draw(&PathElement::new(points.iter().map(|(x, cost)| (*x, up.place(cost.median))).collect::<Vec<_>>(), stroke(index)))?;
    for (x, cost) in &points {
        let (least, most) = (up.place(cost.least), up.place(cost.most));
        for ends in [[(*x, least), (*x, most)], [(x - 4, least), (x + 4, least)], [(x - 4, most), (x + 4, most)]] {
            root.draw(&PathElement::new(ends.to_vec(), colour(index)))?;
        }
        mark(root, index, (*x, up.place(cost.median)))?;
    }
    Ok(())
}

const FONT: i32 = 16;

fn text(root: &Area<'_>, what: &str, at: (i32, i32), side: HPos) -> Result<(), Failure> {
    let style = ("sans-serif", FONT).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    Ok(root.draw(&Text::new(what.to_owned(), at, style))?)
}

fn mark(root: &Area<'_>, index: usize, (x, y): (i32, i32)) -> Result<(), Failure> {
    let filled = colour(index).filled();
    match index % 4 {
        0 => root.draw(&Circle::new((x, y), 4, filled))?,
        1 => root.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], filled))?,
        2 => root.draw(&Polygon::new(vec![(x - 5, y + 4), (x + 5, y + 4), (x, y - 5)], filled))?,
        _ => root.draw(&Polygon::new(vec![(x - 5, y), (x, y - 6), (x + 5, y), (x, y + 6)], filled))?,
    }
    Ok(())
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn stroke(index: usize) -> ShapeStyle {
    colour(index).stroke_width(2)
}

/// All steps of a row, whichever target has them.
fn steps(row: &Row<'_>) -> Vec<u64> {
    let mut steps: Vec<u64> = row.curves.iter().flat_map(|curve| &curve.points).map(|point| point.at).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

fn costs(curves: &[Curve<'_>]) -> Vec<Sample> {
    curves.iter().flat_map(points).map(|(_, cost)| cost).collect()
}

/// A curve's points, as far as they have a place on logarithmic axes.
fn points(curve: &Curve<'_>) -> Vec<(u64, Sample)> {
    curve.points.iter().filter_map(|point| Some((point.at, point.cost().filter(|cost| cost.least > 0.0)?))).collect()
}

/// 1, 2, 5, 10 and so on, around all that is to be shown. Of many only the powers of ten.
fn ticks(costs: &[Sample]) -> Vec<f64> {
    let least = costs.iter().map(|cost| cost.least).fold(f64::INFINITY, f64::min);
    let most = costs.iter().map(|cost| cost.most).fold(0.0, f64::max);
    let fine: Vec<f64> = (-6..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))).collect();
    let around = |ticks: &[f64]| {
        let first = ticks.iter().rposition(|tick| *tick <= least).unwrap_or(0);
        let last = ticks.iter().position(|tick| *tick >= most).unwrap_or(ticks.len() - 1);
        ticks[first..=last.max(first + 1).min(ticks.len() - 1)].to_vec()
    };
    let all = around(&fine);
    if all.len() <= 12 {
        return all;
    }
    around(&fine.iter().copied().step_by(3).collect::<Vec<_>>())
}

fn number(tick: f64) -> String {
    if tick >= 1.0 { format!("{tick:.0}") } else { digits(tick) }
}

/// A step as a label.
fn step_name(axis: Axis, step: u64) -> String {
    match axis {
        Axis::Size if step >= 1024 && step.is_multiple_of(1024) => format!("{} KiB", step / 1024),
        Axis::Size => format!("{step} B"),
        Axis::Flows => step.to_string(),
    }
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, (from, to): (i32, i32)) -> Self {
        let (least, most) = values.map(f64::ln).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), value| (a.min(value), b.max(value)));
        Self { least, most, from, to }
    }

    fn place(&self, value: f64) -> i32 {
        let room = self.most - self.least;
        // A single value stands in the middle.
        let part = if room > 0.0 { (value.ln() - self.least) / room } else { 0.5 };
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the axis")]
        let pixels = (part.clamp(0.0, 1.0) * f64::from(self.to - self.from)) as i32;
        self.from + pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_that_is_shown_and_labels_stay_few() {
        let cost = |least, most| Sample { median: least, least, most, rounds: 3 };
        assert_eq!(ticks(&[cost(3.0, 18.0)]), [2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(&[cost(5.0, 5.0)]), [5.0, 10.0], "an axis has a length");
        assert_eq!(ticks(&[cost(0.3, 4.0), cost(900.0, 20_000.0)]), [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
        let scale = Scale::new([1.0, 10.0, 100.0].into_iter(), (400, 0));
        assert_eq!([1.0, 10.0, 100.0].map(|value| scale.place(value)), [400, 200, 0]);
        assert_eq!(Scale::new([64.0].into_iter(), (0, 100)).place(64.0), 50);
        assert_eq!(
            [(Axis::Size, 64), (Axis::Size, 65536), (Axis::Flows, 1024)].map(|(axis, at)| step_name(axis, at)),
            ["64 B", "64 KiB", "1024"]
        );
    }
}
