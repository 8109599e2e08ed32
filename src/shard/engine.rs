//! Which engines there are, and which one a shard gets: the ring, unless another is asked for or the kernel is too old for it.

use std::fmt;
use std::os::fd::RawFd;

use super::buffers::Arena;
use super::io::Io;
use super::ring::{Ring, Sizes};
use super::startup::StartupError;

/// An engine, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// [`Ring`]: a ring of our own, the fastest. Linux 6.1.
    Ring,
    /// `TokioUring` (cargo feature `engine-tokio-uring`). Linux 5.19.
    TokioUring,
}

/// What an operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Choice {
    /// The ring, or the other one where the kernel is too old for it.
    #[default]
    Auto,
    /// This one, or none.
    Only(Engine),
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// The engine in use.
    pub engine: Engine,
    /// Why not the first choice, if it is not.
    pub instead: Option<String>,
}

impl Engine {
    /// All of them, the first choice first.
    pub const ALL: [Self; 2] = [Self::Ring, Self::TokioUring];

    /// As it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::TokioUring => "tokio-uring",
        }
    }

    /// Whether this program has it.
    #[must_use]
    pub const fn is_built(self) -> bool {
        match self {
            Self::Ring => true,
            Self::TokioUring => cfg!(feature = "engine-tokio-uring"),
        }
    }

    /// How large its queues are: what it has locked.
    #[must_use]
    pub fn sizes(self) -> Sizes {
        match self {
            Self::Ring => Sizes::default(),
            Self::TokioUring => second::SIZES,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes the engine of the calling thread. `bell` is the inbox's eventfd.
///
/// # Errors
/// See [`StartupError`].
pub fn make(choice: Choice, arena: &Arena, bell: RawFd) -> Result<(Box<dyn Io>, Chosen), StartupError> {
    let as_asked = |engine| Chosen { engine, instead: None };
    match choice {
        Choice::Only(Engine::TokioUring) => Ok((second::make(arena, bell)?, as_asked(Engine::TokioUring))),
        Choice::Only(Engine::Ring) => Ok((Box::new(Ring::new(arena, bell)?), as_asked(Engine::Ring))),
        Choice::Auto => match Ring::new(arena, bell) {
            Ok(ring) => Ok((Box::new(ring), as_asked(Engine::Ring))),
            Err(error) if error.is_of_age() && Engine::TokioUring.is_built() => {
                Ok((second::make(arena, bell)?, Chosen { engine: Engine::TokioUring, instead: Some(error.to_string()) }))
            }
            Err(error) => Err(error),
        },
    }
}

#[cfg(feature = "engine-tokio-uring")]
mod second {
    use super::{Arena, Io, RawFd, StartupError};
    pub(super) use crate::shard::tokio_uring::SIZES;
    use crate::shard::tokio_uring::TokioUring;

    pub(super) fn make(arena: &Arena, bell: RawFd) -> Result<Box<dyn Io>, StartupError> {
        Ok(Box::new(TokioUring::new(arena, bell)?))
    }
}

#[cfg(not(feature = "engine-tokio-uring"))]
mod second {
    use super::{Arena, Engine, Io, RawFd, Sizes, StartupError};

    /// Of an engine that there is not.
    pub(super) const SIZES: Sizes = Sizes { submissions: 0, completions: 0, slots: 0 };

    pub(super) fn make(_: &Arena, _: RawFd) -> Result<Box<dyn Io>, StartupError> {
        Err(StartupError::NotBuilt { engine: Engine::TokioUring })
    }
}
