//! Child processes, destinations and clients for the tests: our roles from the real binary, the stand-ins from Python.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ten times what the slowest of these takes.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// A child process whose lines are kept. Killed when dropped; a failing test shows what it said.
#[derive(Debug)]
pub(crate) struct Process {
    what: &'static str,
    child: Mutex<Child>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(what: &'static str, command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        keep_lines(child.stdout.take().unwrap(), &said);
        keep_lines(child.stderr.take().unwrap(), &said);
        Self { what, child: Mutex::new(child), said }
    }

    /// The author's server, dialling `entry`.
    pub(crate) fn their_server(entry: SocketAddr) -> Self {
        Self::start("their server", python().args(["server", &entry.to_string()]))
    }

    /// The author's inter-server, and its one port.
    pub(crate) fn their_inter_server() -> (Self, SocketAddr) {
        let process = Self::start("their inter-server", python().arg("inter-server"));
        let port = process.await_line("listening ").rsplit(' ').next().unwrap().parse().unwrap();
        (process, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// One of our roles, with the key that the author compiled in; the IV is his by default.
    pub(crate) fn ours(what: &'static str, arguments: &[&str]) -> Self {
        // Made with mode 0600. It has been read when the role says that it has started.
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "ascii:samplekeytomatch\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
        command.arg(what).args(["--protocol", "0x80", "--profile", "original", "--log-level", "debug", "--key-file"]).arg(key.path());
        let process = Self::start(what, command.args(arguments));
        process.await_line("started");
        process
    }

    /// Everything it has said so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many lines start so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.said().iter().filter(|line| line.starts_with(start)).count()
    }

    /// Waits until so many lines start so: its lines come a little later than what they tell of.
    pub(crate) fn await_count(&self, start: &str, wanted: usize) {
        await_some(&format!("{} to say {start:?} {wanted} times", self.what), || (self.count(start) >= wanted).then_some(()));
        assert_eq!(self.count(start), wanted, "{}: lines that start {start:?}", self.what);
    }

    /// The first line with these words.
    pub(crate) fn await_line(&self, words: &str) -> String {
        await_some(&format!("{} to say {words:?}", self.what), || {
            let ended = self.child().try_wait().unwrap();
            let line = self.said().into_iter().find(|line| line.contains(words));
            assert!(line.is_some() || ended.is_none(), "{} has ended ({ended:?}), and never said {words:?}", self.what);
            line
        })
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks our role for its state line until this number is as wanted.
    pub(crate) fn await_state(&self, name: &str, wanted: u64) {
        await_some(&format!("{name} of our {} to be {wanted}", self.what), || {
            let before = self.count("{");
            let asked = Command::new("kill").args(["-s", "USR1", &self.child().id().to_string()]).status().unwrap();
            assert!(asked.success(), "our {} is gone: {:#?}", self.what, self.said());
            let line = await_some("a state line", || self.said().into_iter().filter(|line| line.starts_with('{')).nth(before));
            let state: serde_json::Value = serde_json::from_str(&line).unwrap();
            (state[name].as_u64().unwrap() == wanted).then_some(())
        });
    }

    /// What the other side should have been spared.
    pub(crate) fn faults(&self) -> Result<(), String> {
        let faults: Vec<_> = self.said().into_iter().filter(|line| line.starts_with("fault") || line.contains("Traceback")).collect();
        if faults.is_empty() { Ok(()) } else { Err(format!("{}: {faults:#?}", self.what)) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child().kill();
        let _ = self.child().wait();
        if std::thread::panicking() {
            let said = self.said();
            eprintln!("--- {} said {} lines, the last: {:#?}", self.what, said.len(), &said[said.len().saturating_sub(40)..]);
        }
    }
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/original/standin.py"));
    command
}

fn keep_lines(from: impl Read + Send + 'static, said: &Arc<Mutex<Vec<String>>>) {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}

/// Asks again and again until there is an answer.
pub(crate) fn await_some<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < WATCHDOG, "waited {WATCHDOG:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A listening destination that plays the same part for each connection, told its number.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Destination {
    pub(crate) fn serve(part: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, part) = (Arc::clone(&connections), Arc::new(part));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (part, number) = (Arc::clone(&part), count.fetch_add(1, Ordering::SeqCst));
                std::thread::spawn(move || part(stream, number));
            }
        });
        Self { address, connections }
    }

    /// Answers every message with itself.
    pub(crate) fn echo() -> Self {
        Self::serve(|mut stream, _| {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        })
    }

    /// HTTP: gives `page` to a GET, and the length of what it was sent to a POST. Closes behind each answer.
    pub(crate) fn http(page: Vec<u8>) -> Self {
        Self::serve(move |stream, _| {
            let mut reader = BufReader::new(&stream);
            let (mut head, mut length) = (String::new(), 0);
            while reader.read_line(&mut head).is_ok_and(|count| count > 2) {
                let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |length| length.trim().parse().unwrap());
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let answer = if head.starts_with("POST") { checksum(&body).into_bytes() } else { page.clone() };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
            let _ = (&stream).write_all(&[head.as_bytes(), &answer].concat());
        })
    }

    /// Nobody listens there.
    pub(crate) fn refusing() -> SocketAddr {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Bytes of which no two frames are alike, so that one lost or out of order shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

/// Length and order of bytes in one line.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{} bytes, {sum:016x}", bytes.len())
}

/// A client that has had its SOCKS5 answer. `stray` bytes follow that of the author's inter-server.
///
/// # Errors
/// The code of the refusal.
pub(crate) fn open(entry: SocketAddr, to: SocketAddr, stray: usize) -> Result<TcpStream, u8> {
    let SocketAddr::V4(to) = to else { panic!("an IPv4 destination") };
    let mut stream = TcpStream::connect(entry).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    stream.write_all(&[&[5, 1, 0, 1], to.ip().octets().as_slice(), &to.port().to_be_bytes()].concat()).unwrap();
    let mut answer = vec![0; 10 + stray];
    stream.read_exact(&mut answer[..2]).unwrap();
    if answer[1] != 0 {
        return Err(answer[1]);
    }
    stream.read_exact(&mut answer[2..]).unwrap();
    Ok(stream)
}

/// Sends and waits for the same to come back.
pub(crate) fn round_trip(stream: &mut TcpStream, word: &[u8]) -> Result<(), String> {
    let mut back = vec![0; word.len()];
    stream.write_all(word).and_then(|()| stream.read_exact(&mut back)).map_err(|error| format!("no round trip: {error}"))?;
    if back == word { Ok(()) } else { Err(format!("{} came back as {}", checksum(word), checksum(&back))) }
}

/// All that comes until FIN.
pub(crate) fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map_err(|error| format!("after {} bytes: {error}", all.len()))?;
    Ok(all)
}
