//! What is to be measured: one workload, through one proxy, with its numbers.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

/// Bytes of one send in bulk, as programs usually do it.
pub const BULK_SIZE: usize = 65536;

/// What the flows do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// The destination sends as quickly as it is taken.
    BulkDown,
    /// The client sends as quickly as it is taken.
    BulkUp,
    /// Both at once.
    BulkBoth,
    /// The client sends a message and waits for it to come back.
    Echo,
    /// Open, one message there and back, close.
    Connect,
    /// Flows are opened and held, without a byte.
    Idle,
    /// Echoes, first alone, then beside bulk.
    Mixed,
}

impl Workload {
    /// As typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BulkDown => "bulk-down",
            Self::BulkUp => "bulk-up",
            Self::BulkBoth => "bulk-both",
            Self::Echo => "echo",
            Self::Connect => "connect",
            Self::Idle => "idle",
            Self::Mixed => "mixed",
        }
    }

    /// Whether its flows move bytes until they are ended.
    #[must_use]
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::BulkDown | Self::BulkUp | Self::BulkBoth)
    }
}

/// How destinations are reached.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// Through the SOCKS5 proxy here.
    Socks(SocketAddr),
    /// Through something that forwards to the destination by itself.
    Forwarder(SocketAddr),
    /// Straight.
    Direct,
}

/// Where flows lead.
#[derive(Clone, Debug)]
pub enum Destinations {
    /// To this process, at so many addresses, 127.0.1.1 and following.
    Here(usize),
    /// To `loadgen destination` at these addresses.
    There(Vec<SocketAddr>),
    /// To something that echoes and is not ours: no header is sent.
    Plain(SocketAddr),
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What the flows do; never [`Workload::Mixed`], which is two measurements.
    pub workload: Workload,
    /// How they get there.
    pub via: Via,
    /// Where.
    pub destinations: Destinations,
    /// How many.
    pub flows: u64,
    /// How many flows of bulk downwards run beside them.
    pub bulk_beside: u64,
    /// Bytes of a message, or of one send.
    pub size: usize,
    /// How long to run before measuring.
    pub warm_up: Duration,
    /// How long to measure.
    pub time: Duration,
    /// Operations per second of all flows together; none: each flow as quickly as it can.
    pub rate: Option<f64>,
    /// What the bytes are made from, and the name of the run in the destination's books.
    pub seed: u64,
    /// The cores to run on, a thread each; none: one thread, wherever it is put.
    pub cores: Vec<usize>,
    /// How long a flow may stand still.
    pub stall: Duration,
    /// The processes to account, with their children.
    pub pids: Vec<i32>,
}

impl Spec {
    /// A short measurement, for its numbers to be changed.
    #[must_use]
    pub fn new(workload: Workload, via: Via, seed: u64) -> Self {
        Self {
            workload,
            via,
            destinations: Destinations::Here(1),
            flows: 16,
            bulk_beside: 0,
            size: 64,
            warm_up: Duration::from_millis(500),
            time: Duration::from_secs(3),
            rate: None,
            seed,
            cores: Vec::new(),
            stall: Duration::from_secs(10),
            pids: Vec::new(),
        }
    }

    /// How many flows, with those of bulk beside.
    #[must_use]
    pub fn all_flows(&self) -> u64 {
        self.flows + self.bulk_beside
    }

    /// Bytes of one send of a bulk flow: as typed when bulk is what is measured, as usual when it runs beside.
    #[must_use]
    pub fn bulk_size(&self) -> usize {
        if self.workload.is_bulk() { self.size } else { BULK_SIZE }
    }
}
