//! How a tunnel proves who is at its other end, whichever version is configured: one value per side that takes bytes in any pieces, and
//! the proof that comes of it, without which there is no link.
//!
//! What always holds: exactly the bytes of the login are taken from the input, what follows stays there; bytes put into `out` are to be
//! sent even if an error is returned with them.

use std::sync::Arc;

use rand::Rng;

use super::Side;
use super::v80::{self, Profile};
use super::v81;
use crate::crypto::aead::Method;
use crate::crypto::fixed_iv::MessageCipher;
use crate::limits;

/// What we accept on tunnels of 0x81.
const SETTINGS: v81::settings::Settings = v81::settings::Settings { stream_window: limits::WINDOW_FIRST, max_streams: limits::V81_STREAMS };

/// What is spoken on tunnels, and with which secrets.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// 0x80: for trusted wires only.
    V80 {
        /// With the key and the common IV in it.
        cipher: MessageCipher,
        /// Whose program the other end is.
        profile: Profile,
    },
    /// 0x81.
    V81 {
        /// The keys: at the exit one, at the entry one for each exit.
        keys: Arc<v81::handshake::Keys>,
        /// Record ciphers, the most wanted first.
        methods: Arc<[Method]>,
    },
}

/// The server's side of a login.
#[derive(Debug)]
pub enum ExitLogin {
    /// 0x80.
    V80(v80::handshake::ExitHandshake, MessageCipher, Profile),
    /// 0x81.
    V81(Box<v81::handshake::ExitHandshake>),
}

/// The inter-server's side of a login.
#[derive(Debug)]
pub enum EntryLogin {
    /// 0x80.
    V80(v80::handshake::EntryHandshake, MessageCipher, Profile),
    /// 0x81.
    V81(Box<v81::handshake::EntryHandshake>),
}

/// A login of the side that a role speaks.
#[derive(Debug)]
pub enum Login {
    /// The server's side.
    Exit(ExitLogin),
    /// The inter-server's side.
    Entry(EntryLogin),
}

/// Proof that a login has passed on one tunnel. Only a login makes one, and a link takes it away.
#[derive(Debug)]
pub enum Proof {
    /// 0x80.
    V80(v80::handshake::Authenticated, MessageCipher, Profile),
    /// 0x81.
    V81(Box<v81::handshake::Authenticated>),
}

/// What a login is after a piece of input.
#[derive(Debug)]
pub enum Progress<L> {
    /// All input is used and more is awaited.
    More(L),
    /// The tunnel may be used; bytes left in the input are its first.
    Done(Proof),
}

/// Why a login ends its tunnel.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// On 0x80.
    #[error(transparent)]
    V80(#[from] v80::handshake::HandshakeError),
    /// On 0x81.
    #[error(transparent)]
    V81(#[from] v81::handshake::HandshakeError),
}

impl Protocol {
    /// The version byte.
    #[must_use]
    pub const fn version(&self) -> u8 {
        match self {
            Self::V80 { .. } => v80::handshake::VERSION,
            Self::V81 { .. } => v81::VERSION,
        }
    }

    /// Whether flows share tunnels freely: on 0x80 an (ip, port) carries one at a time, and a full one holds up the others.
    #[must_use]
    pub const fn has_streams(&self) -> bool {
        matches!(self, Self::V81 { .. })
    }

    /// Whether the other end is one of the author's own programs.
    #[must_use]
    pub const fn is_original(&self) -> bool {
        matches!(self, Self::V80 { profile: Profile::Original, .. })
    }

    /// Whether the key of a login is still one of ours, under the same name: logins take a while, and keys are withdrawn meanwhile.
    #[must_use]
    pub fn still_holds(&self, proof: &Proof) -> bool {
        match (self, proof) {
            (Self::V81 { keys, .. }, Proof::V81(proof)) => match (&proof.name, &proof.keys) {
                (Some(name), Some(then)) => keys.agrees_with(then, name),
                _ => true,
            },
            _ => true,
        }
    }

    /// Whether these are other keys than those we have (0x81).
    #[must_use]
    pub fn differs(&self, new: &v81::handshake::Keys) -> bool {
        matches!(self, Self::V81 { keys, .. } if keys.iter().any(|(name, _)| !new.agrees_with(keys, name)))
    }

    /// From now on these keys are good (0x81).
    pub fn set_keys(&mut self, new: Arc<v81::handshake::Keys>) {
        if let Self::V81 { keys, .. } = self {
            *keys = new;
        }
    }

    /// Begins the login of this side; puts into `out` what is to be sent at once. `None`: without a key there is none.
    pub fn login(&self, side: Side, rng: &mut impl Rng, out: &mut Vec<u8>) -> Option<Login> {
        match side {
            Side::Exit => self.exit_login(rng, out).map(Login::Exit),
            Side::Entry => Some(Login::Entry(self.entry_login(rng))),
        }
    }

    /// Begins a login as the server, which speaks first. `None`: without a key there is none.
    pub fn exit_login(&self, rng: &mut impl Rng, out: &mut Vec<u8>) -> Option<ExitLogin> {
        match self {
            Self::V80 { cipher, profile } => {
                let mut challenge = [0; limits::CHALLENGE_BYTES];
                rng.fill_bytes(&mut challenge);
                let handshake = v80::handshake::ExitHandshake::start(cipher.clone(), challenge, out);
                Some(ExitLogin::V80(handshake, cipher.clone(), *profile))
            }
            Self::V81 { keys, methods } => {
                let (_, psk) = keys.iter().next()?;
                Some(ExitLogin::V81(Box::new(v81::handshake::ExitHandshake::start(psk, methods, SETTINGS, out))))
            }
        }
    }

    /// Begins a login as the inter-server.
    pub fn entry_login(&self, rng: &mut impl Rng) -> EntryLogin {
        match self {
            Self::V80 { cipher, profile } => {
                let mut tail = [0; limits::AUTH_TAIL_BYTES];
                rng.fill_bytes(&mut tail);
                EntryLogin::V80(v80::handshake::EntryHandshake::start(cipher.clone(), tail), cipher.clone(), *profile)
            }
            Self::V81 { keys, methods } => {
                let mut nonce = [0; 32];
                rng.fill_bytes(&mut nonce);
                EntryLogin::V81(Box::new(v81::handshake::EntryHandshake::start(Arc::clone(keys), methods, nonce, SETTINGS)))
            }
        }
    }
}

impl ExitLogin {
    /// Takes input in; puts into `out` what is to be sent.
    ///
    /// # Errors
    /// Why the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, LoginError> {
        Ok(match self {
            Self::V80(handshake, cipher, profile) => match handshake.handle(input, out)? {
                v80::handshake::Progress::More(handshake) => Progress::More(Self::V80(handshake, cipher, profile)),
                v80::handshake::Progress::Done(proof) => Progress::Done(Proof::V80(proof, cipher, profile)),
            },
            Self::V81(handshake) => match handshake.handle(input, out)? {
                v81::handshake::Progress::More(handshake) => Progress::More(Self::V81(Box::new(handshake))),
                v81::handshake::Progress::Done(proof) => Progress::Done(Proof::V81(Box::new(proof))),
            },
        })
    }
}

impl ExitLogin {
    /// What it waits for, for the log.
    #[must_use]
    pub fn awaits(&self) -> &'static str {
        match self {
            Self::V80(handshake, ..) => handshake.awaits(),
            Self::V81(handshake) => handshake.awaits(),
        }
    }
}

impl Login {
    /// Whether the next bytes may be a login message, whose answer costs Diffie–Hellman.
    #[must_use]
    pub fn is_costly(&self) -> bool {
        match self {
            Self::Exit(_) => false,
            Self::Entry(login) => login.is_costly(),
        }
    }

    /// Takes input in; puts into `out` what is to be sent.
    ///
    /// # Errors
    /// Why the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, LoginError> {
        Ok(match self {
            Self::Exit(login) => match login.handle(input, out)? {
                Progress::More(login) => Progress::More(Self::Exit(login)),
                Progress::Done(proof) => Progress::Done(proof),
            },
            Self::Entry(login) => match login.handle(input, out)? {
                Progress::More(login) => Progress::More(Self::Entry(login)),
                Progress::Done(proof) => Progress::Done(proof),
            },
        })
    }

    /// What it waits for, for the log.
    #[must_use]
    pub fn awaits(&self) -> &'static str {
        match self {
            Self::Exit(login) => login.awaits(),
            Self::Entry(login) => login.awaits(),
        }
    }

    /// What it means that the other end has closed the connection now; `is_dialled`: it was us who made it.
    #[must_use]
    pub fn closed(&self, is_dialled: bool) -> String {
        match self {
            Self::Exit(ExitLogin::V80(..)) if is_dialled => {
                "closed during the handshake: another key or cipher there, or our address is not in its --allow-servers".to_owned()
            }
            Self::Exit(ExitLogin::V81(handshake)) => handshake.closed().to_string(),
            Self::Entry(EntryLogin::V81(handshake)) => handshake.closed().to_string(),
            Self::Exit(ExitLogin::V80(..)) | Self::Entry(EntryLogin::V80(..)) => format!("closed before {}", self.awaits()),
        }
    }
}

impl EntryLogin {
    /// Takes input in; puts into `out` what is to be sent.
    ///
    /// # Errors
    /// Why the tunnel ends.
    pub fn handle(self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress<Self>, LoginError> {
        Ok(match self {
            Self::V80(handshake, cipher, profile) => match handshake.handle(input, out)? {
                v80::handshake::Progress::More(handshake) => Progress::More(Self::V80(handshake, cipher, profile)),
                v80::handshake::Progress::Done(proof) => Progress::Done(Proof::V80(proof, cipher, profile)),
            },
            Self::V81(handshake) => match handshake.handle(input, out)? {
                v81::handshake::Progress::More(handshake) => Progress::More(Self::V81(Box::new(handshake))),
                v81::handshake::Progress::Done(proof) => Progress::Done(Proof::V81(Box::new(proof))),
            },
        })
    }

    /// Whether the next bytes may be a login message, whose answer costs Diffie–Hellman.
    #[must_use]
    pub fn is_costly(&self) -> bool {
        match self {
            Self::V80(..) => false,
            Self::V81(handshake) => handshake.awaits_login(),
        }
    }

    /// What it waits for, for the log.
    #[must_use]
    pub fn awaits(&self) -> &'static str {
        match self {
            Self::V80(handshake, ..) => handshake.awaits(),
            Self::V81(handshake) => handshake.awaits(),
        }
    }
}

impl Proof {
    /// The name of the key that fitted, at an inter-server of 0x81.
    #[must_use]
    pub fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::V80(..) => None,
            Self::V81(proof) => proof.name.as_ref(),
        }
    }
}
