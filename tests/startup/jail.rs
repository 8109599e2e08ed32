//! Circumstances for a child process: a seccomp filter, a limit, a user.
#![expect(unsafe_code, reason = "acts between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the system call `number` fail with `errno` in the child.
pub(crate) fn forbid(command: &mut Command, number: libc::c_long, errno: i32) {
    let number = u32::try_from(number).unwrap();
    let statement = |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    let mut program = [
        // The number of the system call is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the program is four instructions long and lives through the call.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })
    };
    // SAFETY: makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// Runs the child as user `uid` with so many bytes of locked memory. Where the test is not root it keeps its user, who is none with
/// CAP_IPC_LOCK either.
pub(crate) fn lock_at_most(command: &mut Command, bytes: u64, uid: u32) {
    // SAFETY: takes nothing and touches no memory.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(uid).gid(uid);
    }
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let set = move || {
        // SAFETY: reads a structure that lives through the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })
    };
    // SAFETY: makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
