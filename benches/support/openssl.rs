//! OpenSSL's ciphers, from the library that is installed: opened at run time, so that neither building nor testing needs its headers.
//! Like ours, a cipher here expands its key once and begins each message afresh at the same IV, in place.
//!
//! What always holds: a [`Cipher`] owns its context, and the functions it calls come from a library that is never closed.
#![expect(unsafe_code, reason = "calls a C library")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// The library of OpenSSL 3, the only one whose functions are looked for.
const LIBRARY: &CStr = c"libcrypto.so.3";

type Fetch = unsafe extern "C" fn() -> *const c_void;
type New = unsafe extern "C" fn() -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type Init = unsafe extern "C" fn(*mut c_void, *const c_void, *mut c_void, *const u8, *const u8, c_int) -> c_int;
type Update = unsafe extern "C" fn(*mut c_void, *mut u8, *mut c_int, *const u8, c_int) -> c_int;

/// A key in OpenSSL's hands.
pub(crate) struct Cipher {
    context: *mut c_void,
    init: Init,
    update: Update,
    free: Free,
    iv: [u8; 16],
}

impl Cipher {
    /// `name` as in `EVP_<name>()`. `None` where the library is not installed.
    pub(crate) fn encryptor(name: &CStr, key: &[u8], iv: [u8; 16]) -> Option<Self> {
        Self::new(name, key, iv, 1)
    }

    /// As [`Self::encryptor`], the other way.
    pub(crate) fn decryptor(name: &CStr, key: &[u8], iv: [u8; 16]) -> Option<Self> {
        Self::new(name, key, iv, 0)
    }

    fn new(name: &CStr, key: &[u8], iv: [u8; 16], encrypts: c_int) -> Option<Self> {
        // SAFETY: the name is a C string; opening a library that may be open already has no other effect.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        // SAFETY: a function without arguments that returns a pointer to a constant, as evp.h has all of its ciphers.
        let fetch: Fetch = unsafe { std::mem::transmute(symbol(library, name)) };
        // SAFETY: the signature in evp.h of OpenSSL 3.
        let new: New = unsafe { std::mem::transmute(symbol(library, c"EVP_CIPHER_CTX_new")) };
        // SAFETY: the same.
        let free: Free = unsafe { std::mem::transmute(symbol(library, c"EVP_CIPHER_CTX_free")) };
        // SAFETY: the same.
        let init: Init = unsafe { std::mem::transmute(symbol(library, c"EVP_CipherInit_ex")) };
        // SAFETY: the same.
        let update: Update = unsafe { std::mem::transmute(symbol(library, c"EVP_CipherUpdate")) };
        // SAFETY: takes nothing; what it returns is static.
        let kind = unsafe { fetch() };
        // SAFETY: takes nothing; what it returns is freed once, when this is dropped.
        let context = unsafe { new() };
        // SAFETY: the context is fresh, and key and IV are as long as the cipher wants: the callers' keys are.
        let result = unsafe { init(context, kind, ptr::null_mut(), key.as_ptr(), iv.as_ptr(), encrypts) };
        assert_eq!(result, 1, "OpenSSL takes {name:?}");
        Some(Self { context, init, update, free, iv })
    }

    /// One message, where it lies.
    pub(crate) fn apply(&mut self, data: &mut [u8]) {
        // SAFETY: no cipher and no key: those of before stay; -1: the direction too. The IV is 16 bytes, as every mode here has.
        let begun = unsafe { (self.init)(self.context, ptr::null(), ptr::null_mut(), ptr::null(), self.iv.as_ptr(), -1) };
        let mut written = 0;
        let length = c_int::try_from(data.len()).expect("a bench's message is short");
        // SAFETY: a stream cipher writes as much as it reads, and in place is allowed; the buffer is `length` bytes long.
        let done = unsafe { (self.update)(self.context, data.as_mut_ptr(), &raw mut written, data.as_ptr(), length) };
        assert!(begun == 1 && done == 1 && written == length, "OpenSSL enciphered {written} of {length} bytes");
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        // SAFETY: it was made by `new` and is freed nowhere else.
        unsafe { (self.free)(self.context) }
    }
}

/// # Panics
/// The library has no such function: it is not OpenSSL 3.
fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    let name: *const c_char = name.as_ptr();
    // SAFETY: the library is open and stays so; the name is a C string.
    let found = unsafe { libc::dlsym(library, name) };
    assert!(!found.is_null(), "libcrypto has a function that OpenSSL 3 should have");
    found
}
