//! One shard: a thread pinned to a core, its engine, its memory, its sockets, its timers.
pub mod affinity;
pub mod board;
pub mod buffers;
pub mod clock;
pub mod inbox;
pub mod io;
pub mod ring;
pub mod startup;
pub mod state;
pub mod time;
