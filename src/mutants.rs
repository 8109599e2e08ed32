//! Faults made on purpose. With the cargo feature `mutants` a test switches one on for its thread, and the simulation has to
//! notice it; without the feature [`on`] is constantly false and costs nothing.

/// A fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// A key of something that is gone is taken for what has its place now.
    NoGenerationCheck,
    /// A slot goes back to the free stack when its send is submitted, not when it is done.
    SlotFreedAtSubmit,
    /// A send is submitted while one is outstanding on the same socket.
    SecondSendInFlight,
    /// The peer's end is overlooked when our own has been sent before.
    CrossedEndLost,
    /// A direction is shut down although bytes wait before the end.
    FinBeforeBytes,
    /// A receive that found no slot is taken for the end of its socket's life.
    EnobufsNotParked,
    /// A receive that waits for a slot is not submitted again.
    ParkedNeverRearmed,
    /// An idle-looking tunnel is closed although a flow is on it.
    TunnelFreedWithFlow,
    /// The idle tunnel given to one flow is given to the next as well.
    SpareHandedOutTwice,
    /// A flow's timer is not cancelled with the flow, and fires for whoever has its place.
    TimerAfterClose,
    /// A stream's credit is given back as its bytes arrive, not as they leave (0x81, as all below).
    CreditOnArrival,
    /// What comes for a stream that is closed is taken for a fault.
    ClosedNotSkipped,
    /// A stream's FIN goes before the data that waits, and a full queue lets it get there.
    FinOvertakesData,
    /// The peer's GOAWAY is overlooked.
    GoAwayUnanswered,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoGenerationCheck,
        Self::SlotFreedAtSubmit,
        Self::SecondSendInFlight,
        Self::CrossedEndLost,
        Self::FinBeforeBytes,
        Self::EnobufsNotParked,
        Self::ParkedNeverRearmed,
        Self::TunnelFreedWithFlow,
        Self::SpareHandedOutTwice,
        Self::TimerAfterClose,
        Self::CreditOnArrival,
        Self::ClosedNotSkipped,
        Self::FinOvertakesData,
        Self::GoAwayUnanswered,
    ];
}

/// Whether the fault is switched on.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Switches a fault on for this thread, or all off.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    /// Whether the fault is switched on.
    #[must_use]
    pub fn on(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{on, set};
