//! Which cores the process may use, and putting a thread on one of them.
#![expect(unsafe_code, reason = "std has no sched_setaffinity")]

use std::io;

/// Cores that the process may run on, ascending.
///
/// # Errors
/// What `sched_getaffinity` says.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: a set is plain bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most the given size to a set that lives through the call; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: below CPU_SETSIZE, which the set has bits for.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Keeps the calling thread on `core` from now on.
///
/// # Errors
/// `InvalidInput` for a core that is not there or not allowed, else what `sched_setaffinity` says.
pub fn pin_to(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a set is plain bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: below CPU_SETSIZE, which the set has bits for.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: reads at most the given size of a set that lives through the call; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cores as people write them: `0-3,6`.
#[must_use]
pub fn as_text(cores: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = cores;
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(first..).take_while(|(core, expected)| **core == *expected).count();
        let separator = if text.is_empty() { "" } else { "," };
        text += &match run {
            1 => format!("{separator}{first}"),
            _ => format!("{separator}{first}-{}", first + run - 1),
        };
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_is_allowed_on_its_core_only() {
        let core = *allowed_cores().unwrap().last().unwrap();
        let thread = std::thread::spawn(move || {
            pin_to(core).unwrap();
            allowed_cores().unwrap()
        });
        assert_eq!(thread.join().unwrap(), [core]);
    }

    #[test]
    fn impossible_cores_are_refused() {
        for core in [1023, 1024, usize::MAX] {
            assert_eq!(pin_to(core).unwrap_err().kind(), io::ErrorKind::InvalidInput, "core {core}");
        }
    }

    #[test]
    fn cores_are_written_as_ranges() {
        assert_eq!(as_text(&[0, 1, 2, 3, 6]), "0-3,6");
        assert_eq!(as_text(&[2]), "2");
        assert_eq!(as_text(&[]), "");
    }
}
