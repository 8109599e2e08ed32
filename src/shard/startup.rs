//! Making an io_uring, as a ladder: kernel, set-up, entering, the operations needed. Each rung that gives way says in one line what is
//! in the way and what helps.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode};

use super::affinity;
use super::buffers::Arena;
use super::engine::{self, Choice, Chosen, Engine};
use super::inbox::Inbox;
use super::io::Io;
use super::ring::Sizes;
use crate::limits::SLOT_BYTES;

/// The oldest kernel with all we use: DEFER_TASKRUN came with 6.1.
pub(crate) const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// How long a no-op may take until entering counts as blocked.
const PROBE: Duration = Duration::from_secs(1);
/// Where the kernel says who may use io_uring (since 6.6).
const SYSCTL_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
/// The group that may when the above is 1.
const SYSCTL_GROUP: &str = "/proc/sys/kernel/io_uring_group";

/// The operations used, with the name to print.
const OPERATIONS: [(u8, &str); 7] = [
    (opcode::Nop::CODE, "NOP"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Read::CODE, "READ"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
];

/// Why a shard cannot start. Every text is one line: cause, then cure.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// Before what the engine needs.
    #[error("linux {found} is too old: the engine needs io_uring as of linux {needed}; cure: run a newer kernel")]
    Kernel {
        /// What `uname` says.
        found: String,
        /// The first that will do.
        needed: &'static str,
    },
    /// `ENOSYS`.
    #[error(
        "this system has no io_uring (io_uring_setup: ENOSYS): the kernel was built without CONFIG_IO_URING, or a sandbox (gVisor, a seccomp \
         profile) hides it; cure: another kernel, or a sandbox that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Missing,
    /// `EPERM`, the sysctl is 2.
    #[error("io_uring is switched off for everybody (kernel.io_uring_disabled is 2); cure: sysctl -w kernel.io_uring_disabled=0")]
    SwitchedOff,
    /// `EPERM`, the sysctl is 1.
    #[error(
        "io_uring is reserved (kernel.io_uring_disabled is 1) for CAP_SYS_ADMIN and group {group}; cure: run the relay in that group \
         (sysctl -w kernel.io_uring_group=GID sets it), or sysctl -w kernel.io_uring_disabled=0"
    )]
    Reserved {
        /// What kernel.io_uring_group says; -1 is none.
        group: String,
    },
    /// `EPERM`, and a seccomp filter is in place.
    #[error(
        "io_uring_setup is refused (EPERM) by a seccomp filter, as Docker and containerd set by default; cure: a seccomp profile that \
         allows io_uring_setup, io_uring_enter and io_uring_register (narrower than seccomp=unconfined)"
    )]
    Seccomp,
    /// `EPERM` without a cause that can be read.
    #[error(
        "io_uring_setup is refused (EPERM) though kernel.io_uring_disabled is 0 and no seccomp filter is set; cure: look for a denial of \
         a security module (SELinux, AppArmor) in the kernel log, and allow io_uring there"
    )]
    Refused,
    /// `ENOMEM` under a memlock limit.
    #[error(
        "cannot make an io_uring: it locks {need_kib} KiB per shard and RLIMIT_MEMLOCK allows this user {limit_kib} KiB in all; cure: \
         ulimit -l unlimited, LimitMEMLOCK=infinity in the unit, --ulimit memlock=-1 for Docker, or CAP_IPC_LOCK"
    )]
    Memlock {
        /// What one shard needs.
        need_kib: u64,
        /// The limit.
        limit_kib: u64,
    },
    /// `EINVAL`: a flag that the kernel does not know.
    #[error(
        "linux {found} refuses the set-up flags SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG, SUBMIT_ALL, CLAMP; cure: an unpatched kernel as of 6.1"
    )]
    Flags {
        /// What `uname` says.
        found: String,
    },
    /// Registering a buffer ring: `EINVAL`.
    #[error(
        "linux {found} knows no rings of provided buffers (io_uring_register, PBUF_RING: EINVAL); cure: an unpatched kernel as of 5.19"
    )]
    BufferRings {
        /// What `uname` says.
        found: String,
    },
    /// The engine asked for is not in this program.
    #[error("this program was built without the engine {engine}; cure: another engine, or a build with the cargo feature engine-{engine}")]
    NotBuilt {
        /// Its name.
        engine: Engine,
    },
    /// `EMFILE`, `ENFILE`.
    #[error(
        "cannot make an io_uring: no descriptor is free ({source}); cure: a higher limit, LimitNOFILE= in the unit, ulimit -n, fs.file-max"
    )]
    Descriptors {
        /// Which of the two limits.
        source: io::Error,
    },
    /// Set-up works and entering does not.
    #[error(
        "io_uring_setup works but io_uring_enter does not ({source}): a seccomp filter allows the one and not the other; cure: a profile \
         that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    EnterBlocked {
        /// What it said.
        source: io::Error,
    },
    /// Set-up works and registering does not.
    #[error(
        "io_uring_setup works but io_uring_register does not ({source}): a seccomp filter allows the one and not the other; cure: a \
         profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    RegisterBlocked {
        /// What it said.
        source: io::Error,
    },
    /// An operation is not there.
    #[error("io_uring of linux {found} lacks {operation}; cure: an unpatched kernel as of 6.1")]
    Operation {
        /// What `uname` says.
        found: String,
        /// Its name.
        operation: &'static str,
    },
    /// The shard's memory.
    #[error(
        "cannot map {kib} KiB of buffers: {source}; cure: a smaller --buffer-memory, or more memory (ulimit -v, the control group's limit)"
    )]
    Arena {
        /// What was asked for.
        kib: u64,
        /// What it said.
        source: io::Error,
    },
    /// The thread cannot run where it is to.
    #[error("cannot run on core {core}: {source}; cure: name cores of {allowed} in --cores")]
    Core {
        /// Which.
        core: usize,
        /// Those that are allowed, as a list.
        allowed: String,
        /// What it said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {what}: {source}")]
    Other {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl StartupError {
    /// Whether another engine may be had where this one cannot: it is the kernel's age that is in the way, and not a limit or a refusal.
    #[must_use]
    pub(super) const fn is_of_age(&self) -> bool {
        matches!(self, Self::Kernel { .. } | Self::Flags { .. } | Self::BufferRings { .. })
    }
}

/// Puts the calling thread on `core` and makes a shard's memory and engine there: in this order, so that both are near the core, and on
/// the thread that will use them. `bell` is the inbox's eventfd.
///
/// # Errors
/// See [`StartupError`].
pub fn engine(core: usize, buffer_memory: usize, bell: RawFd, choice: Choice) -> Result<(Arena, Box<dyn Io>, Chosen), StartupError> {
    affinity::pin_to(core).map_err(|source| {
        let allowed = affinity::as_text(&affinity::allowed_cores().unwrap_or_default());
        StartupError::Core { core, allowed, source }
    })?;
    let arena = arena(buffer_memory)?;
    let (io, chosen) = engine::make(choice, &arena, bell)?;
    Ok((arena, io, chosen))
}

/// Goes up the ladder with an engine of the usual size and drops it again, for `doctor`. Says which one would be taken.
///
/// # Errors
/// See [`StartupError`].
pub fn check(choice: Choice) -> Result<Chosen, StartupError> {
    let (inbox, _) = Inbox::new().map_err(|source| StartupError::Descriptors { source })?;
    engine::make(choice, &arena(SLOT_BYTES)?, inbox.bell()).map(|(_, chosen)| chosen)
}

fn arena(bytes: usize) -> Result<Arena, StartupError> {
    Arena::new(bytes).map_err(|source| StartupError::Arena { kib: bytes as u64 / 1024, source })
}

/// Makes the ring and shows that it works.
pub(super) fn open(sizes: Sizes) -> Result<IoUring, StartupError> {
    let kernel = kernel();
    if parse_kernel(&kernel).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(StartupError::Kernel { found: kernel, needed: "6.1" });
    }
    let mut uring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        // Without it a turn that does not sleep would see no completion.
        .setup_taskrun_flag()
        // One bad entry does not hold up those behind it.
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(sizes.completions)
        .build(sizes.submissions)
        .map_err(|error| explain_setup(error, sizes))?;
    enter_once(&mut uring)?;
    look_for_operations(&uring, &OPERATIONS, sizes)?;
    Ok(uring)
}

/// Whether the kernel has them all.
pub(super) fn look_for_operations(uring: &IoUring, wanted: &[(u8, &'static str)], sizes: Sizes) -> Result<(), StartupError> {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(|error| explain_register(error, sizes))?;
    match wanted.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, operation)) => Err(StartupError::Operation { found: kernel(), operation }),
        None => Ok(()),
    }
}

/// Why registering a buffer ring failed.
pub(super) fn explain_buffer_ring(error: io::Error, sizes: Sizes) -> StartupError {
    match error.raw_os_error() {
        Some(libc::EINVAL) => StartupError::BufferRings { found: kernel() },
        _ => explain_register(error, sizes),
    }
}

/// Why `io_uring_register` failed.
fn explain_register(error: io::Error, sizes: Sizes) -> StartupError {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => out_of_memory(error, sizes),
        _ => StartupError::RegisterBlocked { source: error },
    }
}

/// The kernel's release, as `uname` says it.
#[must_use]
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "of unknown version".to_owned(), |text| text.trim().to_owned())
}

/// Major and minor version.
pub(crate) fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What one ring has locked, in KiB: both queues, the entries, the page of the buffer ring, each rounded up to pages.
#[must_use]
pub(crate) fn locked_kib(sizes: Sizes) -> u64 {
    let pages = |bytes: u64| bytes.div_ceil(4096) * 4;
    let (submissions, completions) = (u64::from(sizes.submissions), u64::from(sizes.completions));
    pages(submissions * 64) + pages(completions * 16 + submissions * 4 + 320) + pages(u64::from(sizes.slots) * 16)
}

/// Shows with a no-op that the ring can be entered.
pub(super) fn enter_once(uring: &mut IoUring) -> Result<(), StartupError> {
    push_nop(uring);
    let limit = Timespec::from(PROBE);
    let entered = uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit));
    match (entered, uring.completion().next()) {
        (_, Some(_)) => Ok(()),
        (Err(source), None) => Err(StartupError::EnterBlocked { source }),
        (Ok(_), None) => Err(StartupError::EnterBlocked { source: io::ErrorKind::TimedOut.into() }),
    }
}

#[expect(unsafe_code, reason = "pushing an entry always is")]
fn push_nop(uring: &mut IoUring) {
    // SAFETY: a no-op names no memory. The queue is empty, so it cannot be full.
    let _ = unsafe { uring.submission().push(&opcode::Nop::new().build()) };
}

/// Why `io_uring_setup` failed.
pub(super) fn explain_setup(error: io::Error, sizes: Sizes) -> StartupError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => StartupError::Missing,
        Some(libc::EPERM | libc::EACCES) => {
            let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
            explain_refusal(&read(SYSCTL_DISABLED), &read(SYSCTL_GROUP), &read("/proc/self/status"))
        }
        Some(libc::ENOMEM) => out_of_memory(error, sizes),
        Some(libc::EINVAL) => StartupError::Flags { found: kernel() },
        Some(libc::EMFILE | libc::ENFILE) => StartupError::Descriptors { source: error },
        _ => StartupError::Other { what: "make an io_uring", source: error },
    }
}

/// The files are read instead of guessing: in a container it is nearly always seccomp, on a hardened host the sysctl.
fn explain_refusal(disabled: &str, group: &str, status: &str) -> StartupError {
    match disabled.trim() {
        "2" => StartupError::SwitchedOff,
        "1" => StartupError::Reserved { group: group.trim().to_owned() },
        _ if seccomp_filtered(status) => StartupError::Seccomp,
        _ => StartupError::Refused,
    }
}

fn seccomp_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn out_of_memory(error: io::Error, sizes: Sizes) -> StartupError {
    match crate::rlimits::memlock() {
        Some(limit) => StartupError::Memlock { need_kib: locked_kib(sizes), limit_kib: limit / 1024 },
        None => StartupError::Other { what: "make an io_uring", source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_spellings_are_understood() {
        assert_eq!(parse_kernel("6.1.0-39-amd64"), Some((6, 1)));
        assert_eq!(parse_kernel("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_kernel("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(parse_kernel("6.1-rc3"), Some((6, 1)));
        assert_eq!(parse_kernel("of unknown version"), None);
    }

    #[test]
    fn a_seccomp_filter_is_seen_in_the_status() {
        assert!(seccomp_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!seccomp_filtered("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
    }

    #[test]
    fn a_refusal_is_explained_by_what_the_files_say_and_not_guessed() {
        let free = "Seccomp:\t0\n";
        let filtered = "Seccomp:\t2\n";
        assert!(matches!(explain_refusal("2\n", "-1\n", filtered), StartupError::SwitchedOff));
        assert!(matches!(explain_refusal("1\n", "998\n", free), StartupError::Reserved { group } if group == "998"));
        assert!(matches!(explain_refusal("0\n", "-1\n", filtered), StartupError::Seccomp));
        // Before 6.6 there is no such setting.
        assert!(matches!(explain_refusal("", "", filtered), StartupError::Seccomp));
        assert!(matches!(explain_refusal("0\n", "-1\n", free), StartupError::Refused));
    }

    #[test]
    fn every_text_is_one_line_with_a_cure() {
        let source = || io::Error::from_raw_os_error(libc::EPERM);
        let text = || "text".to_owned();
        let errors = [
            StartupError::Kernel { found: text(), needed: "6.1" },
            StartupError::BufferRings { found: text() },
            StartupError::NotBuilt { engine: Engine::TokioUring },
            StartupError::Missing,
            StartupError::SwitchedOff,
            StartupError::Reserved { group: text() },
            StartupError::Seccomp,
            StartupError::Refused,
            StartupError::Memlock { need_kib: 1, limit_kib: 0 },
            StartupError::Flags { found: text() },
            StartupError::Descriptors { source: source() },
            StartupError::EnterBlocked { source: source() },
            StartupError::RegisterBlocked { source: source() },
            StartupError::Operation { found: text(), operation: "RECV" },
            StartupError::Arena { kib: 1, source: source() },
            StartupError::Core { core: 1, allowed: text(), source: source() },
        ];
        for error in errors {
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.contains("  ") && text.contains("; cure: "), "{text}");
        }
    }

    #[test]
    fn an_engine_is_made_on_a_core_that_is_allowed_and_refused_elsewhere_with_the_cores_there_are() {
        let (inbox, _) = Inbox::new().unwrap();
        let (bell, cores) = (inbox.bell(), affinity::allowed_cores().unwrap());
        let made = std::thread::spawn(move || engine(cores[0], 2 * SLOT_BYTES, bell, Choice::Auto).map(|(arena, ..)| arena.slots()));
        assert_eq!(made.join().unwrap().unwrap(), 2);
        let error = engine(1000, SLOT_BYTES, bell, Choice::Auto).err().unwrap().to_string();
        let allowed = affinity::as_text(&affinity::allowed_cores().unwrap());
        assert!(error.contains("core 1000") && error.contains(&format!("cores of {allowed} in")), "{error}");
        assert!(matches!(engine(1000, 0, bell, Choice::Auto), Err(StartupError::Core { .. })));
    }

    #[test]
    fn the_ladder_holds_here() {
        for engine in Engine::ALL.into_iter().filter(|engine| engine.is_built()) {
            assert_eq!(check(Choice::Only(engine)).unwrap().engine, engine);
        }
        assert_eq!(check(Choice::Auto).unwrap(), Chosen { engine: Engine::Ring, instead: None });
    }
}
