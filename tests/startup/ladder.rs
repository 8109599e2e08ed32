//! The library's ladder: each test starts itself again as a child under its circumstance, and the child prints the error.

use std::process::{Command, Output};

use zhwkprox::shard::engine::{Choice, Chosen, Engine};
use zhwkprox::shard::startup;

use crate::{copy_for_everybody, jail};

/// Set in the child.
const CHILD: &str = "ZHWKPROX_TEST_CHILD";
const MARK: &str = "start-up said: ";

/// What `startup::check` says in a child that `prepare` has put in its place. `None` in that child.
fn said(test: &str, prepare: impl FnOnce(&mut Command)) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        match startup::check(Choice::Auto) {
            Ok(Chosen { engine: Engine::Ring, instead: None }) => println!("\n{MARK}nothing"),
            Ok(Chosen { engine, instead }) => println!("\n{MARK}engine {engine} instead, for {}", instead.unwrap_or_default()),
            Err(error) => println!("\n{MARK}{error}"),
        }
        return None;
    }
    // A copy, because another user may not reach the build's folder.
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(copy_for_everybody(&std::env::current_exe().unwrap(), folder.path()));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1").current_dir("/");
    prepare(&mut command);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "the child ended with {status}\n{text}\n{}", String::from_utf8_lossy(&stderr));
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(MARK));
    let line = lines.next().unwrap_or_else(|| panic!("the child said nothing in\n{text}"));
    Some(line.to_owned())
}

#[test]
fn without_a_hindrance_nothing_is_said() {
    if let Some(line) = said("ladder::without_a_hindrance_nothing_is_said", |_| {}) {
        assert_eq!(line, "nothing");
    }
}

#[test]
fn a_set_up_refused_by_seccomp_names_the_filter_and_the_calls_to_allow() {
    let test = "ladder::a_set_up_refused_by_seccomp_names_the_filter_and_the_calls_to_allow";
    if let Some(line) = said(test, |child| jail::forbid(child, libc::SYS_io_uring_setup, libc::EPERM)) {
        assert!(line.contains("seccomp") && line.contains("allows io_uring_setup, io_uring_enter and io_uring_register"), "{line}");
        assert!(!line.contains("sysctl"), "the sysctl is not what is in the way: {line}");
    }
}

#[test]
fn a_kernel_without_io_uring_is_told_apart_from_one_that_refuses_it() {
    let test = "ladder::a_kernel_without_io_uring_is_told_apart_from_one_that_refuses_it";
    if let Some(line) = said(test, |child| jail::forbid(child, libc::SYS_io_uring_setup, libc::ENOSYS)) {
        assert!(line.contains("ENOSYS") && line.contains("CONFIG_IO_URING"), "{line}");
    }
}

#[test]
fn a_filter_that_lets_set_up_through_and_entering_not_is_noticed_at_start() {
    let test = "ladder::a_filter_that_lets_set_up_through_and_entering_not_is_noticed_at_start";
    if let Some(line) = said(test, |child| jail::forbid(child, libc::SYS_io_uring_enter, libc::EPERM)) {
        assert!(line.contains("io_uring_enter does not"), "{line}");
    }
}

#[test]
fn a_filter_that_refuses_registering_is_noticed_at_start() {
    let test = "ladder::a_filter_that_refuses_registering_is_noticed_at_start";
    if let Some(line) = said(test, |child| jail::forbid(child, libc::SYS_io_uring_register, libc::EPERM)) {
        assert!(line.contains("io_uring_register does not"), "{line}");
    }
}

#[test]
fn a_kernel_that_does_not_know_the_rings_flags_gets_the_other_engine_and_the_reason() {
    let test = "ladder::a_kernel_that_does_not_know_the_rings_flags_gets_the_other_engine_and_the_reason";
    if let Some(line) = said(test, jail::without_defer_taskrun) {
        assert_other_engine(&line, "DEFER_TASKRUN");
    }
}

#[test]
fn a_kernel_without_buffer_rings_gets_the_other_engine_and_the_reason() {
    let test = "ladder::a_kernel_without_buffer_rings_gets_the_other_engine_and_the_reason";
    if let Some(line) = said(test, jail::without_buffer_rings) {
        assert_other_engine(&line, "PBUF_RING");
    }
}

/// In a build without it the reason is the error.
#[track_caller]
fn assert_other_engine(line: &str, reason: &str) {
    let expected = if Engine::TokioUring.is_built() { "engine tokio-uring instead, for linux " } else { "linux " };
    assert!(line.starts_with(expected) && line.contains(reason), "{line}");
}

#[test]
fn a_limit_of_locked_memory_is_named_with_what_is_needed_and_that_much_is_enough() {
    let test = "ladder::a_limit_of_locked_memory_is_named_with_what_is_needed_and_that_much_is_enough";
    // The limit counts for all processes of a user: one of its own for each child.
    let Some(line) = said(test, |child| jail::lock_at_most(child, 0, 61_001)) else { return };
    assert!(line.contains("RLIMIT_MEMLOCK") && line.contains("LimitMEMLOCK"), "{line}");
    let need: u64 = line.split("locks ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert_eq!(said(test, |child| jail::lock_at_most(child, need * 1024, 61_002)).unwrap(), "nothing");
    let line = said(test, |child| jail::lock_at_most(child, need * 1024 / 4, 61_003)).unwrap();
    assert!(line.contains(&format!("{} KiB in all", need / 4)), "{line}");
}
