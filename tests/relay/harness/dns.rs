//! A resolver of the test's own: it answers, per name, what it was told, late if so told, or in part, and counts the questions.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
    /// The addresses, good for so many seconds.
    Fresh(u32, Vec<IpAddr>),
    /// These addresses; questions for the other family are not answered at all.
    Swallowed(Vec<IpAddr>),
    /// Nothing, ever.
    Silence,
    /// Another name, with its addresses in the same answer.
    Alias(&'static str, Vec<IpAddr>),
}

/// How long an answer may be kept unless said otherwise.
const FRESH: u32 = 60;

/// The running resolver. Ends with the process.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    questions: Arc<AtomicUsize>,
    names: Arc<Mutex<HashMap<String, Answer>>>,
}

impl Resolver {
    /// Names without dot at the end, lower case. An unknown name does not exist.
    pub(crate) fn start(names: &[(&str, Answer)]) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = socket.local_addr().unwrap();
        let questions = Arc::new(AtomicUsize::new(0));
        let names = names.iter().map(|(name, answer)| ((*name).to_owned(), answer.clone())).collect();
        let names: Arc<Mutex<HashMap<String, Answer>>> = Arc::new(Mutex::new(names));
        std::thread::spawn({
            let (questions, names) = (Arc::clone(&questions), Arc::clone(&names));
            move || {
                let mut query = [0; 1500];
                while let Ok((n, from)) = socket.recv_from(&mut query) {
                    questions.fetch_add(1, Ordering::SeqCst);
                    let Some((name, kind, end)) = question(&query[..n]) else { continue };
                    let answer = names.lock().unwrap().get(&name).cloned().unwrap_or(Answer::Code(3));
                    let head = query[..end].to_vec();
                    let bytes = match &answer {
                        Answer::Addresses(all) | Answer::Late(_, all) => encode(&head, kind, 0, FRESH, all),
                        Answer::Fresh(seconds, all) => encode(&head, kind, 0, *seconds, all),
                        Answer::Swallowed(all) if has_family(all, kind) => encode(&head, kind, 0, FRESH, all),
                        Answer::Swallowed(_) | Answer::Silence => continue,
                        Answer::Alias(other, all) => encode_alias(&head, kind, other, all),
                        Answer::Code(code) => encode(&head, kind, *code, FRESH, &[]),
                    };
                    if let Answer::Late(pause, _) = answer {
                        let socket = Arc::clone(&socket);
                        std::thread::spawn(move || {
                            std::thread::sleep(pause);
                            let _ = socket.send_to(&bytes, from);
                        });
                    } else {
                        let _ = socket.send_to(&bytes, from);
                    }
                }
            }
        });
        Self { address, questions, names }
    }

    /// Answers otherwise from now on.
    pub(crate) fn set(&self, name: &str, answer: Answer) {
        self.names.lock().unwrap().insert(name.to_owned(), answer);
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

/// The data of the records that a question of this type gets.
fn of_family(addresses: &[IpAddr], kind: u16) -> Vec<Vec<u8>> {
    let wanted = addresses.iter().filter_map(|ip| match (ip, kind) {
        (IpAddr::V4(ip), 1) => Some(ip.octets().to_vec()),
        (IpAddr::V6(ip), 28) => Some(ip.octets().to_vec()),
        _ => None,
    });
    wanted.collect()
}

fn has_family(addresses: &[IpAddr], kind: u16) -> bool {
    !of_family(addresses, kind).is_empty()
}

fn encode(head: &[u8], kind: u16, code: u8, seconds: u32, addresses: &[IpAddr]) -> Vec<u8> {
    let wanted = of_family(addresses, kind);
    let mut bytes = begin(head, code, wanted.len());
    if wanted.is_empty() && matches!(code, 0 | 3) {
        // Without a SOA record an absence may not be remembered: root names, and the last number is how long.
        bytes[9] = 1;
        bytes.extend([0, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0]);
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0, 60]);
    }
    for data in wanted {
        push_record(&mut bytes, &[0xc0, 12], kind, seconds, &data);
    }
    bytes
}

fn encode_alias(head: &[u8], kind: u16, other: &str, addresses: &[IpAddr]) -> Vec<u8> {
    let wanted = of_family(addresses, kind);
    let mut name: Vec<u8> = other.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat()).collect();
    name.push(0);
    let mut bytes = begin(head, 0, 1 + wanted.len());
    push_record(&mut bytes, &[0xc0, 12], 5, FRESH, &name);
    for data in wanted {
        push_record(&mut bytes, &name, kind, FRESH, &data);
    }
    bytes
}

/// The question again, as an answer with so many records.
fn begin(head: &[u8], code: u8, records: usize) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes[2] = 0x81;
    bytes[3] = 0x80 | code;
    bytes[4..6].copy_from_slice(&1u16.to_be_bytes());
    bytes[6..8].copy_from_slice(&u16::try_from(records).unwrap().to_be_bytes());
    bytes[8..12].fill(0);
    bytes
}

fn push_record(bytes: &mut Vec<u8>, name: &[u8], kind: u16, seconds: u32, data: &[u8]) {
    bytes.extend(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(seconds.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
}
