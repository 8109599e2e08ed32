//! What can happen in a state: the roles, the clients, the destinations and the wire around the two real sessions. A move that breaks an
//! invariant is an error that says which.

use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::frame::Destination;
use zhwkprox::protocol::v80::session::{Incoming, Session};

use super::explore::{Label, Rules};
use super::state::{Connection, Fate, Flow, FlowId, Message, Numbers, Phase, Purpose, Stage, State, Tunnel, letter};
use crate::support::{V4 as K, authenticated};

/// The rules, or one of the near ones that fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Variant {
    Ours,
    /// The first request carries the client's data.
    OpenWithData,
    /// … and an end is sent only if data was.
    OpenWithDataGuarded,
    /// A flow whose client is gone is forgotten in silence.
    AbortSendsNoEnd,
    /// A flow whose destination has ended waits for its client for ever.
    NoEntryLinger,
    ExitFreesAtOwnEnd,
    ExitFreesOnTimeout,
    EntryFreesOnTimeout,
    /// The key stays taken until the destination has everything.
    ExitDrainsFirst,
    /// A second request of length 0 aborts.
    AbortIsSecondEnd,
}

/// How clients and destinations behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Setting {
    /// Destinations close only after the client's FIN.
    pub(super) polite: bool,
    /// Clients neither close nor go away.
    pub(super) patient: bool,
    /// Destinations do not reset, and the exit has no timer.
    pub(super) no_timer: bool,
    /// Destinations never close.
    pub(super) mute: bool,
}

type Moves = Vec<(Label, State)>;

pub(super) struct Model {
    variant: Variant,
    requests: u8,
    replies: u8,
    losses: u8,
    setting: Setting,
    /// Sessions of a tunnel that has just passed its handshake.
    fresh: (Session, Session),
}

impl Model {
    pub(super) fn new(variant: Variant, requests: u8, replies: u8, losses: u8, setting: Setting) -> Self {
        let (entry, exit) = authenticated();
        let fresh = (Session::new(entry, Profile::Ours), Session::new(exit, Profile::Ours));
        Self { variant, requests, replies, losses, setting, fresh }
    }

    fn tunnel(&self) -> Tunnel {
        let (entry, exit) = self.fresh.clone();
        Tunnel {
            entry: Some(entry),
            exit: Some(exit),
            requests: Vec::new(),
            replies: Vec::new(),
            owner: None,
            connection: None,
            detached: Vec::new(),
            opened: Vec::new(),
        }
    }
}

impl Rules for Model {
    type State = State;

    fn first_state(&self) -> State {
        let flow = Flow {
            phase: Phase::New,
            to_send: self.requests,
            own_end: false,
            reply_end: false,
            discards: false,
            got: Numbers::default(),
            fate: Fate::Open,
            tunnel: None,
        };
        State { flows: [flow.clone(), flow], tunnels: vec![self.tunnel()], lost: 0 }
    }

    fn check(&self, state: &State) -> Result<(), String> {
        let agrees = !matches!(
            self.variant,
            Variant::OpenWithData | Variant::OpenWithDataGuarded | Variant::ExitDrainsFirst | Variant::EntryFreesOnTimeout
        );
        for tunnel in &state.tunnels {
            if let (Some(entry), Some(exit)) = (&tunnel.entry, &tunnel.exit)
                && agrees
                && tunnel.requests.is_empty()
                && tunnel.replies.is_empty()
                && entry.is_free(K) != exit.is_free(K)
            {
                return Err("DISAGREE on whether K is free, with nothing in flight".to_owned());
            }
            for connection in &tunnel.detached {
                let whole = connection.got.in_order() && connection.got.as_slice().len() == usize::from(self.requests);
                let fate = state.flows[usize::from(connection.flow)].fate;
                if connection.fin && connection.clean && !whole && !matches!(fate, Fate::Abort | Fate::Lost | Fate::Linger) {
                    return Err(format!("TRUNCATED upload of {}: {:?}", letter(connection.flow), connection.got.as_slice()));
                }
            }
            // The model's own picture of who has K is what the sessions say.
            if let Some(entry) = &tunnel.entry {
                assert_eq!(entry.is_free(K), tunnel.owner.is_none());
            }
            if let Some(exit) = &tunnel.exit {
                assert_eq!(exit.is_free(K), tunnel.connection.is_none());
            }
        }
        if state.flows.iter().any(|flow| !flow.got.in_order()) {
            return Err("reply data out of order".to_owned());
        }
        Ok(())
    }

    fn check_terminal(&self, state: &State) -> Result<(), String> {
        for (number, flow) in (0..).zip(&state.flows) {
            if flow.phase != Phase::Done {
                let ends = format!("own end sent {}, reply end seen {}", flow.own_end, flow.reply_end);
                return Err(format!("STUCK: flow {} is not done ({ends}) and nothing can move", letter(number)));
            }
        }
        for tunnel in &state.tunnels {
            if let (Some(entry), Some(exit)) = (&tunnel.entry, &tunnel.exit)
                && !(entry.is_free(K) && exit.is_free(K) && entry.keys() == 0 && exit.keys() == 0)
            {
                return Err(format!("STUCK: K is kept, entry {:?}, exit {:?}", entry.state(K), exit.state(K)));
            }
        }
        Ok(())
    }

    fn moves(&self, state: &State) -> Result<Moves, String> {
        let mut moves = Vec::new();
        for flow in 0..2 {
            self.client_moves(state, flow, &mut moves);
        }
        for tunnel in 0..state.tunnels.len() {
            self.entry_receives(state, tunnel, &mut moves)?;
            self.exit_receives(state, tunnel, &mut moves)?;
            self.destination_moves(state, tunnel, &mut moves);
            self.detached_moves(state, tunnel, &mut moves);
            self.losses(state, tunnel, &mut moves);
        }
        Ok(moves)
    }
}

impl Model {
    // ---- the entry and its clients

    fn client_moves(&self, state: &State, id: FlowId, moves: &mut Moves) {
        let flow = &state.flows[usize::from(id)];
        let mut push = |what, next| moves.push((Label(what, letter(id)), next));
        if flow.phase == Phase::New
            && let Some(at) = state.tunnels.iter().position(|tunnel| tunnel.entry.as_ref().is_some_and(|entry| entry.is_free(K)))
        {
            push("entry opens {", self.open(state, id, at));
        }
        let Some(at) = flow.tunnel.map(usize::from).filter(|at| flow.phase == Phase::Active && state.tunnels[*at].entry.is_some()) else {
            return;
        };
        let sent_nothing = self.variant == Variant::OpenWithDataGuarded && flow.to_send == self.requests;
        if !flow.own_end && !flow.discards {
            if flow.to_send > 0 {
                let mut next = state.clone();
                let purpose = Purpose::Data(self.requests - flow.to_send);
                next.tunnels[at].requests.push(Message { flow: id, purpose });
                next.flows[usize::from(id)].to_send -= 1;
                push("client { sends data", next);
            } else if !self.setting.patient && !sent_nothing {
                push("client { sends FIN", self.end_at_entry(state.clone(), id, at, Session::finish));
            }
        }
        if !flow.discards && !self.setting.patient {
            push("client { aborts (or the entry times it out)", self.abort(state.clone(), id, at, sent_nothing));
        }
        let lingers = !matches!(self.variant, Variant::NoEntryLinger | Variant::AbortSendsNoEnd);
        if flow.reply_end && !flow.own_end && lingers {
            let mut next = state.clone();
            let flow = &mut next.flows[usize::from(id)];
            flow.discards = true;
            flow.fate = if flow.fate == Fate::Open { Fate::Linger } else { flow.fate };
            push("entry lingers out {", self.end_at_entry(next, id, at, Session::give_up));
        }
    }

    fn open(&self, state: &State, id: FlowId, at: usize) -> State {
        let mut next = state.clone();
        let tunnel = &mut next.tunnels[at];
        let entry = tunnel.entry.as_mut().expect("chosen for it");
        entry.open(K, u64::from(id)).expect("the session has just said that K is free");
        tunnel.owner = Some(id);
        tunnel.opened.push(id);
        if !matches!(self.variant, Variant::OpenWithData | Variant::OpenWithDataGuarded) {
            tunnel.requests.push(Message { flow: id, purpose: Purpose::Open });
        }
        let flow = &mut next.flows[usize::from(id)];
        flow.phase = Phase::Active;
        flow.tunnel = Some(u8::try_from(at).expect("few tunnels"));
        next
    }

    fn abort(&self, mut next: State, id: FlowId, at: usize, sent_nothing: bool) -> State {
        let flow = &mut next.flows[usize::from(id)];
        flow.discards = true;
        flow.fate = Fate::Abort;
        match self.variant {
            Variant::AbortSendsNoEnd => next,
            Variant::OpenWithDataGuarded if sent_nothing => {
                flow.phase = Phase::Done;
                next.tunnels[at].owner = None;
                next.tunnels[at].entry = Some(self.fresh.0.clone());
                next
            }
            Variant::AbortIsSecondEnd => {
                let mut next = self.end_at_entry(next, id, at, Session::give_up);
                next.tunnels[at].requests.push(Message { flow: id, purpose: Purpose::Abort });
                next
            }
            _ => self.end_at_entry(next, id, at, Session::give_up),
        }
    }

    /// The role wants to end a flow; the session says whether an end goes out for it, and whether K is free then.
    fn end_at_entry(&self, mut next: State, id: FlowId, at: usize, how: fn(&mut Session, Destination) -> bool) -> State {
        let tunnel = &mut next.tunnels[at];
        if how(tunnel.entry.as_mut().expect("the tunnel is there"), K) {
            tunnel.requests.push(Message { flow: id, purpose: Purpose::End });
            next.flows[usize::from(id)].own_end = true;
        }
        self.free_at_entry(&mut next, id, at);
        next
    }

    fn free_at_entry(&self, next: &mut State, id: FlowId, at: usize) {
        let (flow, tunnel) = (&mut next.flows[usize::from(id)], &mut next.tunnels[at]);
        if self.variant == Variant::EntryFreesOnTimeout && flow.discards && flow.own_end {
            tunnel.entry = Some(self.fresh.0.clone());
        }
        if flow.phase == Phase::Active && tunnel.entry.as_ref().is_some_and(|entry| entry.is_free(K)) {
            flow.phase = Phase::Done;
            flow.fate = if flow.fate == Fate::Open { Fate::Clean } else { flow.fate };
            tunnel.owner = None;
        }
    }

    fn entry_receives(&self, state: &State, at: usize, moves: &mut Moves) -> Result<(), String> {
        let Some(message) = state.tunnels[at].replies.first().copied() else { return Ok(()) };
        let mut next = state.clone();
        let tunnel = &mut next.tunnels[at];
        let Some(entry) = tunnel.entry.as_mut() else { return Ok(()) };
        tunnel.replies.remove(0);
        let incoming = entry.on_header(K, message.length()).map_err(|fault| fault.to_string())?;
        let owner = tunnel.owner.ok_or("a reply was taken for a key that is free at the entry")?;
        if message.flow != owner {
            return Err(format!("MIXED: reply of flow {} reaches flow {}", letter(message.flow), letter(owner)));
        }
        let flow = &mut next.flows[usize::from(owner)];
        match incoming {
            Incoming::Data(tag) => {
                expect_tag(Some(tag), owner)?;
                let Purpose::Data(number) = message.purpose else { return Err("an end was taken for data".to_owned()) };
                if !flow.discards {
                    flow.got.push(number);
                }
            }
            Incoming::Drop if flow.discards && message.length() > 0 => (),
            Incoming::End(tag) if message.length() == 0 => {
                expect_tag(tag, owner)?;
                flow.reply_end = true;
                self.free_at_entry(&mut next, owner, at);
            }
            other => return Err(format!("the entry takes {:?} for {other:?}", message.purpose)),
        }
        let what = if message.length() > 0 { "entry takes reply data for {" } else { "entry takes the reply's end for {" };
        moves.push((Label(what, letter(owner)), next));
        Ok(())
    }

    // ---- the exit and its destinations

    fn exit_receives(&self, state: &State, at: usize, moves: &mut Moves) -> Result<(), String> {
        let Some(message) = state.tunnels[at].requests.first().copied() else { return Ok(()) };
        let mut next = state.clone();
        let tunnel = &mut next.tunnels[at];
        let Some(exit) = tunnel.exit.as_mut() else { return Ok(()) };
        tunnel.requests.remove(0);
        let before = exit.clone();
        let incoming = exit.on_header(K, message.length()).map_err(|fault| fault.to_string())?;
        let sender = letter(message.flow);
        let what = match (incoming, tunnel.connection.as_mut()) {
            (Incoming::Open { destination, data }, None) => {
                if !matches!(message.purpose, Purpose::Open | Purpose::Data(0)) {
                    let purpose = format!("{:?}", message.purpose).to_lowercase();
                    return Err(format!("GHOST: {purpose} of flow {sender} taken for an open"));
                }
                assert_eq!((destination, data), (K, message.length() > 0));
                exit.attach(K, u64::from(message.flow));
                let mut queue = Numbers::default();
                if let Purpose::Data(number) = message.purpose {
                    queue.push(number);
                }
                tunnel.connection = Some(Connection {
                    flow: message.flow,
                    stage: Stage::Dialling,
                    queue,
                    request_end: false,
                    own_end: false,
                    to_send: self.replies,
                    got: Numbers::default(),
                    fin: false,
                    clean: true,
                });
                "exit opens K for {"
            }
            (incoming, Some(connection)) if message.flow != connection.flow => {
                let purpose = format!("{:?}", message.purpose).to_lowercase();
                let taken = if matches!(incoming, Incoming::End(_)) { "the end" } else { "data" };
                return Err(format!("MIXED: {purpose} of flow {sender} taken for {taken} of {}", letter(connection.flow)));
            }
            (Incoming::Data(tag), Some(connection)) => {
                expect_tag(Some(tag), connection.flow)?;
                let Purpose::Data(number) = message.purpose else { return Err("an end was taken for data".to_owned()) };
                assert!(connection.stage != Stage::Dead, "the session has forgotten a flow that was given up");
                connection.queue.push(number);
                "exit takes data of {"
            }
            (Incoming::Drop, Some(connection)) if connection.stage == Stage::Dead && message.length() > 0 => "exit drops data of {",
            (Incoming::End(tag), Some(connection)) if matches!(message.purpose, Purpose::End | Purpose::Abort) => {
                expect_tag(tag, connection.flow)?;
                connection.request_end = true;
                self.free_at_exit(&mut next, at, &before);
                if message.purpose == Purpose::Abort && next.tunnels[at].connection.is_some() {
                    self.end_at_exit(&mut next, at, true);
                }
                "exit takes the end of {"
            }
            (other, _) => return Err(format!("the exit takes {:?} of {sender} for {other:?}", message.purpose)),
        };
        moves.push((Label(what, sender), next));
        Ok(())
    }

    fn destination_moves(&self, state: &State, at: usize, moves: &mut Moves) {
        let tunnel = &state.tunnels[at];
        let (Some(_), Some(connection)) = (&tunnel.exit, &tunnel.connection) else { return };
        let mut push = |what, next| moves.push((Label(what, letter(connection.flow)), next));
        let with = |change: &dyn Fn(&mut Connection)| {
            let mut next = state.clone();
            change(next.tunnels[at].connection.as_mut().expect("just seen"));
            next
        };
        let ended = |cut: bool| {
            let mut next = state.clone();
            self.end_at_exit(&mut next, at, cut);
            next
        };
        if connection.stage == Stage::Dialling {
            push("dial for { succeeds", with(&|connection| connection.stage = Stage::Up));
            push("dial for { fails", ended(true));
        }
        if connection.stage != Stage::Up {
            return;
        }
        if !connection.queue.as_slice().is_empty() {
            push("destination of { takes data", with(&take_data));
        } else if connection.request_end && !connection.fin {
            let mut next = with(&|connection| connection.fin = true);
            if self.variant == Variant::ExitDrainsFirst && connection.own_end {
                next.tunnels[at].exit = Some(self.fresh.1.clone());
            }
            let before = next.tunnels[at].exit.clone().expect("the tunnel is there");
            self.free_at_exit(&mut next, at, &before);
            push("destination of { gets FIN", next);
        }
        if !connection.own_end {
            if connection.to_send > 0 {
                let purpose = Purpose::Data(self.replies - connection.to_send);
                let mut next = with(&|connection| connection.to_send -= 1);
                next.tunnels[at].reply(Message { flow: connection.flow, purpose });
                push("destination of { sends data", next);
            } else if !self.setting.mute && (!self.setting.polite || connection.fin) {
                push("destination of { sends FIN", ended(false));
            }
            if !self.setting.no_timer {
                push("destination of { resets, or the exit times it out", ended(true));
            }
        }
        if self.variant == Variant::ExitFreesOnTimeout {
            let mut next = ended(true);
            next.tunnels[at].connection = None;
            next.tunnels[at].exit = Some(self.fresh.1.clone());
            push("the exit's time-out frees K of {", next);
        }
    }

    fn detached_moves(&self, state: &State, at: usize, moves: &mut Moves) {
        for (place, connection) in state.tunnels[at].detached.iter().enumerate() {
            let mut next = state.clone();
            let changed = &mut next.tunnels[at].detached[place];
            let what = if connection.stage != Stage::Up {
                continue;
            } else if !connection.queue.as_slice().is_empty() {
                take_data(changed);
                "detached destination of { takes data"
            } else if connection.request_end && !connection.fin {
                changed.fin = true;
                "detached destination of { gets FIN"
            } else {
                continue;
            };
            moves.push((Label(what, letter(connection.flow)), next));
        }
    }

    /// The role wants to end the flow that has K: cut (reset, time-out, failed dial), or because the destination has ended.
    fn end_at_exit(&self, next: &mut State, at: usize, cut: bool) {
        let tunnel = &mut next.tunnels[at];
        let connection = tunnel.connection.as_mut().expect("K is taken");
        if cut {
            connection.stage = Stage::Dead;
            connection.queue = Numbers::default();
            connection.clean = false;
        }
        let flow = connection.flow;
        let exit = tunnel.exit.as_mut().expect("the tunnel is there");
        let before = exit.clone();
        if if cut { exit.give_up(K) } else { exit.finish(K) } {
            connection.own_end = true;
            tunnel.reply(Message { flow, purpose: Purpose::End });
        }
        self.free_at_exit(next, at, &before);
    }

    /// Follows the session when it says that K is free: detached, not drained.
    fn free_at_exit(&self, next: &mut State, at: usize, before: &Session) {
        let tunnel = &mut next.tunnels[at];
        let Some(connection) = &tunnel.connection else { return };
        if self.variant == Variant::ExitFreesAtOwnEnd && connection.own_end {
            tunnel.exit = Some(self.fresh.1.clone());
        }
        if !tunnel.exit.as_ref().is_some_and(|exit| exit.is_free(K)) {
            return;
        }
        let undrained = connection.stage == Stage::Up && (!connection.queue.as_slice().is_empty() || !connection.fin);
        if self.variant == Variant::ExitDrainsFirst && undrained {
            tunnel.exit = Some(before.clone());
            return;
        }
        let connection = tunnel.connection.take().expect("just seen");
        if connection.stage == Stage::Up {
            tunnel.detached.push(connection);
        }
    }

    // ---- the wire

    /// The loss of a tunnel, seen by each side at its own time.
    fn losses(&self, state: &State, at: usize, moves: &mut Moves) {
        let tunnel = &state.tunnels[at];
        let number = char::from(b'0' + u8::try_from(at).expect("few tunnels"));
        let mut next = state.clone();
        if tunnel.entry.is_some() && state.lost < self.losses {
            if let Some(owner) = tunnel.owner {
                let flow = &mut next.flows[usize::from(owner)];
                if flow.phase == Phase::Active {
                    flow.phase = Phase::Done;
                    flow.fate = Fate::Lost;
                }
            }
            let lost = &mut next.tunnels[at];
            lost.entry = None;
            lost.owner = None;
            lost.replies.clear();
            next.tunnels.push(self.tunnel());
            next.lost += 1;
            moves.push((Label("entry loses tunnel {", number), next));
        } else if tunnel.entry.is_none() && tunnel.exit.is_some() {
            let lost = &mut next.tunnels[at];
            lost.exit = None;
            lost.connection = None;
            lost.requests.clear();
            moves.push((Label("exit sees tunnel { lost", number), next));
        }
    }
}

impl Tunnel {
    /// The exit sends; if the entry has lost the tunnel, nobody gets it.
    fn reply(&mut self, message: Message) {
        if self.entry.is_some() {
            self.replies.push(message);
        }
    }
}

fn take_data(connection: &mut Connection) {
    if let Some(number) = connection.queue.pop_front() {
        connection.got.push(number);
    }
}

/// The session's tag, if it still has one, names the flow.
fn expect_tag(tag: Option<u64>, flow: FlowId) -> Result<(), String> {
    match tag {
        Some(tag) if tag != u64::from(flow) => Err(format!("MIXED: the session takes flow {} for {tag}", letter(flow))),
        _ => Ok(()),
    }
}
