//! Both sides of 0x81's handshake: any split of any input gives the same answers, the same outcome and the same rest, and nothing but the very
//! bytes of a peer with the key gets in. The input is laid over a conversation that passes, so that zeros pass and the fuzzer sees every state.
#![no_main]

mod pieces;

use std::sync::{Arc, LazyLock};

use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, HandshakeError, Keys, Progress, Psk};
use zhwkprox::protocol::v81::settings::Settings;

enum Side {
    Exit(ExitHandshake),
    Entry(EntryHandshake),
}

/// The same bytes every time: its ephemeral keys are given.
fn start(exit: bool, said: &mut Vec<u8>) -> Side {
    let psk = Psk::new(&[7; 32]);
    if exit {
        return Side::Exit(ExitHandshake::start_with_known_ephemeral(&psk, &Method::ALL, Settings::default(), [1; 32], said));
    }
    let keys = Arc::new(Keys::new([("other".into(), Psk::new(&[8; 32])), ("fits".into(), psk)]).unwrap());
    let allowed = [Method::Aes256Gcm, Method::ChaCha20Poly1305];
    Side::Entry(EntryHandshake::start_with_known_ephemeral(keys, &allowed, [3; 32], Settings::default(), [2; 32]))
}

fn handle(side: Side, input: &mut &[u8], said: &mut Vec<u8>) -> Result<Result<Authenticated, Side>, HandshakeError> {
    Ok(match side {
        Side::Exit(exit) => match exit.handle(input, said)? {
            Progress::More(exit) => Err(Side::Exit(exit)),
            Progress::Done(authenticated) => Ok(authenticated),
        },
        Side::Entry(entry) => match entry.handle(input, said)? {
            Progress::More(entry) => Err(Side::Entry(entry)),
            Progress::Done(authenticated) => Ok(authenticated),
        },
    })
}

/// What each side receives in a conversation that passes: (exit, entry).
static PASSES: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let (mut all_to_exit, mut all_to_entry, mut to_exit, mut to_entry) = (vec![], vec![], vec![], vec![]);
    let mut sides = [Some(start(true, &mut to_entry)), Some(start(false, &mut Vec::new()))];
    while sides.iter().any(Option::is_some) {
        let arrived = std::mem::take(&mut to_entry);
        all_to_entry.extend_from_slice(&arrived);
        sides[1] = sides[1].take().and_then(|entry| handle(entry, &mut arrived.as_slice(), &mut to_exit).unwrap().err());
        let arrived = std::mem::take(&mut to_exit);
        all_to_exit.extend_from_slice(&arrived);
        sides[0] = sides[0].take().and_then(|exit| handle(exit, &mut arrived.as_slice(), &mut to_entry).unwrap().err());
    }
    (all_to_exit, all_to_entry)
});

/// What one side said, how it ended (`None`: it awaits more), and how many bytes it left.
type Outcome = (Vec<u8>, Option<Result<(Method, Settings), HandshakeError>>, Vec<u8>);

fn run<'a>(exit: bool, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut said = Vec::new();
    let mut side = Some(start(exit, &mut said));
    let (mut end, mut rest) = (None, Vec::new());
    for piece in pieces {
        let mut input = piece;
        if let Some(handshake) = side.take() {
            match handle(handshake, &mut input, &mut said) {
                Ok(Err(more)) => {
                    assert!(input.is_empty(), "all is used before more is asked for");
                    side = Some(more);
                }
                Ok(Ok(authenticated)) => end = Some(Ok((authenticated.method, authenticated.peer))),
                Err(error) => end = Some(Err(error)),
            }
        }
        // What follows an error is nobody's.
        if !matches!(end, Some(Err(_))) {
            rest.extend_from_slice(input);
        }
    }
    (said, end, rest)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let exit = mode & 1 == 1;
    let (cuts, laid) = pieces::cut(data);
    let passes = if exit { &PASSES.0 } else { &PASSES.1 };
    let mut input = passes.clone();
    input.resize(input.len().max(laid.len()), 0);
    for (to, from) in input.iter_mut().zip(laid) {
        *to ^= from;
    }

    let whole = run(exit, std::iter::once(input.as_slice()));
    let cut = run(exit, pieces::pieces(&input, &cuts.iter().map(|at| (*at).min(input.len())).collect::<Vec<_>>()));
    assert_eq!(whole, cut);
    let unchanged = laid.iter().take(passes.len()).all(|byte| *byte == 0);
    assert_eq!(unchanged, matches!(whole.1, Some(Ok(_))), "its peer's very bytes get in, and nothing else does");
    if unchanged {
        assert_eq!(whole.2, input[passes.len()..], "what follows stays");
    }
    assert!(whole.0.len() <= if exit { 5 + 49 + 40 } else { 34 + 49 + 34 }, "few bytes are ever said");
});
