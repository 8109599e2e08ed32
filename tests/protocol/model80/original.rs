//! Our entry against the author's own server ([`Profile::Original`]): one key K, flows A then B. The server is modelled from how it behaves: a
//! request for an unknown key opens, data or not; a reply's end frees K at once; a failed dial says nothing; every connection leaves behind a
//! 20 s timer which, when it fires, deletes K whoever holds it then; a connection whose K was taken away goes on replying under K.
//!
//! The real session decides whose a reply is and whether K is free; the rest of a key ([`Session::release`]) is what keeps flows apart.

use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::session::{Incoming, Session};

use super::explore::{Label, Outcome, Rules, explore};
use super::state::{FlowId, letter};
use crate::support::{V4 as K, authenticated};

/// When the entry's role calls K free again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Release {
    /// 25 s after the last request, when nothing of the old flow can be left.
    AfterRest,
    /// As soon as the flow is over here.
    AtOnce,
    /// … and a flow is over only when the server says so.
    AtReplyEnd,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    New,
    Active,
    Over,
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Flow {
    phase: Phase,
    to_send: u8,
    client_gone: bool,
    reply_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Dialling,
    Up,
    Closed,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Connection {
    flow: FlowId,
    stage: Stage,
    to_send: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    flows: [Flow; 2],
    session: Session,
    owner: Option<FlowId>,
    /// Whose, and which of its pieces.
    requests: Vec<(FlowId, u8)>,
    /// Whose, and whether it is data.
    replies: Vec<(FlowId, bool)>,
    /// The connection that the server finds under K.
    holder: Option<usize>,
    connections: Vec<Connection>,
    timers: Vec<usize>,
}

struct Original {
    release: Release,
    session: Session,
}

const REQUESTS: u8 = 2;

impl Rules for Original {
    type State = State;

    fn first_state(&self) -> State {
        let flow = Flow { phase: Phase::New, to_send: REQUESTS, client_gone: false, reply_end: false };
        State {
            flows: [flow.clone(), flow],
            session: self.session.clone(),
            owner: None,
            requests: Vec::new(),
            replies: Vec::new(),
            holder: None,
            connections: Vec::new(),
            timers: Vec::new(),
        }
    }

    fn check(&self, state: &State) -> Result<(), String> {
        assert_eq!(state.session.is_free(K), state.owner.is_none());
        Ok(())
    }

    fn moves(&self, state: &State) -> Result<Vec<(Label, State)>, String> {
        let mut moves = Vec::new();
        for flow in 0..2 {
            self.client_moves(state, flow, &mut moves);
        }
        self.free_at_entry(state, &mut moves);
        entry_receives(state, &mut moves)?;
        server_receives(state, &mut moves)?;
        destination_moves(state, &mut moves);
        timers_fire(state, &mut moves);
        moves.retain(|(_, next)| next.connections.len() <= 5);
        Ok(moves)
    }

    fn check_terminal(&self, state: &State) -> Result<(), String> {
        if state.flows.iter().any(|flow| flow.phase != Phase::Done) {
            return Err(format!("STUCK: flows are {:?}", state.flows.each_ref().map(|flow| flow.phase)));
        }
        assert_eq!(state.session.keys(), 0);
        Ok(())
    }
}

impl Original {
    fn client_moves(&self, state: &State, id: FlowId, moves: &mut Vec<(Label, State)>) {
        let at = usize::from(id);
        let flow = &state.flows[at];
        let mut next = state.clone();
        if flow.phase == Phase::New && state.session.is_free(K) {
            next.session.open(K, u64::from(id)).expect("free");
            next.flows[at].phase = Phase::Active;
            next.owner = Some(id);
            moves.push((Label("entry gives K to {", letter(id)), next));
        } else if flow.phase == Phase::Active && !flow.client_gone {
            if flow.to_send > 0 {
                next.requests.push((id, REQUESTS - flow.to_send));
                next.flows[at].to_send -= 1;
                moves.push((Label("client { sends data", letter(id)), next));
            } else {
                next.flows[at].client_gone = true;
                assert!(!next.session.finish(K), "nothing goes on the wire");
                moves.push((Label("client { sends FIN (nothing goes on the wire)", letter(id)), next));
            }
        } else if flow.phase == Phase::Active && self.release != Release::AtReplyEnd {
            next.flows[at].phase = Phase::Over;
            assert!(!next.session.give_up(K), "nothing goes on the wire");
            moves.push((Label("entry gives { up", letter(id)), next));
        }
    }

    fn free_at_entry(&self, state: &State, moves: &mut Vec<(Label, State)>) {
        let Some(owner) = state.owner.filter(|owner| state.flows[usize::from(*owner)].phase == Phase::Over) else { return };
        let on_the_way = !state.requests.is_empty() || !state.replies.is_empty();
        let quiet = !on_the_way && state.timers.is_empty() && state.connections.iter().all(|connection| connection.stage == Stage::Closed);
        if quiet || self.release != Release::AfterRest {
            let mut next = state.clone();
            assert!(next.session.release(K), "it rested");
            next.flows[usize::from(owner)].phase = Phase::Done;
            next.owner = None;
            moves.push((Label("K of { is free", letter(owner)), next));
        }
    }
}

fn entry_receives(state: &State, moves: &mut Vec<(Label, State)>) -> Result<(), String> {
    let Some((from, is_data)) = state.replies.first().copied() else { return Ok(()) };
    let mut next = state.clone();
    next.replies.remove(0);
    let taken_by = match next.session.on_header(K, u32::from(is_data)).expect("the original has no faults") {
        Incoming::Drop => {
            moves.push((Label("entry drops a reply of {", letter(from)), next));
            return Ok(());
        }
        Incoming::Data(tag) | Incoming::End(Some(tag)) => u8::try_from(tag).expect("0 or 1"),
        other => panic!("{other:?} at an entry"),
    };
    if from != taken_by {
        let what = if is_data { "data" } else { "end" };
        return Err(format!("MIXED: {what} from a connection of {} reaches client {}", letter(from), letter(taken_by)));
    }
    assert_eq!(next.owner, Some(taken_by));
    if !is_data {
        let flow = &mut next.flows[usize::from(taken_by)];
        flow.phase = Phase::Over;
        flow.reply_end = true;
    }
    moves.push((Label("entry takes a reply for {", letter(from)), next));
    Ok(())
}

fn server_receives(state: &State, moves: &mut Vec<(Label, State)>) -> Result<(), String> {
    let Some((flow, piece)) = state.requests.first().copied() else { return Ok(()) };
    let mut next = state.clone();
    next.requests.remove(0);
    match state.holder {
        Some(holder) if state.connections[holder].flow != flow => {
            let owner = letter(state.connections[holder].flow);
            Err(format!("MIXED: data of {} goes into the connection of {owner}", letter(flow)))
        }
        Some(_) => {
            moves.push((Label("server takes data of {", letter(flow)), next));
            Ok(())
        }
        None => {
            let late = piece > 0;
            next.holder = Some(next.connections.len());
            if late {
                next.timers.push(next.connections.len());
            }
            next.connections.push(Connection { flow, stage: if late { Stage::Up } else { Stage::Dialling }, to_send: true });
            let what = if late { "late data of { opens a second connection" } else { "server opens K for {" };
            moves.push((Label(what, letter(flow)), next));
            Ok(())
        }
    }
}

fn destination_moves(state: &State, moves: &mut Vec<(Label, State)>) {
    for (number, connection) in state.connections.iter().enumerate() {
        let name = letter(connection.flow);
        let stage = |stage| {
            let mut next = state.clone();
            next.connections[number].stage = stage;
            next
        };
        match connection.stage {
            Stage::Dialling => {
                let mut next = stage(Stage::Up);
                next.timers.push(number);
                moves.push((Label("dial for { succeeds", name), next));
                let mut next = stage(Stage::Closed);
                next.holder = None;
                moves.push((Label("dial for { fails, nothing is said", name), next));
            }
            Stage::Up => {
                if connection.to_send {
                    let mut next = state.clone();
                    next.connections[number].to_send = false;
                    next.replies.push((connection.flow, true));
                    moves.push((Label("destination of { sends data", name), next));
                }
                let mut next = stage(Stage::Closed);
                next.replies.push((connection.flow, false));
                next.holder = None;
                moves.push((Label("destination of { closes", name), next));
            }
            Stage::Closed => {}
        }
    }
}

fn timers_fire(state: &State, moves: &mut Vec<(Label, State)>) {
    for number in &state.timers {
        let mut next = state.clone();
        next.timers.retain(|timer| timer != number);
        let connection = &mut next.connections[*number];
        if connection.stage == Stage::Up {
            connection.stage = Stage::Closed;
            next.replies.push((connection.flow, false));
        }
        next.holder = None;
        moves.push((Label("the 20 s timer of a connection of { fires", letter(state.connections[*number].flow)), next));
    }
}

fn outcome(release: Release) -> Outcome {
    let session = Session::new(authenticated().0, Profile::Original);
    let outcome = explore(&Original { release, session });
    println!("original server, K is free {release:?}: {outcome}");
    outcome
}

#[test]
fn a_key_that_rests_keeps_flows_apart_on_an_original_server() {
    let Outcome::Holds { states, .. } = outcome(Release::AfterRest) else { panic!("violated") };
    assert_eq!(states, 18_733, "as many as were found without the code");
}

#[test]
fn a_key_that_does_not_rest_mixes_flows_on_an_original_server() {
    let Outcome::Violated { fault, .. } = outcome(Release::AtOnce) else { panic!("not caught") };
    assert_eq!(fault, "MIXED: data of B goes into the connection of A");
}

#[test]
fn waiting_for_the_end_of_an_original_server_can_last_for_ever() {
    let Outcome::Violated { fault, .. } = outcome(Release::AtReplyEnd) else { panic!("not caught") };
    assert!(fault.starts_with("STUCK"), "{fault}");
}
