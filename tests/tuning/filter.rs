//! A unit's SystemCallFilter= on a child process, as systemd would install it: sets are those of this machine's systemd, numbers those of its
//! C headers.
#![expect(unsafe_code, reason = "acts between fork and exec")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The numbers of the system calls that the lines of a unit allow: sets are filled in, `~` takes away, in their order.
pub(crate) fn allowed(lines: &[String]) -> BTreeSet<u32> {
    let sets = sets();
    // Which systemd allows to every unit with a list of what is allowed.
    let mut names = members(&sets, "@default");
    for line in lines {
        let (is_minus, words) = line.strip_prefix('~').map_or((false, line.as_str()), |words| (true, words));
        for word in words.split_whitespace() {
            let members = members(&sets, word);
            if is_minus {
                names.retain(|name| !members.contains(name));
            } else {
                names.extend(members);
            }
        }
    }
    let numbers = numbers();
    names.iter().filter_map(|name| numbers.get(name).copied()).collect()
}

/// What a set stands for, and the sets in it; a call stands for itself.
fn members(sets: &BTreeMap<String, Vec<String>>, word: &str) -> BTreeSet<String> {
    let Some(set) = sets.get(word) else {
        assert!(!word.starts_with('@'), "systemd has no set {word}");
        return BTreeSet::from([word.to_owned()]);
    };
    set.iter().flat_map(|word| members(sets, word)).collect()
}

/// systemd's sets of system calls: unindented names, with their members indented below.
fn sets() -> BTreeMap<String, Vec<String>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut sets = BTreeMap::<String, Vec<String>>::new();
    let mut name = String::new();
    // Behind the sets come the calls that are in none of them.
    for line in text.lines().take_while(|line| !line.starts_with('#')) {
        match line.trim() {
            word if line.starts_with('@') => word.clone_into(&mut name),
            word if !word.is_empty() && !word.starts_with('#') => sets.entry(name.clone()).or_default().push(word.to_owned()),
            _ => {}
        }
    }
    assert!(sets.contains_key("@system-service"), "no sets in\n{text}");
    sets
}

/// Names and numbers by the C preprocessor: `#define __NR_read 0`.
fn numbers() -> BTreeMap<String, u32> {
    let mut cc = Command::new("cc");
    let mut cc = cc.args(["-E", "-dM", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cc.stdin.take().unwrap().write_all(b"#include <asm/unistd.h>\n").unwrap();
    let text = String::from_utf8(cc.wait_with_output().unwrap().stdout).unwrap();
    let defined = text.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '));
    let numbers: BTreeMap<_, _> = defined.filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?))).collect();
    assert!(numbers.len() > 300, "only {} system calls", numbers.len());
    numbers
}

/// Lets the child make these calls and answers EPERM to all others.
pub(crate) fn allow_only(command: &mut Command, numbers: &BTreeSet<u32>) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    // The number of the system call is the first word of what the filter sees.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for number in numbers {
        program.push(libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *number) });
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()));
    let len = u16::try_from(program.len()).unwrap();
    let install = move || {
        let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the program is `len` instructions long and lives through the call.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })
    };
    // SAFETY: makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
