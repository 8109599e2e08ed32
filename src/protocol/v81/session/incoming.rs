//! What a frame means to the role, and why a stream cannot be opened.

use std::net::SocketAddr;

use crate::protocol::socks5::Target;

/// What a frame means to the role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// Exit: a stream begins. Before the next frame the role says [`super::Session::attach`] or [`super::Session::refuse`].
    Open {
        /// Its id.
        stream: u32,
        /// Where to.
        target: Target,
    },
    /// Entry: the destination is connected.
    Opened {
        /// Whose.
        tag: u64,
        /// The exit's address towards it.
        bound: SocketAddr,
    },
    /// The payload is this stream's. Its credit is taken; [`super::Session::consumed`] gives it back.
    Data {
        /// Whose.
        tag: u64,
    },
    /// The peer sends no more on it.
    Finished {
        /// Whose.
        tag: u64,
    },
    /// The peer has reset it: it is closed.
    Reset {
        /// Whose.
        tag: u64,
        /// Why, one of [`crate::protocol::v81::frame::reset`] or unknown.
        code: u8,
    },
    /// More may be sent on it.
    Credit {
        /// Whose.
        tag: u64,
    },
    /// Our PING is answered.
    Pong,
    /// The peer winds the tunnel down or, from [`crate::protocol::v81::frame::goaway::ENDS_FROM`] on, ends it.
    GoAway {
        /// Why, one of [`crate::protocol::v81::frame::goaway`] or unknown.
        code: u8,
        /// Its words, fit for a log line: at most 200 bytes, escaped.
        text: String,
    },
}

/// Why no stream can be opened on this tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotNow {
    /// It winds down, or has ended.
    #[error("the tunnel winds down")]
    Winding,
    /// The exit takes no more at once.
    #[error("as many streams are open as the server takes at once")]
    TooMany,
    /// Its ids are used up; it winds down from now on.
    #[error("the tunnel has no stream ids left")]
    NoIds,
}
