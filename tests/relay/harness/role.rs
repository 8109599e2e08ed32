//! One role as a child process of the real binary: started, asked for its state, watched from `/proc`, limited, stopped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{State, WATCHDOG, await_some};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_zhwkprox");

/// A running role. Killed when dropped; a failing test shows the end of its log.
#[derive(Debug)]
pub(crate) struct Role {
    name: &'static str,
    arguments: Vec<String>,
    child: Child,
    states: Mutex<Receiver<String>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Role {
    /// Starts the binary with these arguments; the first one names the role.
    pub(crate) fn start(name: &'static str, arguments: &[String]) -> Self {
        let mut child = Command::new(BINARY)
            .args(arguments)
            .args(engine())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("RUST_LOG")
            .spawn()
            .unwrap();
        let (sender, states) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        Self { name, arguments: arguments.to_vec(), child, states: Mutex::new(states), log }
    }

    /// Starts it again with the same arguments, after it was killed or has ended.
    pub(crate) fn restart(&mut self) {
        self.kill();
        *self = Self::start(self.name, &self.arguments.clone());
    }

    /// Waits until the process takes SIGUSR1 for a question (before that the signal would end it), or has ended.
    fn await_handler(&self) {
        let usr1 = 1u64 << (10 - 1);
        await_some(&format!("{} to handle SIGUSR1\n{}", self.name, self.log_tail()), WATCHDOG, || {
            let status = self.proc_file("status")?;
            let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?;
            (u64::from_str_radix(caught.trim(), 16).ok()? & usr1 != 0).then_some(())
        });
    }

    /// Asks for the state line and reads it.
    pub(crate) fn state(&self) -> State {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        self.await_handler();
        while states.try_recv().is_ok() {}
        self.signal("USR1");
        let start = Instant::now();
        loop {
            let line = states
                .recv_timeout(WATCHDOG.saturating_sub(start.elapsed()))
                .unwrap_or_else(|e| panic!("{} gave no state line: {e}\n{}", self.name, self.log_tail()));
            // Other lines may go to stdout; a state line is an object.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e} in state line {line}", self.name));
            }
        }
    }

    /// Asks until the state is as wanted.
    pub(crate) fn await_state(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
        self.await_state_for(what, WATCHDOG, wanted)
    }

    /// The same, with another watchdog.
    pub(crate) fn await_state_for(&self, what: &str, limit: Duration, wanted: impl Fn(&State) -> bool) -> State {
        let start = Instant::now();
        loop {
            let state = self.state();
            if wanted(&state) {
                return state;
            }
            assert!(start.elapsed() < limit, "{}: waited {limit:?} in vain for {what}; state: {state:?}\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until nothing is going on.
    pub(crate) fn await_quiet(&self) -> State {
        self.await_state("quiet", State::is_quiet)
    }

    fn proc_file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).ok()
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = self.proc_file("status").unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap_or_else(|| panic!("{} is gone", self.name));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Resident memory now, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// Largest resident memory so far, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Processor time used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = self.proc_file("stat").unwrap();
        // The name in brackets may hold spaces; user and system time are fields 14 and 15, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Descriptors that are open, counted from outside.
    pub(crate) fn open_files(&self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count() as u64
    }

    /// Lowers (or raises again) the soft limit of open files; the hard one stays.
    pub(crate) fn limit_files(&self, soft: u64) {
        let limits = self.proc_file("limits").unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        let hard: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
        let limit = format!("--nofile={}:{hard}", soft.min(hard));
        let done = Command::new("prlimit").args([limit.as_str(), "--pid", &self.child.id().to_string()]).status().unwrap();
        assert!(done.success(), "prlimit {limit} failed");
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(done.success(), "cannot send SIG{name} to {}: it is gone\n{}", self.name, self.log_tail());
    }

    /// SIGKILL, and wait until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn await_end(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        await_some(&what, limit, || self.child.try_wait().unwrap())
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a log line that passes.
    pub(crate) fn await_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let what = format!("{} to log {what}", self.name);
        let start = Instant::now();
        loop {
            if let Some(line) = self.log().into_iter().find(|l| wanted(l)) {
                return line;
            }
            assert!(start.elapsed() < WATCHDOG, "waited in vain for {what}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(15);
        format!("--- log of {} ({} lines, the last {}):\n{}", self.name, log.len(), log.len() - from, log[from..].join("\n"))
    }
}

/// The arguments that choose the engine of this run (`ZHWKPROX_ENGINE`), none where it is not set.
fn engine() -> Vec<String> {
    std::env::var("ZHWKPROX_ENGINE").map_or_else(|_| Vec::new(), |name| vec!["--engine".to_owned(), name])
}

impl Drop for Role {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.child.try_wait().ok().flatten().map(|s| format!("\n{} had ended: {s}", self.name)).unwrap_or_default();
            eprintln!("{}{ended}", self.log_tail());
        }
        self.kill();
    }
}
