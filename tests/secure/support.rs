//! Both roles on 0x81, with keys that the tests know.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use tempfile::TempDir;

use crate::harness::net::free_address;
use crate::harness::relay::listens;
use crate::harness::{Role, WATCHDOG, await_some};

/// A folder with key files, a different key for each number.
#[derive(Debug)]
pub(crate) struct Keys(TempDir);

impl Keys {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The folder. What is in it ends in `.key` only if the test says so.
    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Writes the key of this number; its name is the exit's.
    pub(crate) fn write(&self, name: &str, number: u8) -> PathBuf {
        self.write_line(name, &format!("zhwkprox-0x81:{}", base64::engine::general_purpose::STANDARD.encode([number; 32])))
    }

    /// Writes what may be no key.
    pub(crate) fn write_line(&self, name: &str, line: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        writeln!(file, "{line}").unwrap();
        path
    }
}

/// A running inter-server.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) role: Role,
    /// Where clients go.
    pub(crate) socks: SocketAddr,
    /// Where servers log in.
    pub(crate) tunnel: SocketAddr,
}

/// An inter-server on one core that knows these keys.
pub(crate) fn entry(keys: &[&Path], more: &[&str]) -> Entry {
    for _ in 0..5 {
        let (socks, tunnel) = (free_address(), free_address());
        let mut arguments = words(&["inter-server", "--listen", &tunnel.to_string(), "--socks", &socks.to_string(), "--cores", "0"]);
        for key in keys {
            arguments.extend(words(&["--key-file", key.to_str().unwrap()]));
        }
        arguments.extend(words(more));
        let mut role = Role::start("inter-server", &arguments);
        let up = await_some("the inter-server to listen", WATCHDOG, || {
            role.ended().map(|_| false).or_else(|| (listens(socks) && listens(tunnel)).then_some(true))
        });
        if up {
            return Entry { role, socks, tunnel };
        }
        let log = role.log().join("\n");
        assert!(log.to_lowercase().contains("in use"), "the inter-server ended: {log}");
    }
    panic!("no free ports in five tries");
}

/// A server on one core, with one tunnel, that dials there and may reach loopback.
pub(crate) fn exit(to: SocketAddr, key: &Path, more: &[&str]) -> Role {
    exit_on("0", to, key, more)
}

/// The same, with a tunnel for each of these cores.
pub(crate) fn exit_on(cores: &str, to: SocketAddr, key: &Path, more: &[&str]) -> Role {
    let mut arguments = words(&["server", "--dial", &to.to_string(), "--key-file", key.to_str().unwrap(), "--cores", cores]);
    arguments.extend(words(&["--max-tunnels", "1", "--allow", "127.0.0.0/8"]));
    arguments.extend(words(more));
    Role::start("server", &arguments)
}

fn words(of: &[&str]) -> Vec<String> {
    of.iter().map(|&word| word.to_owned()).collect()
}

/// Waits until that many tunnels are up.
pub(crate) fn await_tunnels(role: &Role, count: u64) {
    role.await_state(&format!("{count} tunnels"), |state| state.tunnels == count);
}
