//! The client's side of [`Origin`]: whole exchanges through the relay, each checked byte by byte at both ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::destination::{Origin, check_pattern, send_pattern};
use super::net::{End, read_to_the_end};
use super::socks::{Target, open};

/// Fetches `len` bytes of `flow`; whole, right and with a clean end, or an error that says what was wrong.
pub(crate) fn download(entry: SocketAddr, origin: &Origin, to: impl Into<Target>, flow: u32, len: u64) -> Result<(), String> {
    let mut stream = open(entry, to).map_err(|e| format!("flow {flow}: not opened: {e}"))?;
    ask_for(&mut stream, flow, len)?;
    receive(&mut stream, origin.seed, flow, len)
}

/// Sends the line that makes an origin send.
pub(crate) fn ask_for(stream: &mut TcpStream, flow: u32, len: u64) -> Result<(), String> {
    stream.write_all(format!("get {flow} {len}\n").as_bytes()).map_err(|e| format!("flow {flow}: cannot ask: {e}"))
}

/// Reads a body that was asked for, and its clean end.
pub(crate) fn receive(stream: &mut TcpStream, seed: u64, flow: u32, len: u64) -> Result<(), String> {
    check_pattern(stream, seed, flow, Some(len)).map_err(|e| format!("flow {flow}: {e}"))??;
    match read_to_the_end(stream) {
        (rest, End::Clean) if rest.is_empty() => Ok(()),
        (rest, end) => Err(format!("flow {flow}: {} bytes too many, end {end:?}", rest.len())),
    }
}

/// Sends `len` bytes of `flow` and reads the destination's verdict.
pub(crate) fn upload(entry: SocketAddr, origin: &Origin, to: impl Into<Target>, flow: u32, len: u64) -> Result<(), String> {
    let mut stream = open(entry, to).map_err(|e| format!("flow {flow}: not opened: {e}"))?;
    let io = |e| format!("flow {flow}: {e}");
    stream.write_all(format!("put {flow} {len}\n").as_bytes()).map_err(io)?;
    send_pattern(&mut stream, origin.seed, flow, len).map_err(io)?;
    verdict(&mut stream, flow, "ok")
}

/// Both directions at the same time.
pub(crate) fn both_ways(entry: SocketAddr, origin: &Origin, to: impl Into<Target>, flow: u32, len: u64) -> Result<(), String> {
    let mut stream = open(entry, to).map_err(|e| format!("flow {flow}: not opened: {e}"))?;
    let io = |e| format!("flow {flow}: {e}");
    stream.write_all(format!("both {flow} {len}\n").as_bytes()).map_err(io)?;
    let seed = origin.seed;
    let mut sender = stream.try_clone().map_err(io)?;
    let sending = std::thread::spawn(move || send_pattern(&mut sender, seed, flow, len));
    let received = check_pattern(&mut stream, seed, flow, Some(len));
    // A reset is told once, to whichever thread asks first: behind a failed write, reading finds a plain end.
    let sent = sending.join().unwrap();
    if let Ok(Err(wrong)) = &received
        && wrong.contains("wrong byte")
    {
        return Err(wrong.clone());
    }
    sent.map_err(io)?;
    received.map_err(io)??;
    verdict(&mut stream, flow, "ok")
}

/// Reads to the clean end and compares.
pub(crate) fn verdict(stream: &mut TcpStream, flow: u32, expected: &str) -> Result<(), String> {
    let (answer, end) = read_to_the_end(stream);
    let answer = String::from_utf8_lossy(&answer);
    if answer == expected && end == End::Clean {
        Ok(())
    } else {
        Err(format!("flow {flow}: the destination's verdict is {answer:?}, end {end:?}; expected {expected:?}"))
    }
}

/// A flow to an echo, proved by one round trip.
pub(crate) fn open_echo(entry: SocketAddr, to: impl Into<Target>) -> Result<TcpStream, String> {
    let mut stream = open(entry, to).map_err(|e| format!("echo not opened: {e}"))?;
    stream.write_all(b"echo\n").map_err(|e| e.to_string())?;
    round_trip(&mut stream, b"first")?;
    Ok(stream)
}

/// Sends and reads the same back.
pub(crate) fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).map_err(|e| format!("cannot send to the echo: {e}"))?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).map_err(|e| format!("no echo: {e}"))?;
    if back == bytes { Ok(()) } else { Err("the echo is wrong".into()) }
}

/// Ends an echo from our side and waits for its clean end.
pub(crate) fn close_echo(mut stream: TcpStream) -> Result<(), String> {
    stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    match read_to_the_end(&mut stream) {
        (rest, End::Clean) if rest.is_empty() => Ok(()),
        (rest, end) => Err(format!("echo: {} bytes left over, end {end:?}", rest.len())),
    }
}

/// Runs `count` pieces of work on as many threads and collects what went wrong.
pub(crate) fn in_parallel(count: usize, work: impl Fn(usize) -> Result<(), String> + Sync) -> Vec<String> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..count).map(|i| std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, move || work(i)).unwrap()).collect();
        threads.into_iter().filter_map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into())).err()).collect()
    })
}

/// Runs `count` pieces of work on `threads` threads and collects what went wrong, at most a few.
pub(crate) fn in_turns(threads: usize, count: usize, work: impl Fn(usize) -> Result<(), String> + Sync) -> Vec<String> {
    let mut wrong = in_parallel(threads, |thread| {
        let failed: Vec<String> = (thread..count).step_by(threads).filter_map(|i| work(i).err()).take(3).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    });
    wrong.truncate(5);
    wrong
}

/// Nothing went wrong.
pub(crate) fn all_well(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} went wrong, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

/// The usual proof that the relay works: one small download.
pub(crate) fn works(entry: SocketAddr) {
    let origin = Origin::new();
    download(entry, &origin, origin.address(), 1, 100_000).unwrap();
}
