//! Whole pages of zeroed memory of our own, all touched: for the arena, and for what the kernel reads beside us.
#![expect(unsafe_code, reason = "owns a mapping")]

use std::io;
use std::ptr::NonNull;

/// A mapping; goes with its owner.
#[derive(Debug)]
pub(super) struct Pages {
    base: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// Maps `length` bytes, more than none.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping; no existing memory is named.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length })
    }

    /// Where it starts.
    pub(super) const fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: made in `new` with this base and length; whoever hands out parts of it keeps it until they are gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
