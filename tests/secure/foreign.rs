//! The other implementation (`tests/peer81`, Python) against the real roles, as either side, with every cipher.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use crate::harness::programs::{curl, have};
use crate::harness::socks;
use crate::harness::traffic::{all_well, in_parallel};
use crate::harness::{Destination, WATCHDOG, await_some};
use crate::python;
use crate::support::{Keys, await_tunnels, entry, exit};

const CIPHERS: [&str; 3] = ["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"];

/// Killed when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn curl_and_plain_flows_go_through_the_other_implementations_exit() {
    for cipher in CIPHERS {
        let Some(mut python) = python::peer() else { return };
        let keys = Keys::new();
        let key = keys.write("other", 7);
        let entry = entry(&[&keys.write("nobody", 6), &key], &[]);
        python.args(["exit", "--connect", &entry.tunnel.to_string(), "--cipher", cipher, "--key"]).arg(&key);
        let mut peer = Peer(python.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        await_tunnels(&entry.role, 1);
        if have(&[("curl", "curl")]) {
            // It echoes: what curl gets back is its own request, and no end.
            let page = "http://192.0.2.1:80/through-python";
            let output = curl(entry.socks, &["--http0.9", "--no-buffer", "--max-time", "3", page]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("GET /through-python HTTP/1.1"), "{cipher}: {text:?}");
        }
        let wrong = in_parallel(8, |number| {
            let to = std::net::SocketAddr::from(([192, 0, 2, 1], 7));
            let mut stream = socks::open(entry.socks, to).map_err(|error| error.to_string())?;
            let body: Vec<u8> = (0..300_000).map(|at: usize| u8::try_from((at * (number + 3)) % 251).unwrap()).collect();
            let mut sender = stream.try_clone().map_err(|error| error.to_string())?;
            let sent = body.clone();
            let sending = std::thread::spawn(move || {
                sender.write_all(&sent)?;
                sender.shutdown(std::net::Shutdown::Write)
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).map_err(|error| error.to_string())?;
            sending.join().unwrap().map_err(|error| error.to_string())?;
            if back == body { Ok(()) } else { Err(format!("{} of {} bytes came back", back.len(), body.len())) }
        });
        all_well(&wrong);
        entry.role.signal("TERM");
        let ended = await_some("the peer's end", WATCHDOG, || peer.0.try_wait().unwrap());
        let mut said = String::new();
        peer.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(ended.success() && !said.contains("fault"), "{cipher}: {said}");
    }
}

#[test]
fn the_other_implementations_inter_server_fetches_a_page_through_the_real_server() {
    for cipher in CIPHERS {
        let Some(mut python) = python::peer() else { return };
        let keys = Keys::new();
        let key = keys.write("key", 7);
        let body = "It works. ".repeat(40_000);
        let page = Destination::serve({
            let body = body.clone();
            move |mut stream, _| {
                let mut request = Vec::new();
                let mut piece = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    let count = stream.read(&mut piece).unwrap_or(0);
                    if count == 0 {
                        return;
                    }
                    request.extend_from_slice(&piece[..count]);
                }
                let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        python.args(["entry", "--listen", "127.0.0.1:0", "--cipher", cipher, "--get", &page.address.to_string(), "--key"]).arg(&key);
        let mut peer = Peer(python.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut said = BufReader::new(peer.0.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let _server = exit(address, &key, &[]);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(rest.contains(&format!("logged in {cipher}")) && rest.contains("status HTTP/1.0 200 OK"), "{cipher}: {:.300}", rest);
        assert!(rest.ends_with(&body), "{cipher}: {} bytes", rest.len());
        assert!(await_some("the peer's end", WATCHDOG, || peer.0.try_wait().unwrap()).success(), "{cipher}");
    }
}
