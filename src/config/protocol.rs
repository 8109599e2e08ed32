//! The protocol to speak, and what each protocol needs: 0x81 its keys and the ciphers it may use, 0x80 one key, one cipher, an IV and
//! the other end's profile. What belongs to the other protocol is refused, with both named.

use std::path::Path;
use std::sync::Arc;

use super::value::Values;
use super::{ConfigError, missing, parse};
use crate::crypto::aead;
use crate::crypto::fixed_iv::{MessageCipher, Method};
use crate::keys::v80::Key;
use crate::keys::v81::{KeyFile, KeyRing};
use crate::keys::{KeyError, looks_like_a_key};
use crate::protocol::login;
use crate::protocol::v80::Profile;

/// What tunnels speak.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// 0x80.
    V80 {
        /// Key, cipher and IV.
        cipher: MessageCipher,
        /// Who is on the other end.
        profile: Profile,
    },
    /// 0x81.
    V81 {
        /// The keys and their files: a server's one, an inter-server's one for each exit.
        keys: KeyRing,
        /// The ciphers that may be used, most wanted first.
        methods: Vec<aead::Method>,
    },
}

/// A protocol without what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V80,
    V81,
}

/// How many keys somebody may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KeyFiles {
    /// A server: its own.
    One,
    /// An inter-server: one for each exit, with the exit's name.
    Named,
}

impl Version {
    /// What one gets without asking is the safe one: 0x80 has to be asked for by name.
    pub(super) fn read(values: &Values) -> Result<Self, ConfigError> {
        let version = values.one("protocol", |text| match text {
            "0x80" => Ok(Self::V80),
            "0x81" => Ok(Self::V81),
            _ => Err("0x81 (what one gets without it), or 0x80".to_owned()),
        })?;
        Ok(version.unwrap_or(Self::V81))
    }
}

impl Protocol {
    /// As the shards take it.
    #[must_use]
    pub fn for_tunnels(self) -> login::Protocol {
        match self {
            Self::V80 { cipher, profile } => login::Protocol::V80 { cipher, profile },
            Self::V81 { keys, methods } => login::Protocol::V81 { keys: Arc::clone(keys.keys()), methods: methods.into() },
        }
    }

    /// Whose program is on the other end; with 0x81 always ours.
    #[must_use]
    pub const fn profile(&self) -> Profile {
        match self {
            Self::V80 { profile, .. } => *profile,
            Self::V81 { .. } => Profile::Ours,
        }
    }

    pub(super) fn read(values: &Values, files: KeyFiles, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        match Version::read(values)? {
            Version::V80 => Self::read_v80(values, warnings),
            Version::V81 => Self::read_v81(values, files, warnings),
        }
    }

    fn read_v80(values: &Values, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let profile = values.one("profile", parse::profile)?.unwrap_or(Profile::Ours);
        let original = profile == Profile::Original;
        let method = values.one("cipher", |text| match parse::method(text)? {
            Method::Aes128Cfb => Ok(Method::Aes128Cfb),
            _ if original => Err("aes-128-cfb with --profile original".to_owned()),
            method => Ok(method),
        })?;
        let method = method.unwrap_or(if original { Method::Aes128Cfb } else { Method::Aes128Ctr });
        let iv = values.one_unseen("iv", parse::iv)?.unwrap_or(parse::DEFAULT_IV);
        let written = values.written("key-file");
        let Some(file) = written.first() else {
            return Err(missing("--key-file FILE", "make one with `zhwkprox keygen --protocol 0x80 --out FILE`"));
        };
        if written.len() > 1 {
            let message = format!("got {} key files, expected one with protocol 0x80 (several are for protocol 0x81)", written.len());
            return Err(file.error("key-file", &message));
        }
        let path = file.resolve(Path::new(&file.text));
        let (key, warning) = Key::load(&path, method.key_bytes(), &method.to_string()).map_err(|error| file.error("key-file", &error))?;
        warnings.extend(warning);
        let cipher = MessageCipher::new(method, key.bytes(), iv).map_err(|error| file.error("key-file", &error))?;
        Ok(Self::V80 { cipher, profile })
    }

    fn read_v81(values: &Values, files: KeyFiles, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        for name in ["profile", "iv"] {
            if values.has(name) {
                let message = format!("is for protocol 0x80, got protocol 0x81. cure: leave {name} out, or choose --protocol 0x80");
                return Err(values.error(name, &message));
            }
        }
        let methods = values.one("cipher", parse::methods)?.unwrap_or_else(|| aead::Method::by_speed().to_vec());
        let written = values.written("key-file");
        if written.is_empty() {
            return Err(missing("--key-file FILE", "make one with `zhwkprox keygen --out FILE`"));
        }
        if let Some(value) = written.iter().find(|value| looks_like_a_key(&value.text)) {
            return Err(value.error("key-file", &KeyError::KeyInsteadOfPath));
        }
        let mut named = match files {
            KeyFiles::One => written.iter().map(|value| KeyFile::only(value.text.as_str().into())).collect(),
            KeyFiles::Named => values.all("key-file", KeyFile::parse)?,
        };
        for (file, value) in named.iter_mut().zip(written) {
            file.path = value.resolve(&file.path);
        }
        let (keys, found) = KeyRing::read(named).map_err(|error| values.error("key-file", &error))?;
        warnings.extend(found);
        Ok(Self::V81 { keys, methods })
    }
}
