//! The systemd units: systemd finds nothing wrong with them and thinks them safe, the binary works under their filter of system calls, and they
//! fit the program. A booted systemd tries the rest in `tests/kernel61/units.sh`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use zhwkprox::limits;

use crate::filter;
use crate::process::{Process, WATCHDOG};
use crate::support::{is_here, said, tuning};

const ROLES: [&str; 2] = ["zhwkprox-server", "zhwkprox-inter-server"];
/// As README states it, in tenths of systemd's exposure level; below 20 systemd says "OK".
const EXPOSURE: u32 = 14;

fn unit(name: &str) -> String {
    fs::read_to_string(tuning().join("systemd").join(name)).unwrap()
}

/// The values of a key, in their order.
fn values(unit: &str, key: &str) -> Vec<String> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned).collect()
}

/// The units as they are installed, with this build's binary in place of the installed one.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["zhwkprox-server.service", "zhwkprox-inter-server.service", "zhwkprox-tuning.service"] {
        let text = unit(name).replace("/usr/local/bin/zhwkprox", env!("CARGO_BIN_EXE_zhwkprox"));
        let text = text.replace("/usr/local/share/zhwkprox/tuning", tuning().to_str().unwrap());
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_and_their_drop_in() {
    if !is_here("systemd-analyze", "systemd") {
        return;
    }
    let folder = installed();
    let drop_in = folder.path().join("zhwkprox-inter-server.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::copy(tuning().join("systemd/low-port.conf"), drop_in.join("low-port.conf")).unwrap();
    for name in ["zhwkprox-server", "zhwkprox-inter-server", "zhwkprox-tuning"] {
        let verify = said(Command::new("systemd-analyze").arg("verify").arg(folder.path().join(format!("{name}.service")))).ends(0);
        assert_eq!(verify.out, "", "{name}");
    }
    // What is wrong would be noticed.
    let wrong = folder.path().join("wrong.service");
    fs::write(&wrong, unit("zhwkprox-server.service").replace("RestartSec", "RestartSecs")).unwrap();
    assert!(said(Command::new("systemd-analyze").arg("verify").arg(wrong)).err.contains("RestartSecs"));
}

#[test]
fn systemd_thinks_the_roles_as_safe_as_the_readme_says() {
    if !is_here("systemd-analyze", "systemd") {
        return;
    }
    let folder = installed();
    for role in ROLES {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager"]).arg(folder.path().join(format!("{role}.service")));
        let out = said(&mut analyze).out;
        let level = out.split("Overall exposure level for ").nth(1).and_then(|rest| rest.split(": ").nth(1)).unwrap();
        let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
        assert!(level * 10.0 <= f64::from(EXPOSURE) + 0.01, "{role}: {level}\n{out}");
    }
    let readme = fs::read_to_string(tuning().join("README.md")).unwrap();
    assert!(readme.contains(&format!("exposure level of {}.{}", EXPOSURE / 10, EXPOSURE % 10)), "tuning/README.md states another level");
}

#[test]
fn both_roles_work_under_the_filter_of_their_unit() {
    if !is_here("systemd-analyze", "systemd") || !is_here("cc", "gcc") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key").to_str().unwrap().to_owned();
    let under_filter = |role: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
        command.arg(role).args(arguments).args(["--key-file", &key]);
        filter::allow_only(&mut command, &filter::allowed(&values(&unit(&format!("zhwkprox-{role}.service")), "SystemCallFilter")));
        command
    };
    assert!(Command::new(env!("CARGO_BIN_EXE_zhwkprox")).args(["keygen", "--out", &key]).status().unwrap().success());
    let mut entry = Process::start(&mut under_filter("inter-server", &["--listen", "127.0.0.1:0", "--socks", "127.0.0.1:0"]));
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    let mut exit = Process::start(&mut under_filter("server", &["--allow", "127.0.0.0/8", "--dial", &servers.to_string()]));
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    // By name, so that the resolver has its part in it.
    let destination = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(clients).unwrap();
    client.set_read_timeout(Some(WATCHDOG)).unwrap();
    client.write_all(b"\x05\x01\x00\x05\x01\x00\x03\x09localhost").unwrap();
    client.write_all(&destination.local_addr().unwrap().port().to_be_bytes()).unwrap();
    let (mut destination, _) = destination.accept().unwrap();
    let mut reply = [0; 12];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    client.write_all(b"through the filter").unwrap();
    let mut got = [0; 18];
    destination.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"through the filter");
    drop((client, destination));
    entry.signal("HUP");
    entry.said("key");
    for role in [&mut exit, &mut entry] {
        role.signal("TERM");
        let (status, _, err) = role.ended();
        assert_eq!(status.code(), Some(0), "{err}");
        assert!(!err.contains("ERROR") && !err.contains("WARN"), "{err}");
    }
}

#[test]
fn a_filter_without_io_uring_would_be_noticed() {
    if !is_here("systemd-analyze", "systemd") || !is_here("cc", "gcc") {
        return;
    }
    let mut lines = values(&unit("zhwkprox-server.service"), "SystemCallFilter");
    lines.push("~io_uring_setup".to_owned());
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
    filter::allow_only(doctor.arg("doctor"), &filter::allowed(&lines));
    let doctor = said(&mut doctor);
    assert!(doctor.status == 1 && doctor.out.contains("FAIL    io_uring"), "{}", doctor.out);
}

#[test]
fn the_units_fit_the_program() {
    for role in ROLES {
        let unit = unit(&format!("{role}.service"));
        let one = |key: &str| match &values(&unit, key)[..] {
            [value] => value.clone(),
            values => panic!("{role}: {key} stands {} times", values.len()),
        };
        let stop = one("TimeoutStopSec").parse().unwrap();
        assert!((limits::GRACE + limits::STUCK).as_secs() < stop, "systemd would kill {role} before it has ended in order");
        assert_eq!(one("CapabilityBoundingSet"), "", "{role}");
        assert_eq!(one("RestartPreventExitStatus"), "2", "{role}: what the program ends with at wrong configuration");
        assert_eq!(one("ExecReload"), "/bin/kill -HUP $MAINPID");
        // Its flags are the program's.
        let command = one("ExecStart");
        let arguments: Vec<_> = command.split(' ').skip(1).collect();
        let help = Command::new(env!("CARGO_BIN_EXE_zhwkprox")).args([arguments[0], "--help"]).output().unwrap();
        assert!(String::from_utf8(help.stdout).unwrap().contains(arguments[1]), "{command}");
    }
    assert_eq!(values(&unit("low-port.conf"), "CapabilityBoundingSet"), ["CAP_NET_BIND_SERVICE"]);
}

#[test]
fn the_configuration_that_the_readme_shows_is_accepted() {
    let readme = fs::read_to_string(tuning().join("README.md")).unwrap();
    let shown = readme.split("server.toml <<END\n").nth(1).and_then(|rest| rest.split("\nEND").next()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("relay.key").to_str().unwrap().to_owned();
    assert!(Command::new(env!("CARGO_BIN_EXE_zhwkprox")).args(["keygen", "--out", &key]).status().unwrap().success());
    let shown = shown.replace("/etc/zhwkprox/relay.key", &key);
    // And what the inter-server's unit has a folder for.
    let entry = format!("[inter-server]\nlisten = [\"127.0.0.1:1992\"]\nsocks = [\"unix:/run/zhwkprox/socks\"]\nkey-file = \"{key}\"\n");
    for (role, text) in [("server", shown.as_str()), ("inter-server", &entry)] {
        let file = folder.path().join(role);
        fs::write(&file, text).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
        let check = said(check.args([role, "--check-config", "--config"]).arg(file));
        assert_eq!((check.status, check.err.as_str()), (0, ""), "{role}");
    }
}
