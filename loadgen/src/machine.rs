//! The machine a number was measured on, what about it makes numbers doubtful, and which core a thread runs on.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// The part of all CPU time that others may take before it is said.
const BUSY: f64 = 0.1;

/// How long it is watched what others take.
const WATCH: Duration = Duration::from_millis(400);

/// What a kept number needs beside it.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Total memory.
    pub memory_bytes: u64,
    /// Load average over a minute, before the start.
    pub load: f64,
    /// The part of all CPU time that was taken by others, before the start.
    pub busy: f64,
}

impl Machine {
    /// This one, now. Takes a moment, to see how busy it is.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(':').nth(1));
        let memory = read("/proc/meminfo").split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.unwrap_or("unknown").trim().to_owned(),
            cores: cores().len(),
            memory_bytes: memory.unwrap_or(0) * 1024,
            load: read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            busy: busy(),
        }
    }

    /// What makes numbers from here doubtful. `target` is the core of what is measured, `own` those of this process.
    #[must_use]
    pub fn doubts(&self, own: &[usize], target: Option<usize>) -> Vec<String> {
        let mut doubts = Vec::new();
        if cfg!(debug_assertions) {
            doubts.push("loadgen is a debug build: build it with --release".to_owned());
        }
        if self.busy > BUSY {
            let (taken, most) = (self.busy * 100.0, BUSY * 100.0);
            doubts.push(format!("the machine is busy: others take {taken:.0} % of its CPU time, expected at most {most:.0} %"));
        }
        match target {
            Some(core) if own.contains(&core) => {
                doubts.push(format!("loadgen and what it measures share core {core}: the one takes time from the other"));
            }
            None if own.len() >= self.cores => doubts.push("loadgen takes every core: what it measures shares one with it".to_owned()),
            _ => {}
        }
        doubts
    }
}

/// Watches the machine while this process sleeps.
fn busy() -> f64 {
    let before = times();
    std::thread::sleep(WATCH);
    let after = times();
    let passed = |of: fn(&(u64, u64)) -> u64| of(&after).saturating_sub(of(&before)) as f64;
    let (idle, all) = (passed(|times| times.0), passed(|times| times.1));
    if all > 0.0 { 1.0 - idle / all } else { 0.0 }
}

/// Ticks in which the cores were idle, and all ticks.
fn times() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal; guest time is in user's already.
    let ticks: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
    (ticks.iter().skip(3).take(2).sum(), ticks.iter().sum())
}

/// The cores this process may use.
#[must_use]
pub fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// Puts this thread, and the processes it starts from now on, on these cores.
///
/// # Errors
/// When the kernel does not allow it.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for core in cores.iter().filter(|core| **core < CpuSet::MAX_CPU) {
        set.set(*core);
    }
    sched_setaffinity(None, &set).map_err(|error| io::Error::other(format!("cannot run on cores {cores:?}: {error}")))
}

/// Raises the limit of open files as far as it goes, and says what it is.
#[must_use]
pub fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it fails, the old one is what we have.
    let _kept = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
