//! Placeholder.
use std::os::fd::OwnedFd;

use super::board::Board;
use super::inbox::{Inbox, Message, Postbox, ToControl};
use crate::inter_server::ListenerKind;

/// What a shard is made of.
#[derive(Debug)]
pub struct Plan {
    /// Which one.
    pub index: usize,
    /// Its core.
    pub core: Option<usize>,
    /// Bytes of buffers.
    pub buffer_memory: usize,
    /// From outside.
    pub inbox: Inbox,
    /// To the control thread.
    pub control: tokio::sync::mpsc::UnboundedSender<ToControl>,
    /// All shards' postboxes.
    pub peers: Vec<Postbox>,
    /// The gauges.
    pub board: Board,
    /// Where to listen.
    pub listeners: Vec<(ListenerKind, OwnedFd)>,
}

impl Plan {
    /// Answers until stopped.
    pub(crate) fn idle(&self) {
        loop {
            std::thread::sleep(std::time::Duration::from_millis(5));
            for message in self.inbox.drain() {
                match message {
                    Message::ReportState => {
                        let state = super::state::State { tunnels: 1, ..Default::default() };
                        let _ = self.control.send(ToControl::State { shard: self.index, state: Box::new(state) });
                    }
                    Message::Stop | Message::StopNow => {
                        let _ = self.control.send(ToControl::Stopped { shard: self.index });
                        return;
                    }
                    _ => {}
                }
            }
        }
    }
}
