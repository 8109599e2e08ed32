//! A destination: takes connections at one address and follows a [`Plan`] on each. It may also be an address where nothing answers.

use std::net::SocketAddr;

use crate::duplex::{Duplex, Plan};
use crate::rng::Rng;
use crate::traffic::{Record, Stage, Stream};
use crate::world::{ListenerId, Owner, Path};

/// What is at an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Connections are taken, each with this plan.
    Serves(Plan),
    /// As `Serves`, but so many percent of the connections are refused by a reset right after they were made.
    Flaky(Plan, u64),
    /// None is.
    Path(Path),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Destination {
    address: SocketAddr,
    actor: usize,
    kind: Kind,
    listener: Option<ListenerId>,
    connections: Vec<(u32, Duplex)>,
    rng: Rng,
}

impl Destination {
    pub(crate) fn new(stage: &Stage, address: SocketAddr, actor: usize, kind: Kind, rng: Rng) -> Self {
        let listener = match kind {
            Kind::Path(path) => {
                stage.world.set_path(address.ip(), Some(path));
                None
            }
            Kind::Serves(_) | Kind::Flaky(..) => Some(stage.world.listen(address, Owner::Actor(actor))),
        };
        Self { address, actor, kind, listener, connections: Vec::new(), rng }
    }

    /// Does all that can be done now.
    pub(crate) fn run(&mut self, stage: &Stage) {
        while let Some((end, _)) = self.listener.and_then(|listener| stage.world.accept(listener, Owner::Actor(self.actor))) {
            let plan = match self.kind {
                Kind::Flaky(plan, percent) if !self.rng.chance(percent) => plan,
                Kind::Serves(plan) => plan,
                Kind::Flaky(..) | Kind::Path(_) => {
                    stage.world.close(end, true);
                    continue;
                }
            };
            let number = stage.book.borrow_mut().new_connection();
            let record = Record::new(self.address, stage.world.now());
            let stream = Stream { seed: stage.seed, number };
            self.connections.push((number, Duplex::new(end, self.actor, stream, plan, record, stage.world.now())));
        }
        self.connections.retain_mut(|(number, duplex)| {
            let over = duplex.run(stage);
            stage.book.borrow_mut().records.insert(*number, duplex.record.clone());
            !over
        });
    }
}
