//! The scripts on the kernel itself, in a network namespace of their own with a pair of virtual devices, v0 and v1. Each test starts itself
//! again in such a namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::data;
use crate::support::{contents, is_here, said, script, settings};

/// Set in the child.
const CHILD: &str = "ZHWKPROX_TEST_CHILD";

/// Whether this is the namespace. If not, the test runs in one, and its failure there is a failure here.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    if !is_here("tc", "iproute2") {
        return false;
    }
    // Root stays what it is, for a namespace of users hides some settings; others become root in one.
    let flags: &[&str] = if is_root() { &["-nm"] } else { &["-rnm"] };
    let prepare = "mount -t sysfs none /sys && ip link set lo up && ip link add v0 type veth peer name v1 && exec \"$@\"";
    let unshare = |rest: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", prepare, "sh"]).args(rest);
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
        command
    };
    if !unshare(&["true"]).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "unshare {flags:?} does not work here: apt-get install util-linux");
        eprintln!("SKIPPED: unshare {flags:?} does not work here");
        return false;
    }
    let me = std::env::current_exe().unwrap();
    let test = format!("namespace::{test}");
    let output = unshare(&[me.to_str().unwrap(), "--exact", &test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{test} is no test:\n{text}");
    false
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

/// A folder for the record, and the scripts on v0 with it.
struct Here(tempfile::TempDir);

impl Here {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, name: &str, arguments: &[&str]) -> crate::support::Said {
        let mut command = script(name);
        command.arg("--state").arg(self.0.path()).args(["--device", "v0"]).args(arguments);
        said(&mut command)
    }
}

/// All that the namespace holds: every file under /proc/sys/net, the devices as `ip` and `tc` show them, and their files.
fn everything() -> BTreeMap<PathBuf, String> {
    let mut all = contents(Path::new("/proc/sys/net"));
    for device in ["v0", "v1", "lo"] {
        for file in ["napi_defer_hard_irqs", "gro_flush_timeout", "queues/rx-0/rps_cpus", "queues/rx-0/rps_flow_cnt"] {
            let path = Path::new("/sys/class/net").join(device).join(file);
            let text = fs::read_to_string(&path).unwrap_or_default();
            all.insert(path, text);
        }
    }
    all.insert("ip".into(), shown("ip", &["-d", "link", "show"]));
    all.insert("tc".into(), shown("tc", &["qdisc", "show"]));
    all
}

fn shown(program: &str, arguments: &[&str]) -> String {
    said(Command::new(program).args(arguments)).ends(0).out
}

fn qdisc(device: &str) -> String {
    shown("tc", &["qdisc", "show", "dev", device])
}

#[track_caller]
fn same(now: &BTreeMap<PathBuf, String>, before: &BTreeMap<PathBuf, String>) {
    for (path, text) in before {
        assert_eq!(now.get(path), Some(text), "{}", path.display());
    }
    assert_eq!(now.len(), before.len());
}

/// What a namespace can hold; the other sections belong to the machine, and two of these want the machine's own root.
fn sections() -> &'static [&'static str] {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap();
    let is_machines_root = users.split_whitespace().eq(["0", "0", "4294967295"]);
    if is_machines_root { &["sockets", "congestion", "bigtcp", "queues", "busypoll"] } else { &["sockets", "congestion", "bigtcp"] }
}

#[test]
fn check_changes_nothing_apply_contents_it_and_revert_puts_back_every_byte() {
    if !in_a_namespace("check_changes_nothing_apply_contents_it_and_revert_puts_back_every_byte") {
        return;
    }
    let here = Here::new();
    let before = everything();
    let with = |more: &[&'static str]| [sections(), more].concat();
    let check = here.run("check.sh", &with(&["--link", "100g"])).ends(1);
    assert!(check.lines("differs") >= 10, "a fresh namespace has the kernel's own values:\n{}", check.out);
    here.run("apply.sh", &with(&["--link", "100g", "--dry-run"])).ends(0);
    same(&everything(), &before);
    here.run("apply.sh", &with(&["--link", "100g"])).ends(0).says("set", &["tcp_wmem", "-> 4096 16384 134217728"]);
    here.run("check.sh", &with(&["--link", "100g"])).ends(0).says("all is as wanted", &[]);
    let changed = everything().iter().filter(|(path, text)| before[*path] != **text).count();
    assert!(changed >= 12, "only {changed} files have changed");
    // The same advice as doctor's.
    let doctor = said(Command::new(env!("CARGO_BIN_EXE_zhwkprox")).arg("doctor")).ends(0);
    assert!(!doctor.out.lines().any(|line| line.starts_with("advice  net.")), "{}", doctor.out);
    here.run("revert.sh", &[]).ends(0);
    same(&everything(), &before);
    here.run("revert.sh", &[]).ends(0).says("nothing to put back", &[]);
}

#[test]
fn applied_twice_and_for_another_speed_it_still_puts_back_what_was_there_at_first() {
    if !in_a_namespace("applied_twice_and_for_another_speed_it_still_puts_back_what_was_there_at_first") {
        return;
    }
    let here = Here::new();
    fs::write("/proc/sys/net/ipv4/tcp_keepalive_time", "5555").unwrap();
    fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,9148").unwrap();
    let before = everything();
    here.run("apply.sh", &["sockets", "--link", "100g"]).ends(0);
    let applied = everything();
    here.run("apply.sh", &["sockets", "--link", "100g"]).ends(0);
    same(&everything(), &applied);
    here.run("apply.sh", &["sockets", "busypoll", "--link", "1g"]).ends(0).says("set", &["tcp_notsent_lowat", "1048576 -> 262144"]);
    here.run("revert.sh", &[]).ends(0);
    same(&everything(), &before);
}

#[test]
fn a_write_that_the_kernel_refuses_is_told_and_the_rest_is_set_and_put_back() {
    if !in_a_namespace("a_write_that_the_kernel_refuses_is_told_and_the_rest_is_set_and_put_back") {
        return;
    }
    let here = Here::new();
    let before = everything();
    let settings = settings(
        "[net.ipv4.tcp_keepalive_time]\nkind sysctl\nscope namespace\nwant 500\n\n\
         [net.ipv4.tcp_congestion_control]\nkind sysctl\nscope namespace\nwant nosuch\n\n\
         [net.ipv4.tcp_no_such_thing]\nkind sysctl\nscope namespace\nwant 1\n\n\
         [gro]\nkind link\nattribute gro_max_size\nscope namespace\nwant 4000000000\n\n\
         [qdisc]\nkind qdisc\nscope namespace\nwant nosuch\n\n\
         [net.ipv4.tcp_mtu_probing]\nkind sysctl\nscope namespace\nwant 1\n",
    );
    let own = ["some", "--settings", settings.path().to_str().unwrap()];
    let apply = here.run("apply.sh", &own).ends(1);
    apply.says("set", &["tcp_keepalive_time", "-> 500"]).says("set", &["tcp_mtu_probing"]).says("not here", &["tcp_no_such_thing"]);
    apply.says("FAILED", &["tcp_congestion_control", "nosuch", "No such file or directory"]);
    apply.says("FAILED", &["v0 gro_max_size", "4000000000"]).says("FAILED", &["v0 qdisc", "nosuch"]).says("3 of the values", &[]);
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/tcp_keepalive_time").unwrap(), "500\n");
    here.run("check.sh", &own).ends(1).says("3 of the settings differ", &[]);
    here.run("revert.sh", &[]).ends(0);
    same(&everything(), &before);
}

/// The kernel of a development machine may lack fq; a plain queue shows the same, and fq itself where it is.
#[test]
fn a_device_gets_its_qdisc_and_loses_it_again() {
    if !in_a_namespace("a_device_gets_its_qdisc_and_loses_it_again") {
        return;
    }
    let here = Here::new();
    shown("ip", &["link", "set", "v0", "up"]);
    let has_fq = said(Command::new("tc").args(["qdisc", "add", "dev", "v1", "root", "fq"])).status == 0;
    if has_fq {
        shown("tc", &["qdisc", "del", "dev", "v1", "root"]);
    }
    for kind in ["pfifo", "fq"].iter().filter(|kind| **kind != "fq" || has_fq) {
        let settings = settings(&format!("[qdisc]\nkind qdisc\nscope namespace\nwant {kind}|mq {kind}\n"));
        let own = ["some", "--settings", settings.path().to_str().unwrap()];
        let before = qdisc("v0");
        here.run("check.sh", &own).ends(1).says("differs", &["noqueue"]);
        here.run("apply.sh", &own).ends(0).says("set", &["v0 qdisc", &format!("noqueue -> {kind}")]);
        assert!(qdisc("v0").starts_with(&format!("qdisc {kind} ")), "{}", qdisc("v0"));
        here.run("apply.sh", &own).ends(0).says("ok", &["v0 qdisc"]);
        here.run("check.sh", &own).ends(0);
        here.run("revert.sh", &[]).ends(0);
        assert_eq!(qdisc("v0"), before);
    }
    println!("fq itself: {has_fq}");
}

#[test]
fn a_qdisc_that_somebody_has_set_is_left_alone() {
    if !in_a_namespace("a_qdisc_that_somebody_has_set_is_left_alone") {
        return;
    }
    let here = Here::new();
    shown("tc", &["qdisc", "replace", "dev", "v0", "root", "handle", "7:", "tbf", "rate", "1gbit", "burst", "64k", "latency", "9ms"]);
    let before = qdisc("v0");
    let settings = settings("[qdisc]\nkind qdisc\nscope namespace\nwant pfifo\n");
    let own = ["some", "--settings", settings.path().to_str().unwrap()];
    here.run("apply.sh", &own).ends(1).says("FAILED", &["v0 qdisc", "somebody has set tbf here"]);
    here.run("revert.sh", &[]).ends(0);
    assert_eq!(qdisc("v0"), before);
}

#[test]
fn a_device_with_many_queues_gets_the_qdisc_in_each_and_loses_it_again() {
    if !in_a_namespace("a_device_with_many_queues_gets_the_qdisc_in_each_and_loses_it_again") {
        return;
    }
    let made = said(Command::new("ip").args(["link", "add", "i0", "numtxqueues", "3", "numrxqueues", "3", "type", "ifb"]));
    if made.status != 0 {
        eprintln!("SKIPPED: this kernel has no ifb: {}", made.err);
        return;
    }
    shown("ip", &["link", "set", "i0", "up"]);
    let here = Here::new();
    let before = qdisc("i0");
    assert!(before.starts_with("qdisc mq 0: root"), "{before}");
    let good = settings("[qdisc]\nkind qdisc\nscope namespace\nwant pfifo|mq pfifo\n");
    let bad = settings("[qdisc]\nkind qdisc\nscope namespace\nwant nosuch|mq nosuch\n");
    let with =
        |settings: &tempfile::TempDir, name| here.run(name, &["some", "--device", "i0", "--settings", settings.path().to_str().unwrap()]);
    // No half of it stays.
    with(&bad, "apply.sh").ends(1).says("FAILED", &["i0 qdisc", "nosuch"]);
    assert_eq!(qdisc("i0"), before);
    // v0 is in the way of nothing here.
    with(&good, "apply.sh").ends(0).says("set", &["i0 qdisc", "mq pfifo_fast -> mq pfifo"]);
    assert_eq!(qdisc("i0").matches("qdisc pfifo ").count(), 3, "{}", qdisc("i0"));
    with(&good, "check.sh").ends(0);
    here.run("revert.sh", &[]).ends(0);
    assert_eq!(qdisc("i0"), before);
}

#[test]
fn what_is_applied_in_another_namespace_is_put_back_there() {
    if !in_a_namespace("what_is_applied_in_another_namespace_is_put_back_there") {
        return;
    }
    let here = Here::new();
    let keepalive = "/proc/sys/net/ipv4/tcp_keepalive_time";
    let inner = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-euc", script, "sh"]).arg(crate::support::tuning()).arg(here.0.path());
        said(&mut command)
    };
    here.run("apply.sh", &["sockets"]).ends(0);
    // The inner one notes its own values, puts back its own, and says whose the others are.
    let both = inner(
        "echo 4444 >/proc/sys/net/ipv4/tcp_keepalive_time; \"$1/apply.sh\" sockets --state \"$2\" >/dev/null; \
         \"$1/revert.sh\" --state \"$2\" || true; cat /proc/sys/net/ipv4/tcp_keepalive_time",
    )
    .ends(0);
    both.says("FAILED", &["tcp_keepalive_time", "of another network namespace"]).says("4444", &[]);
    assert_eq!(fs::read_to_string(keepalive).unwrap(), "600\n");
    here.run("revert.sh", &[]).ends(0);
    assert_eq!(fs::read_to_string(keepalive).unwrap(), "7200\n");
}

#[test]
fn settings_are_of_the_namespace_or_of_the_machine_as_they_say() {
    if !in_a_namespace("settings_are_of_the_namespace_or_of_the_machine_as_they_say") {
        return;
    }
    for (section, setting) in data::all().into_iter().filter(|(_, setting)| setting["kind"] == "sysctl") {
        let name = &setting["name"];
        let of_namespace = setting.get("scope").is_some_and(|scope| scope == "namespace");
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        if name.starts_with("net.") {
            // What belongs to the machine is not shown in a namespace that is not the first.
            assert_eq!(path.exists(), of_namespace, "{section}/{name}");
        } else {
            assert!(!of_namespace, "{section}/{name}");
        }
    }
}
