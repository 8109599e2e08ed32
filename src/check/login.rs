//! The four logins (two protocols, two sides) behind one shape, so that one loop drives them and one place finds the words.
//!
//! What always holds: bytes that a login wants sent are sent, also when it has failed.

use std::time::Duration;

use super::wire::{Gone, Wire};
use super::{PATIENCE, wrong_version};
use crate::protocol::{v80, v81};

/// A login after a piece of input.
pub(super) enum Step<L, P> {
    More(L),
    Done(P),
}

/// A login under way.
pub(super) trait Login: Sized {
    /// What it gives.
    type Passed;
    /// The version both sides must speak.
    const VERSION: u8;
    /// What the other end is, for messages.
    const PEER: &'static str;

    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Step<Self, Self::Passed>, String>;
    fn awaits(&self) -> &'static str;
    /// What it means that the other end has closed after it had said something.
    fn closed(&self) -> String;
}

/// Runs a login to its end; with the time the other end took for its last answer.
pub(super) fn log_in<L: Login>(wire: &mut Wire, mut login: L) -> Result<(L::Passed, Duration), String> {
    loop {
        let round_trip = match wire.receive() {
            Ok(time) => time,
            Err(Gone::Closed) if wire.first().is_empty() => return Err(closed_without_a_word::<L>(wire)),
            Err(Gone::Closed) => return Err(login.closed()),
            Err(Gone::Silent) => {
                return Err(format!("timed out: no answer within {} s, expected {}", PATIENCE.as_secs(), login.awaits()));
            }
            Err(Gone::Failed(cause)) => return Err(format!("the connection failed: {cause}")),
        };
        if let Some(wrong) = wrong_version(wire.first(), L::VERSION) {
            return Err(wrong);
        }
        let mut out = Vec::new();
        let step = wire.take(|input| login.handle(input, &mut out));
        if !out.is_empty() {
            let sent = wire.send(&out);
            if step.is_ok() {
                sent?;
            }
        }
        match step? {
            Step::More(more) => login = more,
            Step::Done(passed) => return Ok((passed, round_trip)),
        }
    }
}

fn closed_without_a_word<L: Login>(wire: &Wire) -> String {
    if wire.has_sent() {
        format!(
            "closed after our hello, without a word: it does not speak protocol {:#04x} (see --protocol), or is no zhwkprox {}",
            L::VERSION,
            L::PEER
        )
    } else {
        wire.not_allowed(L::PEER)
    }
}

impl Login for v80::handshake::ExitHandshake {
    type Passed = v80::handshake::Authenticated;
    const VERSION: u8 = v80::handshake::VERSION;
    const PEER: &'static str = "inter-server";

    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Step<Self, Self::Passed>, String> {
        step_v80(self.handle(input, out))
    }

    fn awaits(&self) -> &'static str {
        self.awaits()
    }

    fn closed(&self) -> String {
        format!("closed before {}", self.awaits())
    }
}

impl Login for v80::handshake::EntryHandshake {
    type Passed = v80::handshake::Authenticated;
    const VERSION: u8 = v80::handshake::VERSION;
    const PEER: &'static str = "server";

    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Step<Self, Self::Passed>, String> {
        step_v80(self.handle(input, out))
    }

    fn awaits(&self) -> &'static str {
        self.awaits()
    }

    fn closed(&self) -> String {
        format!("closed before {}", self.awaits())
    }
}

impl Login for v81::handshake::ExitHandshake {
    type Passed = v81::handshake::Authenticated;
    const VERSION: u8 = v81::VERSION;
    const PEER: &'static str = "inter-server";

    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Step<Self, Self::Passed>, String> {
        step_v81(self.handle(input, out))
    }

    fn awaits(&self) -> &'static str {
        self.awaits()
    }

    fn closed(&self) -> String {
        self.closed().to_string()
    }
}

impl Login for v81::handshake::EntryHandshake {
    type Passed = v81::handshake::Authenticated;
    const VERSION: u8 = v81::VERSION;
    const PEER: &'static str = "server";

    fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Step<Self, Self::Passed>, String> {
        step_v81(self.handle(input, out))
    }

    fn awaits(&self) -> &'static str {
        self.awaits()
    }

    fn closed(&self) -> String {
        self.closed().to_string()
    }
}

fn step_v80<H>(
    progress: Result<v80::handshake::Progress<H>, v80::handshake::HandshakeError>,
) -> Result<Step<H, v80::handshake::Authenticated>, String> {
    match progress {
        Ok(v80::handshake::Progress::More(more)) => Ok(Step::More(more)),
        Ok(v80::handshake::Progress::Done(proof)) => Ok(Step::Done(proof)),
        Err(error) => Err(error.to_string()),
    }
}

fn step_v81<H>(
    progress: Result<v81::handshake::Progress<H>, v81::handshake::HandshakeError>,
) -> Result<Step<H, v81::handshake::Authenticated>, String> {
    match progress {
        Ok(v81::handshake::Progress::More(more)) => Ok(Step::More(more)),
        Ok(v81::handshake::Progress::Done(proof)) => Ok(Step::Done(proof)),
        Err(error) => Err(error.to_string()),
    }
}
