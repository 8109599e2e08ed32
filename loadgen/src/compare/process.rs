//! A target under way: its processes on one core, its folder, the port where SOCKS5 is spoken. All of it goes when it is dropped.
//!
//! What always holds: a target that was started has carried a byte from end to end, so that what is measured is not its start.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine;
use crate::socks;

/// How long a target may take to carry its first byte.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_millis(20);

/// A target under way.
#[derive(Debug)]
pub struct Running {
    children: Vec<(String, Child)>,
    folder: PathBuf,
    core: usize,
}

impl Running {
    /// Nothing yet, to run on `core`, in a folder of its own that others cannot read.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(core: usize) -> io::Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("loadgen-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&folder)?;
        Ok(Self { children: Vec::new(), folder, core })
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a process of it, whose output goes into a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, name: &str, command: &mut Command) -> io::Result<()> {
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A process begins where the thread is that starts it.
        let own = machine::cores();
        machine::pin(&[self.core])?;
        let child = command.spawn();
        machine::pin(&own)?;
        self.children.push((name.to_owned(), child.map_err(|error| io::Error::other(format!("cannot start {name}: {error}")))?));
        Ok(())
    }

    /// The ids of its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.children.iter().filter_map(|(_, child)| i32::try_from(child.id()).ok()).collect()
    }

    /// Waits until it carries a byte from its SOCKS5 port to a listener of ours.
    ///
    /// # Errors
    /// When it does not, or one of its processes has ended; with the last lines it said.
    pub fn await_service(&mut self, socks: SocketAddr) -> io::Result<()> {
        let patience = Instant::now() + START_PATIENCE;
        loop {
            let Err(why) = carries_a_byte(socks) else { return Ok(()) };
            if let Some(ended) = self.ended() {
                return Err(io::Error::other(ended));
            }
            if Instant::now() > patience {
                let said: Vec<_> = self.children.iter().map(|(name, _)| format!("{name}: {}", self.said(name))).collect();
                return Err(io::Error::other(format!("no service after {START_PATIENCE:?}: {why}; {}", said.join("; "))));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Which of its processes has ended, how, and the last lines it said.
    pub fn ended(&mut self) -> Option<String> {
        let (name, status) = self.children.iter_mut().find_map(|(name, child)| Some((name.clone(), child.try_wait().ok()??)))?;
        Some(format!("{name} has ended with {status}: {}", self.said(&name)))
    }

    fn said(&self, name: &str) -> String {
        let log = fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The last first: clients before what they are clients of.
        for (_, child) in self.children.iter_mut().rev() {
            end(child);
        }
        let _may_be_gone = fs::remove_dir_all(&self.folder);
    }
}

fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let patience = Instant::now() + END_PATIENCE;
    if let (Some(pid), Ok(None)) = (pid, child.try_wait()) {
        let _may_have_ended = kill_process(pid, Signal::TERM);
    }
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > patience {
            let _may_have_ended = child.kill();
        }
        std::thread::sleep(LOOK);
    }
}

/// Where ports are looked for: below those that kernels give to connections. One of these, of which an earlier target has left thousands, could
/// be taken again between the look and the target's listening.
const PORTS: Range<u16> = 20_000..32_000;

/// A port that is free now, another one each time.
///
/// # Errors
/// Those of bind; all are in use.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = PORTS.end - PORTS.start;
    // Another loadgen begins elsewhere.
    let first = u16::try_from(std::process::id() % u32::from(ports)).unwrap_or(0);
    for _ in 0..ports {
        let port = PORTS.start + (NEXT.fetch_add(1, Ordering::Relaxed) % ports + first) % ports;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map(|_| port),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn carries_a_byte(proxy: SocketAddr) -> io::Result<()> {
    let step = Duration::from_secs(1);
    let here = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect_timeout(&proxy, step)?;
    client.set_read_timeout(Some(step))?;
    client.write_all(&socks::GREETING)?;
    let mut method = [0; 2];
    client.read_exact(&mut method)?;
    socks::method(method).map_err(io::Error::other)?;
    client.write_all(&socks::request(here.local_addr()?))?;
    let mut first = [0; 5];
    client.read_exact(&mut first)?;
    let mut rest = vec![0; socks::reply_rest(first).map_err(io::Error::other)?];
    client.read_exact(&mut rest)?;
    client.write_all(b"?")?;
    here.set_nonblocking(true)?;
    let patience = Instant::now() + step;
    let mut server = loop {
        match here.accept() {
            Ok((server, _)) => break server,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < patience => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    };
    server.set_nonblocking(false)?;
    server.set_read_timeout(Some(step))?;
    server.read_exact(&mut [0])
}
