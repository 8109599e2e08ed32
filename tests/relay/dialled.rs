//! The other direction: `server --listen` and `inter-server --dial`, each test on both versions whatever this run speaks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::net::free_address;
use crate::harness::programs::{Nginx, curl, have, skip, succeed, write_pattern};
use crate::harness::relay::listens;
use crate::harness::role::BINARY;
use crate::harness::socks::open;
use crate::harness::traffic::{both_ways, close_echo, download, open_echo, round_trip, upload, works};
use crate::harness::{Origin, Role, WATCHDOG, await_some};

const VERSIONS: [&str; 2] = ["0x80", "0x81"];

/// A directory with keys of one version.
struct Keys {
    version: &'static str,
    directory: tempfile::TempDir,
}

impl Keys {
    fn new(version: &'static str) -> Self {
        Self { version, directory: tempfile::tempdir().unwrap() }
    }

    /// The key of this name, made when it is first asked for.
    fn key(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        if !path.exists() {
            let made = Command::new(BINARY).args(["keygen", "--protocol", self.version, "--out"]).arg(&path).output().unwrap();
            assert!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
        }
        path
    }

    fn arguments(&self, role: &str, key: &Path, more: &[&str]) -> Vec<String> {
        let key = key.to_str().unwrap();
        let base = [role, "--protocol", self.version, "--key-file", key];
        base.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    }

    /// A server that listens, and where.
    fn exit(&self, key: &str, more: &[&str]) -> (Role, SocketAddr) {
        started(|at| {
            let at = at.to_string();
            let all =
                [&["--listen", &at, "--allow", "127.0.0.0/8"][..], if more.contains(&"--cores") { &[] } else { &["--cores", "0"] }, more];
            Role::start("server", &self.arguments("server", &self.key(key), &all.concat()))
        })
    }

    /// An inter-server that dials these, and where its clients go.
    fn entry(&self, key: &str, dial: &[SocketAddr], more: &[&str]) -> (Role, SocketAddr) {
        let dial: Vec<String> = dial.iter().flat_map(|at| ["--dial".to_owned(), at.to_string()]).collect();
        let dial: Vec<&str> = dial.iter().map(String::as_str).collect();
        started(|at| {
            let at = at.to_string();
            let all = [&["--socks", &at, "--cores", "0"][..], &dial, more];
            Role::start("inter-server", &self.arguments("inter-server", &self.key(key), &all.concat()))
        })
    }

    /// One of each with a tunnel between them; where clients go, and where the server listens.
    fn pair(&self) -> (Role, Role, SocketAddr, SocketAddr) {
        let (exit, at) = self.exit("key", &[]);
        let (entry, socks) = self.entry("key", &[at], &[]);
        await_tunnels(&entry, &exit);
        (entry, exit, socks, at)
    }
}

/// Starts a role that listens on a free port.
fn started(start: impl Fn(SocketAddr) -> Role) -> (Role, SocketAddr) {
    for _ in 0..5 {
        let at = free_address();
        let mut role = start(at);
        if await_some("a role to listen", WATCHDOG, || role.ended().map(|_| false).or_else(|| listens(at).then_some(true))) {
            return (role, at);
        }
        let log = role.log().join("\n");
        assert!(log.contains("in use"), "it ended: {log}");
    }
    panic!("no free ports in five tries");
}

fn await_tunnels(entry: &Role, exit: &Role) {
    entry.await_state("a tunnel", |state| state.tunnels >= 1 && state.tunnels_pending == 0);
    exit.await_state("a tunnel", |state| state.tunnels >= 1 && state.tunnels_pending == 0);
}

/// Starts a role that was killed again. What io_uring held of it is let go a little later than the process ends, its listener too.
fn again(role: &mut Role, listened_at: SocketAddr) {
    role.kill();
    await_some("its port to be free", WATCHDOG, || (!listens(listened_at)).then_some(()));
    role.restart();
}

/// What comes after a loss: a client may be refused until the next tunnel is there, and then all is well.
fn await_works(socks: SocketAddr) {
    let origin = Origin::new();
    await_some("service to be back", WATCHDOG, || download(socks, &origin, origin.address(), 1, 1_000).ok());
    works(socks);
}

#[test]
fn pages_and_uploads_pass_when_the_inter_server_dials() {
    if !have(&[("curl", "curl"), ("nginx", "nginx")]) {
        return;
    }
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (entry, exit, socks, _) = keys.pair();
        entry.await_log("the first tunnel", |line| line.contains("server 127.0.0.1:") && line.contains("attached"));
        exit.await_log("the first tunnel", |line| line.contains("inter-server attached from 127.0.0.1"));
        let nginx = Nginx::start();
        std::fs::write(nginx.file("page"), "a small page\n").unwrap();
        assert_eq!(succeed(&mut curl(socks, &[&nginx.url("localhost", "page")])).stdout, b"a small page\n");
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("upload");
        write_pattern(&source, 2, 1, 5_000_000);
        succeed(&mut curl(socks, &["--upload-file", source.to_str().unwrap(), &nginx.url("127.0.0.1", "put/file")]));
        assert!(std::fs::read(nginx.file("put/file")).unwrap() == std::fs::read(&source).unwrap());
        let origin = Origin::everywhere();
        for flow in 0..12 {
            both_ways(socks, &origin, origin.nth(flow), u32::try_from(flow).unwrap(), 300_000).unwrap();
        }
        upload(socks, &origin, origin.nth(1), 1, 3_000_000).unwrap();
        entry.await_quiet();
        exit.await_quiet();
    }
}

#[test]
fn either_role_may_be_killed_and_comes_back_when_the_inter_server_dials() {
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (mut entry, mut exit, socks, at) = keys.pair();
        exit.kill();
        // Nobody is there: a client is told at once, and the inter-server goes on trying.
        entry.await_state("no tunnel", |state| state.tunnels == 0);
        entry.await_log("its next try", |line| line.contains("server 127.0.0.1:") && line.contains("next try in"));
        assert!(open(socks, free_address()).is_err());
        again(&mut exit, at);
        await_tunnels(&entry, &exit);
        await_works(socks);
        entry.kill();
        exit.await_state("no tunnel", |state| state.tunnels == 0);
        exit.await_log("the loss", |line| line.contains("no inter-server attached any more"));
        again(&mut entry, socks);
        await_tunnels(&entry, &exit);
        await_works(socks);
    }
}

#[test]
fn a_wrong_key_is_said_at_both_ends_when_the_inter_server_dials() {
    for (version, at_entry, at_exit) in [
        ("0x80", "server refused our key", "inter-server does not have our key"),
        ("0x81", "wrong key or not a zhwkproX server", "closed after our login message: the inter-server does not know this key"),
    ] {
        let keys = Keys::new(version);
        let (exit, at) = keys.exit("one", &[]);
        let (entry, socks) = keys.entry("another", &[at], &[]);
        let line = entry.await_log(at_entry, |line| line.contains(at_entry));
        assert!(line.contains(&format!("server {at}: ")) && line.contains("next try in"), "{line}");
        let line = exit.await_log(at_exit, |line| line.contains(at_exit));
        assert!(line.contains("inter-server at 127.0.0.1:"), "{line}");
        assert_eq!((entry.state().tunnels, exit.state().tunnels), (0, 0));
        assert!(open(socks, free_address()).is_err());
    }
}

#[test]
fn two_versions_are_said_at_both_ends_when_the_inter_server_dials() {
    let (old, new) = (Keys::new("0x80"), Keys::new("0x81"));
    for (at_exit, at_entry) in [(&old, &new), (&new, &old)] {
        let (exit, at) = at_exit.exit("key", &[]);
        let (entry, _) = at_entry.entry("key", &[at], &[]);
        let words = format!("server speaks {}: expected {}, see --protocol", at_exit.version, at_entry.version);
        entry.await_log(&words, |line| line.contains(&words));
        assert_eq!((entry.state().tunnels, exit.state().tunnels), (0, 0));
    }
}

#[test]
fn an_inter_server_outside_of_the_allowed_networks_is_refused_and_both_ends_say_so() {
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (exit, at) = keys.exit("key", &["--allow-inter-servers", "10.0.0.0/8"]);
        let (entry, _) = keys.entry("key", &[at], &[]);
        exit.await_log("who is refused", |line| line.contains("127.0.0.1 is not in --allow-inter-servers"));
        entry.await_log("why it may be", |line| line.contains("our address is not in its --allow-inter-servers"));
        assert_eq!((entry.state().tunnels, exit.state().tunnels), (0, 0));
    }
}

#[test]
fn one_inter_server_dials_two_servers_and_the_loss_of_either_is_survived() {
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (mut first, at_first) = keys.exit("first", &[]);
        let second_key = if version == "0x80" { "first" } else { "second" };
        let (mut second, at_second) = keys.exit(second_key, &[]);
        let second_key = keys.key(second_key).display().to_string();
        let more: &[&str] = if version == "0x80" { &[] } else { &["--key-file", &second_key] };
        let (entry, socks) = keys.entry("first", &[at_first, at_second], more);
        await_tunnels(&entry, &first);
        await_tunnels(&entry, &second);
        works(socks);
        first.kill();
        await_works(socks);
        again(&mut first, at_first);
        await_tunnels(&entry, &first);
        second.kill();
        await_works(socks);
        again(&mut second, at_second);
        await_tunnels(&entry, &second);
        await_works(socks);
    }
}

#[test]
fn two_inter_servers_dial_one_server_and_both_are_served() {
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (exit, at) = keys.exit("key", &[]);
        let (mut first, socks) = keys.entry("key", &[at], &[]);
        let (second, other_socks) = keys.entry("key", &[at], &[]);
        await_tunnels(&first, &exit);
        await_tunnels(&second, &exit);
        works(socks);
        works(other_socks);
        let all = exit.await_state("tunnels of both", |state| state.tunnels >= 4 && state.tunnels_pending == 0).tunnels;
        let origin = Origin::new();
        let mut echo = open_echo(other_socks, origin.address()).unwrap();
        first.kill();
        // The loss of one is nothing to a flow of the other.
        exit.await_state("fewer tunnels", |state| state.tunnels < all);
        round_trip(&mut echo, b"unharmed").unwrap();
        close_echo(echo).unwrap();
        works(other_socks);
        again(&mut first, socks);
        await_tunnels(&first, &exit);
        await_works(socks);
    }
}

#[test]
fn both_roles_dial_and_listen_at_once() {
    for version in VERSIONS {
        let keys = Keys::new(version);
        let at_entry = free_address();
        let (mut exit, at_exit) = keys.exit("key", &["--dial", &at_entry.to_string()]);
        let (mut entry, socks) = keys.entry("key", &[at_exit], &["--listen", &at_entry.to_string()]);
        entry.await_log("a tunnel that it dialled", |line| line.contains(&format!("server {at_exit}: attached")));
        entry.await_log("one that it was dialled by", |line| line.contains("server attached from 127.0.0.1"));
        exit.await_state("both kinds", |state| state.tunnels >= 4 && state.tunnels_pending == 0);
        works(socks);
        again(&mut exit, at_exit);
        await_works(socks);
        again(&mut entry, socks);
        await_tunnels(&entry, &exit);
        await_works(socks);
    }
}

#[test]
fn a_stop_of_either_role_lets_a_flow_finish_when_the_inter_server_dials() {
    for version in VERSIONS {
        for stops_exit in [true, false] {
            let keys = Keys::new(version);
            let (mut entry, mut exit, socks, _) = keys.pair();
            let origin = Origin::new();
            let mut echo = open_echo(socks, origin.address()).unwrap();
            let stops = if stops_exit { &mut exit } else { &mut entry };
            stops.signal("TERM");
            stops.await_log("that it stops", |line| line.contains("stopping"));
            round_trip(&mut echo, b"still there").unwrap();
            close_echo(echo).unwrap();
            assert_eq!(stops.await_end(WATCHDOG).code(), Some(0));
        }
    }
}

#[test]
fn a_listening_server_spreads_tunnels_over_its_shards() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return skip("one core only", "run on a machine with two");
    }
    for version in VERSIONS {
        let keys = Keys::new(version);
        let (exit, at) = keys.exit("key", &["--cores", "0,1"]);
        let (mut entry, socks) = keys.entry("key", &[at], &[]);
        // The kernel gives both tunnels of one start to one shard as often as not; then one of them is handed over.
        let start = std::time::Instant::now();
        while exit.state().handed_over == 0 {
            assert!(start.elapsed() < WATCHDOG, "no tunnel was handed over: {:?}", exit.state());
            entry.kill();
            exit.await_state("no tunnel", |state| state.tunnels == 0);
            again(&mut entry, socks);
            await_tunnels(&entry, &exit);
            exit.await_state("all tunnels", |state| state.tunnels >= 2);
        }
        await_works(socks);
        let origin = Origin::everywhere();
        for flow in 0..10 {
            both_ways(socks, &origin, origin.nth(flow), u32::try_from(flow).unwrap(), 100_000).unwrap();
        }
    }
}
