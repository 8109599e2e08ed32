//! Tunnels that are lost and come back, exits that may not log in, and what strangers send to the ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::harness::destination::{check_pattern, send_pattern};
use crate::harness::net::{End, connect, read_to_the_end, reset};
use crate::harness::relay::{exit_arguments, keygen, start_entry, start_entry_with};
use crate::harness::role::Role;
use crate::harness::socks::Refusal;
use crate::harness::traffic::{all_well, close_echo, download, in_turns, open_echo, round_trip, works};
use crate::harness::{Destination, Options, Origin, PROMPTLY, Relay, WATCHDOG, await_some, heavy, on_0x81, protocol, quick, socks, within};

const SEED: u64 = 79;

/// A destination that sends for ever and reports how it was ended.
fn endless() -> (Destination, std::sync::mpsc::Receiver<std::io::ErrorKind>) {
    let (sender, ends) = channel();
    let sender = Mutex::new(sender);
    let destination = Destination::serve(move |mut stream, _| {
        let error = send_pattern(&mut stream, SEED, 1, u64::MAX).unwrap_err();
        let _ = sender.lock().unwrap().send(error.kind());
    });
    (destination, ends)
}

pub(crate) fn killed_exit(relay: &mut Relay) {
    let (destination, _ends) = endless();
    let origin = Origin::new();
    for _ in 0..3 {
        let mut running = socks::open(relay.socks, destination.address).unwrap();
        check_pattern(&mut running, SEED, 1, Some(1_000_000)).unwrap().unwrap();
        let mut quiet = open_echo(relay.socks, origin.address()).unwrap();
        relay.exit.kill();
        for (what, stream) in [("running", &mut running), ("quiet", &mut quiet)] {
            let (_, end) = within("the reset", PROMPTLY, || read_to_the_end(stream));
            assert_eq!(end, End::Reset, "the {what} flow of a lost tunnel must be reset");
        }
        relay.entry.await_state("the loss noticed", |s| s.tunnels == 0 && s.flows == 0);
        relay.exit.restart();
        relay.await_tunnel();
        // Not only the first, and not every second one.
        for flow in 0..10 {
            download(relay.socks, &origin, origin.address(), flow, 10_000).unwrap();
        }
    }
}

#[test]
fn flows_of_a_killed_server_are_reset_and_the_next_ones_work_as_soon_as_it_is_back() {
    let mut relay = Relay::usual();
    killed_exit(&mut relay);
    relay.at_rest();
}

pub(crate) fn killed_entry(relay: &mut Relay) {
    let (destination, ends) = endless();
    let origin = Origin::new();
    for _ in 0..3 {
        let mut running = socks::open(relay.socks, destination.address).unwrap();
        check_pattern(&mut running, SEED, 1, Some(1_000_000)).unwrap().unwrap();
        relay.entry.kill();
        let (_, end) = within("the reset", PROMPTLY, || read_to_the_end(&mut running));
        // The kernel closes a killed process's sockets: whether by FIN or RST is not in the relay's hands.
        assert_ne!(end, End::Never, "a killed inter-server's clients are told");
        let kind = ends.recv_timeout(PROMPTLY).expect("the destination must be told");
        assert!(matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "the destination was told {kind:?}");
        relay.exit.await_state("the loss noticed", |s| s.tunnels == 0 && s.flows == 0);
        relay.entry.restart();
        // The server dials again by itself.
        relay.await_tunnel();
        for flow in 0..10 {
            download(relay.socks, &origin, origin.address(), flow, 10_000).unwrap();
        }
    }
}

#[test]
fn flows_of_a_killed_inter_server_are_reset_at_the_destination_and_the_server_comes_back_by_itself() {
    let mut relay = Relay::usual();
    killed_entry(&mut relay);
    relay.at_rest();
}

#[test]
fn a_server_waits_for_its_inter_server_without_growing_and_says_so_in_few_lines() {
    let mut relay = Relay::usual();
    relay.entry.kill();
    relay.exit.await_state("the loss noticed", |s| s.tunnels == 0);
    let (memory, cpu, lines) = (relay.exit.memory_kib(), relay.exit.cpu_time(), relay.exit.log().len());
    std::thread::sleep(Duration::from_secs(if quick() { 3 } else { 10 }));
    assert!(relay.exit.memory_kib() <= memory + 1024);
    assert!(relay.exit.cpu_time() - cpu < Duration::from_secs(1));
    assert!(relay.exit.log().len() - lines < 50, "log lines: {:#?}", relay.exit.log());
    relay.entry.restart();
    relay.await_tunnel();
    works(relay.socks);
}

#[test]
fn a_wrong_key_gives_a_clear_line_on_both_ends_and_harms_nobody_else() {
    let relay = Relay::usual();
    let origin = Origin::new();
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    let wrong = relay.directory().join("wrong-key");
    keygen(&wrong);
    let stranger = relay.another_exit(&wrong);
    let names_the_key = |line: &str| line.to_lowercase().contains("key");
    stranger.await_log("that the keys differ", names_the_key);
    relay.entry.await_log("that a server refused its answer", names_the_key);
    assert_eq!(stranger.state().tunnels, 0);
    round_trip(&mut bystander, b"unharmed").unwrap();
    download(relay.socks, &origin, origin.address(), 1, 100_000).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(stranger.log().len() < 50, "the log of a refused server: {:#?}", stranger.log());
    assert!(relay.entry.log().len() < 50, "the log of the inter-server: {:#?}", relay.entry.log());
    // It keeps trying with growing pauses, and it costs nothing.
    assert!(stranger.cpu_time() < Duration::from_secs(1));
    drop(stranger);
    close_echo(bystander).unwrap();
    relay.at_rest();
}

#[test]
fn without_a_server_a_client_is_refused_at_once() {
    let (_directory, _key, entry, socks, _tunnel) = start_entry(&Options::default());
    for target in [socks::Target::from(SocketAddr::from(([127, 0, 0, 1], 80))), ("localhost", 80).into()] {
        let refused = within("the refusal", PROMPTLY, || socks::open(socks, target)).unwrap_err();
        assert!(matches!(refused, Refusal::Reply(1)), "{refused}");
    }
    // Still there, and nothing left of it.
    entry.await_quiet();
}

#[test]
fn two_servers_with_one_key_both_serve_and_the_loss_of_either_is_survived() {
    let mut relay = Relay::usual();
    let origin = Origin::everywhere();
    let mut second = relay.another_exit(&relay.key);
    second.await_state("a tunnel", |s| s.tunnels >= 1);
    for flow in 0..20u32 {
        download(relay.socks, &origin, origin.nth(flow as usize), flow, 10_000).unwrap();
    }
    relay.exit.kill();
    await_some("the tunnels of the one that is left, alone", WATCHDOG, || {
        (relay.entry.state().tunnels == second.state().tunnels).then_some(())
    });
    for flow in 0..20u32 {
        download(relay.socks, &origin, origin.nth(flow as usize), flow, 10_000).unwrap();
    }
    second.kill();
    relay.entry.await_state("no tunnel", |s| s.tunnels == 0);
    let refused = socks::open(relay.socks, origin.nth(0)).unwrap_err();
    assert!(matches!(refused, Refusal::Reply(1)), "{refused}");
}

#[test]
fn a_server_that_dials_two_inter_servers_serves_each_and_the_loss_of_one_is_nothing_to_the_other() {
    let options = Options::default();
    let (_directory, key, mut first, first_socks, first_tunnel) = start_entry(&options);
    let (second, second_socks, second_tunnel) = start_entry_with(&options, &key);
    let exit_options = Options { exit: vec!["--dial".into(), second_tunnel.to_string()], ..options };
    let exit = Role::start("server", &exit_arguments(&exit_options, first_tunnel, &key));
    for entry in [&first, &second] {
        entry.await_state("a tunnel", |s| s.tunnels >= 1);
    }
    let origin = Origin::new();
    let mut bystander = open_echo(second_socks, origin.address()).unwrap();
    for flow in 0..10u32 {
        download(first_socks, &origin, origin.address(), flow, 100_000).unwrap();
        download(second_socks, &origin, origin.address(), flow, 100_000).unwrap();
    }
    first.kill();
    exit.await_state("the tunnels to the one that is left", |s| s.tunnels == second.state().tunnels);
    round_trip(&mut bystander, b"still here").unwrap();
    for flow in 0..10u32 {
        download(second_socks, &origin, origin.address(), flow, 100_000).unwrap();
    }
    first.restart();
    first.await_state("a tunnel again", |s| s.tunnels >= 1);
    download(first_socks, &origin, origin.address(), 99, 100_000).unwrap();
    close_echo(bystander).unwrap();
}

/// What strangers send: other protocols, the right start and then nonsense, and noise.
fn garbage(number: usize) -> Vec<u8> {
    let hello = [&[0x81, 3, 1, 2, 3][..], &[48], &[1; 48]].concat();
    match number % if on_0x81() { 12 } else { 8 } {
        0 => b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec(),
        1 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0xaa; 64]].concat(),
        2 => vec![0x80, 1, 0],
        3 => [&[0x80, 1, 0, 255][..], &[7; 255]].concat(),
        // The whole login of a server that sends its own verdict, and frames that claim the world.
        4 => [&[0x80, 1, 0, 32][..], &[1; 32], &[1], &[9, 9, 9, 9]].concat(),
        5 => [&[0x80, 1, 0, 32][..], &[1; 32], &[1], &[4, 127, 0, 0, 1, 0, 80, 0xff, 0xff, 0xff, 0xff], &[0; 5000]].concat(),
        6 => (0..200).map(|_| rand::random()).collect(),
        7 => vec![0; 70_000],
        // The same of 0x81: no method, more than may be offered, a login that is none, and records that claim the world behind it.
        8 => vec![0x81, 0],
        9 => [&[0x81, 255][..], &[7; 255]].concat(),
        10 => hello,
        _ => [hello, vec![0xff; 5000]].concat(),
    }
}

pub(crate) fn strangers(relay: &Relay) {
    let origin = Origin::new();
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    for port in [relay.socks, relay.tunnel] {
        all_well(&in_turns(8, 400, |i| {
            let mut stream = connect(port).map_err(|e| e.to_string())?;
            // It may be closed while we still write: that is what is hoped for.
            let _ = stream.write_all(&garbage(i));
            match i % 3 {
                0 => reset(stream),
                1 => drop(stream),
                _ => {
                    // Only what it would wait for may keep it: our end lets it go.
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
                    if read_to_the_end(&mut stream).1 == End::Never {
                        return Err(format!("garbage {i} was not let go"));
                    }
                }
            }
            Ok(())
        }));
    }
    round_trip(&mut bystander, b"unharmed").unwrap();
    // A stranger's login was a server for a moment and is not one any more.
    relay.exit.await_state("quiet but for the bystander", |s| s.flows == 1 && s.tunnels_pending == 0);
    let tunnels = relay.exit.state().tunnels;
    relay.entry.await_state("only the real server's tunnels", |s| s.tunnels == tunnels && s.clients_pending == 0);
    download(relay.socks, &origin, origin.address(), 1, 100_000).unwrap();
    close_echo(bystander).unwrap();
}

#[test]
fn garbage_on_either_port_harms_nobody() {
    let relay = Relay::usual();
    strangers(&relay);
    assert!(relay.entry.log().len() < 100, "{} log lines for 800 strangers", relay.entry.log().len());
    relay.at_rest();
}

#[test]
fn slow_drips_are_cut_off_after_ten_seconds_and_harm_nobody() {
    let relay = Relay::usual();
    let origin = Origin::new();
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    let drip = |port: SocketAddr, first: u8, rest: u8| {
        std::thread::spawn(move || {
            let mut stream = connect(port).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            for i in 0..30u8 {
                if stream.write_all(&[if i == 0 { first } else { rest }]).is_err() {
                    return Ok(());
                }
                match stream.read(&mut [0; 64]) {
                    Ok(0) => return Ok(()),
                    Ok(_) => std::thread::sleep(Duration::from_secs(1)),
                    Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                    Err(_) => return Ok(()),
                }
            }
            Err(format!("a drip of {first:#x} is still connected after 30 s"))
        })
    };
    // A greeting of 255 methods and an endless hello.
    let drips: Vec<_> =
        (0..10).map(|i| if i % 2 == 0 { drip(relay.socks, 5, 255) } else { drip(relay.tunnel, protocol().version(), 255) }).collect();
    for flow in 0..10 {
        download(relay.socks, &origin, origin.address(), flow, 10_000).unwrap();
    }
    for drip in drips {
        drip.join().unwrap().unwrap();
    }
    round_trip(&mut bystander, b"unharmed").unwrap();
    close_echo(bystander).unwrap();
    relay.at_rest();
}

fn silent_connections(relay: &Relay, port: SocketAddr, count: usize) {
    let origin = Origin::new();
    let mut bystander = open_echo(relay.socks, origin.address()).unwrap();
    let silent: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());
    all_well(&in_turns(4, count, |i| {
        let mut stream = match connect(port) {
            Ok(stream) => stream,
            // One that makes room for another as soon as it is accepted is reset, on a busy machine before we have heard that it was.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(format!("connection {i}: {e}")),
        };
        if i % 3 == 0 {
            let _ = stream.write_all(&[if port == relay.socks { 5 } else { protocol().version() }]);
        }
        silent.lock().unwrap().push(stream);
        Ok(())
    }));
    // Others are served at once, a genuine server logs in meanwhile, and what runs goes on.
    for flow in 0..5 {
        within("a download beside the silent ones", PROMPTLY, || download(relay.socks, &origin, origin.address(), flow, 100_000)).unwrap();
    }
    let late = relay.another_exit(&relay.key);
    late.await_state("a tunnel in spite of the silent ones", |s| s.tunnels >= 1);
    drop(late);
    round_trip(&mut bystander, b"unharmed").unwrap();
    let state = relay.entry.state();
    assert!(state.sockets < 2500, "silent connections are not bounded: {state:?}");
    drop(silent);
    close_echo(bystander).unwrap();
    let what = "the silent ones gone";
    relay.entry.await_state(what, |s| s.clients_pending == 0 && s.tunnels_pending == 0 && s.flows == 0);
}

#[test]
fn ten_thousand_silent_connections_on_the_clients_port_hold_up_nobody() {
    let _alone = heavy();
    let relay = Relay::usual();
    silent_connections(&relay, relay.socks, 10_000);
    works(relay.socks);
    relay.at_rest_within(Duration::from_secs(90));
}

#[test]
fn ten_thousand_silent_connections_on_the_servers_port_hold_up_nobody() {
    let _alone = heavy();
    let relay = Relay::usual();
    silent_connections(&relay, relay.tunnel, 10_000);
    works(relay.socks);
    relay.at_rest_within(Duration::from_secs(90));
}

#[test]
fn a_silent_client_is_closed_after_the_time_for_its_handshake() {
    let relay = Relay::usual();
    for port in [relay.socks, relay.tunnel] {
        let mut silent = connect(port).unwrap();
        let (got, end) = read_to_the_end(&mut silent);
        assert!(end != End::Never && got.len() < 3, "{got:?}, {end:?}");
    }
    relay.at_rest();
}
