//! Both roles with a key of their own on free ports, up and joined by a tunnel.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use tempfile::TempDir;

use super::net::free_address;
use super::protocol::{Protocol, one_tunnel, protocol};
use super::role::{BINARY, Role};
use super::{State, WATCHDOG, await_some};

/// What a test wants of the roles beyond the usual.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What the roles speak: that of this run, or what the test is about.
    pub(crate) protocol: Protocol,
    /// Destinations the exit allows.
    pub(crate) allow: Vec<String>,
    /// More arguments of the inter-server.
    pub(crate) entry: Vec<String>,
    /// More arguments of the server.
    pub(crate) exit: Vec<String>,
    /// Cores of the inter-server.
    pub(crate) entry_cores: String,
    /// Cores of the server.
    pub(crate) exit_cores: String,
}

impl Default for Options {
    /// One shard on each role, or with `ZHWKPROX_TWO_SHARDS` two: so that every test can be run again with them.
    fn default() -> Self {
        let cores = if std::env::var_os("ZHWKPROX_TWO_SHARDS").is_some() { "0,1" } else { "0" };
        Self {
            protocol: protocol(),
            allow: vec!["127.0.0.0/8".into(), "::1/128".into()],
            entry: Vec::new(),
            exit: Vec::new(),
            entry_cores: cores.into(),
            exit_cores: cores.into(),
        }
    }
}

impl Options {
    /// The usual ones on 0x81, whichever protocol this run is for.
    pub(crate) fn v81() -> Self {
        Self { protocol: Protocol::V81, ..Self::default() }
    }

    /// Adds arguments of the inter-server.
    pub(crate) fn entry(mut self, arguments: &[&str]) -> Self {
        self.entry.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Adds arguments of the server.
    pub(crate) fn exit(mut self, arguments: &[&str]) -> Self {
        self.exit.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Adds arguments of both.
    pub(crate) fn both(self, arguments: &[&str]) -> Self {
        self.entry(arguments).exit(arguments)
    }

    /// Asks this resolver where names are looked up: on 0x80 at the entry, on 0x81 at the exit.
    pub(crate) fn resolver(self, address: SocketAddr) -> Self {
        let arguments = ["--resolver", &address.to_string()];
        if self.protocol == Protocol::V81 { self.exit(&arguments) } else { self.entry(&arguments) }
    }

    /// Replaces what the exit allows.
    pub(crate) fn allow(mut self, networks: &[&str]) -> Self {
        self.allow = networks.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// One tunnel in all, however many shards the inter-server has.
    pub(crate) fn one_tunnel(mut self) -> Self {
        "0".clone_into(&mut self.exit_cores);
        self.exit(&["--max-tunnels", "1"])
    }

    /// Two shards on each role.
    pub(crate) fn two_shards(mut self) -> Self {
        "0,1".clone_into(&mut self.entry_cores);
        "0,1".clone_into(&mut self.exit_cores);
        self
    }
}

/// A relay that works.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) entry: Role,
    pub(crate) exit: Role,
    /// Where SOCKS5 clients go.
    pub(crate) socks: SocketAddr,
    /// Where servers log in.
    pub(crate) tunnel: SocketAddr,
    pub(crate) key: PathBuf,
    options: Options,
    directory: TempDir,
}

impl Relay {
    /// Starts both roles and waits for a tunnel.
    pub(crate) fn start(options: &Options) -> Self {
        let (directory, key, entry, socks, tunnel) = start_entry(options);
        let exit = Role::start("server", &exit_arguments(options, tunnel, &key));
        let relay = Self { entry, exit, socks, tunnel, key, options: options.clone(), directory };
        relay.await_tunnel();
        relay
    }

    /// With the usual options.
    pub(crate) fn usual() -> Self {
        Self::start(&Options::default())
    }

    /// A directory of the test's own.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until both ends have a tunnel.
    pub(crate) fn await_tunnel(&self) {
        self.exit.await_state("a tunnel", |s| s.tunnels >= 1);
        self.entry.await_state("a tunnel", |s| s.tunnels >= 1);
    }

    /// Waits until nothing goes on at either end, and neither line changes between two questions: what "as before" means.
    pub(crate) fn at_rest(&self) -> (State, State) {
        self.at_rest_within(WATCHDOG)
    }

    /// The same, with another watchdog.
    pub(crate) fn at_rest_within(&self, limit: Duration) -> (State, State) {
        await_some("both roles to be at rest", limit, || {
            let ask = || (self.entry.state().resting(), self.exit.state().resting());
            let first = ask();
            std::thread::sleep(Duration::from_millis(300));
            let calm = first.0.is_quiet() && first.1.is_quiet() && first.0.tunnels == first.1.tunnels && first == ask();
            calm.then_some(first)
        })
    }

    /// Waits until both lines are exactly as they were.
    pub(crate) fn await_as_before(&self, before: &(State, State), limit: Duration) {
        self.entry.await_state_for(&format!("its state as before: {:?}", before.0), limit, |s| s.resting() == before.0);
        self.exit.await_state_for(&format!("its state as before: {:?}", before.1), limit, |s| s.resting() == before.1);
    }

    /// Starts one more server with the given key.
    pub(crate) fn another_exit(&self, key: &Path) -> Role {
        Role::start("another server", &exit_arguments(&self.options, self.tunnel, key))
    }
}

/// Starts an inter-server alone, on ports that it could bind.
pub(crate) fn start_entry(options: &Options) -> (TempDir, PathBuf, Role, SocketAddr, SocketAddr) {
    raise_own_limit();
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    keygen_for(options.protocol, &key);
    let (entry, socks, tunnel) = start_entry_with(options, &key);
    (directory, key, entry, socks, tunnel)
}

/// The same with a key that there is already: the role, where clients go, where servers log in.
pub(crate) fn start_entry_with(options: &Options, key: &Path) -> (Role, SocketAddr, SocketAddr) {
    for _ in 0..5 {
        let (socks, tunnel) = (free_address(), free_address());
        let mut entry = Role::start("inter-server", &entry_arguments(options, tunnel, socks, key));
        let up = await_some("the inter-server to listen", WATCHDOG, || {
            entry.ended().map(|_| false).or_else(|| (listens(socks) && listens(tunnel)).then_some(true))
        });
        if up {
            return (entry, socks, tunnel);
        }
        let log = entry.log().join("\n");
        assert!(log.to_lowercase().contains("in use"), "the inter-server ended: {log}");
    }
    panic!("no free ports in five tries");
}

/// Whether somebody listens there, without connecting.
pub(crate) fn listens(address: SocketAddr) -> bool {
    let port = format!(":{:04X}", address.port());
    std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&port) && fields.nth(1) == Some("0A")
    })
}

fn entry_arguments(options: &Options, tunnel: SocketAddr, socks: SocketAddr, key: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = ["inter-server", "--protocol", options.protocol.name(), "--listen"].map(Into::into).into();
    arguments.extend([tunnel.to_string(), "--socks".into(), socks.to_string()]);
    arguments.extend(["--key-file".into(), key.display().to_string(), "--cores".into(), options.entry_cores.clone()]);
    arguments.extend(options.entry.iter().cloned());
    arguments
}

pub(crate) fn exit_arguments(options: &Options, tunnel: SocketAddr, key: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = ["server", "--protocol", options.protocol.name(), "--dial"].map(Into::into).into();
    arguments.push(tunnel.to_string());
    arguments.extend(["--key-file".into(), key.display().to_string(), "--cores".into(), options.exit_cores.clone()]);
    for network in &options.allow {
        arguments.extend(["--allow".into(), network.clone()]);
    }
    arguments.extend(options.exit.iter().cloned());
    if one_tunnel() {
        match arguments.iter().position(|argument| argument == "--max-tunnels") {
            Some(at) => "1".clone_into(&mut arguments[at + 1]),
            None => arguments.extend(["--max-tunnels", "1"].map(Into::into)),
        }
    }
    arguments
}

/// Makes a key with the binary's own `keygen`.
pub(crate) fn keygen(path: &Path) {
    keygen_for(protocol(), path);
}

fn keygen_for(protocol: Protocol, path: &Path) {
    let made = Command::new(BINARY).args(["keygen", "--protocol", protocol.name(), "--out"]).arg(path).output().unwrap();
    assert!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
}

/// Thousands of connections need descriptors on this side too.
fn raise_own_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        let hard = line.split_whitespace().nth(4).unwrap();
        let limit = format!("--nofile={hard}:{hard}");
        let _ = Command::new("prlimit").args([limit.as_str(), "--pid", &std::process::id().to_string()]).status();
    });
}
