//! The table of contents: what was typed, and who does it. Exit status: 0 measured, 1 not or with faults, 2 wrong use.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use loadgen::cli::{Cli, Command, Common, Load};
use loadgen::compare::compare;
use loadgen::grow::grow;
use loadgen::machine::{self, Machine};
use loadgen::measure::measure;
use loadgen::plot::plot;
use loadgen::record::Record;
use loadgen::spec::Workload;
use loadgen::{destination, table};

/// Why nothing came of it.
enum Stop {
    Wrong(String),
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

fn main() -> ExitCode {
    let _limit = machine::raise_open_files();
    let done = match Cli::parse().command {
        Command::BulkDown(load) => single(&load, Workload::BulkDown),
        Command::BulkUp(load) => single(&load, Workload::BulkUp),
        Command::BulkBoth(load) => single(&load, Workload::BulkBoth),
        Command::Echo(load) => single(&load, Workload::Echo),
        Command::Connect(load) => single(&load, Workload::Connect),
        Command::Idle(load) => single(&load, Workload::Idle),
        Command::Mixed(load) => single(&load, Workload::Mixed),
        Command::Destination { listen } => destination::serve_forever(&listen).map(|()| 0).map_err(Stop::from),
        Command::Compare(asked) => shown(compare(&asked), &asked.common),
        Command::Grow(asked) => shown(grow(&asked), &asked.common),
        Command::Table { files, plot } => again(&files, plot.as_deref()).map(|()| 0).map_err(Stop::from),
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(faults) => {
            eprintln!("loadgen: {faults} faults");
            ExitCode::FAILURE
        }
        Err(Stop::Failed(error)) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
        Err(Stop::Wrong(why)) => {
            eprintln!("loadgen: {why}");
            ExitCode::from(2)
        }
    }
}

/// One workload. Gives the number of faults.
fn single(load: &Load, workload: Workload) -> Result<usize, Stop> {
    let spec = load.spec(workload).map_err(Stop::Wrong)?;
    let machine = Machine::here();
    let doubts = machine.doubts(&spec.cores, None);
    machine::pin(&spec.cores)?;
    for doubt in &doubts {
        eprintln!("warning: {doubt}");
    }
    let mut record = Record::start(machine, doubts);
    let target = load.socks.or(load.forwarder).map_or_else(|| "direct".to_owned(), |at| at.to_string());
    record.entries = measure(&spec, load.bulk_flows, &target, "", 0)?;
    show(&record, &load.common)?;
    Ok(record.faults())
}

/// What targets were measured at. Gives the number of faults.
fn shown(record: Result<Record, String>, common: &Common) -> Result<usize, Stop> {
    let record = record.map_err(Stop::Wrong)?;
    show(&record, common)?;
    Ok(record.faults())
}

fn show(record: &Record, common: &Common) -> io::Result<()> {
    let json = record.json()?;
    match common.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            draw(record, common.plot.as_deref())?;
            return print(&json);
        }
        Some(path) => std::fs::write(path, json + "\n").map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?,
        None => {}
    }
    draw(record, common.plot.as_deref())?;
    print(&table::table(record))
}

/// Table and picture from what was kept.
fn again(files: &[PathBuf], plot: Option<&Path>) -> io::Result<()> {
    let mut all = Record::default();
    for (index, file) in files.iter().enumerate() {
        let record = Record::load(file)?;
        if index == 0 {
            all = record;
        } else {
            all.entries.extend(record.entries);
            all.doubts.extend(record.doubts);
        }
    }
    draw(&all, plot)?;
    print(&table::table(&all))
}

fn draw(record: &Record, file: Option<&Path>) -> io::Result<()> {
    file.map_or(Ok(()), |file| plot(record, file).map_err(io::Error::other))
}

fn print(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{}", text.trim_end())
}
