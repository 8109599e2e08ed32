//! The cipher of protocol 0x80: AES under one key and one fixed IV, begun afresh for every message. It enciphers in place, piece by
//! piece, and pays for the key schedule once.
//!
//! What always holds: two messages begun from one [`MessageCipher`] never influence each other; the pieces of one message may be cut
//! anywhere; nothing but [`MessageCipher`] holds key material. The keystream, constant though it is, is not kept (that would make a
//! benchmark of 0x80 faster and prove only that 0x80 is weak).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aes::{Aes128Enc, Aes256Enc};
use cipher::consts::U16;
use cipher::{BlockCipherEncrypt, BlockSizeUser, InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper, StreamCipherSeek};
use ctr::flavors::{Ctr32BE, Ctr128BE};
use ctr::{CtrCore, CtrFlavor};

/// Bytes of an AES block, and of the IV.
const BLOCK_BYTES: usize = 16;

/// Blocks of the longest message that a frame's length field can announce (4 GiB).
const LONGEST_MESSAGE_BLOCKS: u32 = 1 << 28;

/// A cipher that 0x80 can use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// AES-128 in counter mode: the default.
    Aes128Ctr,
    /// AES-256 in counter mode.
    Aes256Ctr,
    /// AES-128 in 128-bit cipher feedback: what the author's original programs use.
    Aes128Cfb,
}

impl Method {
    /// Every method, in the order in which they are offered to a user.
    pub const ALL: [Self; 3] = [Self::Aes128Ctr, Self::Aes256Ctr, Self::Aes128Cfb];

    /// Bytes that its key has.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Ctr | Self::Aes128Cfb => 16,
            Self::Aes256Ctr => 32,
        }
    }

    /// Its name in configuration and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Ctr => "aes-128-ctr",
            Self::Aes256Ctr => "aes-256-ctr",
            Self::Aes128Cfb => "aes-128-cfb",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no cipher of 0x80 has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown cipher {got:?}: expected aes-128-ctr, aes-256-ctr or aes-128-cfb")]
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

/// A key that does not fit its cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{method} takes a key of {expected} bytes, got {got}")]
pub struct WrongKeyLength {
    /// The cipher.
    pub method: Method,
    /// Bytes that were given.
    pub got: usize,
    /// Bytes that it takes.
    pub expected: usize,
}

/// Key and IV, ready to begin any number of messages.
///
/// ```
/// use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
///
/// let cipher = MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatch", *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f")?;
/// let mut message = *b"hello, destination";
/// cipher.begin_encrypt().apply(&mut message);
/// assert_eq!(message[..4], [0xc0, 0xf9, 0x1a, 0xce]);
///
/// let mut decryptor = cipher.begin_decrypt();
/// let (first, rest) = message.split_at_mut(5);
/// decryptor.apply(first);
/// decryptor.apply(rest);
/// assert_eq!(&message, b"hello, destination");
/// # Ok::<(), zhwkprox::crypto::fixed_iv::WrongKeyLength>(())
/// ```
#[derive(Clone)]
pub struct MessageCipher {
    method: Method,
    /// Shared by all clones: with room for every implementation of AES it is a kilobyte, and each tunnel has two.
    schedule: Arc<Schedule>,
    iv: [u8; BLOCK_BYTES],
}

/// The expanded key. The `zeroize` feature of `aes` wipes it when it is dropped.
enum Schedule {
    Aes128(Aes128Enc),
    Aes256(Aes256Enc),
}

impl MessageCipher {
    /// Expands the key. Wiping `key` afterwards is the caller's business.
    ///
    /// # Errors
    /// The key is not [`Method::key_bytes`] long.
    pub fn new(method: Method, key: &[u8], iv: [u8; BLOCK_BYTES]) -> Result<Self, WrongKeyLength> {
        let wrong = |_| WrongKeyLength { method, got: key.len(), expected: method.key_bytes() };
        let schedule = match method {
            Method::Aes128Ctr | Method::Aes128Cfb => Schedule::Aes128(Aes128Enc::new_from_slice(key).map_err(wrong)?),
            Method::Aes256Ctr => Schedule::Aes256(Aes256Enc::new_from_slice(key).map_err(wrong)?),
        };
        Ok(Self { method, schedule: Arc::new(schedule), iv })
    }

    /// Which cipher this is.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Begins a message that is to be enciphered.
    #[must_use]
    pub fn begin_encrypt(&self) -> Encryptor<'_> {
        Encryptor { cipher: self, position: self.start() }
    }

    /// Begins a message that is to be deciphered.
    #[must_use]
    pub fn begin_decrypt(&self) -> Decryptor<'_> {
        Decryptor { cipher: self, position: self.start() }
    }

    /// The position before the first byte of a message.
    pub(crate) fn start(&self) -> Position {
        match self.method {
            Method::Aes128Ctr | Method::Aes256Ctr => Position::Counter { bytes: 0 },
            Method::Aes128Cfb => {
                let mut block = self.iv.into();
                match &*self.schedule {
                    Schedule::Aes128(aes) => aes.encrypt_block(&mut block),
                    Schedule::Aes256(aes) => aes.encrypt_block(&mut block),
                }
                Position::Feedback { block: block.into(), used: 0 }
            }
        }
    }

    /// Enciphers the next bytes of the message that stands at `position`.
    pub(crate) fn encrypt_at(&self, position: &mut Position, data: &mut [u8]) {
        match (position, &*self.schedule) {
            (Position::Counter { bytes }, schedule) => self.apply_counter(schedule, bytes, data),
            (Position::Feedback { block, used }, Schedule::Aes128(aes)) => encrypt_feedback(aes, block, used, data),
            (Position::Feedback { block, used }, Schedule::Aes256(aes)) => encrypt_feedback(aes, block, used, data),
        }
    }

    /// Deciphers the next bytes of the message that stands at `position`.
    pub(crate) fn decrypt_at(&self, position: &mut Position, data: &mut [u8]) {
        match (position, &*self.schedule) {
            (Position::Counter { bytes }, schedule) => self.apply_counter(schedule, bytes, data),
            (Position::Feedback { block, used }, Schedule::Aes128(aes)) => decrypt_feedback(aes, block, used, data),
            (Position::Feedback { block, used }, Schedule::Aes256(aes)) => decrypt_feedback(aes, block, used, data),
        }
    }

    /// Counter mode is its own inverse. The counter of 32 bits is 1.5 times as fast and gives the same bytes, unless it wraps.
    fn apply_counter(&self, schedule: &Schedule, bytes: &mut u64, data: &mut [u8]) {
        let low = u32::from_be_bytes([self.iv[12], self.iv[13], self.iv[14], self.iv[15]]);
        let cannot_wrap = low.checked_add(LONGEST_MESSAGE_BLOCKS - 1).is_some();
        match (schedule, cannot_wrap) {
            (Schedule::Aes128(aes), true) => apply_counter_mode::<_, Ctr32BE>(aes, &self.iv, bytes, data),
            (Schedule::Aes128(aes), false) => apply_counter_mode::<_, Ctr128BE>(aes, &self.iv, bytes, data),
            (Schedule::Aes256(aes), true) => apply_counter_mode::<_, Ctr32BE>(aes, &self.iv, bytes, data),
            (Schedule::Aes256(aes), false) => apply_counter_mode::<_, Ctr128BE>(aes, &self.iv, bytes, data),
        }
    }
}

impl fmt::Debug for MessageCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageCipher({}, ..)", self.method)
    }
}

/// How far a message has come. Without the key it is of no use; a feedback block is keystream all the same and is not printed.
#[derive(Clone)]
pub(crate) enum Position {
    /// Counter mode: bytes done.
    Counter { bytes: u64 },
    /// Cipher feedback: the block being mixed in, and how much of it is used.
    Feedback { block: [u8; BLOCK_BYTES], used: usize },
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Position(..)")
    }
}

/// One message on its way out. Fresh from [`MessageCipher::begin_encrypt`].
#[derive(Clone)]
pub struct Encryptor<'a> {
    cipher: &'a MessageCipher,
    position: Position,
}

impl Encryptor<'_> {
    /// Enciphers the next bytes of the message where they lie.
    pub fn apply(&mut self, data: &mut [u8]) {
        self.cipher.encrypt_at(&mut self.position, data);
    }
}

impl fmt::Debug for Encryptor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encryptor({}, ..)", self.cipher.method)
    }
}

/// One message on its way in. Fresh from [`MessageCipher::begin_decrypt`].
#[derive(Clone)]
pub struct Decryptor<'a> {
    cipher: &'a MessageCipher,
    position: Position,
}

impl Decryptor<'_> {
    /// Deciphers the next bytes of the message where they lie.
    pub fn apply(&mut self, data: &mut [u8]) {
        self.cipher.decrypt_at(&mut self.position, data);
    }
}

impl fmt::Debug for Decryptor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decryptor({}, ..)", self.cipher.method)
    }
}

/// Borrows the key schedule for the length of one call: a message costs no key set-up and no copy of 700 bytes of round keys.
fn apply_counter_mode<C, F>(aes: &C, iv: &[u8; BLOCK_BYTES], bytes: &mut u64, data: &mut [u8])
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
    F: CtrFlavor<U16>,
{
    let mut stream = StreamCipherCoreWrapper::from_core(CtrCore::<&C, F>::inner_iv_init(aes, iv.into()));
    if *bytes > 0 {
        stream.seek(*bytes);
    }
    stream.apply_keystream(data);
    *bytes += data.len() as u64;
}

fn encrypt_feedback<C>(aes: &C, block: &mut [u8; BLOCK_BYTES], used: &mut usize, data: &mut [u8])
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut stream = cfb_mode::BufEncryptor::from_state(aes, (&*block).into(), *used);
    stream.encrypt(data);
    let (next, position) = stream.get_state();
    (*block, *used) = ((*next).into(), position);
}

fn decrypt_feedback<C>(aes: &C, block: &mut [u8; BLOCK_BYTES], used: &mut usize, data: &mut [u8])
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut stream = cfb_mode::BufDecryptor::from_state(aes, (&*block).into(), *used);
    stream.decrypt(data);
    let (next, position) = stream.get_state();
    (*block, *used) = ((*next).into(), position);
}
