//! `zhwkprox doctor`: what the relay finds on this machine, what it wants, and how to fix the difference. Looks only, changes nothing.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::crypto::aead::AesSupport;
use crate::rlimits;
use crate::shard::affinity;
use crate::shard::engine::{Choice, Chosen, Engine};
use crate::shard::ring::Sizes;
use crate::shard::startup;

/// Flows of a busy relay take two descriptors each; fewer than this and it refuses connections first.
const DESCRIPTORS: u64 = 65_536;
/// The largest window of a fast and far connection: 32 MiB is 1 Gbit/s at 250 ms.
const WINDOW_BYTES: u64 = 32 << 20;

/// Writes the report; says whether all that the relay cannot do without is there.
pub fn report(out: &mut impl Write) -> bool {
    let rows = rows(Path::new("/proc/sys"));
    // A reader that has gone wants no more of it.
    let _ = write_rows(out, &rows);
    rows.iter().all(|row| row.verdict != Verdict::Missing)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Good,
    /// Works without, better with.
    Advised,
    /// Does not work without.
    Missing,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Advised => "advice",
            Self::Missing => "FAIL",
        }
    }
}

#[derive(Debug)]
struct Row {
    verdict: Verdict,
    what: &'static str,
    found: String,
    wanted: String,
    fix: String,
}

impl Row {
    fn new(
        what: &'static str,
        found: impl Into<String>,
        wanted: impl Into<String>,
        good: bool,
        else_: Verdict,
        fix: impl Into<String>,
    ) -> Self {
        let verdict = if good { Verdict::Good } else { else_ };
        Self { verdict, what, found: found.into(), wanted: wanted.into(), fix: fix.into() }
    }
}

fn rows(sysctls: &Path) -> Vec<Row> {
    let mut rows = vec![kernel(), engine(), cores(), memlock(), descriptors(), aes()];
    rows.extend(SYSCTLS.iter().map(|sysctl| sysctl.row(sysctls)));
    rows
}

fn write_rows(out: &mut impl Write, rows: &[Row]) -> std::io::Result<()> {
    let width = |column: fn(&Row) -> &str, title: &str| rows.iter().map(column).map(str::len).chain([title.len()]).max().unwrap_or(0);
    let what = width(|row| row.what, "what");
    let found = width(|row| &row.found, "found");
    writeln!(out, "{:<6}  {:<what$}  {:<found$}  wanted", "", "what", "found")?;
    for row in rows {
        writeln!(out, "{:<6}  {:<what$}  {:<found$}  {}", row.verdict.word(), row.what, row.found, row.wanted)?;
        if row.verdict != Verdict::Good {
            writeln!(out, "{:<6}  {:<what$}  fix: {}", "", "", row.fix)?;
        }
    }
    let missing = rows.iter().filter(|row| row.verdict == Verdict::Missing).count();
    let advised = rows.iter().filter(|row| row.verdict == Verdict::Advised).count();
    match (missing, advised) {
        (0, 0) => writeln!(out, "\nall is well"),
        (0, _) => writeln!(out, "\nthe relay runs here; {advised} of the settings could serve it better"),
        _ => writeln!(out, "\nthe relay does not run here: {missing} missing"),
    }
}

fn kernel() -> Row {
    let found = startup::kernel();
    let new_enough = startup::parse_kernel(&found).is_none_or(|version| version >= startup::OLDEST_KERNEL);
    let (else_, fix) = if Engine::TokioUring.is_built() {
        (Verdict::Advised, "run a newer kernel; the engine tokio-uring, which costs more, needs 5.19")
    } else {
        (Verdict::Missing, "run a newer kernel, or a build with the engine tokio-uring, which needs 5.19")
    };
    Row::new("kernel", found, "linux 6.1 or newer", new_enough, else_, fix)
}

/// Which engine the roles would take, unless told otherwise.
fn engine() -> Row {
    let wanted = "engine ring: set-up, entering, buffer rings, operations";
    match startup::check(Choice::Auto) {
        Ok(Chosen { engine, instead: None }) => Row::new("io_uring", format!("works, engine {engine}"), wanted, true, Verdict::Missing, ""),
        Ok(Chosen { engine, instead: Some(why) }) => {
            Row::new("io_uring", format!("works, engine {engine}"), wanted, false, Verdict::Advised, why)
        }
        Err(error) => Row::new("io_uring", "does not work", wanted, false, Verdict::Missing, error.to_string()),
    }
}

fn cores() -> Row {
    let cores = affinity::allowed_cores().unwrap_or_default();
    let found = format!("{} ({})", cores.len(), affinity::as_text(&cores));
    Row::new(
        "cores",
        found,
        "one per shard",
        !cores.is_empty(),
        Verdict::Missing,
        "allow a core: taskset, cpuset, CPUAffinity= in the unit",
    )
}

fn memlock() -> Row {
    let need = startup::locked_kib(Sizes::default()) * affinity::allowed_cores().map_or(1, |cores| cores.len() as u64);
    let wanted = format!("{need} KiB for a shard per core");
    let limit = rlimits::memlock().map(|bytes| bytes / 1024);
    let found = limit.map_or_else(|| "unlimited".to_owned(), |kib| format!("{kib} KiB"));
    let fix = "ulimit -l unlimited, LimitMEMLOCK=infinity in the unit, --ulimit memlock=-1 for Docker (not needed with CAP_IPC_LOCK)";
    Row::new("locked memory", found, wanted, limit.is_none_or(|limit| limit >= need), Verdict::Advised, fix)
}

fn descriptors() -> Row {
    let (soft, hard) = rlimits::nofile().unwrap_or_default();
    let wanted = format!("{DESCRIPTORS} as the hard limit");
    let fix = "ulimit -Hn, LimitNOFILE=1048576 in the unit; the relay raises the soft limit itself";
    Row::new("descriptors", format!("soft {soft}, hard {hard}"), wanted, hard >= DESCRIPTORS, Verdict::Advised, fix)
}

fn aes() -> Row {
    let support = AesSupport::of_this_machine();
    let found = match support {
        AesSupport::Vectors => "VAES",
        AesSupport::Instructions => "AES instructions",
        AesSupport::None => "none",
    };
    let fix = "a processor with AES, or a hypervisor that shows it; in software AES is a hundred times slower";
    Row::new("AES", found, "AES instructions, better VAES", support != AesSupport::None, Verdict::Advised, fix)
}

/// A kernel setting and what makes it good.
struct Sysctl {
    name: &'static str,
    wanted: &'static str,
    good: fn(&[u64]) -> bool,
    set: &'static str,
}

const SYSCTLS: [Sysctl; 9] = [
    Sysctl {
        name: "net.core.somaxconn",
        wanted: "4096 or more: connections that wait to be accepted",
        good: |found| found.first() >= Some(&4096),
        set: "4096",
    },
    Sysctl {
        name: "net.ipv4.tcp_max_syn_backlog",
        wanted: "4096 or more: connections being made, in a burst",
        good: |found| found.first() >= Some(&4096),
        set: "8192",
    },
    Sysctl {
        name: "net.ipv4.tcp_rmem",
        wanted: "at most (third) 32 MiB or more: fast and far senders",
        good: |found| found.get(2) >= Some(&WINDOW_BYTES),
        set: "'4096 131072 33554432'",
    },
    Sysctl {
        name: "net.ipv4.tcp_wmem",
        wanted: "at most (third) 32 MiB or more: fast and far receivers",
        good: |found| found.get(2) >= Some(&WINDOW_BYTES),
        set: "'4096 16384 33554432'",
    },
    Sysctl {
        name: "net.ipv4.ip_local_port_range",
        wanted: "1024 65535: flows to one destination (list what listens in ip_local_reserved_ports)",
        good: |found| matches!(found, [low, high] if high.saturating_sub(*low) >= 60_000),
        set: "'1024 65535'",
    },
    Sysctl { name: "net.ipv4.tcp_slow_start_after_idle", wanted: "0: tunnels pause, then burst", good: |found| found == [0], set: "0" },
    Sysctl {
        name: "net.ipv4.tcp_notsent_lowat",
        wanted: "131072 to 2097152: unsent bytes kept per flow (tunnels have their own)",
        good: |found| found.first().is_some_and(|&bytes| bytes <= 2 << 20),
        set: "1048576",
    },
    Sysctl {
        name: "net.ipv4.tcp_keepalive_time",
        wanted: "600 or less: clients and destinations that vanished (tunnels have their own)",
        good: |found| found.first().is_some_and(|&seconds| seconds <= 600),
        set: "600",
    },
    Sysctl {
        name: "net.ipv4.tcp_mtu_probing",
        wanted: "1: paths that lose large packets silently",
        good: |found| found.first() >= Some(&1),
        set: "1",
    },
];

impl Sysctl {
    fn row(&self, root: &Path) -> Row {
        let text = fs::read_to_string(root.join(self.name.replace('.', "/"))).ok();
        let found = text.as_deref().map_or_else(|| "not there".to_owned(), |text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        let numbers: Vec<u64> = found.split(' ').filter_map(|number| number.parse().ok()).collect();
        // What a container does not show cannot be set from inside either.
        let good = text.is_none() || (self.good)(&numbers);
        Row::new(self.name, found, self.wanted, good, Verdict::Advised, format!("sysctl -w {}={}", self.name, self.set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(name: &str, value: Option<&str>) -> Row {
        let root = tempfile::tempdir().unwrap();
        if let Some(value) = value {
            let path = root.path().join(name.replace('.', "/"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        SYSCTLS.iter().find(|sysctl| sysctl.name == name).unwrap().row(root.path())
    }

    #[test]
    fn settings_are_judged_by_what_they_are_for() {
        let judged = |name, value| sysctl(name, Some(value)).verdict;
        assert_eq!(judged("net.core.somaxconn", "128\n"), Verdict::Advised);
        assert_eq!(judged("net.core.somaxconn", "4096\n"), Verdict::Good);
        assert_eq!(judged("net.ipv4.tcp_rmem", "4096\t131072\t6291456\n"), Verdict::Advised);
        assert_eq!(judged("net.ipv4.tcp_rmem", "4096\t131072\t33554432\n"), Verdict::Good);
        assert_eq!(judged("net.ipv4.ip_local_port_range", "32768\t60999\n"), Verdict::Advised);
        assert_eq!(judged("net.ipv4.ip_local_port_range", "1024\t65535\n"), Verdict::Good);
        assert_eq!(judged("net.ipv4.tcp_notsent_lowat", "4294967295\n"), Verdict::Advised);
        assert_eq!(judged("net.ipv4.tcp_slow_start_after_idle", "1\n"), Verdict::Advised);
        assert_eq!(judged("net.ipv4.tcp_mtu_probing", "garbage\n"), Verdict::Advised);
    }

    #[test]
    fn a_setting_that_is_not_there_is_said_and_not_complained_about() {
        let row = sysctl("net.core.somaxconn", None);
        assert_eq!((row.verdict, row.found.as_str()), (Verdict::Good, "not there"));
    }

    #[test]
    fn what_is_set_as_advised_is_good_afterwards() {
        for one in &SYSCTLS {
            assert_eq!(sysctl(one.name, Some(one.set.trim_matches('\''))).verdict, Verdict::Good, "{}", one.name);
        }
    }

    #[test]
    fn columns_are_aligned_and_every_difference_names_its_fix() {
        let good = Row::new("kernel", "6.18.44-and-a-long-name", "linux 6.1 or newer", true, Verdict::Missing, "unused");
        let bad = Row::new("io_uring", "does not work", "set-up", false, Verdict::Missing, "cause; cure");
        let mut text = Vec::new();
        write_rows(&mut text, &[good, bad]).unwrap();
        let expected = "        what      found                    wanted\n\
                        ok      kernel    6.18.44-and-a-long-name  linux 6.1 or newer\n\
                        FAIL    io_uring  does not work            set-up\n\
                        \x20                 fix: cause; cure\n\
                        \nthe relay does not run here: 1 missing\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn all_that_is_needed_is_here_and_the_report_says_so() {
        let mut text = Vec::new();
        assert!(report(&mut text));
        let text = String::from_utf8(text).unwrap();
        for what in ["kernel", "io_uring", "cores", "locked memory", "descriptors", "AES", "net.core.somaxconn"] {
            assert!(text.contains(what), "{what} is missing in\n{text}");
        }
        println!("{text}");
    }
}
