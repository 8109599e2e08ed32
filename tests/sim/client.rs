//! A client: connects to the entry, speaks SOCKS5 in one of the ways that real ones do, then follows its [`Plan`].

use std::net::{IpAddr, SocketAddr};

use crate::duplex::{Duplex, Plan};
use crate::traffic::{Ending, Record, Stage, Stream};
use crate::world::{EndId, MILLISECOND, Nanos, Owner, Read};

/// How the handshake is cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Each message after the answer to the one before.
    Polite,
    /// Greeting, request and the first bytes of payload in one write.
    Glued,
    /// One byte at a time.
    Drip,
}

/// What a client is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) start: Nanos,
    pub(crate) entry: SocketAddr,
    pub(crate) from: IpAddr,
    pub(crate) target: SocketAddr,
    /// It asks for the target's name, see [`name_of`].
    pub(crate) by_name: bool,
    pub(crate) manner: Manner,
    /// Gives up with so many bytes of the handshake sent.
    pub(crate) hang_up_at: Option<usize>,
    pub(crate) plan: Plan,
}

/// The name of a destination.
pub(crate) fn name_of(target: SocketAddr) -> String {
    format!("{}.test", target.ip().to_string().replace([':', '.'], "-"))
}

#[derive(Debug)]
enum Phase {
    Waiting,
    Connecting(EndId),
    Handshake { end: EndId, sent: usize, answer: Vec<u8> },
    Flow(Box<Duplex>),
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    number: u32,
    actor: usize,
    plan: ClientPlan,
    phase: Phase,
    record: Record,
    next_byte: Nanos,
}

const GREETING: [u8; 3] = [5, 1, 0];

impl Client {
    pub(crate) fn new(stage: &Stage, number: u32, actor: usize, plan: ClientPlan) -> Self {
        stage.world.wake_at(Owner::Actor(actor), plan.start);
        let record = Record::new(plan.target, plan.start);
        stage.book.borrow_mut().records.insert(number, record.clone());
        Self { number, actor, plan, phase: Phase::Waiting, record, next_byte: 0 }
    }

    /// Does all that can be done now.
    pub(crate) fn run(&mut self, stage: &Stage) {
        loop {
            let phase = std::mem::replace(&mut self.phase, Phase::Over);
            let (phase, again) = self.step(stage, phase);
            self.phase = phase;
            let record = if let Phase::Flow(duplex) = &self.phase { &duplex.record } else { &self.record };
            stage.book.borrow_mut().records.insert(self.number, record.clone());
            if !again {
                return;
            }
        }
    }

    fn step(&mut self, stage: &Stage, phase: Phase) -> (Phase, bool) {
        match phase {
            Phase::Waiting if stage.world.now() < self.plan.start => (Phase::Waiting, false),
            Phase::Waiting => {
                let end = stage.world.connect(self.plan.from, self.plan.entry, Owner::Actor(self.actor), false);
                (Phase::Connecting(end), false)
            }
            Phase::Connecting(end) => match stage.world.connect_result(end) {
                None => (Phase::Connecting(end), false),
                Some(Ok(())) => (Phase::Handshake { end, sent: 0, answer: Vec::new() }, true),
                Some(Err(_)) => (self.over(stage, None, false), false),
            },
            Phase::Handshake { end, sent, answer } => self.handshake(stage, end, sent, answer),
            Phase::Flow(mut duplex) => {
                if duplex.run(stage) {
                    self.record = duplex.record;
                    (Phase::Over, false)
                } else {
                    (Phase::Flow(duplex), false)
                }
            }
            Phase::Over => (Phase::Over, false),
        }
    }

    /// How much payload is among the first `sent` bytes of the script.
    fn payload_of(&self, stage: &Stage, sent: usize) -> usize {
        (sent + self.glued_bytes()).saturating_sub(self.script(stage).len())
    }

    fn over(&mut self, stage: &Stage, end: Option<EndId>, reset: bool) -> Phase {
        if let Some(end) = end {
            stage.world.close(end, reset);
        }
        self.record.finished = Some(stage.world.now());
        Phase::Over
    }

    /// All that the handshake sends, with the payload glued to it.
    fn script(&self, stage: &Stage) -> Vec<u8> {
        let mut script = GREETING.to_vec();
        script.extend_from_slice(&[5, 1, 0]);
        match self.plan.target.ip() {
            _ if self.plan.by_name => {
                let name = name_of(self.plan.target);
                script.extend_from_slice(&[3, u8::try_from(name.len()).expect("a short name")]);
                script.extend_from_slice(name.as_bytes());
            }
            IpAddr::V4(ip) => {
                script.push(1);
                script.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                script.push(4);
                script.extend_from_slice(&ip.octets());
            }
        }
        script.extend_from_slice(&self.plan.target.port().to_be_bytes());
        script.extend(self.stream(stage).bytes(0, self.glued_bytes()));
        script
    }

    fn glued_bytes(&self) -> usize {
        use crate::duplex::{Amount, Begin};
        match (self.plan.manner, self.plan.plan.begin, self.plan.plan.amount) {
            (Manner::Glued, Begin::AtOnce, Amount::Bytes(count)) if self.plan.plan.abort.is_none() => count.min(20_000),
            _ => 0,
        }
    }

    const fn stream(&self, stage: &Stage) -> Stream {
        Stream { seed: stage.seed, number: self.number }
    }

    fn handshake(&mut self, stage: &Stage, end: EndId, mut sent: usize, mut answer: Vec<u8>) -> (Phase, bool) {
        let script = self.script(stage);
        if self.plan.hang_up_at.is_some_and(|at| sent >= at) {
            self.record.aborted = true;
            self.record.sent = self.payload_of(stage, sent);
            return (self.over(stage, Some(end), self.number.is_multiple_of(2)), false);
        }
        let until = match self.plan.manner {
            Manner::Polite if answer.len() < 2 => GREETING.len(),
            Manner::Drip if stage.world.now() < self.next_byte => sent,
            Manner::Drip => script.len().min(sent + 1),
            Manner::Polite | Manner::Glued => script.len(),
        };
        let until = until.min(self.plan.hang_up_at.unwrap_or(until));
        if sent < until {
            match stage.world.write(end, &script[sent..until]) {
                Ok(count) => {
                    sent += count;
                    if self.plan.manner == Manner::Drip {
                        self.next_byte = stage.world.now() + 5 * MILLISECOND;
                        stage.world.wake_at(Owner::Actor(self.actor), self.next_byte);
                    }
                    return (Phase::Handshake { end, sent, answer }, true);
                }
                Err(libc::EAGAIN) => {}
                Err(_) => return self.failed(stage, end, sent),
            }
        }
        match stage.world.read(end, answer_bytes(&answer) - answer.len()) {
            Read::Nothing => return (Phase::Handshake { end, sent, answer }, false),
            Read::Bytes(bytes) => answer.extend(bytes),
            Read::Fin | Read::Error(_) => return self.failed(stage, end, sent),
        }
        if answer.len() < 12 || answer.len() < answer_bytes(&answer) {
            return (Phase::Handshake { end, sent, answer }, true);
        }
        assert_eq!(answer[..3], [5, 0, 5], "client {}: answer {answer:02x?}", self.number);
        self.record.reply = Some(answer[3]);
        if answer[3] != 0 {
            self.record.sent = self.payload_of(stage, sent);
            return (self.over(stage, Some(end), false), false);
        }
        // What of the glued payload has not found room yet is sent as the rest is.
        assert!(sent + self.glued_bytes() >= script.len(), "client {}: an answer before the question was whole", self.number);
        let record = self.record.clone();
        let mut duplex = Box::new(Duplex::new(end, self.actor, self.stream(stage), self.plan.plan, record, stage.world.now()));
        duplex.already_sent(self.payload_of(stage, sent));
        (Phase::Flow(duplex), true)
    }

    fn failed(&mut self, stage: &Stage, end: EndId, sent: usize) -> (Phase, bool) {
        self.record.sent = self.payload_of(stage, sent);
        self.record.ending = Some(Ending::Reset);
        (self.over(stage, Some(end), false), false)
    }
}

/// How long the answer to greeting and request is, as far as can be told.
fn answer_bytes(answer: &[u8]) -> usize {
    match answer.get(5) {
        Some(4) => 2 + 22,
        _ => 2 + 10,
    }
}
