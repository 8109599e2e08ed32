//! What flows lead to: a plain echo that knows nothing of loadgen, with delays if wanted; `loadgen destination`; a SOCKS5 proxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Starts an echo that calls `pause` with the number of each message before it answers.
pub(crate) fn echo(pause: impl Fn(u64) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let pause = Arc::new(pause);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let pause = Arc::clone(&pause);
            thread::spawn(move || {
                client.set_nodelay(true).unwrap();
                let mut buffer = [0; 65536];
                for number in 0.. {
                    let Ok(len @ 1..) = client.read(&mut buffer) else { return };
                    pause(number);
                    if client.write_all(&buffer[..len]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

/// `loadgen destination` as a process of its own, which ends with this.
pub(crate) struct Destination {
    pub(crate) at: SocketAddr,
    child: Child,
}

impl Destination {
    pub(crate) fn start() -> Self {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["destination", "--listen", &at.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let watchdog = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(at).is_err() {
            assert!(Instant::now() < watchdog, "loadgen destination does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Self { at, child }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A SOCKS5 proxy that answers requests with `code`, and with 0 forwards.
pub(crate) fn socks(code: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || serve_socks(&listener, code, |_| ()));
    at
}

/// Serves SOCKS5 without end, calling `passes` with the length of each piece that is passed on.
pub(crate) fn serve_socks(listener: &TcpListener, code: u8, passes: impl Fn(usize) + Clone + Send + 'static) {
    for client in listener.incoming().flatten() {
        let passes = passes.clone();
        thread::spawn(move || serve(client, code, passes));
    }
}

fn serve(mut client: TcpStream, code: u8, passes: impl Fn(usize) + Clone + Send + 'static) {
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, [5, 1, 0]);
    client.write_all(&[5, 0]).unwrap();
    let mut request = [0; 10];
    client.read_exact(&mut request).unwrap();
    assert_eq!(request[..4], [5, 1, 0, 1]);
    // A reply in pieces, and with a name in it: both are allowed.
    for piece in [&[5, code][..], &[0, 3, 4], b"name", &[0, 80]] {
        client.write_all(piece).unwrap();
    }
    if code != 0 {
        return;
    }
    let ip = Ipv4Addr::new(request[4], request[5], request[6], request[7]);
    let server = TcpStream::connect((ip, u16::from_be_bytes([request[8], request[9]]))).unwrap();
    for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
        let passes = passes.clone();
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                passes(len);
                if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }
}
