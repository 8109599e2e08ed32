//! What every test of the running relay needs: the two roles as child processes, destinations, a SOCKS5 client, and bytes that know
//! whose they are. Nothing here uses the relay's own code; what is checked is what comes over sockets and out of `/proc`.

pub(crate) mod destination;
pub(crate) mod dns;
pub(crate) mod net;
pub(crate) mod pattern;
pub(crate) mod programs;
pub(crate) mod protocol;
pub(crate) mod relay;
pub(crate) mod role;
pub(crate) mod socks;
pub(crate) mod state;
pub(crate) mod traffic;
pub(crate) mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use destination::{Destination, Origin};
pub(crate) use protocol::{on_0x81, protocol, skipped_on_0x80, skipped_on_0x81};
pub(crate) use relay::{Options, Relay};
pub(crate) use role::Role;
pub(crate) use state::State;

/// How long anything awaited may take before the test fails: far more than it needs on a loaded machine.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);
/// What "promptly" and "at once" mean: well below every timer of the relay that could be the one that fired instead (5 s, 10 s).
pub(crate) const PROMPTLY: Duration = Duration::from_secs(4);

static HEAVY: Mutex<()> = Mutex::new(());

/// Held by a test that keeps both cores busy: one of them at a time.
pub(crate) fn heavy() -> MutexGuard<'static, ()> {
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the short form of the long tests was asked for (`ZHWKPROX_QUICK=1`).
pub(crate) fn quick() -> bool {
    std::env::var_os("ZHWKPROX_QUICK").is_some()
}

/// Asks again and again until the answer is there; the watchdog names what was waited for.
pub(crate) fn await_some<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `work` and fails if it took longer than `limit`.
pub(crate) fn within<T>(what: &str, limit: Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    assert!(took < limit, "{what} took {took:?}, expected less than {limit:?}");
    result
}
