//! The sockets of one thread on its ring: connect, accept, receive, send, and a clock without the millisecond grain of tokio's timers.
//!
//! What always holds: an operation owns its buffer and its socket until it is complete, and no operation is dropped before that
//! (tokio-uring cancels nothing: a dropped receive would swallow the next bytes). What has to end early is ended by shutting its socket
//! down. A runtime is dropped only when no operation is left; otherwise it is leaked.

use std::cell::Cell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio_uring::{OneshotOutputTransform, Runtime, UnsubmittedOneshot};

/// Entries of the submission queue. Small, since operations wait in it while other tasks are ready: a full one is flushed.
const ENTRIES: u32 = 64;

/// Completions that fit: more than this thread ever has under way in a step, so that the kernel need not set any aside.
const COMPLETIONS: u32 = 32768;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// POLLIN.
const READABLE: u32 = 1;

/// One end of a connection, or a listener.
#[derive(Debug)]
pub struct Conn {
    socket: Socket,
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// What an operation keeps alive.
struct Held<B> {
    _socket: Rc<Conn>,
    buffer: B,
}

struct Give<D>(std::marker::PhantomData<D>);

impl<D> OneshotOutputTransform for Give<D> {
    type Output = (io::Result<usize>, D);
    type StoredData = D;
    fn transform_oneshot_output(self, data: D, cqe: cqueue::Entry) -> Self::Output {
        (usize::try_from(cqe.result()).map_err(|_| io::Error::from_raw_os_error(-cqe.result())), data)
    }
}

/// A runtime with the flags that cost the least; older kernels do without.
///
/// # Errors
/// When the kernel gives no ring.
pub fn runtime() -> io::Result<Runtime> {
    let mut best = tokio_uring::uring_builder();
    best.setup_coop_taskrun().setup_single_issuer().setup_submit_all().setup_cqsize(COMPLETIONS);
    let mut plain = tokio_uring::uring_builder();
    plain.setup_cqsize(COMPLETIONS);
    let with = |ring: &io_uring::Builder| Runtime::new(tokio_uring::builder().entries(ENTRIES).uring_builder(ring));
    with(&best).or_else(|_| with(&plain))
}

/// Waits, to the microsecond.
pub async fn sleep(time: Duration) {
    let spec = Box::new(types::Timespec::from(time));
    let entry = opcode::Timeout::new(&raw const *spec).build();
    // ETIME is how a timeout ends.
    let _ended = run(spec, entry).await;
}

/// A listener that other threads of this process may share.
///
/// # Errors
/// Those of socket, bind and listen.
pub fn listen(at: SocketAddr) -> io::Result<Rc<Conn>> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(Rc::new(Conn { socket, received: Cell::new(0), sent: Cell::new(0) }))
}

impl Conn {
    /// A socket that can be connected to `to`.
    ///
    /// # Errors
    /// Those of socket.
    pub fn towards(to: SocketAddr) -> io::Result<Rc<Self>> {
        Self::new(Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?).map(Rc::new)
    }

    /// Connects it.
    ///
    /// # Errors
    /// Those of connect.
    pub async fn connect(self: &Rc<Self>, to: SocketAddr) -> io::Result<()> {
        let address = Box::new(SockAddr::from(to));
        let entry = opcode::Connect::new(self.fd(), address.as_ptr().cast(), address.len()).build();
        run(Held { _socket: Rc::clone(self), buffer: address }, entry).await.0.map(|_| ())
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_tcp_nodelay(true)?;
        Ok(Self { socket, received: Cell::new(0), sent: Cell::new(0) })
    }

    /// Takes the next client of this listener. The ring says when there is one: an accept on the ring takes its descriptor before it
    /// waits, and so fails at once, again and again, when there is none left.
    ///
    /// # Errors
    /// Those of accept, and invalid argument once the listener is shut down.
    pub async fn accept(self: &Rc<Self>) -> io::Result<Rc<Self>> {
        loop {
            match self.socket.accept() {
                Ok((socket, _)) => return Ok(Rc::new(Self::new(socket)?)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let entry = opcode::PollAdd::new(self.fd(), READABLE).build();
            let (done, held) = run(Held { _socket: Rc::clone(self), buffer: () }, entry).await;
            let () = held.buffer;
            done?;
        }
    }

    /// Receives into all of `buffer`, at most; 0 bytes are the end.
    pub async fn recv(self: &Rc<Self>, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.recv_at(buffer, 0, 0).await
    }

    /// Receives behind the first `from` bytes of `buffer`.
    pub async fn recv_behind(self: &Rc<Self>, buffer: Vec<u8>, from: usize) -> (io::Result<usize>, Vec<u8>) {
        self.recv_at(buffer, from, 0).await
    }

    /// Receives until `buffer` is full, or the end.
    pub async fn recv_full(self: &Rc<Self>, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.recv_at(buffer, 0, libc::MSG_WAITALL).await
    }

    /// Sends all of `buffer`.
    pub async fn send(self: &Rc<Self>, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(self.fd(), buffer.as_ptr(), len).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        let (done, held) = run(Held { _socket: Rc::clone(self), buffer }, entry).await;
        let done = done.and_then(|sent| {
            self.sent.set(self.sent.get() + sent as u64);
            let short = || io::Error::new(io::ErrorKind::WriteZero, format!("{sent} of {len} bytes were taken"));
            if sent as u64 == u64::from(len) { Ok(()) } else { Err(short()) }
        });
        (done, held.buffer)
    }

    /// Ends both ways at once: operations under way complete.
    pub fn shutdown(&self) {
        // Of a socket that is not connected any more there is nothing left to end.
        let _gone = self.socket.shutdown(Shutdown::Both);
    }

    /// Lets the close at the end be a reset, which leaves no TIME_WAIT.
    pub fn reset_on_close(&self) {
        let _best_effort = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Bytes received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes moved so far, both ways: what does not change while a connection stalls.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.received.get() + self.sent.get()
    }

    /// The address of this end.
    ///
    /// # Errors
    /// Those of getsockname.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
    }

    async fn recv_at(self: &Rc<Self>, mut buffer: Vec<u8>, from: usize, flags: i32) -> (io::Result<usize>, Vec<u8>) {
        let room = &mut buffer[from..];
        let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(self.fd(), room.as_mut_ptr(), len).flags(flags).build();
        let (done, held) = run(Held { _socket: Rc::clone(self), buffer }, entry).await;
        if let Ok(len) = &done {
            self.received.set(self.received.get() + *len as u64);
        }
        (done, held.buffer)
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_raw_fd())
    }
}

async fn run<D: Unpin + 'static>(data: D, entry: squeue::Entry) -> (io::Result<usize>, D) {
    UnsubmittedOneshot::new(data, Give(std::marker::PhantomData), entry).submit().await
}
