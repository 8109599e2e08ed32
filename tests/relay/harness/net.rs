//! Small things with sockets: free ports, resets, a destination that never answers.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::WATCHDOG;

/// Ports below the kernel's ephemeral range (32768 and up), so that no outgoing connection of another test can sit on one.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port that nobody listens on, on any loopback address, and that is not handed out twice by this process.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Each process starts elsewhere, so that two test runs on one machine rarely meet.
    let start = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(span)).unwrap();
    loop {
        let port = PORTS.start + (start + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A loopback address with a free port.
pub(crate) fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// Whether `[::1]` can be bound here.
pub(crate) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// Sets the watchdog on both directions of a stream.
pub(crate) fn guard(stream: &TcpStream) {
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream.set_write_timeout(Some(WATCHDOG)).unwrap();
    stream.set_nodelay(true).unwrap();
}

/// Connects with watchdogs.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, WATCHDOG)?;
    guard(&stream);
    Ok(stream)
}

/// Closes with RST, whatever is still unsent.
pub(crate) fn reset(stream: TcpStream) {
    reset_when_closed(&stream);
    drop(stream);
}

/// Makes the close, when the last duplicate goes, a RST.
pub(crate) fn reset_when_closed(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Bytes that the other end's kernel has not acknowledged.
pub(crate) fn unsent(stream: &TcpStream) -> u64 {
    let ends = [stream.local_addr().unwrap(), stream.peer_addr().unwrap()].map(|end| format!(":{:04X}", end.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table
        .lines()
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>())
        .find(|fields| fields.len() > 3 && fields[0].ends_with(&ends[0]) && fields[1].ends_with(&ends[1]));
    line.map_or(0, |fields| u64::from_str_radix(fields[3].split(':').next().unwrap(), 16).unwrap())
}

/// Makes the kernel take few bytes for us when we do not read. Not fewer than a segment of loopback: a window below that is given in
/// drips by timers.
pub(crate) fn small_receive_buffer(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(96 << 10).unwrap();
}

/// A listener whose queue is full: the kernel drops further SYNs, so that a connect to it hangs.
#[derive(Debug)]
pub(crate) struct Hole {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    fillers: Vec<Socket>,
}

impl Hole {
    /// Opens one on a loopback address.
    pub(crate) fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// At a given address.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let domain = Domain::for_address(address);
        let listener = Socket::new(domain, Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fillers = (0..8)
            .map(|_| {
                let filler = Socket::new(domain, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                // In progress, or in the queue: both is what is wanted.
                let _ = filler.connect(&address.into());
                filler
            })
            .collect();
        let hole = Self { address, listener: listener.into(), fillers };
        super::await_some("the hole to be one", WATCHDOG, || {
            TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err().then_some(())
        });
        hole
    }

    /// Accepts from now on, and gives the first connection whose first bytes are these.
    pub(crate) fn open(self, begins: &[u8]) -> TcpStream {
        drop(self.fillers);
        self.listener.set_nonblocking(true).unwrap();
        super::await_some("somebody to come to the opened hole", WATCHDOG, || {
            let (mut stream, _) = self.listener.accept().ok()?;
            stream.set_nonblocking(false).unwrap();
            guard(&stream);
            let mut first = vec![0; begins.len()];
            (stream.read_exact(&mut first).is_ok() && first == begins).then_some(stream)
        })
    }
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// FIN.
    Clean,
    /// RST (or any other error than a time-out).
    Reset,
    /// Neither, within the watchdog.
    Never,
}

/// Reads to the end: what came and how it ended.
pub(crate) fn read_to_the_end(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut chunk = vec![0; 65_536];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (all, End::Clean),
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return (all, End::Never),
            Err(_) => return (all, End::Reset),
        }
    }
}
