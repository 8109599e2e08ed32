//! Whether a tunnel's other end is gone although no operation says so: a tunnel that is not read, or whose peer does not read,
//! yields no completion.
//!
//! TCP_USER_TIMEOUT is not the answer: it also counts the time in which a living peer keeps its window shut, so a destination that
//! does not read for half a minute would cost its tunnel. What tells the two apart is that a living peer acknowledges probes.
#![expect(unsafe_code, reason = "std and socket2 have neither poll nor TCP_INFO")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// Time without an acknowledgement, while some is awaited, from which on retransmissions count.
const SILENT_MS: u32 = 30_000;
/// Retransmissions in a row without an answer: 12 s of them with the kernel's shortest time-out.
const RETRANSMISSIONS: u8 = 6;
/// Window probes in a row without an answer. One may just have left.
const PROBES: u8 = 2;
/// TCP_CLOSE, as TCP_INFO has it.
const CLOSED: u8 = 7;

/// Whether the connection has failed, or nothing has come back for too long.
pub(super) fn is_lost(socket: impl AsFd) -> bool {
    let descriptor = socket.as_fd().as_raw_fd();
    has_failed(descriptor) || is_silent(descriptor)
}

fn has_failed(descriptor: i32) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
    // SAFETY: one pollfd is named, it lives through the call, and with a time of 0 the call does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

/// How many bytes, the end counted as one, have not been acknowledged; none of a connection that is over.
pub(super) fn unsent(socket: impl AsFd) -> usize {
    let descriptor = socket.as_fd().as_raw_fd();
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which lives through the call.
    let result = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut bytes) };
    // After a reset the count stays what it was.
    if result != 0 || tcp_info(descriptor).is_some_and(|info| info.tcpi_state == CLOSED) {
        return 0;
    }
    usize::try_from(bytes).unwrap_or_default()
}

fn is_silent(descriptor: i32) -> bool {
    tcp_info(descriptor).is_some_and(|info| {
        info.tcpi_last_ack_recv >= SILENT_MS && (info.tcpi_retransmits >= RETRANSMISSIONS || info.tcpi_probes >= PROBES)
    })
}

fn tcp_info(descriptor: i32) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: the value is as long as said and lives through the call; the kernel writes at most that.
    let result = unsafe { libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    if result != 0 {
        return None;
    }
    // SAFETY: all fields are integers, zeroed before the call, so the value is initialised however much the kernel wrote.
    Some(unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (here, listener.accept().unwrap().0)
    }

    #[test]
    fn a_peer_that_lives_and_does_not_read_is_not_lost() {
        let (mut here, there) = pair();
        here.set_nonblocking(true).unwrap();
        while here.write(&[0; 65_536]).is_ok() {}
        assert!(!is_lost(&here));
        assert!(!is_lost(&there));
    }

    #[test]
    fn a_reset_is_seen_without_an_operation() {
        let (here, there) = pair();
        socket2::SockRef::from(&there).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(there);
        // The reset comes over loopback; nothing else can be awaited that would not take it.
        while !is_lost(&here) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_are_unsent_until_the_other_end_has_them_and_none_are_once_it_is_gone() {
        let (mut here, there) = pair();
        assert_eq!(unsent(&here), 0);
        here.set_nonblocking(true).unwrap();
        while here.write(&[0; 65_536]).is_ok() {}
        assert!(unsent(&here) > 0);
        socket2::SockRef::from(&there).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(there);
        while unsent(&here) > 0 {
            std::thread::yield_now();
        }
    }
}
