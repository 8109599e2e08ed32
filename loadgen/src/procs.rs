//! What processes have used: CPU time, memory, context switches, read from /proc. A process is counted with its children, since sshd for
//! one does its work in them.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a set of processes has used, at one moment or between two.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of CPU, of all threads.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// The most that was resident, summed over the processes.
    pub peak_rss_bytes: u64,
    /// Context switches because a thread had to wait.
    pub voluntary_switches: u64,
    /// Context switches because it had to give way.
    pub forced_switches: u64,
    /// Processes counted.
    pub processes: u64,
}

impl Usage {
    /// What `pids` and their children have used up to now.
    #[must_use]
    pub fn of(pids: &[i32]) -> Self {
        family(pids).into_iter().fold(Self::default(), |sum, pid| sum.plus(&one(pid)))
    }

    /// What this process has used up to now, without its children.
    #[must_use]
    pub fn of_this() -> Self {
        i32::try_from(std::process::id()).map(one).unwrap_or_default()
    }

    /// What was used from `before` to here. Memory stays as it is here.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_seconds: (self.cpu_seconds - before.cpu_seconds).max(0.0),
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
            forced_switches: self.forced_switches.saturating_sub(before.forced_switches),
            ..*self
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            rss_bytes: self.rss_bytes + other.rss_bytes,
            peak_rss_bytes: self.peak_rss_bytes + other.peak_rss_bytes,
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            forced_switches: self.forced_switches + other.forced_switches,
            processes: self.processes + other.processes,
        }
    }
}

/// Those of `pids` that exist, and all that descend from them.
fn family(pids: &[i32]) -> BTreeSet<i32> {
    let parents: Vec<(i32, i32)> = processes().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family: BTreeSet<i32> = pids.iter().copied().filter(|pid| parents.iter().any(|(one, _)| one == pid)).collect();
    loop {
        let before = family.len();
        let children: Vec<i32> = parents.iter().filter(|(_, parent)| family.contains(parent)).map(|(pid, _)| *pid).collect();
        family.extend(children);
        if family.len() == before {
            return family;
        }
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    after_name(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?.nth(1)?.parse().ok()
}

/// The fields of a stat line behind the name, which may itself hold blanks and brackets.
fn after_name(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_whitespace())
}

fn one(pid: i32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| field(&status, name).unwrap_or(0) * 1024;
    let mut usage = Usage { rss_bytes: kib("VmRSS:"), peak_rss_bytes: kib("VmHWM:"), processes: 1, ..Usage::default() };
    let mut nanos = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let thread = entry.path();
        let first = |text: String| text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
        nanos += fs::read_to_string(thread.join("schedstat")).ok().and_then(first).unwrap_or(0);
        let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
        usage.voluntary_switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        usage.forced_switches += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    // The threads' clocks are exact but forget threads that have ended; the process's counts in ticks and forgets none.
    let exact = Duration::from_nanos(nanos).as_secs_f64();
    let coarse = ticks(pid).unwrap_or(0.0);
    usage.cpu_seconds = if coarse > exact + 0.05 { coarse } else { exact };
    usage
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn ticks(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = after_name(&stat)?.skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_this_process_grows_with_work() {
        let me = [i32::try_from(std::process::id()).unwrap()];
        let before = Usage::of(&me);
        let began = std::time::Instant::now();
        let mut x = 1_u64;
        while began.elapsed() < Duration::from_millis(200) || Usage::of(&me).since(&before).cpu_seconds < 0.05 {
            x = std::hint::black_box(x.wrapping_mul(3));
            assert!(began.elapsed() < Duration::from_secs(60), "no CPU time is seen");
        }
        let used = Usage::of(&me).since(&before);
        assert!(used.cpu_seconds >= 0.05 && used.processes >= 1 && used.rss_bytes > 100_000, "{used:?}");
    }

    #[test]
    fn a_child_is_counted_with_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let with = Usage::of(&[me]).processes;
        let family = family(&[me]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(with >= 2 && family.contains(&i32::try_from(child.id()).unwrap()));
    }

    #[test]
    fn a_name_with_brackets_hides_no_field() {
        assert_eq!(after_name("7 (a) b) S 1 2").unwrap().nth(1), Some("1"));
    }
}
