//! The same on the real binary: one line, exit status 1, no panic.

use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use zhwkprox::shard::engine::Engine;

use crate::{copy_for_everybody, jail};

/// A user that nobody is.
const SOMEBODY: u32 = 61_004;

struct Installed {
    folder: TempDir,
    binary: PathBuf,
}

/// The binary and a key where any user can read them.
fn install() -> Installed {
    let folder = tempfile::tempdir().unwrap();
    let binary = copy_for_everybody(Path::new(env!("CARGO_BIN_EXE_zhwkprox")), folder.path());
    Installed { folder, binary }
}

impl Installed {
    fn doctor(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("doctor").current_dir(self.folder.path());
        command
    }

    fn inter_server(&self) -> Command {
        let key = self.folder.path().join("key");
        if !Path::exists(&key) {
            std::fs::write(&key, "ascii:0123456789abcdef\n").unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
            // Where the test is root, one child runs as somebody else, and it has to read this. Root can anyway.
            let _ = std::os::unix::fs::chown(&key, Some(SOMEBODY), None);
        }
        let mut command = Command::new(&self.binary);
        command.args(["inter-server", "--listen", "127.0.0.1:0", "--socks", "127.0.0.1:0", "--protocol", "0x80"]);
        command.args(["--cipher", "aes-128-ctr", "--iv", "00000000000000000000000000000000", "--key-file"]).arg(key);
        command.current_dir(self.folder.path());
        command
    }
}

/// A child of a test beside this one can hold the fresh copy open for writing, between its fork and its exec: then it is busy for a moment.
fn output(command: &mut Command) -> Output {
    loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            output => return output.unwrap(),
        }
    }
}

/// What went to standard error, which is one line, after an end with status 1.
fn only_line(mut command: Command) -> String {
    let Output { status, stderr, .. } = output(&mut command);
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "one line is wanted:\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The row that `doctor` prints, which must also end with status 1.
fn doctors_finding(mut command: Command) -> String {
    let Output { status, stdout, stderr } = output(&mut command);
    let text = String::from_utf8(stdout).unwrap();
    assert_eq!(status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&stderr));
    assert!(text.lines().any(|line| line.starts_with("FAIL") && line.contains("io_uring")), "{text}");
    text
}

fn shows(hinder: impl Fn(&mut Command), text: &str) {
    let installed = install();
    let (mut role, mut doctor) = (installed.inter_server(), installed.doctor());
    hinder(&mut role);
    hinder(&mut doctor);
    let line = only_line(role);
    assert!(line.contains(text), "{line}");
    let report = doctors_finding(doctor);
    assert!(report.contains(text), "{report}");
}

#[test]
fn set_up_refused_by_seccomp_ends_the_role_with_one_line() {
    shows(|command| jail::forbid(command, libc::SYS_io_uring_setup, libc::EPERM), "seccomp filter");
}

#[test]
fn set_up_missing_ends_the_role_with_one_line() {
    shows(|command| jail::forbid(command, libc::SYS_io_uring_setup, libc::ENOSYS), "ENOSYS");
}

#[test]
fn entering_blocked_ends_the_role_with_one_line() {
    shows(|command| jail::forbid(command, libc::SYS_io_uring_enter, libc::EPERM), "io_uring_enter does not");
}

#[test]
fn where_the_kernel_knows_no_flag_of_any_engine_the_role_ends_with_one_line() {
    shows(|command| jail::forbid(command, libc::SYS_io_uring_setup, libc::EINVAL), "set-up flags");
}

/// The demo's curl line, run.
fn fetch_through_the_demo(mut demo: Command) -> (String, String) {
    let mut demo = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let curl = lines.find_map(|line| line.unwrap().strip_prefix("curl ").map(str::to_owned));
    let page = curl.map(|curl| Command::new("curl").args(["-sS", "--max-time", "30"]).args(curl.split(' ')).output().unwrap().stdout);
    demo.kill().unwrap();
    let said = demo.wait_with_output().unwrap().stderr;
    (String::from_utf8(page.unwrap_or_default()).unwrap(), String::from_utf8(said).unwrap())
}

#[test]
fn where_the_kernel_is_too_old_for_the_ring_the_relay_works_on_the_other_engine_and_says_so() {
    let installed = install();
    for reason in ["DEFER_TASKRUN", "PBUF_RING"] {
        let old = if reason == "PBUF_RING" { jail::without_buffer_rings } else { jail::without_defer_taskrun };
        if !Engine::TokioUring.is_built() {
            shows(old, reason);
            continue;
        }
        let mut demo = Command::new(&installed.binary);
        demo.arg("demo");
        old(&mut demo);
        let (page, said) = fetch_through_the_demo(demo);
        assert!(page.starts_with("It works."), "{page}\n{said}");
        assert_eq!(said.lines().filter(|line| line.contains("engine tokio-uring") && line.contains(reason)).count(), 1, "{said}");
        // The doctor says the same and does not fail.
        let mut doctor = installed.doctor();
        old(&mut doctor);
        let Output { status, stdout, .. } = output(&mut doctor);
        let report = String::from_utf8(stdout).unwrap();
        assert!(status.success() && report.contains("works, engine tokio-uring") && report.contains(reason), "{report}");
        // Who asks for the ring gets it or nothing.
        let mut role = installed.inter_server();
        role.args(["--engine", "ring"]);
        old(&mut role);
        let line = only_line(role);
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn no_lockable_memory_ends_the_role_with_one_line() {
    shows(|command| jail::lock_at_most(command, 0, SOMEBODY), "RLIMIT_MEMLOCK");
}
