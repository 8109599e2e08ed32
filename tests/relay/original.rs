//! The `original` profile against a stand-in for the author's own programs (`original/standin.py`: Python and openssl, none of our
//! code, their faults included). The stand-in prints a line `fault: …` whenever it was sent what the originals cannot take.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::net::{End, connect, free_address, read_to_the_end};
use crate::harness::programs::have;
use crate::harness::socks::{Refusal, request};
use crate::harness::traffic::{download, open_echo, round_trip, upload};
use crate::harness::{Destination, Origin, PROMPTLY, Role, WATCHDOG, await_some, quick, socks, within};

/// One of the two stand-ins, and what it has said.
struct StandIn {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    fn start(role: &str, address: SocketAddr) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay/original/standin.py");
        let mut child = Command::new("python3").arg(script).args([role, &address.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn({
            let said = Arc::clone(&said);
            move || stdout.lines().map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line))
        });
        Self { child, said }
    }

    fn await_word(&self, word: &str) {
        await_some(word, WATCHDOG, || self.said.lock().unwrap().iter().any(|l| l == word).then_some(()));
    }

    fn faults(&self) -> Vec<String> {
        self.said.lock().unwrap().iter().filter(|l| l.starts_with("fault")).cloned().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the stand-in said: {:#?}", self.said.lock().map(|s| s.clone()));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Arguments of one of our roles in the profile, with the key that the author compiled in.
fn arguments(directory: &Path, role: &[&str]) -> Vec<String> {
    let key = directory.join("original-key");
    std::fs::write(&key, "ascii:samplekeytomatch\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let common = ["--protocol", "0x80", "--profile", "original", "--cipher", "aes-128-cfb", "--cores", "0", "--key-file"];
    role.iter().chain(&common).map(|a| (*a).to_owned()).chain([key.display().to_string()]).collect()
}

/// Our inter-server with one of their servers (a tunnel each).
struct TheirServers {
    entry: Role,
    socks: SocketAddr,
    servers: Vec<StandIn>,
    _directory: tempfile::TempDir,
}

fn their_servers(count: u64) -> Option<TheirServers> {
    if !have(&[("python3", "python3"), ("openssl", "openssl")]) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (socks, tunnel) = (free_address(), free_address());
    let role = ["inter-server", "--listen", &tunnel.to_string(), "--socks", &socks.to_string()];
    let entry = Role::start("inter-server", &arguments(directory.path(), &role));
    await_some("the inter-server to listen", WATCHDOG, || crate::harness::relay::listens(tunnel).then_some(()));
    let servers: Vec<_> = (0..count).map(|_| StandIn::start("server", tunnel)).collect();
    entry.await_state("their tunnels", |s| s.tunnels == count);
    Some(TheirServers { entry, socks, servers, _directory: directory })
}

impl TheirServers {
    fn no_faults(&self) {
        for server in &self.servers {
            assert_eq!(server.faults(), Vec::<String>::new(), "their server was sent what it cannot take");
        }
    }
}

/// The stand-in is a Python program with a clock: on a machine that leaves it waiting it sees messages glued that were sent apart.
/// So each exchange may be tried a few times; a side that does not keep the pace fails them all.
fn try_a_few_times(mut exchange: impl FnMut(usize) -> Result<(), String>) {
    let mut failed = Vec::new();
    for attempt in 0..5 {
        match exchange(attempt) {
            Ok(()) => return,
            Err(wrong) => failed.push(wrong),
        }
    }
    panic!("all attempts failed: {failed:#?}");
}

#[test]
fn our_inter_server_moves_small_bodies_through_the_authors_server() {
    let origin = Origin::everywhere();
    try_a_few_times(|_| {
        let Some(pair) = their_servers(1) else { return Ok(()) };
        download(pair.socks, &origin, origin.nth(1), 1, 20_000)?;
        upload(pair.socks, &origin, origin.nth(2), 2, 20_000)?;
        let mut echo = open_echo(pair.socks, origin.nth(3))?;
        for _ in 0..20 {
            round_trip(&mut echo, b"ping")?;
        }
        let faults: Vec<String> = pair.servers.iter().flat_map(StandIn::faults).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    });
}

#[test]
fn our_inter_server_opens_for_a_silent_client_and_passes_on_the_end_of_the_authors_server() {
    let Some(pair) = their_servers(1) else { return };
    let destination = Destination::serve(|mut stream, _| {
        stream.write_all(b"banner").unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
    let mut stream = socks::open(pair.socks, destination.address).unwrap();
    let mut banner = [0; 6];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"banner");
    stream.write_all(b"quit").unwrap();
    let (rest, end) = within("their end", PROMPTLY, || read_to_the_end(&mut stream));
    assert_eq!((rest.as_slice(), end), (b"quit".as_slice(), End::Clean));
    pair.no_faults();
}

#[test]
fn our_inter_server_keeps_a_slow_reply_of_the_authors_server_alive_beyond_its_twenty_seconds() {
    let Some(pair) = their_servers(1) else { return };
    let rounds = if quick() { 2 } else { 8 };
    let destination = Destination::serve(move |mut stream, _| {
        for _ in 0..rounds {
            if stream.write_all(b"tick").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_secs(5));
        }
        let _ = stream.write_all(b"done");
    });
    let mut stream = socks::open(pair.socks, destination.address).unwrap();
    let (all, end) = read_to_the_end(&mut stream);
    assert_eq!(String::from_utf8(all).unwrap(), "tick".repeat(rounds) + "done");
    assert_eq!(end, End::Clean);
    pair.no_faults();
}

#[test]
fn our_inter_server_uses_an_address_again_only_when_nothing_of_the_old_flow_can_be_left() {
    let Some(pair) = their_servers(1) else { return };
    let origin = Origin::everywhere();
    let ping = |to: SocketAddr| -> Result<(), String> {
        let mut echo = open_echo(pair.socks, to)?;
        round_trip(&mut echo, b"hello")
    };
    ping(origin.nth(1)).unwrap();
    // The same on the only tunnel: refused after the wait; another address: at once.
    let refused = socks::open(pair.socks, origin.nth(1));
    assert!(matches!(refused, Err(Refusal::Reply(1))), "{refused:?}");
    within("another address", PROMPTLY, || ping(origin.nth(2))).unwrap();
    if !quick() {
        std::thread::sleep(Duration::from_secs(25));
        ping(origin.nth(1)).unwrap();
    }
    pair.no_faults();
}

#[test]
fn our_inter_server_gives_up_a_flow_that_the_authors_server_never_answers() {
    let Some(pair) = their_servers(1) else { return };
    let mut stream = socks::open(pair.socks, free_address()).unwrap();
    stream.write_all(b"is anybody there?").unwrap();
    stream.set_read_timeout(Some(2 * WATCHDOG)).unwrap();
    let (got, end) = read_to_the_end(&mut stream);
    assert!(got.is_empty() && end != End::Never, "{end:?}");
    // The others go on.
    let origin = Origin::new();
    let mut echo = open_echo(pair.socks, origin.address()).unwrap();
    round_trip(&mut echo, b"hello").unwrap();
    pair.no_faults();
    assert!(pair.entry.log().len() < 50);
}

/// SOCKS5 as the author's inter-server speaks it: twelve stray bytes behind the reply.
fn open_at_theirs(entry: SocketAddr, to: SocketAddr) -> Result<TcpStream, String> {
    let mut stream = connect(entry).map_err(|e| e.to_string())?;
    let io = |e: std::io::Error| e.to_string();
    stream.write_all(&socks::GREETING).map_err(io)?;
    stream.read_exact(&mut [0; 2]).map_err(io)?;
    stream.write_all(&request(1, &to.into())).map_err(io)?;
    stream.read_exact(&mut [0; 22]).map_err(io)?;
    Ok(stream)
}

#[test]
fn our_server_serves_the_authors_inter_server() {
    if !have(&[("python3", "python3"), ("openssl", "openssl")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let theirs = StandIn::start("inter-server", address);
    theirs.await_word("listening");
    let role = ["server", "--dial", &address.to_string(), "--allow", "127.0.0.0/8", "--max-tunnels", "1"];
    let exit = Role::start("server", &arguments(directory.path(), &role));
    theirs.await_word("tunnel");
    let origin = Origin::everywhere();
    // Twice to one address: the server frees it with its own end.
    try_a_few_times(|attempt| {
        for flow in [1, 2] {
            let mut stream = open_at_theirs(address, origin.nth(attempt))?;
            crate::harness::traffic::ask_for(&mut stream, flow, 20_000)?;
            crate::harness::traffic::receive(&mut stream, origin.seed, flow, 20_000)?;
        }
        Ok(())
    });
    // A client that leaves is never reported: idle both ways for 20 s ends it.
    let idle = open_at_theirs(address, origin.nth(50)).unwrap();
    let mut idle = idle;
    idle.write_all(b"echo\n").unwrap();
    round_trip(&mut idle, b"hello").unwrap();
    drop(idle);
    exit.await_state_for("the idle flow given up", 2 * WATCHDOG, |s| s.flows == 0);
    assert!(theirs.faults().is_empty(), "{:?}", theirs.faults());
}
