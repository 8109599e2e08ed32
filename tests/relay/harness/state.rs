//! The state line of a role (SIGUSR1), as an outsider reads it.

use serde::Deserialize;

/// One state line. Every field must be there: a missing one is a fault of the relay.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) role: String,
    pub(crate) shards: u64,
    pub(crate) descriptors: u64,
    pub(crate) flows: u64,
    pub(crate) half_open: u64,
    pub(crate) detached: u64,
    pub(crate) clients_pending: u64,
    pub(crate) tunnels: u64,
    pub(crate) tunnels_idle: u64,
    pub(crate) tunnels_pending: u64,
    pub(crate) slots_in_use: u64,
    pub(crate) slots: u64,
    pub(crate) parked: u64,
    pub(crate) timers: u64,
    pub(crate) sockets: u64,
    pub(crate) stale_completions: u64,
    pub(crate) handed_over: u64,
    pub(crate) logins_refused: u64,
    pub(crate) curve_operations: u64,
    pub(crate) bytes_from_tunnels: u64,
    pub(crate) bytes_to_tunnels: u64,
}

impl State {
    /// The line without what only grows: this must be back where it was when all work is done.
    pub(crate) fn resting(&self) -> Self {
        Self {
            stale_completions: 0,
            handed_over: 0,
            logins_refused: 0,
            curve_operations: 0,
            bytes_from_tunnels: 0,
            bytes_to_tunnels: 0,
            ..self.clone()
        }
    }

    /// Nothing is going on: no flow, no client, no dial, every tunnel idle, nothing waits for a slot.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flows == 0
            && self.detached == 0
            && self.clients_pending == 0
            && self.tunnels_pending == 0
            && self.tunnels == self.tunnels_idle
            && self.slots_in_use == 0
            && self.parked == 0
    }
}
