//! A path between the two roles that can be narrow, long, or go silent: then it swallows what it is given, one way or both, and tells nobody.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::wire::Way;

/// How bytes pass, in either direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// Bytes per second.
    pub(crate) rate: u64,
    /// From one end to the other.
    pub(crate) delay: Duration,
}

impl Line {
    /// As good as none.
    pub(crate) const PLAIN: Self = Self { rate: 1 << 40, delay: Duration::ZERO };

    /// What is read at once: small where the line is narrow, so that it flows and does not gush.
    fn piece(self) -> usize {
        usize::try_from((self.rate / 50).clamp(1_000, 65_536)).unwrap()
    }

    /// Pieces under way: what is in flight, and a queue of a tenth of a second like that of a router.
    fn pieces(self) -> usize {
        let seconds = self.delay.as_secs_f64() + 0.1;
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few megabytes")]
        let bytes = (self.rate.min(1 << 32) as f64 * seconds) as usize;
        (bytes / self.piece()).clamp(2, 256)
    }
}

/// The path. Ends with the process.
#[derive(Debug)]
pub(crate) struct Path {
    /// Where servers dial.
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
}

#[derive(Debug)]
struct Connection {
    /// Towards the exit, which has dialled; towards the entry.
    ends: [TcpStream; 2],
    silent: [AtomicBool; 2],
}

impl Connection {
    fn is_silent(&self, way: Way) -> bool {
        self.silent[way as usize].load(Ordering::SeqCst)
    }

    fn ends_for(&self, way: Way) -> (&TcpStream, &TcpStream) {
        let [exit, entry] = &self.ends;
        if way == Way::ToEntry { (exit, entry) } else { (entry, exit) }
    }

    /// Reads until the end, at the line's rate, for the thread that brings it to the other end. What is silent is read on and dropped.
    fn take(&self, way: Way, line: Line, pieces: &SyncSender<(Instant, Vec<u8>)>) {
        let mut from = self.ends_for(way).0;
        let mut piece = vec![0; line.piece()];
        let mut free = Instant::now();
        while let Ok(count @ 1..) = from.read(&mut piece) {
            if self.is_silent(way) {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "a few kilobytes")]
            let takes = Duration::from_secs_f64(count as f64 / line.rate as f64);
            free = free.max(Instant::now()) + takes;
            if pieces.send((free + line.delay, piece[..count].to_vec())).is_err() {
                return;
            }
        }
    }

    fn bring(&self, way: Way, pieces: &Receiver<(Instant, Vec<u8>)>) {
        let (from, mut to) = self.ends_for(way);
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if !self.is_silent(way) && to.write_all(&piece).is_err() {
                break;
            }
        }
        if !self.is_silent(way) {
            // One end gone, the other follows.
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
        }
    }
}

impl Path {
    /// Takes connections and passes them on to `to`.
    pub(crate) fn start(to: SocketAddr, line: Line) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = Self { address: listener.local_addr().unwrap(), connections: Arc::default() };
        let connections = Arc::clone(&path.connections);
        std::thread::spawn(move || {
            for exit in listener.incoming().map_while(Result::ok) {
                let Ok(entry) = TcpStream::connect(to) else { continue };
                for end in [&exit, &entry] {
                    end.set_nodelay(true).unwrap();
                    if line.rate < Line::PLAIN.rate {
                        // Without this the kernel would queue megabytes in front of the line.
                        socket2::SockRef::from(end).set_recv_buffer_size(64 << 10).unwrap();
                    }
                }
                let connection = Arc::new(Connection { ends: [exit, entry], silent: Default::default() });
                for way in [Way::ToEntry, Way::ToExit] {
                    let (sender, receiver) = sync_channel(line.pieces());
                    let (taking, bringing) = (Arc::clone(&connection), Arc::clone(&connection));
                    std::thread::spawn(move || taking.take(way, line, &sender));
                    std::thread::spawn(move || bringing.bring(way, &receiver));
                }
                connections.lock().unwrap().push(connection);
            }
        });
        path
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// Those that there are now swallow, from now on, what goes these ways. Later ones are as if nothing had been.
    pub(crate) fn go_silent(&self, ways: &[Way]) {
        for connection in &*self.connections.lock().unwrap() {
            for way in ways {
                connection.silent[*way as usize].store(true, Ordering::SeqCst);
            }
        }
    }
}
