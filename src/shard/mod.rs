//! One shard: a thread pinned to a core, its engine, its memory, its sockets, its timers.
pub mod board;
pub mod buffers;
pub mod inbox;
pub mod io;
pub mod state;
pub mod time;
