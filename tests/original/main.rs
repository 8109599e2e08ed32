//! The `original` profile: our roles, from the real binary, against stand-ins for the author's two programs, faults included
//! (`standin.py`: Python and openssl, none of our code). 0x80 §5 says what must work between them.
//!
//! The stand-ins read in Python: one that is kept from running finds messages glued that were sent apart, and takes that for our
//! fault. So what sends many frames is tried up to three times; a side that does not keep the pace fails every time.

#![allow(clippy::disallowed_methods, reason = "the tests' watchdogs read the clock themselves: they are outside the relay")]

mod long;
mod support;
mod their_inter_server;
mod their_server;

/// Up to three times, for what depends on the stand-in's being scheduled in time.
fn try_three_times(attempt: impl Fn() -> Result<(), String>) {
    let mut wrong = Vec::new();
    for _ in 0..3 {
        match attempt() {
            Ok(()) => {
                if !wrong.is_empty() {
                    eprintln!("attempts that failed before one did not: {wrong:#?}");
                }
                return;
            }
            Err(what) => wrong.push(what),
        }
    }
    panic!("three times: {wrong:#?}");
}
