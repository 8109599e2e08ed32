//! Destinations as threads of the test: a listener with any behaviour, and the one that most tests use, which takes a line of
//! command and then sends, checks or echoes bytes that know whose they are.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::net::guard;
use super::pattern::{Checker, fill};

/// A listener whose every connection is handled on a thread of its own.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Destination {
    /// On a free port of 127.0.0.1. The handler gets the connection and its number, from 0.
    pub(crate) fn serve(handler: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::serve_on(Ipv4Addr::LOCALHOST.into(), handler)
    }

    /// On a free port of any address.
    pub(crate) fn serve_on(ip: IpAddr, handler: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let handler = Arc::new(handler);
        Self::accept_on(ip, move |stream, number| {
            let handler = Arc::clone(&handler);
            let started = std::thread::Builder::new().stack_size(256 << 10).spawn(move || handler(stream, number));
            assert!(started.is_ok(), "no more threads for destinations");
        })
    }

    /// The handler runs on the accepting thread: for thousands of connections that are only held.
    pub(crate) fn accept_on(ip: IpAddr, handler: impl Fn(TcpStream, usize) + Send + 'static) -> Self {
        let listener = listen(ip);
        let address = listener.local_addr().unwrap();
        let (accepted, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        std::thread::spawn({
            let (accepted, stop) = (Arc::clone(&accepted), Arc::clone(&stop));
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    guard(&stream);
                    let number = accepted.fetch_add(1, Ordering::SeqCst);
                    handler(stream, number);
                }
            }
        });
        Self { address, accepted, stop }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The same port on another address (for a listener on 0.0.0.0).
    pub(crate) fn at(&self, ip: [u8; 4]) -> SocketAddr {
        SocketAddr::from((ip, self.address.port()))
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let mut to = self.address;
        if to.ip().is_unspecified() {
            to.set_ip(if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        let _ = TcpStream::connect(to);
    }
}

/// A listener with the longest queue the kernel gives: std's has 128 places, and a burst of SYNs beyond them waits a second each.
fn listen(ip: IpAddr) -> TcpListener {
    let domain = if ip.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if ip.is_ipv6() {
        socket.set_only_v6(!ip.is_unspecified()).unwrap();
    }
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

/// A destination that does what its first line says:
/// `get FLOW LEN`: that many bytes of the flow, then FIN; `put FLOW LEN`: reads and checks as many, answers `ok` or what was wrong,
/// then FIN; `upto FLOW`: the same until FIN, answers `LEN ok`; `both FLOW LEN`: sends and checks LEN bytes at the same time, then
/// `ok` or what was wrong, then FIN; `echo`: everything back, then FIN.
#[derive(Debug)]
pub(crate) struct Origin {
    listener: Destination,
    pub(crate) seed: u64,
}

impl Origin {
    /// On 127.0.0.1.
    pub(crate) fn new() -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into())
    }

    /// On all of 127.0.0.0/8, or another address.
    pub(crate) fn on(ip: IpAddr) -> Self {
        let seed = rand::random();
        let listener = Destination::serve_on(ip, move |stream, _| {
            // What went wrong is the client's to see: it gets no `ok`, or a short body.
            let _ = obey(stream, seed);
        });
        Self { listener, seed }
    }

    /// On every IPv4 address.
    pub(crate) fn everywhere() -> Self {
        Self::on(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// The same port on another address.
    pub(crate) fn at(&self, ip: [u8; 4]) -> SocketAddr {
        self.listener.at(ip)
    }

    /// One of many loopback addresses, by number.
    pub(crate) fn nth(&self, number: usize) -> SocketAddr {
        let [_, b, c, d] = u32::try_from(number + 256 + 1).unwrap().to_be_bytes();
        self.at([127, b, c, d])
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.listener.accepted()
    }
}

fn obey(mut stream: TcpStream, seed: u64) -> io::Result<()> {
    let line = read_line(&mut stream)?;
    let words: Vec<&str> = line.split(' ').collect();
    let flow = words.get(1).map_or(0, |w| w.parse().unwrap());
    let len: u64 = words.get(2).map_or(0, |w| w.parse().unwrap());
    match words[0] {
        "get" => send_pattern(&mut stream, seed, flow, len)?,
        "put" => {
            let answer = check_pattern(&mut stream, seed, flow, Some(len))?.map_or_else(|wrong| wrong, |_| "ok".into());
            stream.write_all(answer.as_bytes())?;
        }
        "upto" => {
            let answer = check_pattern(&mut stream, seed, flow, None)?.map_or_else(|wrong| wrong, |len| format!("{len} ok"));
            stream.write_all(answer.as_bytes())?;
        }
        "both" => {
            let mut sender = stream.try_clone()?;
            let sending = std::thread::spawn(move || send_pattern(&mut sender, seed, flow, len));
            let answer = check_pattern(&mut stream, seed, flow, Some(len))?.map_or_else(|wrong| wrong, |_| "ok".into());
            sending.join().unwrap()?;
            stream.write_all(answer.as_bytes())?;
        }
        "echo" => {
            io::copy(&mut stream.try_clone()?, &mut stream)?;
        }
        other => panic!("unknown command {other:?}"),
    }
    stream.shutdown(Shutdown::Write)?;
    // Whatever still comes is read, or closing would turn into a reset.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

/// Reads one line, byte by byte so that nothing behind it is lost.
pub(crate) fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.push(byte[0]);
    }
}

/// Sends bytes of a flow from its first on.
pub(crate) fn send_pattern(stream: &mut impl Write, seed: u64, flow: u32, len: u64) -> io::Result<()> {
    let mut chunk = vec![0; 128 << 10];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(chunk.len() as u64);
        let part = &mut chunk[..usize::try_from(n).unwrap()];
        fill(seed, flow, at, part);
        stream.write_all(part)?;
        at += n;
    }
    Ok(())
}

/// Reads and checks bytes of a flow, to the given number or to the end. The inner error says what was wrong.
pub(crate) fn check_pattern(stream: &mut impl Read, seed: u64, flow: u32, len: Option<u64>) -> io::Result<Result<u64, String>> {
    let mut checker = Checker::new(seed, flow);
    let mut chunk = vec![0; 128 << 10];
    loop {
        let left = len.map_or(u64::MAX, |len| len - checker.offset());
        if left == 0 {
            return Ok(Ok(checker.offset()));
        }
        let want = usize::try_from(left.min(chunk.len() as u64)).unwrap();
        let n = stream.read(&mut chunk[..want])?;
        if n == 0 {
            return Ok(match len {
                Some(len) => Err(format!("flow {flow}: ended after {} of {len} bytes", checker.offset())),
                None => Ok(checker.offset()),
            });
        }
        if let Err(wrong) = checker.take(&chunk[..n]) {
            return Ok(Err(wrong));
        }
    }
}
