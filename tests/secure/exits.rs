//! Several exits on one inter-server, each with its key: who gets flows, who does not, and how one is shut out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::handshake::{ExitHandshake, Progress, Psk};

use crate::harness::net::{End, connect, read_to_the_end};
use crate::harness::traffic::{open_echo, round_trip, works};
use crate::harness::{Origin, Role, WATCHDOG, await_some};
use crate::peer::{GENEROUS, Peer};
use crate::support::{Entry, Keys, await_tunnels, entry, exit, exit_on};

struct TwoExits {
    keys: Keys,
    entry: Entry,
    exits: [Role; 2],
    origin: Origin,
}

impl TwoExits {
    fn start() -> Self {
        let keys = Keys::new();
        let files = [keys.write("east", 1), keys.write("west", 2)];
        let entry = entry(&files.each_ref().map(|file| file.as_path()), &[]);
        let exits = files.each_ref().map(|file| exit(entry.tunnel, file, &[]));
        await_tunnels(&entry.role, 2);
        Self { keys, entry, exits, origin: Origin::new() }
    }

    fn echo(&self) -> TcpStream {
        open_echo(self.entry.socks, self.origin.address()).unwrap()
    }

    fn flows(&self) -> [u64; 2] {
        self.exits.each_ref().map(|exit| exit.state().flows)
    }
}

/// How many of these flows live; all others have been reset. They are kept out of `echoes` from now on.
fn survivors(echoes: &mut Vec<TcpStream>) -> usize {
    echoes.retain_mut(|echo| {
        let guard = echo.read_timeout().unwrap();
        // A reset is there at once; where there is none nothing comes.
        echo.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (got, end) = read_to_the_end(echo);
        echo.set_read_timeout(guard).unwrap();
        if end == End::Never {
            round_trip(echo, b"still here").unwrap();
            return true;
        }
        assert!(got.is_empty() && end == End::Reset, "{} bytes and {end:?}", got.len());
        false
    });
    echoes.len()
}

#[test]
fn flows_go_to_the_exit_that_has_the_fewest() {
    let here = TwoExits::start();
    let echoes: Vec<_> = (0..20).map(|_| here.echo()).collect();
    assert_eq!(here.flows(), [10, 10]);
    drop(echoes);
    here.entry.role.await_quiet();
}

#[test]
fn an_exit_on_two_cores_gets_twice_the_flows_of_one_on_a_single_core() {
    let keys = Keys::new();
    let files = [keys.write("east", 1), keys.write("west", 2)];
    let entry = entry(&files.each_ref().map(|file| file.as_path()), &[]);
    let exits = [exit_on("0,1", entry.tunnel, &files[0], &[]), exit(entry.tunnel, &files[1], &[])];
    await_tunnels(&entry.role, 3);
    let origin = Origin::new();
    let echoes: Vec<_> = (0..30).map(|_| open_echo(entry.socks, origin.address()).unwrap()).collect();
    assert_eq!(exits.each_ref().map(|exit| exit.state().flows), [20, 10]);
    drop(echoes);
    entry.role.await_quiet();
}

#[test]
fn a_dead_exit_gets_no_flow_and_the_first_and_the_last_are_said() {
    let mut here = TwoExits::start();
    here.entry.role.await_log("the first", |line| line.contains("INFO") && line.contains("server attached from 127.0.0.1"));
    let echoes: Vec<_> = (0..6).map(|_| here.echo()).collect();
    here.exits[0].kill();
    await_tunnels(&here.entry.role, 1);
    let mut ends = Vec::new();
    for mut echo in echoes {
        ends.push(round_trip(&mut echo, b"?").is_ok());
    }
    assert_eq!(ends.iter().filter(|lives| **lives).count(), 3, "{ends:?}");
    for _ in 0..10 {
        works(here.entry.socks);
    }
    assert!(!here.entry.role.log().iter().any(|line| line.contains("no server attached any more")));
    here.exits[1].kill();
    here.entry.role.await_log("the last", |line| line.contains("WARN") && line.contains("no server attached any more"));
}

#[test]
fn an_exit_that_is_stopped_leaves_service_to_the_other_within_half_a_minute() {
    let here = TwoExits::start();
    here.exits[0].signal("STOP");
    let start = Instant::now();
    // Flows that went to it get no answer; soon there is none of these any more.
    let mut in_a_row = 0;
    while in_a_row < 6 {
        let began = Instant::now();
        let socks = here.entry.socks;
        let target = here.origin.address();
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(open_echo(socks, target).is_ok()));
        let is_well = done.recv_timeout(Duration::from_secs(2)).unwrap_or(false);
        in_a_row = if is_well { in_a_row + 1 } else { 0 };
        assert!(start.elapsed() < Duration::from_secs(40), "still not well; this one took {:?}", began.elapsed());
    }
    here.entry.role.await_state("the tunnel of the stopped one gone", |state| state.tunnels == 1);
    assert!(start.elapsed() < Duration::from_secs(40), "it was kept for {:?}", start.elapsed());
    here.exits[0].signal("CONT");
    await_tunnels(&here.entry.role, 2);
}

#[test]
fn a_key_that_has_changed_ends_the_tunnels_under_its_name_and_no_others() {
    let here = TwoExits::start();
    let mut echoes: Vec<_> = (0..4).map(|_| here.echo()).collect();
    here.keys.write("west", 3);
    here.entry.role.signal("HUP");
    here.entry.role.await_log("what changed", |line| line.contains("keys read again: 2 (changed west)"));
    here.entry.role.await_log("whose tunnel ends", |line| line.contains("server west") && line.contains("key has been withdrawn"));
    await_tunnels(&here.entry.role, 1);
    here.exits[1].await_log("why", |line| line.contains("withdrawn"));
    assert_eq!(survivors(&mut echoes), 2);
    works(here.entry.socks);
    here.exits[1].await_log("that it is out", |line| line.contains("the inter-server does not know this key"));
    // With the new key it is in again.
    let _new = exit(here.entry.tunnel, &here.keys.write("copy", 3), &[]);
    await_tunnels(&here.entry.role, 2);
}

#[test]
fn a_key_taken_out_of_its_folder_cuts_that_exit_only_and_put_back_lets_it_in_again() {
    let keys = Keys::new();
    let names = [("east", 1), ("west", 2), ("north", 3)];
    let files = names.map(|(name, number)| keys.write(&format!("{name}.key"), number));
    let entry = entry(&[keys.folder()], &[]);
    // Each server has its copy.
    let copies = names.map(|(name, number)| keys.write(name, number));
    let exits = copies.each_ref().map(|file| exit(entry.tunnel, file, &[]));
    await_tunnels(&entry.role, 3);
    let origin = Origin::new();
    let mut echoes: Vec<_> = (0..30).map(|_| open_echo(entry.socks, origin.address()).unwrap()).collect();
    assert_eq!(exits.each_ref().map(|exit| exit.state().flows), [10, 10, 10]);

    std::fs::remove_file(&files[1]).unwrap();
    entry.role.signal("HUP");
    entry.role.await_log("what changed", |line| line.contains("keys read again: 2 (removed west)"));
    entry.role.await_log("whose tunnel ends", |line| line.contains("server west") && line.contains("key has been withdrawn"));
    await_tunnels(&entry.role, 2);
    exits[1].await_log("why", |line| line.contains("withdrawn"));
    exits[1].await_log("that it is out", |line| line.contains("the inter-server does not know this key"));
    assert_eq!(survivors(&mut echoes), 20);
    assert_eq!(exits.each_ref().map(|exit| exit.state().flows), [10, 0, 10]);
    works(entry.socks);

    // Half a file is no reason to do anything; the whole one lets its exit in again.
    keys.write_line("west.key", "zhwkprox-0x81:AAAA");
    entry.role.signal("HUP");
    entry.role.await_log("that nothing changes", |line| line.contains("the old ones stay") && line.contains("west.key"));
    assert_eq!(survivors(&mut echoes), 20);
    std::fs::rename(&copies[1], &files[1]).unwrap();
    entry.role.signal("HUP");
    entry.role.await_log("what changed", |line| line.contains("keys read again: 3 (added west)"));
    await_tunnels(&entry.role, 3);
    assert_eq!(survivors(&mut echoes), 20);
}

#[test]
fn a_hundred_flows_run_on_while_keys_are_read_again_added_and_found_broken() {
    let keys = Keys::new();
    let copy = keys.write("office", 1);
    let (office, home) = (keys.write("office.key", 1), "home.key");
    let entry = entry(&[keys.folder()], &[]);
    let exit = exit(entry.tunnel, &copy, &[]);
    await_tunnels(&entry.role, 1);
    let origin = Origin::new();
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            let (over, rounds, origin, entry) = (&over, &rounds, &origin, &entry);
            let run = move || {
                let mut echo = open_echo(entry.socks, origin.address()).unwrap();
                while !over.load(Ordering::SeqCst) {
                    round_trip(&mut echo, b"a flow that runs").unwrap();
                    rounds.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                }
                round_trip(&mut echo, b"to the end").unwrap();
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, run).unwrap();
        }
        entry.role.await_state("all of them", |state| state.flows == 100);
        let go_on = |said: &str| {
            let times = || entry.role.log().iter().filter(|line| line.contains(said)).count();
            let heard = times();
            entry.role.signal("HUP");
            await_some(said, WATCHDOG, || (times() > heard).then_some(()));
            let before = rounds.load(Ordering::SeqCst);
            await_some("all flows to go on", WATCHDOG, || (rounds.load(Ordering::SeqCst) > before + 300).then_some(()));
            assert_eq!(entry.role.state().flows, 100, "{said}");
        };
        go_on("keys read again: 1 (no change)");
        keys.write(home, 2);
        go_on("keys read again: 2 (added home)");
        keys.write_line(home, "zhwkprox-0x81:not a key");
        go_on("home.key does not hold a key");
        std::fs::remove_file(keys.folder().join(home)).unwrap();
        go_on("keys read again: 1 (removed home)");
        // The server's own key is read again too, and is the same.
        exit.signal("HUP");
        exit.await_log("no change", |line| line.contains("keys read again: 1 (no change)"));
        keys.write_line("office", "");
        exit.signal("HUP");
        exit.await_log("that it is broken", |line| line.contains("the old ones stay"));
        go_on("keys read again: 1 (no change)");
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!((entry.role.state().tunnels, exit.state().tunnels), (1, 1));
    assert!(office.exists());
}

#[test]
fn a_withdrawn_key_is_said_by_a_goaway_that_arrives() {
    let keys = Keys::new();
    let key = keys.write("east", 1);
    let entry = entry(&[&key], &[]);
    let mut peer = Peer::as_exit(entry.tunnel, 1, GENEROUS);
    await_tunnels(&entry.role, 1);
    peer.round_trip();
    keys.write("east", 2);
    entry.role.signal("HUP");
    let (code, text) = peer.await_goaway();
    assert!(code == 0x13 && text.contains("withdrawn"), "{code:#04x} {text}");
}

#[test]
fn keys_read_again_without_a_change_end_nothing() {
    let here = TwoExits::start();
    let mut echo = here.echo();
    here.entry.role.signal("HUP");
    here.entry.role.await_log("no change", |line| line.contains("keys read again: 2 (no change)"));
    round_trip(&mut echo, b"still here").unwrap();
    assert_eq!(here.entry.role.state().tunnels, 2);
}

#[test]
fn an_exit_that_is_started_again_takes_over_within_a_round_trip_of_its_login() {
    let here = TwoExits::start();
    // The old one does not answer any more, and nobody has noticed yet.
    here.exits[0].signal("STOP");
    let _again = exit(here.entry.tunnel, &here.keys.write("east", 1), &[]);
    await_some("two that work", WATCHDOG, || (here.entry.role.state().tunnels == 3).then_some(()));
    let start = Instant::now();
    for _ in 0..10 {
        works(here.entry.socks);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "flows went to the one that is stopped: {:?}", start.elapsed());
    here.entry.role.await_state("the stopped one given up", |state| state.tunnels == 2);
}

#[test]
fn a_login_that_began_before_its_key_was_withdrawn_gives_no_tunnel() {
    let keys = Keys::new();
    let key = keys.write("east", 1);
    let entry = entry(&[&key], &[]);
    let mut hello = Vec::new();
    let login = ExitHandshake::start(&Psk::new(&[1; 32]), &Method::ALL, GENEROUS, &mut hello);
    let mut socket = connect(entry.tunnel).unwrap();
    socket.write_all(&hello).unwrap();
    let mut answer = vec![0; 34];
    socket.read_exact(&mut answer).unwrap();
    keys.write("east", 2);
    entry.role.signal("HUP");
    entry.role.await_log("what changed", |line| line.contains("keys read again: 1 (changed east)"));
    let (mut login, mut piece) = (Some(login), answer);
    // Its login is good by the keys with which it began; that is all it gets.
    while !piece.is_empty() {
        let (mut input, mut out) = (&piece[..], Vec::new());
        if let Some(Progress::More(more)) = login.take().map(|login| login.handle(&mut input, &mut out).unwrap()) {
            login = Some(more);
        }
        let _ = socket.write_all(&out);
        let mut next = [0; 4096];
        let count = socket.read(&mut next).unwrap_or(0);
        piece = next[..count].to_vec();
    }
    entry.role.await_log("why", |line| line.contains("its key was withdrawn during its login"));
    let state = entry.role.state();
    assert_eq!((state.tunnels, state.logins_refused), (0, 1));
}

#[test]
fn a_server_whose_own_key_has_changed_leaves_those_who_have_the_old_one() {
    let here = TwoExits::start();
    let mut echoes: Vec<_> = (0..2).map(|_| here.echo()).collect();
    here.keys.write("west", 3);
    here.exits[1].signal("HUP");
    here.exits[1].await_log("what changed", |line| line.contains("keys read again: 1 (changed key)"));
    await_tunnels(&here.entry.role, 1);
    here.entry.role.await_log("why", |line| line.contains("server west") && line.contains("withdrawn"));
    let mut ends = Vec::new();
    for echo in &mut echoes {
        echo.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        ends.push(read_to_the_end(echo).1);
    }
    assert!(ends.contains(&End::Never) && ends.contains(&End::Reset), "{ends:?}");
    // When the inter-server has the new key too they are together again.
    here.entry.role.signal("HUP");
    await_tunnels(&here.entry.role, 2);
}
