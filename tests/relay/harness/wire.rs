//! A proxy between the two roles that can hurt a tunnel: cut it by FIN or RST in the middle of a frame, or pass its bytes on in
//! tiny pieces and late.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::net::reset_when_closed;

/// How the bytes are passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As they come.
    Plain,
    /// In pieces of 1 to as many bytes, a send each.
    Pieces(usize),
    /// Each piece this much later than it came (a long line, not a narrow one is imitated by the buffers alone).
    Late(Duration),
}

/// How a tunnel is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// FIN to both ends.
    Fin,
    /// RST to both ends.
    Rst,
}

/// The proxy. Ends with the process.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    pairs: Arc<Mutex<Vec<(TcpStream, TcpStream)>>>,
    open: Arc<AtomicBool>,
}

impl Wire {
    /// Takes connections and passes them on to `to`.
    pub(crate) fn start(to: SocketAddr, pace: Pace) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (pairs, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
        std::thread::spawn({
            let (pairs, open) = (Arc::clone(&pairs), Arc::clone(&open));
            move || {
                for near in listener.incoming().map_while(Result::ok) {
                    let Ok(far) = TcpStream::connect(to) else { continue };
                    if !open.load(Ordering::SeqCst) {
                        continue;
                    }
                    for stream in [&near, &far] {
                        stream.set_nodelay(true).unwrap();
                    }
                    for (from, to) in [(&near, &far), (&far, &near)] {
                        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                        std::thread::spawn(move || pump(from, to, pace));
                    }
                    pairs.lock().unwrap().push((near, far));
                }
            }
        });
        Self { address, pairs, open }
    }

    /// Ends every connection that is there now, in the middle of whatever it carries.
    pub(crate) fn cut(&self, how: Cut) -> usize {
        let pairs: Vec<_> = self.pairs.lock().unwrap().drain(..).collect();
        for (near, far) in &pairs {
            for stream in [near, far] {
                if matches!(how, Cut::Rst) {
                    reset_when_closed(stream);
                    // The pumping threads hold duplicates: they leave, and the last close is the reset.
                    let _ = stream.shutdown(Shutdown::Read);
                } else {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        }
        pairs.len()
    }

    /// Whether new connections get through.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, pace: Pace) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let sent = match pace {
            Pace::Plain => to.write_all(&chunk[..n]),
            Pace::Pieces(largest) => {
                let mut rest = &chunk[..n];
                loop {
                    let (piece, after) = rest.split_at(rand::random_range(1..=largest).min(rest.len()));
                    if let Err(e) = to.write_all(piece) {
                        break Err(e);
                    }
                    if after.is_empty() {
                        break Ok(());
                    }
                    rest = after;
                }
            }
            Pace::Late(pause) => {
                std::thread::sleep(pause);
                to.write_all(&chunk[..n])
            }
        };
        if sent.is_err() {
            break;
        }
    }
    // One end gone, the other follows.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
