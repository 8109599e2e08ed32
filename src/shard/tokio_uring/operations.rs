//! One task's work per operation: wait until the socket is ready, then do at once what can be done.
//!
//! What always holds:
//! * an entry that names memory asks the kernel not to wait (MSG_DONTWAIT), so it is over with the entering that brings it, and what
//!   waits in the kernel for days names no memory, but for an address that the kernel has copied;
//! * no future of an entry is dropped before its completion: tokio-uring would cancel nothing, and the next bytes would be lost. What has
//!   to end early is cancelled by its descriptor, and looks at [`Socket::cancels`] whenever it would wait;
//! * bytes that were received are reported, cancelled or not.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use io_uring_of_tokio::{cqueue, opcode, squeue, types};
use socket2::{SockAddr, SockRef};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::finished::{Outcome, Queue};
use super::sockets::Socket;
use crate::limits::RECORD_BYTES_MAX;
use crate::shard::buffers::{Arena, Chunk};
use crate::shard::io::{Errno, Payload, Token, outcome_of_connect};

/// POLLIN and POLLOUT, as an entry takes them.
const READABLE: u32 = libc::POLLIN as u32;
const WRITABLE: u32 = libc::POLLOUT as u32;

const CANCELLED: Errno = Errno(libc::ECANCELED);
const AGAIN: Errno = Errno(libc::EAGAIN);
const INTERRUPTED: Errno = Errno(libc::EINTR);

/// A socket as one operation sees it: what was cancelled before the operation began does not concern it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) socket: Rc<Socket>,
    cancels: u32,
}

impl Seen {
    pub(super) fn now(socket: &Rc<Socket>) -> Self {
        Self { cancels: socket.cancels.get(), socket: Rc::clone(socket) }
    }

    fn is_cancelled(&self) -> bool {
        self.socket.cancels.get() != self.cancels
    }

    /// Waits until the socket is ready for `events`.
    async fn ready(&self, events: u32, is_cancelled: impl Fn() -> bool) -> Result<(), Errno> {
        while !is_cancelled() {
            let entry = opcode::PollAdd::new(self.socket.fd(), events).build();
            match run(&self.socket, (), entry).await.0 {
                // Another operation on the socket was cancelled, and the kernel cannot tell the two apart.
                Err(CANCELLED) => {}
                Err(error) => return Err(error),
                Ok(_) if is_cancelled() => break,
                Ok(_) => return Ok(()),
            }
        }
        Err(CANCELLED)
    }

    /// Before an operation that has come here is tried: waits, unless what there was last time makes a try worth it.
    async fn readable(&self) -> Result<(), Errno> {
        if self.socket.more.take() && !self.is_cancelled() {
            return Ok(());
        }
        self.ready(READABLE, || self.is_cancelled()).await
    }
}

/// Takes a connection.
pub(super) async fn accept(listener: &Seen, cancelled: &Cell<bool>) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let is_cancelled = || cancelled.get() || listener.is_cancelled();
    loop {
        // The ring's own accept takes its descriptor before it waits, and so fails at once, again and again, when there is none left.
        listener.ready(READABLE, is_cancelled).await?;
        match SockRef::from(&listener.socket.descriptor).accept() {
            Ok((connection, peer)) => return Ok((connection.into(), peer.as_socket())),
            // Another accept was first.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(Errno::of(&error)),
        }
    }
}

/// Connects a socket that was made for it.
pub(super) async fn connect(seen: &Seen, to: SockAddr) -> Result<u32, Errno> {
    if seen.is_cancelled() {
        return Err(CANCELLED);
    }
    let to = Box::new(to);
    let entry = opcode::Connect::new(seen.socket.fd(), to.as_ptr().cast(), to.len()).build();
    outcome_of_connect(run(&seen.socket, to, entry).await.0)
}

/// Waits for bytes without memory, then takes a slot and receives into it.
pub(super) async fn receive(seen: &Seen, arena: &Arena, max: u32) -> (Result<u32, Errno>, Payload) {
    loop {
        if let Err(error) = seen.readable().await {
            return (Err(error), Payload::None);
        }
        let Some(mut slot) = arena.take() else { return (Err(Errno(libc::ENOBUFS)), Payload::None) };
        let Some(room) = slot.data_mut() else { unreachable!("a slot just taken is shared") };
        let max = max.min(u32::try_from(RECORD_BYTES_MAX).unwrap_or(u32::MAX));
        let entry = opcode::Recv::new(seen.socket.fd(), room.as_mut_ptr(), max).flags(libc::MSG_DONTWAIT).build();
        let (result, flags, slot) = run(&seen.socket, slot, entry).await;
        seen.socket.more.set(cqueue::sock_nonempty(flags));
        match result {
            Err(AGAIN | INTERRUPTED) => {}
            Ok(1..) => return (result, Payload::Received(slot)),
            Ok(0) | Err(_) => return (result, Payload::None),
        }
    }
}

/// Waits for bytes and receives them behind the chunk's end.
pub(super) async fn receive_into(seen: &Seen, mut chunk: Chunk, max: u32) -> (Result<u32, Errno>, Payload) {
    loop {
        if let Err(error) = seen.readable().await {
            return (Err(error), Payload::Filled(chunk));
        }
        let entry = opcode::Recv::new(seen.socket.fd(), chunk.room_mut().as_mut_ptr(), max).flags(libc::MSG_DONTWAIT).build();
        let (result, flags, mut filled) = run(&seen.socket, chunk, entry).await;
        seen.socket.more.set(cqueue::sock_nonempty(flags));
        if !matches!(result, Err(AGAIN | INTERRUPTED)) {
            filled.lengthen(result.map_or(0, |count| count as usize));
            return (result, Payload::Filled(filled));
        }
        chunk = filled;
    }
}

/// Sends what fits now, and, if it is to wait, goes on until everything is taken.
pub(super) async fn send(seen: &Seen, mut chunk: Chunk, wait: bool) -> (Result<u32, Errno>, Chunk) {
    let mut sent = 0;
    // Also when it is cancelled already: what was submitted before a close is sent, as far as it fits.
    loop {
        let rest = &chunk.as_slice()[sent as usize..];
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(seen.socket.fd(), rest.as_ptr(), length).flags(flags).build();
        let (result, _, same) = run(&seen.socket, chunk, entry).await;
        chunk = same;
        let error = match result {
            Ok(count) => {
                sent += count;
                if !wait || sent as usize == chunk.len() {
                    return (Ok(sent), chunk);
                }
                None
            }
            Err(AGAIN | INTERRUPTED) if wait => None,
            Err(error) => Some(error),
        };
        let error = match error {
            None => seen.ready(WRITABLE, || seen.is_cancelled()).await.err(),
            error => error,
        };
        if let Some(error) = error {
            // What has left is told first, as the kernel does when it waits by itself.
            return (if sent > 0 { Ok(sent) } else { Err(error) }, chunk);
        }
    }
}

/// Ends what waits in the kernel on a socket. Whoever waits sees that it is meant by the socket's count of cancels.
///
/// This task must not keep the descriptor open, or the close behind it would not be one. Until the kernel sees the cancel, the entry that it
/// is about does.
pub(super) async fn cancel(socket: Weak<Socket>) {
    let waits = socket.upgrade().filter(|socket| socket.in_kernel.get() > 0);
    if let Some(fd) = waits.map(|socket| socket.fd()) {
        run_for_nobody(opcode::AsyncCancel2::new(types::CancelBuilder::fd(fd).all()).build()).await;
    }
}

/// Reports every ring of the bell.
pub(super) async fn listen_to_bell(seen: &Seen, mut bell: File, queue: &Queue, token: Token) {
    while seen.ready(READABLE, || seen.is_cancelled()).await.is_ok() {
        // The bell is rung, and nobody else reads it: this does not wait. What it says is how often.
        let _ = bell.read(&mut [0; 8]);
        queue.push(token, Outcome::Rung);
    }
}

/// Hands over all entries pushed before and collects what is completed by then.
pub(super) async fn flush() {
    run_for_nobody(opcode::Nop::new().build()).await;
}

/// Cancels everything there is.
pub(super) async fn cancel_all() {
    run_for_nobody(opcode::AsyncCancel2::new(types::CancelBuilder::any()).build()).await;
}

/// Hands an entry to the ring and waits for its completion: result, flags, and what was held meanwhile. `held` owns the memory that the
/// entry names, at an address that does not change when it moves (a box, a slot, a heap buffer).
async fn run<D: Unpin + 'static>(socket: &Rc<Socket>, held: D, entry: squeue::Entry) -> (Result<u32, Errno>, u32, D) {
    socket.in_kernel.set(socket.in_kernel.get() + 1);
    let (result, flags, (held, socket)) = UnsubmittedOneshot::new((held, Rc::clone(socket)), Whole::new(), entry).submit().await;
    socket.in_kernel.set(socket.in_kernel.get() - 1);
    (result, flags, held)
}

/// As [`run`], for an entry that names no memory and whose completion is for nobody.
async fn run_for_nobody(entry: squeue::Entry) {
    let _completion = UnsubmittedOneshot::new((), Whole::new(), entry).submit().await;
}

/// Makes of a completion what it says, and gives back what was held.
struct Whole<D>(PhantomData<D>);

impl<D> Whole<D> {
    const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<D> OneshotOutputTransform for Whole<D> {
    type Output = (Result<u32, Errno>, u32, D);
    type StoredData = D;

    fn transform_oneshot_output(self, held: D, completion: cqueue::Entry) -> Self::Output {
        (u32::try_from(completion.result()).map_err(|_| Errno(-completion.result())), completion.flags(), held)
    }
}
