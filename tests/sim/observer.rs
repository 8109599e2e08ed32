//! Reads the tunnels of the simulated network from outside: 0x80's headers are in clear, of 0x81 the sizes of messages and records. It knows
//! which destinations ever shared a tunnel of 0x80, and stops the run when either role puts on the wire what the protocol does not allow. It
//! shares no code with the project.
//!
//! ```text
//!   server → inter-server    80 01 00 | n, n bytes | verdict | frames …        inter-server → server    80 | n, n bytes | frames …
//!                            81 | n, n bytes | 48, 48 bytes | records …                                 81 | method | 32 bytes | 48, 48 bytes | records …
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::world::{EndId, Nanos};

/// Largest payload a sender here may put into one frame: a slot's data part.
const PAYLOAD_MAX: u32 = 65_392;
/// What the length field of a record of 0x81 may say, and of the first one.
const RECORD: std::ops::RangeInclusive<u32> = 24..=65_404;
const FIRST_RECORD_MAX: u32 = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    /// Server to inter-server.
    Reply,
    /// Inter-server to server.
    Request,
}

#[derive(Debug)]
struct Stream {
    tunnel: EndId,
    direction: Direction,
    /// Steps of the handshake that have passed.
    step: u8,
    header: Vec<u8>,
    skip: usize,
}

#[derive(Default, Debug)]
struct Flow {
    request_ended: bool,
    reply_ended: bool,
}

/// See the module.
#[derive(Default, Debug)]
pub(crate) struct Observer {
    addresses: BTreeSet<SocketAddr>,
    /// Inter-servers dial, and servers listen.
    entry_dials: bool,
    streams: BTreeMap<EndId, Stream>,
    open: BTreeMap<EndId, BTreeMap<SocketAddr, Flow>>,
    shared: BTreeSet<SocketAddr>,
    /// The tunnels speak 0x81.
    secure: bool,
    /// With the author's rules: every send on a tunnel, instead of looking at frames by ours.
    sends: Option<Vec<Sent>>,
}

/// One send on a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) by: EndId,
    pub(crate) at: Nanos,
    pub(crate) bytes: Vec<u8>,
}

impl Observer {
    /// The roles keep to the author's rules.
    pub(crate) fn keep_sends(&mut self) {
        self.sends = Some(Vec::new());
    }

    /// The roles speak 0x81.
    pub(crate) const fn expect_records(&mut self) {
        self.secure = true;
    }

    /// Every send on a tunnel so far.
    pub(crate) fn sends(&self) -> Vec<Sent> {
        self.sends.clone().unwrap_or_default()
    }

    /// What `by` has given to its kernel with one operation.
    pub(crate) fn on_send(&mut self, by: EndId, at: Nanos, bytes: &[u8]) {
        if let Some(sends) = &mut self.sends
            && self.streams.contains_key(&by)
        {
            sends.push(Sent { by, at, bytes: bytes.to_vec() });
        }
    }

    /// Connections to `address` are tunnels.
    pub(crate) fn watch(&mut self, address: SocketAddr) {
        self.addresses.insert(address);
    }

    /// Whoever connects to those addresses is an inter-server from now on, not a server.
    pub(crate) const fn watch_for_entries(&mut self) {
        self.entry_dials = true;
    }

    /// Destinations whose flows were at some time not alone on their tunnel.
    pub(crate) const fn shared(&self) -> &BTreeSet<SocketAddr> {
        &self.shared
    }

    /// Flows open on the tunnel that `end` dialled.
    pub(crate) fn open_on(&self, end: EndId) -> usize {
        self.open.get(&end).map_or(0, BTreeMap::len)
    }

    pub(crate) fn on_connection(&mut self, dialled: EndId, accepted: EndId, to: SocketAddr) {
        if self.addresses.contains(&to) {
            let stream = |direction| Stream { tunnel: dialled, direction, step: 0, header: Vec::new(), skip: 0 };
            let (server, inter_server) = if self.entry_dials { (accepted, dialled) } else { (dialled, accepted) };
            self.streams.insert(server, stream(Direction::Reply));
            self.streams.insert(inter_server, stream(Direction::Request));
        }
    }

    /// Bytes that `sender` has put on the wire.
    pub(crate) fn on_bytes(&mut self, sender: EndId, mut bytes: &[u8]) {
        let Some(mut stream) = self.streams.remove(&sender) else { return };
        while !bytes.is_empty() {
            let skipped = stream.skip.min(bytes.len());
            if skipped > 0 {
                stream.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            stream.header.push(bytes[0]);
            bytes = &bytes[1..];
            self.on_header(&mut stream);
        }
        self.streams.insert(sender, stream);
    }

    fn on_header(&mut self, stream: &mut Stream) {
        if self.secure {
            return on_sealed_header(stream);
        }
        let header = &stream.header;
        match (stream.step, stream.direction) {
            (0, Direction::Reply) if header.len() < 3 => return,
            (0, Direction::Reply) => assert_eq!(header[..], [0x80, 1, 0], "the server's hello"),
            (0, Direction::Request) => assert_eq!(header[..], [0x80], "the inter-server's hello"),
            (1, _) => stream.skip = usize::from(header[0]),
            (2, Direction::Reply) => assert_ne!(header[0], 0, "both have the same key"),
            _ => return self.on_frame_header(stream),
        }
        stream.step += 1;
        if stream.step == 2 && stream.direction == Direction::Request {
            stream.step = 3;
        }
        stream.header.clear();
    }

    fn on_frame_header(&mut self, stream: &mut Stream) {
        let header = &stream.header;
        let address_bytes = match header[0] {
            4 => 4,
            6 => 16,
            other => panic!("tunnel {}: a frame of ip version {other} from {:?}", stream.tunnel, stream.direction),
        };
        if header.len() < 1 + address_bytes + 6 {
            return;
        }
        let (address, rest) = header[1..].split_at(address_bytes);
        let ip = match <[u8; 4]>::try_from(address) {
            Ok(four) => IpAddr::from(four),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).expect("16 bytes")),
        };
        let key = SocketAddr::new(ip, u16::from_be_bytes([rest[0], rest[1]]));
        let length = u32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]);
        assert!(length <= PAYLOAD_MAX, "tunnel {}: a frame of {length} bytes for {key}", stream.tunnel);
        stream.skip = usize::try_from(length).expect("checked");
        stream.header.clear();
        self.on_frame(stream.tunnel, stream.direction, key, length);
    }

    fn on_frame(&mut self, tunnel: EndId, direction: Direction, key: SocketAddr, length: u32) {
        if self.sends.is_some() {
            return;
        }
        let open = self.open.entry(tunnel).or_default();
        let (flow, what) = match (open.get_mut(&key), direction) {
            (None, Direction::Reply) => panic!("tunnel {tunnel}: the server sends {length} bytes for {key}, which no request opened"),
            (None, Direction::Request) => {
                open.insert(key, Flow::default());
                if open.len() > 1 {
                    self.shared.extend(open.keys());
                }
                return;
            }
            (Some(flow), Direction::Request) => (&mut flow.request_ended, "request"),
            (Some(flow), Direction::Reply) => (&mut flow.reply_ended, "reply"),
        };
        assert!(!*flow, "tunnel {tunnel}: a {what} of {length} bytes for {key} behind the end of that direction");
        *flow = length == 0;
        if open[&key].request_ended && open[&key].reply_ended {
            open.remove(&key);
        }
    }
}

/// 0x81: two messages, then records; the first of each direction is a small one.
fn on_sealed_header(stream: &mut Stream) {
    let header = &stream.header;
    let needed = [2, 1, 4, 4][usize::from(stream.step)];
    if header.len() < needed {
        return;
    }
    match (stream.step, stream.direction) {
        (0, Direction::Reply) => {
            assert_eq!(header[0], 0x81, "the server's hello");
            stream.skip = usize::from(header[1]);
        }
        (0, Direction::Request) => {
            assert_eq!(header[0], 0x81, "the inter-server's hello");
            stream.skip = 32;
        }
        (1, _) => {
            assert_eq!(header[0], 48, "the size of a login message");
            stream.skip = 48;
        }
        (step, direction) => {
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            assert!(RECORD.contains(&length), "tunnel {}: a record of {length} bytes from {direction:?}", stream.tunnel);
            assert!(step > 2 || length <= FIRST_RECORD_MAX, "tunnel {}: a first record of {length} bytes", stream.tunnel);
            stream.skip = usize::try_from(length).expect("checked");
        }
    }
    stream.step = (stream.step + 1).min(3);
    stream.header.clear();
}
