//! What tasks have brought to an end and the shard has not been told yet, and how many of them are under way.
//!
//! What always holds between calls: each task that was begun is counted until its future is gone, so that with none left nothing can
//! refer to a socket or a slot any more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::shard::buffers::Chunk;
use crate::shard::io::{Errno, Payload, Token};

/// How an operation ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) token: Token,
    pub(super) outcome: Outcome,
}

/// By kind of operation.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The connection and its peer's address.
    Accepted(Result<(OwnedFd, Option<SocketAddr>), Errno>),
    Connected(Result<u32, Errno>),
    Received(Result<u32, Errno>, Payload),
    Sent(Result<u32, Errno>, Chunk),
    Rung,
}

/// The queue from the tasks to the turn, and their number.
#[derive(Debug, Default)]
pub(super) struct Queue {
    finished: RefCell<VecDeque<Finished>>,
    under_way: Cell<usize>,
    sleeper: RefCell<Option<Waker>>,
}

impl Queue {
    /// The last act of a task.
    pub(super) fn push(&self, token: Token, outcome: Outcome) {
        self.finished.borrow_mut().push_back(Finished { token, outcome });
        self.wake();
    }

    pub(super) fn pop(&self) -> Option<Finished> {
        self.finished.borrow_mut().pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.finished.borrow().is_empty()
    }

    /// Sleeps until something is finished.
    pub(super) async fn filled(&self) {
        self.sleep_until(|| !self.is_empty()).await;
    }

    /// Sleeps until no task is under way.
    pub(super) async fn deserted(&self) {
        self.sleep_until(|| self.under_way.get() == 0).await;
    }

    /// Counts a task for as long as what is returned lives.
    pub(super) fn begin(self: &Rc<Self>) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(Rc::clone(self))
    }

    async fn sleep_until(&self, over: impl Fn() -> bool) {
        poll_fn(|context| {
            if over() {
                return Poll::Ready(());
            }
            *self.sleeper.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        let sleeper = self.sleeper.borrow_mut().take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

/// A task that is counted.
#[derive(Debug)]
pub(super) struct UnderWay(Rc<Queue>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.wake();
    }
}
