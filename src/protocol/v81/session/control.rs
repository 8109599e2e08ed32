//! What a session owes the wire besides DATA, FIN and RESETs in order: at most one PING, PONG and GOAWAY, and for each stream at most one OPEN or
//! OPENED, WINDOW and RESET.
//!
//! What always holds: a stream that is forgotten leaves nothing here but its RESET; nothing is owed behind a GOAWAY that ends the tunnel.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::fault::TEXT_MAX;
use super::table::Streams;
use super::windows::{GRANTING, Growth, OPENED, OPENING};
use crate::protocol::socks5::Target;
use crate::protocol::v81::frame::{FRAME_HEADER, Header, address, goaway, kind};

/// Our PING.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Ping {
    #[default]
    None,
    Queued([u8; 8]),
    Unanswered([u8; 8]),
}

/// Our GOAWAY.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct GoAway {
    code: u8,
    text: Vec<u8>,
    sent: bool,
}

/// What is owed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Control {
    ping: Ping,
    pong: Option<[u8; 8]>,
    own_goaway: Option<GoAway>,
    /// The code of the peer's, if it has come.
    peer_goaway: Option<u8>,
    /// Whole frames, in the order of their ids.
    opens: VecDeque<(u32, Box<[u8]>)>,
    openeds: VecDeque<(u32, SocketAddr)>,
    windows: VecDeque<u32>,
    resets: VecDeque<(u32, u8)>,
}

impl Control {
    pub(super) fn ping(&mut self, data: [u8; 8]) -> bool {
        let free = self.ping == Ping::None && !self.is_ended();
        if free {
            self.ping = Ping::Queued(data);
        }
        free
    }

    pub(super) fn is_ping_unanswered(&self) -> bool {
        self.ping != Ping::None
    }

    /// The peer's PING. `false`: it has one unanswered.
    pub(super) const fn on_ping(&mut self, data: [u8; 8]) -> bool {
        let free = self.pong.is_none();
        self.pong = Some(data);
        free
    }

    /// The peer's PONG. `false`: it answers nothing.
    pub(super) fn on_pong(&mut self, data: [u8; 8]) -> bool {
        let answers = self.ping == Ping::Unanswered(data);
        if answers {
            self.ping = Ping::None;
        }
        answers
    }

    /// Ours. One that ends the tunnel may follow one that winds it down; any other second one is left out.
    pub(super) fn go_away(&mut self, code: u8, text: &str) {
        let ends = code >= goaway::ENDS_FROM;
        if self.own_goaway.as_ref().is_some_and(|own| !ends || own.code >= goaway::ENDS_FROM) {
            return;
        }
        let mut text = text.as_bytes();
        text = &text[..text.len().min(TEXT_MAX)];
        let own = GoAway { code, text: text.to_vec(), sent: false };
        if ends {
            *self = Self { peer_goaway: self.peer_goaway, ..Self::default() };
        }
        self.own_goaway = Some(own);
    }

    /// The peer's. `false`: a second one that winds down.
    pub(super) fn on_goaway(&mut self, code: u8) -> bool {
        if code >= goaway::ENDS_FROM {
            *self = Self { own_goaway: self.own_goaway.take().filter(|own| own.sent), ..Self::default() };
        } else if self.peer_goaway.is_some() {
            return false;
        } else {
            self.go_away(goaway::STOPPING, "");
        }
        self.peer_goaway = Some(code);
        true
    }

    pub(super) const fn is_peer_winding(&self) -> bool {
        self.peer_goaway.is_some()
    }

    pub(super) const fn is_winding(&self) -> bool {
        self.own_goaway.is_some() || self.peer_goaway.is_some()
    }

    /// Both have passed, and nothing more is owed.
    pub(super) fn is_wound_down(&self) -> bool {
        self.peer_goaway.is_some() && self.own_goaway.as_ref().is_some_and(|own| own.sent) && self.is_empty()
    }

    /// A GOAWAY that ends the tunnel was queued here or has come.
    pub(super) fn is_ended(&self) -> bool {
        let own = self.own_goaway.as_ref().map(|own| own.code);
        [own, self.peer_goaway].into_iter().flatten().any(|code| code >= goaway::ENDS_FROM)
    }

    pub(super) fn is_empty(&self) -> bool {
        let queues = [self.opens.len(), self.openeds.len(), self.windows.len(), self.resets.len()];
        queues == [0; 4]
            && self.pong.is_none()
            && !matches!(self.ping, Ping::Queued(_))
            && self.own_goaway.as_ref().is_none_or(|own| own.sent)
    }

    pub(super) fn open(&mut self, stream: u32, target: &Target) {
        let mut payload = Vec::with_capacity(20);
        address::encode_target(target, &mut payload);
        let mut frame = Vec::with_capacity(FRAME_HEADER + payload.len());
        push(&mut frame, kind::OPEN, stream, &[&payload]);
        self.opens.push_back((stream, frame.into_boxed_slice()));
    }

    pub(super) fn opened(&mut self, stream: u32, bound: SocketAddr) {
        if !self.is_ended() {
            self.openeds.push_back((stream, bound));
        }
    }

    pub(super) fn window(&mut self, stream: u32) {
        if !self.is_ended() {
            self.windows.push_back(stream);
        }
    }

    pub(super) fn reset(&mut self, stream: u32, code: u8) {
        if !self.is_ended() {
            self.resets.push_back((stream, code));
        }
    }

    /// RESETs that wait to be sent.
    pub(super) fn resets(&self) -> usize {
        self.resets.len()
    }

    /// The peer has reset a stream that is closed here: ours would only be skipped.
    pub(super) fn forget_reset(&mut self, stream: u32) {
        if !self.resets.is_empty() {
            self.resets.retain(|(id, _)| *id != stream);
        }
    }

    /// The stream is closed: nothing of it is owed but what keeps ids in their row.
    pub(super) fn forget(&mut self, stream: u32, is_opening: bool, is_granting: bool) {
        if is_opening {
            self.openeds.retain(|(id, _)| *id != stream);
        }
        if is_granting {
            self.windows.retain(|id| *id != stream);
        }
    }

    /// Appends whole frames. `true`: there is more. `known` is the highest id whose OPEN has gone.
    pub(super) fn poll(&mut self, streams: &mut Streams, known: &mut u32, growth: &Growth, out: &mut Vec<u8>, room: usize) -> bool {
        let end = out.len().saturating_add(room);
        let fits = |out: &Vec<u8>, payload: usize| out.len() + FRAME_HEADER + payload <= end;
        if let Ping::Queued(data) = self.ping {
            if !fits(out, data.len()) {
                return true;
            }
            push(out, kind::PING, 0, &[&data]);
            self.ping = Ping::Unanswered(data);
        }
        if let Some(data) = self.pong {
            if !fits(out, data.len()) {
                return true;
            }
            push(out, kind::PONG, 0, &[&data]);
            self.pong = None;
        }
        // Before GOAWAY: behind the answer to the peer's, an OPEN would be a fault.
        while let Some((stream, frame)) = self.opens.front() {
            if out.len() + frame.len() > end {
                return true;
            }
            out.extend_from_slice(frame);
            *known = *stream;
            if let Some(stream) = streams.get_mut(stream) {
                stream.clear(OPENING);
            }
            self.opens.pop_front();
        }
        if let Some(own) = self.own_goaway.as_mut().filter(|own| !own.sent) {
            if !fits(out, 1 + own.text.len()) {
                return true;
            }
            push(out, kind::GOAWAY, 0, &[&[own.code], &own.text]);
            own.sent = true;
            own.text = Vec::new();
        }
        self.poll_streams(streams, growth, out, end)
    }

    fn poll_streams(&mut self, streams: &mut Streams, growth: &Growth, out: &mut Vec<u8>, end: usize) -> bool {
        let mut payload = Vec::new();
        while let Some((id, bound)) = self.openeds.front() {
            payload.clear();
            address::encode_address(*bound, &mut payload);
            if out.len() + FRAME_HEADER + payload.len() > end {
                return true;
            }
            push(out, kind::OPENED, *id, &[&payload]);
            if let Some(stream) = streams.get_mut(id) {
                stream.clear(OPENING);
            }
            self.openeds.pop_front();
        }
        while let Some(id) = self.windows.front() {
            let Some(stream) = streams.get_mut(id) else {
                self.windows.pop_front();
                continue;
            };
            debug_assert!(stream.is(OPENED) && !stream.is(OPENING), "a WINDOW goes behind OPENED");
            if out.len() + FRAME_HEADER + 4 > end {
                return true;
            }
            stream.clear(GRANTING);
            if let Some(grant) = stream.take_grant(growth) {
                push(out, kind::WINDOW, *id, &[&grant.to_le_bytes()]);
            }
            self.windows.pop_front();
        }
        while let Some((stream, code)) = self.resets.front() {
            if out.len() + FRAME_HEADER + 1 > end {
                return true;
            }
            push(out, kind::RESET, *stream, &[&[*code]]);
            self.resets.pop_front();
        }
        false
    }
}

/// Appends one frame. Its payload is ours, and small.
fn push(out: &mut Vec<u8>, kind: u8, stream: u32, payload: &[&[u8]]) {
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    debug_assert!(bytes <= 1 + 1 + usize::from(u8::MAX) + 2);
    let header = Header { kind, flags: 0, length: u16::try_from(bytes).unwrap_or(u16::MAX), stream };
    out.extend_from_slice(&header.encode());
    for part in payload {
        out.extend_from_slice(part);
    }
}
