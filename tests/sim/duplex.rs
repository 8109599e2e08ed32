//! A connection as clients and destinations use it: one stream out by a plan, one stream in that is checked byte by byte, and the record of
//! both.
//!
//! What always holds between calls: the record says what has happened on the connection, and nothing happens on it after `finished`.

use crate::traffic::{Checker, Ending, NAME_BYTES, Pace, Pacer, Record, Stage, Stream};
use crate::world::{EndId, Nanos, Owner, Read};

/// When sending begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begin {
    AtOnce,
    /// When so many bytes have come.
    After(usize),
    /// When the other side has ended.
    AfterEnd,
}

/// How much is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Amount {
    Bytes(usize),
    /// As much as comes.
    Echo,
}

/// When the own end is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finish {
    /// Behind the last byte.
    WhenSent,
    /// Also not before the other side's end.
    AfterEnd,
}

/// Gives up in the middle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Abort {
    pub(crate) when: AbortWhen,
    pub(crate) reset: bool,
}

/// When.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AbortWhen {
    Sent(usize),
    Received(usize),
    /// So long after the connection was made.
    Time(Nanos),
}

/// What one side does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) begin: Begin,
    pub(crate) amount: Amount,
    pub(crate) finish: Finish,
    /// A pause between the last byte and the end.
    pub(crate) gap: Nanos,
    pub(crate) write: Pace,
    pub(crate) read: Pace,
    pub(crate) abort: Option<Abort>,
}

impl Plan {
    /// Sends so much at once and reads all that comes.
    pub(crate) const fn send(bytes: usize) -> Self {
        Self {
            begin: Begin::AtOnce,
            amount: Amount::Bytes(bytes),
            finish: Finish::WhenSent,
            gap: 0,
            write: Pace::FULL,
            read: Pace::FULL,
            abort: None,
        }
    }

    /// Sends back as much as comes.
    pub(crate) const fn echo() -> Self {
        Self { amount: Amount::Echo, ..Self::send(0) }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Duplex {
    end: EndId,
    actor: usize,
    stream: Stream,
    plan: Plan,
    checker: Checker,
    write: Pacer,
    read: Pacer,
    opened: Nanos,
    all_sent_at: Option<Nanos>,
    pub(crate) record: Record,
}

impl Duplex {
    pub(crate) fn new(end: EndId, actor: usize, stream: Stream, plan: Plan, record: Record, now: Nanos) -> Self {
        let reader = format!("reader {} ({})", stream.number, record.address);
        Self {
            end,
            actor,
            stream,
            plan,
            checker: Checker::new(stream.seed, reader),
            write: Pacer::new(plan.write),
            read: Pacer::new(plan.read),
            opened: now,
            all_sent_at: None,
            record,
        }
    }

    /// Bytes that were written in another way, as part of a handshake.
    pub(crate) const fn already_sent(&mut self, count: usize) {
        self.record.sent += count;
    }

    /// Bytes that came behind a handshake.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.checker.take(bytes);
        self.record.received = self.checker.received();
        self.record.from = self.checker.from;
    }

    /// Does all that can be done now. True when the connection is over.
    pub(crate) fn run(&mut self, stage: &Stage) -> bool {
        if self.record.finished.is_some() {
            return true;
        }
        loop {
            if self.abort_is_due(stage) {
                self.record.aborted = true;
                return self.close(stage, self.plan.abort.is_some_and(|abort| abort.reset));
            }
            let read = self.read(stage);
            let wrote = self.write(stage);
            if self.record.ending == Some(Ending::Reset) {
                return self.close(stage, false);
            }
            if self.record.ended && self.record.ending == Some(Ending::Fin) {
                return self.close(stage, false);
            }
            if !read && !wrote {
                return false;
            }
        }
    }

    fn abort_is_due(&self, stage: &Stage) -> bool {
        let Some(abort) = self.plan.abort else { return false };
        match abort.when {
            AbortWhen::Sent(count) => self.record.sent >= count,
            AbortWhen::Received(count) => self.record.received >= count,
            AbortWhen::Time(after) => {
                let time = self.opened + after;
                if stage.world.now() < time {
                    stage.world.wake_at(Owner::Actor(self.actor), time);
                }
                stage.world.now() >= time
            }
        }
    }

    fn close(&mut self, stage: &Stage, reset: bool) -> bool {
        stage.world.close(self.end, reset);
        self.record.finished = Some(stage.world.now());
        true
    }

    fn end(&mut self, stage: &Stage, ending: Ending) {
        self.record.ending = Some(ending);
        self.record.ending_at = Some(stage.world.now());
    }

    fn read(&mut self, stage: &Stage) -> bool {
        if self.record.ending.is_some() {
            return false;
        }
        let mut most = self.read.allowance(&stage.world, self.actor);
        if let Some(Abort { when: AbortWhen::Received(count), .. }) = self.plan.abort {
            most = most.min(count.saturating_sub(self.record.received));
        }
        if most == 0 {
            return false;
        }
        match stage.world.read(self.end, most) {
            Read::Nothing => false,
            Read::Bytes(bytes) => {
                self.take(&bytes);
                self.read.moved(&stage.world, self.actor);
                true
            }
            Read::Fin => {
                self.end(stage, Ending::Fin);
                true
            }
            Read::Error(_) => {
                self.end(stage, Ending::Reset);
                true
            }
        }
    }

    /// How many bytes are to have been sent by now.
    fn due(&self) -> usize {
        let begun = match self.plan.begin {
            Begin::AtOnce => true,
            Begin::After(count) => self.record.received >= count || self.record.ending.is_some(),
            Begin::AfterEnd => self.record.ending.is_some(),
        };
        match (begun, self.plan.amount) {
            (false, _) => 0,
            (true, Amount::Bytes(count)) => count,
            (true, Amount::Echo) => self.record.received,
        }
    }

    fn write(&mut self, stage: &Stage) -> bool {
        if self.record.ended || self.record.ending == Some(Ending::Reset) {
            return false;
        }
        let due = self.due();
        if self.record.sent < due {
            let mut most = self.write.allowance(&stage.world, self.actor).min(due - self.record.sent);
            if let Some(Abort { when: AbortWhen::Sent(count), .. }) = self.plan.abort {
                most = most.min(count.saturating_sub(self.record.sent));
            }
            if most == 0 {
                return false;
            }
            let bytes = self.stream.bytes(self.record.sent, self.record.sent + most.min(262_144));
            return match stage.world.write(self.end, &bytes) {
                Ok(count) => {
                    self.record.sent += count;
                    self.write.moved(&stage.world, self.actor);
                    true
                }
                Err(libc::EAGAIN) => false,
                Err(_) => {
                    self.end(stage, Ending::Reset);
                    true
                }
            };
        }
        self.maybe_end(stage)
    }

    fn maybe_end(&mut self, stage: &Stage) -> bool {
        let other_ended = self.record.ending.is_some();
        let all = match self.plan.amount {
            Amount::Bytes(count) => self.record.sent >= count,
            Amount::Echo => other_ended,
        };
        if !all || (self.plan.finish == Finish::AfterEnd && !other_ended) {
            return false;
        }
        let time = *self.all_sent_at.get_or_insert_with(|| stage.world.now()) + self.plan.gap;
        if stage.world.now() < time {
            stage.world.wake_at(Owner::Actor(self.actor), time);
            return false;
        }
        stage.world.shutdown(self.end);
        self.record.ended = true;
        true
    }
}

const _: () = assert!(NAME_BYTES == 8);
