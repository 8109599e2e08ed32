//! What every file owes its reader.

use crate::tree::{File, files, read, sources};

/// A file that is read top-down in one go.
const LINES_MAX: usize = 600;

#[test]
fn every_module_opens_with_its_job() {
    let silent: Vec<_> = rust_files().iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone()).collect();
    assert!(silent.is_empty(), "no //! header: {silent:?}");
}

#[test]
fn files_can_be_read_in_one_go() {
    let long = sources().into_iter().map(|file| (file.text.lines().count(), file.path)).filter(|(lines, _)| *lines > LINES_MAX);
    let long: Vec<_> = long.collect();
    assert!(long.is_empty(), "more than {LINES_MAX} lines: {long:?}");
}

#[test]
fn nothing_is_left_for_later_and_no_machine_is_named() {
    // In pieces, so that this file does not find itself.
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("db", "g!("),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
    ];
    let mut wrong = Vec::new();
    for file in everything() {
        for (number, line) in file.text.lines().enumerate() {
            for word in banned.iter().filter(|word| line.contains(*word)) {
                wrong.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The version that is stated is the one that is tested: the toolchain of CI is no newer and no older.
#[test]
fn the_stated_rust_version_is_the_one_in_use_here() {
    let stated = rust_version();
    let output =
        std::process::Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned())).arg("--version").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    let used = version.split(' ').nth(1).unwrap();
    if std::env::var_os("CI").is_some() {
        assert!(used.starts_with(&format!("{stated}.")), "Cargo.toml says {stated}, and CI tests with {used}");
    } else if !used.starts_with(&format!("{stated}.")) {
        println!("Cargo.toml says {stated}, and this is {used}: only CI insists");
    }
}

#[test]
fn readme_states_the_rust_version_of_the_manifest() {
    let stated = format!("Rust {}", rust_version());
    assert!(read("README.md").text.contains(&stated), "README.md does not say `{stated}`");
}

fn rust_version() -> String {
    let manifest = read("Cargo.toml").text;
    let line = manifest.lines().find(|line| line.starts_with("rust-version = \"")).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

fn rust_files() -> Vec<File> {
    ["src", "tests", "fuzz", "loadgen", "benches"].iter().flat_map(|folder| files(folder, ".rs")).collect()
}

fn everything() -> Vec<File> {
    let endings = [".rs", ".md", ".sh", ".toml", ".py", ".conf", ".service"];
    let mut all: Vec<_> = ["src", "tests", "fuzz", "docs", "loadgen", "benches", "tuning"]
        .iter()
        .flat_map(|folder| endings.map(|ending| files(folder, ending)))
        .flatten()
        .collect();
    all.extend(["README.md", "Cargo.toml", ".clippy.toml", ".ci/run"].map(read));
    all
}
