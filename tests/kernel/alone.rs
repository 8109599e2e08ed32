//! What needs a process to itself: its table of descriptors, or its network. Each test starts itself again as a child.
#![expect(unsafe_code, reason = "sets limits, and acts between fork and exec")]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use zhwkprox::shard::buffers::Chunk;
use zhwkprox::shard::io::{Errno, Kind, Op, Purpose};

use super::support::{Rig, listener, sent, token};

/// Set in the child.
const CHILD: &str = "ZHWKPROX_TEST_CHILD";

/// Says whether this is the child. The parent runs it, and fails when it fails.
fn is_child(test: &str, prepare: impl FnOnce(&mut Command)) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    // This module's own path, behind the name of the program.
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

fn descriptors() -> usize {
    // One of them is the folder being read.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

fn limit_descriptors(to: usize) {
    let limit = libc::rlimit { rlim_cur: to as u64, rlim_max: 4096 };
    // SAFETY: reads a structure that lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn without_descriptors_accepts_and_connects_fail_at_once_and_work_when_there_are_some_again() {
    let test = "without_descriptors_accepts_and_connects_fail_at_once_and_work_when_there_are_some_again";
    if !is_child(test, |_| {}) {
        return;
    }
    let mut rig = Rig::new(8);
    let (ours, address) = listener();
    let listening = rig.adopt(ours);
    let client = TcpStream::connect(address).unwrap();
    let mut in_the_way = Vec::new();
    limit_descriptors(descriptors() + 20);
    while let Ok(file) = std::fs::File::open("/dev/null") {
        in_the_way.push(file);
    }
    for _ in 0..3 {
        let into = rig.accept(listening);
        assert_eq!(rig.wait(Kind::Accept, into).result, Err(Errno(libc::EMFILE)));
        let socket = rig.connect(address, None, Purpose::Flow);
        assert_eq!(rig.wait(Kind::Connect, socket).result, Err(Errno(libc::EMFILE)));
    }
    limit_descriptors(4096);
    // The client that waited is served now.
    let into = rig.accept(listening);
    assert_eq!(rig.wait(Kind::Accept, into).result, Ok(0));
    rig.send(into, Chunk::copy_of(b"x"), true);
    assert_eq!(sent(rig.wait(Kind::Send, into)).0, Ok(1));
    rig.close(into, false);
    assert_eq!(super::support::read_to_end(&client), b"x");
}

#[test]
fn connects_that_fail_say_why_and_leave_no_descriptor_behind() {
    if !is_child("connects_that_fail_say_why_and_leave_no_descriptor_behind", |_| {}) {
        return;
    }
    let mut rig = Rig::new(8);
    let (ours, closed) = listener();
    drop(ours);
    let six = SocketAddr::new("::1".parse().unwrap(), closed.port());
    let before = descriptors();
    let mut failure = |to, from| {
        let socket = rig.connect(to, from, Purpose::Tunnel);
        (socket, rig.wait(Kind::Connect, socket).result.unwrap_err())
    };
    let mut ids = Vec::new();
    for _ in 0..100 {
        let (id, error) = failure(closed, None);
        assert_eq!(error, Errno(libc::ECONNREFUSED));
        ids.push(id);
        // Not an address of this machine.
        assert_eq!(failure(closed, Some("192.0.2.1")).1, Errno(libc::EADDRNOTAVAIL));
        // A source that cannot reach the target's family: refused, never dialled from elsewhere.
        assert_eq!(failure(six, Some("127.0.0.1")).1, Errno(libc::EAFNOSUPPORT));
    }
    assert_eq!(descriptors(), before);
    // The ids are free without a close.
    let (listening, to) = listener();
    for socket in ids {
        let token = token(Kind::Connect, socket);
        rig.ring.submit(Op::Connect { socket, to, from: None, purpose: Purpose::Flow, token });
        assert_eq!(rig.wait(Kind::Connect, socket).result, Ok(0));
        drop(listening.accept().unwrap());
        rig.close(socket, false);
    }
    drop(listening);
    assert_eq!(descriptors(), before);
}

#[test]
fn a_network_without_a_route_says_unreachable() {
    let unshare = |command: &mut Command| {
        let leave = || {
            // SAFETY: an integer only; a namespace of users makes that of the network possible for everybody.
            match unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: makes one system call and allocates nothing.
        unsafe { command.pre_exec(leave) };
    };
    if !is_child("a_network_without_a_route_says_unreachable", unshare) {
        return;
    }
    let mut rig = Rig::new(8);
    // For IPv6 the kernel finds that there is no address to come from before it finds that there is no route.
    for (to, error) in [("192.0.2.1:80", libc::ENETUNREACH), ("[2001:db8::1]:80", libc::EADDRNOTAVAIL)] {
        let socket = rig.connect(to.parse().unwrap(), None, Purpose::Flow);
        assert_eq!(rig.wait(Kind::Connect, socket).result, Err(Errno(error)), "{to}");
    }
}

#[test]
fn fifty_rings_leave_no_descriptor_behind() {
    if !is_child("fifty_rings_leave_no_descriptor_behind", |_| {}) {
        return;
    }
    // What there is once in a process: tokio's for signals.
    drop(Rig::new(2));
    let before = descriptors();
    for _ in 0..50 {
        let mut rig = Rig::new(2);
        let (socket, _peer) = rig.tcp();
        rig.receive(socket);
        assert!(rig.poll().is_empty());
    }
    assert_eq!(descriptors(), before);
}
