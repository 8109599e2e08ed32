//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::spec::{BULK_SIZE, Destinations, Spec, Via, Workload};

/// Measures TCP relays from outside, through SOCKS5.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Destinations send as quickly as they can, clients take and check
    BulkDown(Load),
    /// Clients send as quickly as they can, destinations take and check
    BulkUp(Load),
    /// Both at once
    BulkBoth(Load),
    /// A message there and back, again and again, on open flows
    Echo(Load),
    /// Open, one message there and back, close
    Connect(Load),
    /// Open flows and hold them: memory per flow
    Idle(Load),
    /// Echoes alone, then beside bulk: what it does to their tail
    Mixed(Load),
    /// Be the destination, for a loadgen on another host
    Destination {
        /// Where to listen; may be given several times
        #[arg(long, required = true, value_name = "ADDR:PORT")]
        listen: Vec<SocketAddr>,
    },
    /// Start relays one after the other and put them side by side
    Compare(Compare),
    /// Measure how the CPU of an echo grows with the number of flows and with the size of the message
    Grow(Grow),
    /// Print the table of runs that were kept with --json
    Table {
        /// The files; their measurements are taken together
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Draw the picture too
        #[arg(long, value_name = "FILE.svg")]
        plot: Option<PathBuf>,
    },
}

/// One workload.
#[derive(Debug, Args)]
pub struct Load {
    /// Through the SOCKS5 proxy here
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "forwarder")]
    pub socks: Option<SocketAddr>,
    /// Through something here that forwards to the destination by itself
    #[arg(long, value_name = "ADDR:PORT")]
    pub forwarder: Option<SocketAddr>,
    /// To `loadgen destination` at this address; may be given several times
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["destinations", "plain_echo"])]
    pub to: Vec<SocketAddr>,
    /// To something here that echoes and is no loadgen (echo, connect and idle only)
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "destinations")]
    pub plain_echo: Option<SocketAddr>,
    /// So many destinations in this process, at 127.0.1.1 and following
    #[arg(long, default_value_t = 1)]
    pub destinations: usize,
    /// So many flows at the same time [default: 16; idle: 1000]
    #[arg(long)]
    pub flows: Option<u64>,
    /// Flows of bulk beside the echoes (mixed)
    #[arg(long, default_value_t = 4)]
    pub bulk_flows: u64,
    /// Bytes of a message, or of one send in bulk [default: 64; bulk: 65536]
    #[arg(long)]
    pub size: Option<usize>,
    /// Operations per second of all flows together, started at fixed times; without it each flow goes on when it is answered
    #[arg(long)]
    pub rate: Option<f64>,
    /// Account these processes and their children
    #[arg(long = "pid", value_delimiter = ',')]
    pub pids: Vec<i32>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub common: Common,
}

/// What single runs and comparisons share.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// How long to run before that
    #[arg(long, default_value_t = 0.5)]
    pub warm_up: f64,
    /// A flow that stands still for so many seconds is a fault
    #[arg(long, default_value_t = 10.0)]
    pub stall: f64,
    /// The cores to run on, a thread each, such as 0,1 [default: the first that may be used]
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// What the bytes are made from [default: another one each time]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep everything measured in this file; - prints it instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw a picture
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// A comparison.
#[derive(Debug, Args)]
pub struct Compare {
    /// What to compare, the first with each other. Names: zhwkprox (0x81), zhwkprox/0x80, zhwkprox/tokio-uring (0x81 on the second engine),
    /// each also as NAME=PATH and NAME:LABEL=PATH, shadowsocks-rust/aes-128-gcm, shadowsocks-rust/2022-blake3-aes-128-gcm,
    /// shadowsocks-libev/aes-128-gcm, ssh, microsocks, direct; installed: all of these that are, but for the second engine
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    /// What they are to do
    #[arg(long, value_delimiter = ',', default_values = ["bulk-down", "bulk-up", "echo", "connect", "idle"])]
    pub workloads: Vec<Workload>,
    /// How often, taking turns
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// The core for what is measured [default: the last that may be used]
    #[arg(long)]
    pub target_core: Option<usize>,
    /// Destinations, at 127.0.1.1 and following
    #[arg(long, default_value_t = 1)]
    pub destinations: usize,
    /// Flows of bulk and of connect
    #[arg(long, default_value_t = 16)]
    pub flows: u64,
    /// Flows of echo
    #[arg(long, default_value_t = 64)]
    pub echo_flows: u64,
    /// Flows of bulk beside the echoes of mixed
    #[arg(long, default_value_t = 4)]
    pub bulk_flows: u64,
    /// Flows of idle
    #[arg(long, default_value_t = 1000)]
    pub idle_flows: u64,
    /// Bytes of an echo's message
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Operations per second for echo, connect and mixed, started at fixed times
    #[arg(long)]
    pub rate: Option<f64>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub common: Common,
}

/// How cost grows.
#[derive(Debug, Args)]
pub struct Grow {
    /// What to measure: the names of `loadgen compare`
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    /// The numbers of flows, with messages of --size; what the limit of open files does not allow becomes the most that it does
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000, 10_000])]
    pub flows: Vec<u64>,
    /// The sizes of a message in bytes, on --echo-flows flows
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024, 4096, 16384, 65536])]
    pub sizes: Vec<usize>,
    /// Bytes of a message while the flows grow
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Flows while the size grows
    #[arg(long, default_value_t = 64)]
    pub echo_flows: u64,
    /// How often, taking turns at each step
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// The core for what is measured [default: the last that may be used]
    #[arg(long)]
    pub target_core: Option<usize>,
    /// Destinations, at 127.0.1.1 and following: with one, a relay could run out of ports
    #[arg(long, default_value_t = 16)]
    pub destinations: usize,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it")]
    pub common: Common,
}

impl Common {
    /// The cores to run on.
    #[must_use]
    pub fn own_cores(&self) -> Vec<usize> {
        if self.cores.is_empty() { crate::machine::cores().into_iter().take(1).collect() } else { self.cores.clone() }
    }

    /// The run's seed: what was typed, or the clock.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_micros());
        self.seed.unwrap_or_else(|| u64::try_from(clock()).unwrap_or(1))
    }

    /// Puts these numbers into a measurement.
    ///
    /// # Errors
    /// When a time is no time.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), String> {
        let time = |name: &str, seconds: f64| Duration::try_from_secs_f64(seconds).map_err(|error| format!("--{name} {seconds}: {error}"));
        spec.time = time("seconds", self.seconds)?;
        spec.warm_up = time("warm-up", self.warm_up)?;
        spec.stall = time("stall", self.stall)?;
        spec.cores = self.own_cores();
        if spec.time.is_zero() {
            return Err("--seconds 0: expected more than 0".to_owned());
        }
        Ok(())
    }
}

impl Load {
    /// The measurement that was typed.
    ///
    /// # Errors
    /// When its parts do not go together.
    pub fn spec(&self, workload: Workload) -> Result<Spec, String> {
        let via = match (self.socks, self.forwarder) {
            (Some(at), _) => Via::Socks(at),
            (None, Some(at)) => Via::Forwarder(at),
            (None, None) => Via::Direct,
        };
        let mut spec = Spec::new(workload, via, self.common.seed());
        self.common.apply(&mut spec)?;
        spec.destinations = match self.plain_echo {
            Some(_) if workload.is_bulk() || workload == Workload::Mixed => {
                return Err(format!("{} wants a destination of loadgen, not a plain echo", workload.name()));
            }
            Some(at) => Destinations::Plain(at),
            None if self.to.is_empty() => Destinations::Here(self.destinations),
            None => Destinations::There(self.to.clone()),
        };
        spec.flows = self.flows.unwrap_or(if workload == Workload::Idle { 1000 } else { 16 });
        spec.size = self.size.unwrap_or_else(|| if workload.is_bulk() { BULK_SIZE } else { 64 });
        spec.rate = self.rate;
        spec.pids.clone_from(&self.pids);
        check(&spec)?;
        Ok(spec)
    }
}

/// Whether numbers are such that something can be measured.
///
/// # Errors
/// Which one is not.
pub fn check(spec: &Spec) -> Result<(), String> {
    if spec.flows == 0 {
        return Err("--flows 0: expected at least 1".to_owned());
    }
    if spec.size == 0 || spec.size > 1 << 20 {
        return Err(format!("--size {}: expected 1 to 1048576", spec.size));
    }
    if spec.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err("--rate: expected more than 0".to_owned());
    }
    if spec.rate.is_some() && (spec.workload.is_bulk() || spec.workload == Workload::Idle) {
        return Err(format!("--rate: {} has no operations to start", spec.workload.name()));
    }
    Ok(())
}
