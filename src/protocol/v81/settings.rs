//! Settings: what a side accepts.

/// What one side accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Credit that each stream starts with for data towards this side.
    pub stream_window: u32,
    /// How many streams may be open at once. The server's word.
    pub max_streams: u32,
}
