//! What must be true when a simulation has ended: nothing lost, nothing mixed up, nothing that was cut looks whole, and everything that was
//! taken has been given back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use zhwkprox::shard::state::State;

use crate::destination::Kind;
use crate::duplex::Abort;
use crate::harness::Simulation;
use crate::roles::{ENTRY, EXIT};
use crate::traffic::{Ending, FIRST_CONNECTION, NAME_BYTES, Record};
use crate::world::Path;

/// What was planned, which decides how strict to be.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    pub(crate) destinations: BTreeMap<SocketAddr, Kind>,
    /// Each client's abort, if it has one.
    pub(crate) aborts: BTreeMap<u32, Option<Abort>>,
    /// Clients that hang up during their handshake.
    pub(crate) hang_ups: BTreeMap<u32, usize>,
    /// Clients of a name whose first addresses do not work: what the exit finds out too late, the client sees as an empty answer.
    pub(crate) dead_first: BTreeSet<u32>,
    /// The tunnels speak 0x81: a flow is its client's alone, and what became of it can be said.
    pub(crate) secure: bool,
    /// There are tunnels for everyone, in time.
    pub(crate) ample: bool,
    /// Nobody gives up in the middle. Where somebody does, a tunnel may be closed because that is 0x80's only word for it.
    pub(crate) calm: bool,
}

impl Plans {
    /// Whether nobody is to give up.
    pub(crate) fn is_calm(&self) -> bool {
        let serves = |kind: &Kind| match kind {
            Kind::Serves(plan) => plan.abort.is_none(),
            Kind::Flaky(..) => false,
            Kind::Path(_) => true,
        };
        self.destinations.values().all(serves) && self.aborts.values().all(Option::is_none)
    }

    /// Whether the destination serves every connection to its end.
    fn serves(&self, address: SocketAddr) -> bool {
        matches!(self.destinations.get(&address), Some(Kind::Serves(plan)) if plan.abort.is_none())
    }

    /// What a client may be told where the reply tells the outcome: what its destination does or, with several addresses, one of them.
    fn replies(&self, number: u32, record: &Record) -> &'static [u8] {
        match self.destinations.get(&record.address) {
            Some(Kind::Serves(_) | Kind::Flaky(..)) => &[0],
            Some(Kind::Path(_)) if self.dead_first.contains(&number) => &[4, 5, 6],
            Some(Kind::Path(Path::Refused)) => &[5],
            Some(Kind::Path(Path::Unreachable)) => &[4],
            Some(Kind::Path(Path::Silent)) => &[6],
            None => &[],
        }
    }

    /// Whether the destination's or client's giving up is by a close that sends a FIN.
    fn closes(&self, number: u32, record: &Record) -> bool {
        let abort = match self.destinations.get(&record.address) {
            Some(Kind::Serves(plan) | Kind::Flaky(plan, _)) if number >= FIRST_CONNECTION => plan.abort,
            _ => self.aborts.get(&number).copied().flatten(),
        };
        record.aborted && abort.is_some_and(|abort| !abort.reset)
    }
}

/// How much the verdict had to go by.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Shown {
    /// Flows shown to be whole at both ends.
    pub(crate) whole: u64,
    /// Readers shown not to take for whole what was cut.
    pub(crate) cut: u64,
}

/// Looks at every flow.
pub(crate) fn check_flows(simulation: &Simulation, plans: &Plans) -> Shown {
    let book = simulation.stage.book.borrow();
    let records = &book.records;
    let unfinished = book.unfinished();
    assert!(
        unfinished.is_empty(),
        "these never ended: {:?}",
        unfinished.iter().map(|number| (number, &records[number])).collect::<Vec<_>>()
    );
    let mut partners: BTreeMap<u32, u32> = BTreeMap::new();
    for (&number, record) in records {
        let Some(from) = record.from else { continue };
        let partner = records.get(&from).unwrap_or_else(|| panic!("reader {number} was given stream {from}, which does not exist"));
        assert_eq!(partner.address, record.address, "reader {number} was given stream {from} of another destination");
        assert_ne!(number < FIRST_CONNECTION, from < FIRST_CONNECTION, "reader {number} was given stream {from} of its own side");
        assert!(
            partner.from.is_none_or(|back| back == number),
            "mixed up: reader {number} was given stream {from}, whose reader was given {:?}",
            partner.from
        );
        if let Some(other) = partners.insert(from, number) {
            panic!("mixed up: readers {other} and {number} were both given stream {from}");
        }
        assert!(record.received <= partner.sent, "reader {number} got {} bytes of {} sent", record.received, partner.sent);
    }
    let mut shown = Shown::default();
    for (&number, record) in records {
        let partner = record.from.map(|from| &records[&from]);
        check_not_whole(simulation, plans, number, record, partner);
        shown.cut += u64::from(record.ending == Some(Ending::Reset) && partner.is_some_and(|partner| record.received < partner.sent));
        if number < FIRST_CONNECTION {
            shown.whole += u64::from(check_whole(simulation, plans, number, record, partner));
        }
    }
    shown
}

/// What was cut must not look whole.
fn check_not_whole(simulation: &Simulation, plans: &Plans, number: u32, record: &Record, partner: Option<&Record>) {
    if record.ending != Some(Ending::Fin) || record.received < NAME_BYTES {
        return;
    }
    // Where flows share a tunnel 0x80 has no word for "cut".
    if simulation.stage.world.with_observer(|observer| observer.shared().contains(&record.address)) {
        return;
    }
    let partner = partner.expect("a stream's name says whose it is");
    // When a process is killed the kernel closes its connections, and that is a FIN.
    let until = record.finished.max(partner.finished).expect("checked");
    let since = record.started.min(partner.started);
    // On 0x81 that is so only for the process's own connections: a tunnel that ends cuts what is on it.
    let own = if number < FIRST_CONNECTION { ENTRY } else { EXIT };
    if simulation.crashes.iter().any(|(time, process)| (since..=until).contains(time) && (*process == own || !plans.secure)) {
        return;
    }
    let from = record.from.expect("it has a name");
    let whole = record.received == partner.sent && (partner.ended || plans.closes(from, partner));
    assert!(
        whole,
        "looks whole but was cut: reader {number} got a FIN behind {} bytes of stream {from}; its sender: {partner:?}; the reader: {record:?}",
        record.received
    );
}

/// What nothing disturbed must be whole. Says whether that could be shown.
fn check_whole(simulation: &Simulation, plans: &Plans, number: u32, record: &Record, partner: Option<&Record>) -> bool {
    let finished = record.finished.max(partner.and_then(|partner| partner.finished)).expect("checked");
    let disturbed = simulation.disturbed.iter().any(|(from, to)| *from <= finished && *to >= record.started);
    let aborts = plans.aborts.get(&number).is_some_and(Option::is_some) || plans.hang_ups.contains_key(&number);
    if disturbed || aborts {
        return false;
    }
    if plans.secure {
        let expected = plans.replies(number, record);
        let told = record.reply.is_some_and(|reply| expected.contains(&reply));
        assert!(told, "client {number} was to be told one of {expected:?}: {record:?}");
    } else if (plans.ample && plans.calm) || record.reply != Some(1) {
        assert_eq!(record.reply, Some(0), "client {number} was not served although nothing was wrong: {record:?}");
    }
    if record.reply != Some(0) || (plans.dead_first.contains(&number) && record.received == 0 && !plans.secure) {
        return false;
    }
    if !plans.serves(record.address) {
        let no_answer = matches!(plans.destinations.get(&record.address), Some(Kind::Path(_)));
        assert!(!no_answer || record.received == 0, "client {number} got bytes from nowhere: {record:?}");
        return false;
    }
    let shared = simulation.stage.world.with_observer(|observer| observer.shared().contains(&record.address));
    let was_reset = |record: &Record| record.ending == Some(Ending::Reset);
    if shared && !plans.calm && (was_reset(record) || partner.is_some_and(was_reset)) {
        // The tunnel was closed for another flow's sake by the side that did not know of this one yet.
        return false;
    }
    let Some(partner) = partner else { panic!("client {number} got nothing though nothing was wrong: {record:?}") };
    let whole = record.received == partner.sent
        && partner.received == record.sent
        && partner.ended
        && record.ended
        && record.ending == Some(Ending::Fin)
        && partner.ending == Some(Ending::Fin);
    assert!(whole, "not whole though nothing was wrong: client {number} {record:?}, destination {partner:?}");
    true
}

/// What of a state must be as it was. `grows` and sums do not count; slots are compared by themselves.
pub(crate) fn resting(state: &State) -> State {
    State { stale_completions: 0, handed_over: 0, bytes_from_tunnels: 0, bytes_to_tunnels: 0, ..state.clone() }
}

/// Whether nothing of any flow is left.
pub(crate) fn is_empty(state: &State) -> bool {
    let State { flows, half_open, detached, clients_pending, slots_in_use, parked, .. } = state;
    [flows, half_open, detached, clients_pending, slots_in_use, parked].iter().all(|count| **count == 0)
}

/// Which numbers of two states differ, in one line.
pub(crate) fn difference(before: &State, after: &State) -> String {
    let [before, after] = [before, after].map(|state| serde_json::to_value(state).expect("numbers"));
    let fields = before.as_object().into_iter().flatten().filter(|(name, was)| after[name.as_str()] != **was);
    let told: Vec<String> = fields.map(|(name, was)| format!("{name} {was} -> {}", after[name.as_str()])).collect();
    if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
}
