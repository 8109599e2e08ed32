//! The record ciphers of protocol 0x81 and the keys that they run through: one [`Sealer`] and one [`Opener`] per tunnel and direction, which
//! count records and step to the next key by counting.
//!
//! ```text
//! secret ─┬─ key, iv ──▶ records 0 … 2^20 − 1 of this epoch
//!         └─ next ─────▶ the secret of the next epoch
//! ```
//!
//! What always holds: no nonce is used twice under a key; a secret is wiped as soon as the next stands in its place, and all of them when
//! dropped (the cipher's own schedule too: aws-lc clears what it frees); bytes that did not verify are overwritten before anybody sees them.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use zeroize::Zeroizing;

/// Bytes of a direction's secret, and of the longest key.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a tag, with every method.
pub const TAG_BYTES: usize = 16;
/// Records under one key. Far below what either cipher bears, and a stolen key opens no more than so many.
pub const EPOCH_RECORDS: u32 = 1 << 20;

const KEY_LABEL: &[u8] = b"zhwkprox 0x81 key";
const IV_LABEL: &[u8] = b"zhwkprox 0x81 iv";
const NEXT_LABEL: &[u8] = b"zhwkprox 0x81 next";

/// A record cipher that 0x81 can use. The number is its byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Method {
    /// AES-128 in Galois/counter mode: the default wherever the processor has AES.
    Aes128Gcm = 0x01,
    /// AES-256 in Galois/counter mode.
    Aes256Gcm = 0x02,
    /// ChaCha20-Poly1305, for processors without AES instructions.
    ChaCha20Poly1305 = 0x03,
}

impl Method {
    /// Every method, in the order of their bytes.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Every method, this machine's fastest first.
    #[must_use]
    pub fn by_speed() -> [Self; 3] {
        let aes = [Self::Aes128Gcm, Self::Aes256Gcm];
        if AesSupport::of_this_machine() == AesSupport::None {
            [Self::ChaCha20Poly1305, aes[0], aes[1]]
        } else {
            [aes[0], aes[1], Self::ChaCha20Poly1305]
        }
    }

    /// The method that this byte stands for on the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.byte() == byte)
    }

    /// Its byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Its name in configuration and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no record cipher has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown cipher {got:?}: expected aes-128-gcm, aes-256-gcm or chacha20-poly1305")]
pub struct UnknownMethod {
    /// What was given.
    pub got: String,
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| UnknownMethod { got: name.to_owned() })
    }
}

/// What the processor has for AES.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AesSupport {
    /// Nothing: AES would run in software, a hundred times slower.
    None,
    /// Instructions for one block at a time.
    Instructions,
    /// Instructions for several blocks at a time.
    Vectors,
}

impl AesSupport {
    /// Asks the processor.
    #[must_use]
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        let (one, many) = (is_x86_feature_detected!("aes"), is_x86_feature_detected!("vaes"));
        #[cfg(target_arch = "aarch64")]
        let (one, many) = (std::arch::is_aarch64_feature_detected!("aes"), false);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let (one, many) = (false, false);
        match (one, many) {
            (_, true) => Self::Vectors,
            (true, false) => Self::Instructions,
            (false, false) => Self::None,
        }
    }
}

/// A record that was not made with this key, or not as this one, or was changed on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its tag does not verify")]
pub struct Unauthentic;

/// Seals the records of one direction, one after the other.
///
/// ```
/// use zhwkprox::crypto::aead::{Method, Opener, Sealer, Unauthentic};
///
/// let (mut sealer, mut opener) = (Sealer::new(Method::Aes128Gcm, &[7; 32]), Opener::new(Method::Aes128Gcm, &[7; 32]));
/// let mut first = *b"first";
/// let tag = sealer.seal(b"header", &mut first);
/// opener.open(b"header", &mut first, &tag)?;
/// assert_eq!(&first, b"first");
///
/// let mut second = *b"second";
/// let tag = sealer.seal(b"another", &mut second);
/// assert_eq!(opener.open(b"header", &mut second, &tag), Err(Unauthentic));
/// assert_eq!(second, [0; 6], "nothing of it comes out");
/// # Ok::<(), Unauthentic>(())
/// ```
pub struct Sealer(Epochs);

impl Sealer {
    /// Begins with record 0.
    #[must_use]
    pub fn new(method: Method, secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Epochs::begin(method, secret, EPOCH_RECORDS))
    }

    /// As [`new`](Self::new), with shorter epochs. Nobody else's records would fit, so it is for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_epochs_of(records: u32, method: Method, secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Epochs::begin(method, secret, records))
    }

    /// Enciphers the next record where it lies, bound to `associated`; gives its tag.
    pub fn seal(&mut self, associated: &[u8], plaintext: &mut [u8]) -> [u8; TAG_BYTES] {
        let sealed = self.0.key.seal_in_place_separate_tag(self.0.nonce(), Aad::from(associated), plaintext);
        // The only other outcome would be to send plaintext.
        let tag = sealed.expect("a record is far shorter than what the ciphers refuse");
        self.0.count();
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }
}

/// Opens the records of one direction, one after the other.
pub struct Opener(Epochs);

impl Opener {
    /// Begins with record 0.
    #[must_use]
    pub fn new(method: Method, secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Epochs::begin(method, secret, EPOCH_RECORDS))
    }

    /// As [`new`](Self::new), with shorter epochs. Nobody else's records would fit, so it is for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_epochs_of(records: u32, method: Method, secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Epochs::begin(method, secret, records))
    }

    /// Deciphers the next record where it lies.
    ///
    /// # Errors
    /// It is not the next record of the other side. It is not counted, and its bytes are gone.
    pub fn open(&mut self, associated: &[u8], ciphertext: &mut [u8], tag: &[u8]) -> Result<(), Unauthentic> {
        let opened = self.0.key.open_in_place_separate_tag(self.0.nonce(), Aad::from(associated), tag, ciphertext).is_ok();
        if !opened {
            ciphertext.fill(0);
            return Err(Unauthentic);
        }
        self.0.count();
        Ok(())
    }
}

/// The keys of one direction, in the epoch that it has come to.
struct Epochs {
    method: Method,
    key: LessSafeKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    /// Boxed: moving it would leave copies behind that nobody wipes.
    next: Box<Zeroizing<[u8; SECRET_BYTES]>>,
    /// Of the next record, within the epoch.
    number: u32,
    /// Records of an epoch.
    length: u32,
}

impl Epochs {
    fn begin(method: Method, secret: &[u8; SECRET_BYTES], length: u32) -> Self {
        debug_assert!(length > 0, "an epoch has a record");
        let mut epochs = Self {
            method,
            key: derive_key(method, secret),
            iv: Zeroizing::new([0; NONCE_LEN]),
            next: Box::new(Zeroizing::new([0; SECRET_BYTES])),
            number: 0,
            length,
        };
        epochs.derive_rest(secret);
        epochs
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, number) in nonce[NONCE_LEN - 4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// One record more has gone by; behind the last of an epoch begins the next.
    fn count(&mut self) {
        self.number += 1;
        if self.number == self.length {
            let secret = Zeroizing::new(**self.next);
            self.key = derive_key(self.method, &secret);
            self.derive_rest(&secret);
            self.number = 0;
        }
    }

    fn derive_rest(&mut self, secret: &[u8; SECRET_BYTES]) {
        expand(secret, IV_LABEL, self.method, &mut *self.iv);
        expand(secret, NEXT_LABEL, self.method, &mut **self.next);
    }
}

fn derive_key(method: Method, secret: &[u8; SECRET_BYTES]) -> LessSafeKey {
    let mut key = Zeroizing::new([0; SECRET_BYTES]);
    let key = &mut key[..method.algorithm().key_len()];
    expand(secret, KEY_LABEL, method, key);
    LessSafeKey::new(UnboundKey::new(method.algorithm(), key).expect("a key of its algorithm's length"))
}

/// HKDF-SHA256-Expand(secret, label ‖ method), as many bytes as `out` has.
fn expand(secret: &[u8; SECRET_BYTES], label: &[u8], method: Method, out: &mut [u8]) {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let secret = Prk::new_less_safe(HKDF_SHA256, secret);
    let expanded = secret.expand(&[label, &[method.byte()]], Bytes(out.len())).and_then(|bytes| bytes.fill(out));
    expanded.expect("one block of HKDF at most");
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({}, ..)", self.0.method)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({}, ..)", self.0.method)
    }
}
