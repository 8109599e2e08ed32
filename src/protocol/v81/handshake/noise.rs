//! The login: `Noise_NNpsk0_25519_AESGCM_SHA256` through `snow`, the server as initiator, with the curve and the cipher of aws-lc.
//!
//! What always holds: a message that does not verify costs no operation on the curve; private keys and cipher keys are wiped when a login
//! ends, however it ends. (`snow` does not wipe its chaining key: that memory is freed as it is.)

use std::cell::Cell;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use zeroize::Zeroizing;

use super::{HandshakeError, Psk};
use crate::crypto::aead::{SECRET_BYTES, TAG_BYTES};

/// Bytes of either message: an ephemeral key and the tag of an empty payload.
pub(super) const MESSAGE: usize = CURVE_BYTES + TAG_BYTES;
/// Bytes of a pre-shared key.
pub const PSK_BYTES: usize = 32;
/// Bytes of a private and of a public key.
pub(super) const CURVE_BYTES: usize = 32;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

thread_local! {
    static CURVE_OPERATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Operations on the curve (making a key pair, Diffie–Hellman) that this thread's handshakes have cost so far. They are nearly all that a
/// login costs, and nobody without a key can bring one about at an inter-server.
#[must_use]
pub fn curve_operations() -> u64 {
    CURVE_OPERATIONS.get()
}

/// One side of a login.
pub(super) struct Noise(Box<HandshakeState>);

/// What a login leaves: a fresh secret for each direction.
pub(super) struct Secrets {
    pub(super) to_inter_server: Zeroizing<[u8; SECRET_BYTES]>,
    pub(super) to_server: Zeroizing<[u8; SECRET_BYTES]>,
}

impl Noise {
    /// The server's side. `ephemeral` is for tests.
    pub(super) fn initiator(prologue: &[u8], psk: &Psk, ephemeral: Option<&Ephemeral>) -> Result<Self, HandshakeError> {
        let builder = builder(prologue, ephemeral).and_then(|builder| builder.psk(0, psk.bytes()));
        Ok(Self(Box::new(builder.and_then(Builder::build_initiator).map_err(|_| HandshakeError::Unable)?)))
    }

    /// The inter-server's side. `ephemeral` is for tests.
    pub(super) fn responder(prologue: &[u8], ephemeral: Option<&Ephemeral>) -> Result<Self, HandshakeError> {
        let builder = builder(prologue, ephemeral);
        Ok(Self(Box::new(builder.and_then(Builder::build_responder).map_err(|_| HandshakeError::Unable)?)))
    }

    /// Our message.
    pub(super) fn write(&mut self) -> Result<[u8; MESSAGE], HandshakeError> {
        let mut message = [0; MESSAGE];
        match self.0.write_message(&[], &mut message) {
            Ok(MESSAGE) => Ok(message),
            _ => Err(HandshakeError::Unable),
        }
    }

    /// Whether this is the peer's message. If not, nothing has changed, and another may be tried.
    pub(super) fn read(&mut self, message: &[u8; MESSAGE]) -> bool {
        self.0.read_message(message, &mut []).is_ok()
    }

    /// The same, with this key.
    pub(super) fn read_with(&mut self, psk: &Psk, message: &[u8; MESSAGE]) -> bool {
        self.0.set_psk(0, psk.bytes()).is_ok() && self.read(message)
    }

    /// The secrets, once both messages have passed.
    pub(super) fn split(mut self) -> Result<Secrets, HandshakeError> {
        // Asked earlier it would answer too, with something that the peer does not have.
        if !self.0.is_handshake_finished() {
            return Err(HandshakeError::Unable);
        }
        let (first, second) = self.0.dangerously_get_raw_split();
        Ok(Secrets { to_inter_server: Zeroizing::new(first), to_server: Zeroizing::new(second) })
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // Its copy of the pre-shared key is not wiped by `snow`.
        let _ = self.0.set_psk(0, &[0; PSK_BYTES]);
        std::hint::black_box(&mut self.0);
    }
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noise(..)")
    }
}

/// A private key that is given and not made.
pub(super) type Ephemeral = Zeroizing<[u8; CURVE_BYTES]>;

fn builder<'a>(prologue: &'a [u8], ephemeral: Option<&'a Ephemeral>) -> Result<Builder<'a>, Error> {
    let builder = Builder::with_resolver(PATTERN.parse()?, Box::new(Resolver)).prologue(prologue)?;
    Ok(match ephemeral {
        Some(ephemeral) => builder.fixed_ephemeral_key_for_testing_only(&**ephemeral),
        None => builder,
    })
}

/// The curve and the cipher of aws-lc: several times as fast as `snow`'s own, and they clear what they free.
struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::<Curve>::default()),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::AESGCM => Some(Box::new(Gcm(None))),
            _ => None,
        }
    }
}

/// X25519.
#[derive(Default)]
struct Curve {
    private: Option<PrivateKey>,
    public: [u8; CURVE_BYTES],
}

impl Curve {
    fn take(&mut self, private: PrivateKey) -> Result<(), Error> {
        CURVE_OPERATIONS.set(CURVE_OPERATIONS.get() + 1);
        let public = private.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        self.private = Some(private);
        Ok(())
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        CURVE_BYTES
    }

    fn priv_len(&self) -> usize {
        CURVE_BYTES
    }

    fn set(&mut self, private: &[u8]) {
        // One that it does not take leaves none, and Diffie–Hellman fails.
        let _ = PrivateKey::from_private_key(&X25519, private).map(|private| self.take(private));
    }

    fn generate(&mut self, _random: &mut dyn Random) -> Result<(), Error> {
        self.take(PrivateKey::generate(&X25519).map_err(|_| Error::Rng)?)
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    /// Nobody asks for it: the pattern has no static keys.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    /// Fails where the peer's key is one of those few that make every secret the same.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        CURVE_OPERATIONS.set(CURVE_OPERATIONS.get() + 1);
        let private = self.private.as_ref().ok_or(Error::Dh)?;
        let public = UnparsedPublicKey::new(&X25519, public.get(..CURVE_BYTES).ok_or(Error::Dh)?);
        agreement::agree(private, public, Error::Dh, |secret| {
            out.get_mut(..CURVE_BYTES).ok_or(Error::Dh)?.copy_from_slice(secret);
            Ok(())
        })
    }
}

/// AES-256-GCM.
struct Gcm(Option<LessSafeKey>);

impl Gcm {
    fn key(&self) -> &LessSafeKey {
        self.0.as_ref().expect("snow sets a key before it uses it")
    }
}

impl Cipher for Gcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new);
    }

    fn encrypt(&self, nonce: u64, associated: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (ciphertext, rest) = out.split_at_mut(plaintext.len());
        ciphertext.copy_from_slice(plaintext);
        let tag = self.key().seal_in_place_separate_tag(gcm_nonce(nonce), Aad::from(associated), ciphertext);
        rest[..TAG_BYTES].copy_from_slice(tag.expect("a message is short").as_ref());
        plaintext.len() + TAG_BYTES
    }

    fn decrypt(&self, nonce: u64, associated: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (ciphertext, tag) = ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..ciphertext.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(ciphertext);
        let opened = self.key().open_in_place_separate_tag(gcm_nonce(nonce), Aad::from(associated), tag, out);
        opened.map(|plaintext| plaintext.len()).map_err(|_| Error::Decrypt)
    }
}

/// Noise's nonce for AES-GCM: 32 zero bits and the number, big-endian.
fn gcm_nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
