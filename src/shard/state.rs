//! What a shard says about itself when asked (SIGUSR1): the numbers that must be back where they were when all work is done.

use serde::Serialize;

/// Counts at one moment, or sums over shards.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct State {
    /// Flows with a tunnel and a connection (or one being made).
    pub flows: u64,
    /// Of these, with one direction ended.
    pub half_open: u64,
    /// Connections whose flow is over on the wire and which still have bytes to write.
    pub detached: u64,
    /// Clients in their SOCKS5 handshake, waiting for a name or for a tunnel.
    pub clients_pending: u64,
    /// Authenticated tunnels.
    pub tunnels: u64,
    /// Of these, without a flow.
    pub tunnels_idle: u64,
    /// Tunnels being connected or in their handshake.
    pub tunnels_pending: u64,
    /// Slots held by anything (not free, not lent to the kernel).
    pub slots_in_use: u64,
    /// Slots in all.
    pub slots: u64,
    /// Receives that wait for a slot.
    pub parked: u64,
    /// Timers set.
    pub timers: u64,
    /// Sockets, listeners included.
    pub sockets: u64,
    /// Completions dropped because what they were for was gone. Only grows.
    pub stale_completions: u64,
    /// Clients and tunnels given to other shards. Only grows.
    pub handed_over: u64,
    /// Logins of tunnels that came to nothing because of what the other end sent, or because it closed. Only grows.
    pub logins_refused: u64,
    /// Operations on the curve that logins of 0x81 have cost. Only grows.
    pub curve_operations: u64,
    /// Bytes from tunnels, after the handshake. Only grows.
    pub bytes_from_tunnels: u64,
    /// Bytes to tunnels. Only grows.
    pub bytes_to_tunnels: u64,
}

impl State {
    /// Adds another shard's numbers.
    pub fn add(&mut self, other: &Self) {
        let Self {
            flows,
            half_open,
            detached,
            clients_pending,
            tunnels,
            tunnels_idle,
            tunnels_pending,
            slots_in_use,
            slots,
            parked,
            timers,
            sockets,
            stale_completions,
            handed_over,
            logins_refused,
            curve_operations,
            bytes_from_tunnels,
            bytes_to_tunnels,
        } = other;
        self.flows += flows;
        self.half_open += half_open;
        self.detached += detached;
        self.clients_pending += clients_pending;
        self.tunnels += tunnels;
        self.tunnels_idle += tunnels_idle;
        self.tunnels_pending += tunnels_pending;
        self.slots_in_use += slots_in_use;
        self.slots += slots;
        self.parked += parked;
        self.timers += timers;
        self.sockets += sockets;
        self.stale_completions += stale_completions;
        self.handed_over += handed_over;
        self.logins_refused += logins_refused;
        self.curve_operations += curve_operations;
        self.bytes_from_tunnels += bytes_from_tunnels;
        self.bytes_to_tunnels += bytes_to_tunnels;
    }
}
