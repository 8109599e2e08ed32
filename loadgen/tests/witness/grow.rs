//! How cost grows, along rows of steps: with a relay that is always there, since it is this program itself, started by the name of microsocks.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loadgen::record::{Axis, Record};

use crate::servers;

const PORT: &str = "LOADGEN_STAND_IN_PORT";
const DIES: &str = "LOADGEN_STAND_IN_DIES";

/// Runs `loadgen` where microsocks is the stand-in, which dies when it has passed on so many bytes, if any.
fn loadgen(folder: &Path, dies: Option<usize>, args: &[&str]) -> Output {
    let script = folder.join("microsocks");
    let this = std::env::current_exe().unwrap();
    let start = format!("exec '{}' --ignored --exact grow::a_relay_that_the_other_tests_start", this.display());
    fs::write(&script, format!("#!/bin/sh\n# -i ADDRESS -p PORT\n{PORT}=\"$4\" {start}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    command.args(args).env("PATH", path).env_remove(DIES).envs(dies.map(|bytes| (DIES, bytes.to_string()))).output().unwrap()
}

#[test]
#[ignore = "the relay of the others, each of which starts it as a program of its own"]
fn a_relay_that_the_other_tests_start() {
    let Ok(port) = std::env::var(PORT) else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    let last = std::env::var(DIES).map_or(usize::MAX, |bytes| bytes.parse().unwrap());
    let passed = Arc::new(AtomicUsize::new(0));
    servers::serve_socks(&listener, 0, move |len| {
        if passed.fetch_add(len, Ordering::Relaxed) + len > last {
            std::process::exit(3);
        }
    });
}

#[test]
fn a_row_has_every_step_and_can_be_shown_and_drawn_again_from_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, svg, again) = (file("run.json"), file("run.svg"), file("again.svg"));
    let steps = ["--flows", "1,12", "--sizes", "64,4096", "--echo-flows", "3", "--destinations", "5"];
    let short = ["--rounds", "2", "--seconds", "0.2", "--warm-up", "0.05", "--json", &json, "--plot", &svg];
    let run = loadgen(folder.path(), None, &[&["grow", "microsocks", "direct"][..], &steps, &short].concat());
    let (table, said) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap());
    assert!(run.status.success(), "{table}{said}");
    let record = Record::load(json.as_ref()).unwrap();
    assert_eq!(record.entries.len(), 2 * 2 * 4, "two rounds, two targets, four steps");
    for (axis, at) in [(Axis::Flows, 1), (Axis::Flows, 12), (Axis::Size, 64), (Axis::Size, 4096)] {
        let of = |target: &str| {
            let here = |step: &loadgen::record::Step| (step.axis, step.at) == (axis, at);
            record.entries.iter().filter(|entry| entry.target == target && entry.step.as_ref().is_some_and(here)).collect::<Vec<_>>()
        };
        let (relay, direct) = (of("microsocks"), of("direct"));
        assert_eq!((relay.len(), direct.len()), (2, 2), "{axis:?} {at}");
        for entry in relay {
            let flows = if axis == Axis::Flows { at } else { 3 };
            assert!(entry.measure.of(&entry.outcome).is_some_and(|cost| cost > 0.0) && entry.outcome.flows == flows, "{entry:?}");
        }
        assert!(direct.iter().all(|entry| entry.outcome.operations > 0 && entry.outcome.usage.processes == 0));
    }
    for head in
        ["### echo of 64 B by flows, to 5 destinations", "### echo by message size, 3 flows to 5 destinations", "cpu-s/GB", "growth"]
    {
        assert!(table.contains(head), "no {head} in {table}");
    }
    let line = |target: &str, at: &str| table.lines().filter(|line| line.contains(target) && line.contains(&format!(" {at} |"))).count();
    assert!(line("microsocks", "12") == 1 && line("direct", "12") == 1 && line("microsocks", "4096") == 1, "{table}");
    let shown = loadgen(folder.path(), None, &["table", &json, "--plot", &again]);
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), table, "the table is made from what was kept");
    let picture = fs::read_to_string(&svg).unwrap();
    for label in ["µs of CPU per echo", "flows", "size of a message", "12", "64 B", "4 KiB", "microsocks", "<circle", "by message size"] {
        assert!(picture.contains(label), "no {label} in {picture}");
    }
    assert!(!picture.contains("direct"), "what has no CPU of its own has no line and no name");
    assert_eq!(fs::read_to_string(&again).unwrap(), picture);
}

#[test]
fn a_target_that_dies_in_the_middle_is_said_and_has_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let steps = ["--flows", "8", "--sizes", "64", "--echo-flows", "8", "--rounds", "1", "--seconds", "0.5", "--warm-up", "0"];
    let run = loadgen(folder.path(), Some(8192), &[&["grow", "direct", "microsocks"][..], &steps].concat());
    let (table, said) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap());
    assert_eq!(run.status.code(), Some(1), "{table}{said}");
    assert!(table.contains("microsocks, echo, 8 flows, 64 B to 16 destinations, round 1: 8 faults"), "{table}{said}");
    let why = "warning: microsocks, echo, 8 flows, 64 B to 16 destinations, round 1: microsocks has ended with exit status: 3";
    assert!(table.contains(why) && said.contains(why), "{table}{said}");
    let row = table.lines().find(|line| line.starts_with("| microsocks")).unwrap();
    assert_eq!(row.split('|').map(str::trim).nth(3), Some("-"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("| direct") && !line.contains("faults")), "{table}");
}

#[test]
fn steps_that_cannot_be_are_wrong_use() {
    let folder = tempfile::tempdir().unwrap();
    for (args, why) in [(["grow", "direct", "--flows", "1,0"], "--flows 0"), (["grow", "direct", "--sizes", "64,0"], "--size 0")] {
        let run = loadgen(folder.path(), None, &args);
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.code() == Some(2) && said.contains(why), "{args:?}: {said}");
    }
}
