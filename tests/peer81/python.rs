//! The Python that `peer.py` runs in: one that has its packages, or an environment of our own under `target`, made when `CI` is set.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Held while an environment is looked for and made: this binary's tests run side by side.
static MAKING: Mutex<()> = Mutex::new(());

/// `peer.py`, ready for its arguments; `None`, said aloud, where its packages are not and may not be fetched.
pub(crate) fn peer() -> Option<Command> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer81");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer81-venv");
    let own = environment.join("bin/python");
    let making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let python = [PathBuf::from("python3"), own.clone()].into_iter().find(|python| has_packages(python)).or_else(|| {
        std::env::var_os("CI")?;
        make(&environment, &directory.join("requirements.txt"));
        Some(own)
    });
    drop(making);
    let Some(python) = python else {
        eprintln!("SKIPPED: no Python with the packages of tests/peer81/requirements.txt. to fetch them into target: CI=1 cargo test …");
        return None;
    };
    let mut command = Command::new(python);
    command.arg("-B").arg(directory.join("peer.py"));
    Some(command)
}

fn has_packages(python: &Path) -> bool {
    Command::new(python).args(["-c", "import noise.connection, cryptography"]).output().is_ok_and(|ran| ran.status.success())
}

/// Made aside and then moved: another test binary may be doing the same.
fn make(environment: &Path, requirements: &Path) {
    let aside = environment.with_extension(std::process::id().to_string());
    run(Command::new("python3").args(["-m", "venv"]).arg(&aside));
    run(Command::new(aside.join("bin/python")).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements));
    if std::fs::rename(&aside, environment).is_err() {
        std::fs::remove_dir_all(&aside).expect("ours");
    }
    assert!(has_packages(&environment.join("bin/python")), "pip has installed something else");
}

fn run(command: &mut Command) {
    let ran = command.output().unwrap_or_else(|error| panic!("{command:?}: {error} (apt-get install -y python3 python3-venv)"));
    assert!(ran.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
}
