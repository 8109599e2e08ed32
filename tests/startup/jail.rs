//! Circumstances for a child process: a seccomp filter, a limit, a user.
#![expect(unsafe_code, reason = "acts between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use zhwkprox::shard::engine::Engine;

/// Lets the system call `number` fail with `errno` in the child.
pub(crate) fn forbid(command: &mut Command, number: libc::c_long, errno: i32) {
    let number = u32::try_from(number).unwrap();
    install(command, [load(NUMBER), unless_equal(number, 1), fail(errno), ALLOW]);
}

/// The same, where its argument `which`, counted from 0, is `value`.
pub(crate) fn forbid_with(command: &mut Command, number: libc::c_long, which: u32, value: u32, errno: i32) {
    let number = u32::try_from(number).unwrap();
    install(command, [load(NUMBER), unless_equal(number, 3), load(ARGUMENTS + 8 * which), unless_equal(value, 1), fail(errno), ALLOW]);
}

/// As a kernel before 6.1: the set-up of the first engine fails, which a filter can tell by its number of entries only, for it does not see
/// the flags.
pub(crate) fn without_defer_taskrun(command: &mut Command) {
    forbid_with(command, libc::SYS_io_uring_setup, 0, Engine::Ring.sizes().submissions, libc::EINVAL);
}

/// As a kernel before 5.19.
pub(crate) fn without_buffer_rings(command: &mut Command) {
    /// IORING_REGISTER_PBUF_RING.
    const REGISTER_BUFFER_RING: u32 = 22;
    forbid_with(command, libc::SYS_io_uring_register, 1, REGISTER_BUFFER_RING, libc::EINVAL);
}

/// Where what the filter sees has the number of the system call, and its arguments, eight bytes each.
const NUMBER: u32 = 0;
const ARGUMENTS: u32 = 16;
const ALLOW: libc::sock_filter = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);

#[expect(clippy::cast_possible_truncation, reason = "the codes are of 16 bits")]
const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn load(at: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)
}

/// Leaves out the next `skip` instructions if what was loaded is something else.
const fn unless_equal(value: u32, skip: u8) -> libc::sock_filter {
    libc::sock_filter { jf: skip, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value) }
}

const fn fail(errno: i32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

fn install<const N: usize>(command: &mut Command, mut program: [libc::sock_filter; N]) {
    let install = move || {
        let filter = libc::sock_fprog { len: u16::try_from(N).unwrap_or_default(), filter: program.as_mut_ptr() };
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the program is as many instructions long as said and lives through the call.
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
