//! The command: what it prints, keeps and answers.

use std::path::Path;
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

/// With ssh, since it is there wherever the relay's own tests run.
#[test]
fn a_comparison_starts_its_targets_and_can_be_shown_again_from_what_it_kept() {
    if Command::new("ssh").arg("-V").output().is_err() || !["/usr/sbin/sshd", "/usr/bin/sshd"].iter().any(|sshd| Path::new(sshd).is_file())
    {
        assert!(std::env::var_os("CI").is_none(), "ssh and sshd are missing: apt-get install openssh-client openssh-server");
        eprintln!("SKIPPED: ssh and sshd are missing: apt-get install openssh-client openssh-server");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, svg, again) = (file("run.json"), file("run.svg"), file("again.svg"));
    let short = ["--rounds", "2", "--seconds", "0.3", "--warm-up", "0.1", "--workloads", "echo,bulk-down"];
    let kept = ["--json", json.as_str(), "--plot", svg.as_str()];
    let run = loadgen(&[&["compare", "ssh", "direct"][..], &short, &kept].concat());
    let (table, said) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap());
    assert!(run.status.success(), "{table}{said}");
    let record = Record::load(json.as_ref()).unwrap();
    let (works, targets) = record.works_and_targets();
    assert_eq!((works.len(), targets), (2, vec!["ssh", "direct"]));
    assert_eq!(record.entries.len(), 8, "two works, two targets, two rounds");
    for entry in record.entries.iter().filter(|entry| entry.target == "ssh") {
        assert!(entry.measure.of(&entry.outcome).is_some() && entry.outcome.usage.processes >= 2, "{entry:?}");
    }
    let shown = loadgen(&["table", &json, "--plot", &again]);
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), table, "the table is made from what was kept");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.contains("<svg") && picture.contains("cpu-s/GB") && picture.contains("ssh"));
    assert_eq!(std::fs::read_to_string(&again).unwrap(), picture);
}

#[test]
fn the_kept_tables_are_those_of_the_kept_numbers() {
    let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks");
    let folders: Vec<_> = std::fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty(), "no run is kept in {}", runs.display());
    for folder in folders {
        let table = loadgen::table::table(&Record::load(&folder.join("run.json")).unwrap());
        let kept = std::fs::read_to_string(folder.join("table.md")).unwrap();
        assert_eq!(kept.trim_end(), table.trim_end(), "loadgen table {0}/run.json > {0}/table.md", folder.display());
    }
}

#[test]
fn the_debug_build_and_the_shared_core_are_warned_of() {
    let machine = loadgen::machine::Machine { cores: 2, ..Default::default() };
    let doubts = machine.doubts(&[0], Some(0)).join("\n");
    assert!(doubts.contains("share core 0") && doubts.contains("debug build"), "{doubts}");
    assert_eq!(machine.doubts(&[0], Some(1)).len(), 1);
    let busy = loadgen::machine::Machine { busy: 0.5, ..machine };
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
