//! A role as a child process: its lines are awaited, never slept for.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// Ten times what the slowest wait takes on a busy machine.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

pub(crate) struct Process {
    child: Child,
    out: Lines,
    err: Lines,
}

struct Lines {
    receiver: Receiver<String>,
    seen: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::with_output(command, Stdio::piped())
    }

    pub(crate) fn with_output(command: &mut Command, out: Stdio) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().map_or_else(|| Lines::of(std::io::empty()), Lines::of);
        let err = Lines::of(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// Waits for a line of the log that has these words.
    pub(crate) fn said(&mut self, words: &str) -> String {
        self.err.find(words)
    }

    /// Waits for a line on standard output that starts so.
    pub(crate) fn printed(&mut self, start: &str) -> String {
        loop {
            let line = self.out.next().unwrap_or_else(|| panic!("no line `{start}…` after {}", self.out.seen));
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Waits until it listens for these; where.
    pub(crate) fn listens(&mut self, serves: &str) -> SocketAddr {
        let line = self.err.find(&format!("serves=\"{serves}\""));
        let at = line.split(' ').find_map(|word| word.strip_prefix("at=")).unwrap();
        at.parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Its state line.
    pub(crate) fn state(&mut self) -> Value {
        self.signal("USR1");
        serde_json::from_str(&self.out.find("{")).unwrap()
    }

    pub(crate) fn wait_for_state(&mut self, is_so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..WATCHDOG.as_millis() / 10 {
            let state = self.state();
            if is_so(&state) {
                return state;
            }
            // Asked again and again, not waited for: the state line is an answer, not an event.
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("never so: {}", self.state());
    }

    /// Waits for its end; what it said that had not been looked at, and all of its log.
    pub(crate) fn ended(&mut self) -> (ExitStatus, String, String) {
        let mut rest = String::new();
        while let Some(line) = self.out.next() {
            rest.push_str(&line);
            rest.push('\n');
        }
        while self.err.next().is_some() {}
        (self.child.wait().unwrap(), rest, self.err.seen.clone())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { receiver, seen: String::new() }
    }

    /// The next line; nothing when the stream has ended.
    fn next(&mut self) -> Option<String> {
        use std::sync::mpsc::RecvTimeoutError;
        match self.receiver.recv_timeout(WATCHDOG) {
            Ok(line) => {
                self.seen.push_str(&line);
                self.seen.push('\n');
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line and no end for {WATCHDOG:?}, after:\n{}", self.seen),
        }
    }

    fn find(&mut self, words: &str) -> String {
        loop {
            let line = self.next().unwrap_or_else(|| panic!("ended without `{words}`:\n{}", self.seen));
            if line.contains(words) {
                return line;
            }
        }
    }
}
