//! A resolver of the test's own: it answers, per name, what it was told, late if so told, and counts the questions.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a name is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These addresses, by their family.
    Addresses(Vec<IpAddr>),
    /// The name does not exist (3), the server failed (2), …
    Code(u8),
    /// The addresses, after a pause.
    Late(Duration, Vec<IpAddr>),
}

/// The running resolver. Ends with the process.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    questions: Arc<AtomicUsize>,
}

impl Resolver {
    /// Names without dot at the end, lower case. An unknown name does not exist.
    pub(crate) fn start(names: &[(&str, Answer)]) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = socket.local_addr().unwrap();
        let questions = Arc::new(AtomicUsize::new(0));
        let names: HashMap<String, Answer> = names.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect();
        std::thread::spawn({
            let questions = Arc::clone(&questions);
            move || {
                let mut query = [0; 1500];
                while let Ok((n, from)) = socket.recv_from(&mut query) {
                    questions.fetch_add(1, Ordering::SeqCst);
                    let Some((name, kind, end)) = question(&query[..n]) else { continue };
                    let answer = names.get(&name).cloned().unwrap_or(Answer::Code(3));
                    let head = query[..end].to_vec();
                    let socket = Arc::clone(&socket);
                    let reply = move || {
                        let bytes = match &answer {
                            Answer::Addresses(all) | Answer::Late(_, all) => encode(&head, kind, 0, all),
                            Answer::Code(code) => encode(&head, kind, *code, &[]),
                        };
                        if let Answer::Late(pause, _) = answer {
                            std::thread::sleep(pause);
                        }
                        let _ = socket.send_to(&bytes, from);
                    };
                    std::thread::spawn(reply);
                }
            }
        });
        Self { address, questions }
    }

    /// Questions so far.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

/// The name asked for, the type, and where the question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let n = usize::from(*query.get(at)?);
        at += 1;
        if n == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + n)?).to_lowercase());
        at += n;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    (query.len() >= at + 4).then(|| (labels.join("."), kind, at + 4))
}

fn encode(head: &[u8], kind: u16, code: u8, addresses: &[IpAddr]) -> Vec<u8> {
    let wanted: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), 1) => Some(ip.octets().to_vec()),
            (IpAddr::V6(ip), 28) => Some(ip.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut bytes = head.to_vec();
    bytes[2] = 0x81;
    bytes[3] = 0x80 | code;
    bytes[4..6].copy_from_slice(&1u16.to_be_bytes());
    bytes[6..8].copy_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    bytes[8..12].fill(0);
    if wanted.is_empty() && matches!(code, 0 | 3) {
        // Without a SOA record an absence may not be remembered: root names, and the last number is how long.
        bytes[9] = 1;
        bytes.extend([0, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0]);
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0, 60]);
    }
    for ip in wanted {
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(1u16.to_be_bytes());
        bytes.extend(60u32.to_be_bytes());
        bytes.extend(u16::try_from(ip.len()).unwrap().to_be_bytes());
        bytes.extend(ip);
    }
    bytes
}
