//! The command: what it prints, keeps and answers.

use std::process::{Command, Output};

use loadgen::record::Record;

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap()
}

#[test]
fn a_run_prints_a_table_and_keeps_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.json");
    let file = file.to_str().unwrap();
    let me = std::process::id().to_string();
    let run = loadgen(&["echo", "--seconds", "0.3", "--warm-up", "0", "--pid", &me, "--json", file]);
    let table = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && table.contains("### echo, 16 flows, 64 B") && table.contains("p99.99 µs"), "{table}");
    let record = Record::load(file.as_ref()).unwrap();
    let outcome = &record.entries[0].outcome;
    assert!(outcome.operations > 0 && outcome.usage.processes > 0, "{outcome:?}");
    assert!(record.command.contains(&"--pid".to_owned()) && record.machine.cores > 0);
}

#[test]
fn the_debug_build_and_the_shared_core_are_warned_of() {
    let machine = loadgen::machine::Machine { cores: 2, ..Default::default() };
    let doubts = machine.doubts(&[0], Some(0)).join("\n");
    assert!(doubts.contains("share core 0") && doubts.contains("debug build"), "{doubts}");
    assert_eq!(machine.doubts(&[0], Some(1)).len(), 1);
    let busy = loadgen::machine::Machine { load: 3.0, ..machine };
    assert!(busy.doubts(&[0], Some(1)).join("\n").contains("busy"));
}

#[test]
fn wrong_use_is_status_2_and_says_why() {
    for (args, why) in [
        (&["echo", "--size", "0"][..], "--size 0: expected 1 to 1048576"),
        (&["bulk-up", "--plain-echo", "127.0.0.1:7"], "wants a destination of loadgen"),
        (&["bulk-down", "--rate", "10"], "has no operations"),
        (&["echo", "--seconds=-1"], "--seconds"),
    ] {
        let run = loadgen(args);
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.code() == Some(2) && said.contains(why), "{args:?}: {said}");
    }
}

#[test]
fn a_proxy_that_cannot_be_reached_is_status_1() {
    let run = loadgen(&["echo", "--socks", "127.0.0.1:1"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr).unwrap().contains("no flow could be opened"));
}
