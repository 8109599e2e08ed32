//! What the process may use: descriptors are raised as far as they go, locked memory is read to explain a failure, huge pages are refused.
#![expect(unsafe_code, reason = "std has no getrlimit and no prctl")]

use std::io;

/// Raises the limit of descriptors to its hard limit; gives it as it was and as it is.
///
/// # Errors
/// What `getrlimit` or `setrlimit` says.
pub fn raise_nofile() -> io::Result<(u64, u64)> {
    let mut limit = get(libc::RLIMIT_NOFILE)?;
    let before = limit.rlim_cur;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads a structure that lives through the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok((before, limit.rlim_cur))
}

/// Has the kernel back the process by small pages from here on. The allocator asks for huge ones, and a heap of a few chunks then grows in
/// steps of 2 MiB, most of it never used. Where the kernel does not know this, nothing is lost.
pub fn refuse_huge_pages() {
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: takes integers only and touches no memory.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, ON, UNUSED, UNUSED, UNUSED) };
}

/// Soft and hard limit of descriptors.
#[must_use]
pub fn nofile() -> Option<(u64, u64)> {
    get(libc::RLIMIT_NOFILE).ok().map(|limit| (limit.rlim_cur, limit.rlim_max))
}

/// Bytes that may be locked; `None` where there is no limit.
#[must_use]
pub fn memlock() -> Option<u64> {
    get(libc::RLIMIT_MEMLOCK).ok().map(|limit| limit.rlim_cur).filter(|&limit| limit != libc::RLIM_INFINITY)
}

fn get(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a structure that lives through the call.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}
