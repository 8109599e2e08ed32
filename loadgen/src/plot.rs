//! The picture of a comparison: for each work the targets' headline numbers as bars, with a line from the least to the most. Made from a [`Record`] only.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::grow;
use crate::record::Record;
use crate::verdict::{Sample, digits};

const WIDTH: u32 = 900;
const LEFT: i32 = 320;
const BAR_ROOM: f64 = 430.0;
const ROW: i32 = 22;
const HEAD: i32 = 34;

/// The first target's colour.
pub(crate) const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const OTHERS: RGBColor = RGBColor(0xa0, 0xa8, 0xb0);

/// What is drawn of one work.
struct Panel<'a> {
    title: String,
    rows: Vec<(&'a str, Sample)>,
}

/// Draws `record` into an SVG file: bars, or curves when what was measured are rows of steps.
///
/// # Errors
/// When there is nothing to draw, or too much, or the file cannot be written.
pub fn plot(record: &Record, file: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let steps = record.entries.iter().filter(|entry| entry.step.is_some()).count();
    if steps == record.entries.len() && steps > 0 {
        return grow::plot(record, file);
    }
    if steps > 0 {
        return Err("a comparison and a row of steps do not go into one picture: draw them one by one".into());
    }
    let panels = panels(record);
    if panels.is_empty() {
        return Err("nothing to draw: no process was accounted".into());
    }
    let rows: usize = panels.iter().map(|panel| panel.rows.len()).sum();
    let height = HEAD * i32::try_from(panels.len())? + ROW * i32::try_from(rows)? + HEAD;
    let root = SVGBackend::new(file, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    root.fill(&WHITE).map_err(|error| said(&error))?;
    let first = record.entries.first().map(|entry| entry.target.as_str());
    let title = ("sans-serif", 15).into_font().color(&BLACK);
    let label = ("sans-serif", 13).into_font().color(&BLACK);
    let mut top = 0;
    for panel in &panels {
        root.draw(&Text::new(panel.title.clone(), (10, top + 12), title.clone())).map_err(|error| said(&error))?;
        top += HEAD;
        let most = panel.rows.iter().map(|(_, sample)| sample.most).fold(f64::MIN_POSITIVE, f64::max);
        let place = |value: f64| LEFT + pixels(value / most * BAR_ROOM);
        for (target, sample) in &panel.rows {
            let colour = if Some(*target) == first { OURS } else { OTHERS };
            let middle = top + ROW / 2;
            let bar = Rectangle::new([(LEFT, top + 3), (place(sample.median), top + ROW - 3)], colour.filled());
            let spread = PathElement::new(vec![(place(sample.least), middle), (place(sample.most), middle)], BLACK);
            root.draw(&bar).map_err(|error| said(&error))?;
            root.draw(&spread).map_err(|error| said(&error))?;
            root.draw(&Text::new((*target).to_owned(), (20, top + 5), label.clone())).map_err(|error| said(&error))?;
            let at = (place(sample.most) + 8, top + 5);
            root.draw(&Text::new(digits(sample.median), at, label.clone())).map_err(|error| said(&error))?;
            top += ROW;
        }
    }
    root.present().map_err(|error| said(&error))?;
    Ok(())
}

fn panels(record: &Record) -> Vec<Panel<'_>> {
    let (works, targets) = record.works_and_targets();
    let panel = |work: &str| {
        let unit = record.entries.iter().find(|entry| entry.work == work)?.measure.unit();
        let sample = |target: &str| Sample::of(record.of(work, target).iter().filter_map(|entry| entry.measure.of(&entry.outcome)));
        let rows: Vec<_> = targets.iter().filter_map(|target| Some((*target, sample(target)?))).collect();
        (!rows.is_empty()).then(|| Panel { title: format!("{work}: {unit}, less is better"), rows })
    };
    works.into_iter().filter_map(panel).collect()
}

fn pixels(length: f64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the picture")]
    let whole = length.clamp(0.0, f64::from(WIDTH)) as i32;
    whole
}
