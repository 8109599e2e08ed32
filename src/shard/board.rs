//! What shards of one process let each other see: a gauge each, read when a client or a tunnel needs a place and never on the data path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The gauges of all shards. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Board(Arc<[Gauge]>);

#[derive(Debug, Default)]
struct Gauge {
    tunnels: AtomicUsize,
    idle: AtomicUsize,
}

impl Board {
    /// A board for so many shards.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Gauge::default()).collect())
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.0.len()
    }

    /// Says what shard `index` has now.
    pub fn publish(&self, index: usize, tunnels: usize, idle: usize) {
        let gauge = &self.0[index];
        gauge.tunnels.store(tunnels, Ordering::Relaxed);
        gauge.idle.store(idle, Ordering::Relaxed);
    }

    /// A tunnel is on its way to shard `index`: it counts until the shard publishes again.
    pub fn expect_tunnel(&self, index: usize) {
        self.0[index].tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// The shard with the fewest tunnels, `mine` if none has fewer.
    #[must_use]
    pub fn fewest_tunnels(&self, mine: usize) -> usize {
        let count = |index: usize| self.0[index].tunnels.load(Ordering::Relaxed);
        (0..self.0.len()).min_by_key(|&index| (count(index), index != mine)).unwrap_or(mine)
    }

    /// Another shard that has an idle tunnel, the one with most.
    #[must_use]
    pub fn most_idle_elsewhere(&self, mine: usize) -> Option<usize> {
        self.best(mine, |gauge| gauge.idle.load(Ordering::Relaxed))
    }

    /// Another shard that has any tunnel, the one with most.
    #[must_use]
    pub fn most_tunnels_elsewhere(&self, mine: usize) -> Option<usize> {
        self.best(mine, |gauge| gauge.tunnels.load(Ordering::Relaxed))
    }

    fn best(&self, mine: usize, value: impl Fn(&Gauge) -> usize) -> Option<usize> {
        let others = self.0.iter().enumerate().filter(|(index, _)| *index != mine);
        others.map(|(index, gauge)| (value(gauge), index)).filter(|(value, _)| *value > 0).max().map(|(_, index)| index)
    }
}
