//! How servers come back after their inter-server was away: not all at once, and also when its name could not be looked up meanwhile and then
//! means another address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::harness::dns::{Answer, Resolver};
use crate::harness::relay::{exit_arguments, listens, start_entry};
use crate::harness::traffic::works;
use crate::harness::{Options, Role, WATCHDOG, await_some, quick};

#[test]
fn servers_whose_inter_server_was_away_do_not_come_back_in_the_same_second() {
    let servers = if quick() { 20 } else { 40 };
    let options = Options::default().exit(&["--max-tunnels", "1", "--buffer-memory", "2MiB"]);
    let (_directory, key, mut entry, socks, tunnel) = start_entry(&options);
    let exits: Vec<Role> = (0..servers).map(|_| Role::start("one of many servers", &exit_arguments(&options, tunnel, &key))).collect();
    // Each shard has its own.
    let tunnels = servers * usize::try_from(exits[0].state().shards).unwrap();
    entry.await_state("all of them", |state| state.tunnels == tunnels as u64);
    entry.kill();
    // As long as their pauses need to grow.
    std::thread::sleep(Duration::from_secs(if quick() { 4 } else { 8 }));
    let before: Duration = exits.iter().map(Role::cpu_time).sum();
    let listener = await_some("the port", WATCHDOG, || TcpListener::bind(tunnel).ok());
    let start = Instant::now();
    // Held and not answered, so that each comes once.
    let (mut held, mut came) = (Vec::new(), Vec::new());
    while came.len() < tunnels {
        held.push(listener.accept().unwrap().0);
        came.push(start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(60), "{} of {tunnels} came", came.len());
    }
    let window = Duration::from_millis(500);
    let most = came.iter().map(|first| came.iter().filter(|at| **at >= *first && **at - *first < window).count()).max().unwrap();
    assert!(most <= tunnels * 2 / 3, "{most} of {tunnels} came within {window:?}: {came:?}");
    let used = exits.iter().map(Role::cpu_time).sum::<Duration>() - before;
    assert!(used < Duration::from_secs(5), "{used:?} of processor time while they waited");
    drop((listener, held));
    entry.restart();
    entry.await_state("all of them again", |state| state.tunnels == tunnels as u64);
    works(socks);
}

#[test]
fn a_name_that_cannot_be_looked_up_for_a_while_ends_no_dialling_and_its_new_address_is_found() {
    let options = Options::default();
    let (_directory, key, mut entry, socks, old) = start_entry(&options);
    let name = "entry.test";
    let resolver = Resolver::start(&[(name, Answer::Fresh(1, vec![old.ip()]))]);
    let asks = options.clone().exit(&["--resolver", &resolver.address.to_string()]);
    let mut arguments = exit_arguments(&asks, old, &key);
    let dial = arguments.iter().position(|argument| *argument == old.to_string()).unwrap();
    arguments[dial] = format!("{name}:{}", old.port());
    let exit = Role::start("server", &arguments);
    exit.await_state("a tunnel", |state| state.tunnels >= 1);
    works(socks);

    // The line is down: first the name server fails, then it is not heard any more.
    resolver.set(name, Answer::Code(2));
    entry.kill();
    exit.await_state("no tunnel", |state| state.tunnels == 0);
    for (answer, questions) in [(Answer::Code(2), 6), (Answer::Silence, 3)] {
        resolver.set(name, answer.clone());
        let before = resolver.questions();
        await_some(&format!("more questions that are answered by {answer:?}"), WATCHDOG, || {
            (resolver.questions() >= before + questions).then_some(())
        });
    }
    assert!(exit.log().len() < 60, "log lines: {:#?}", exit.log());

    // It is up again, with another address.
    let new = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), old.port()));
    let mut again: Vec<String> = ["inter-server", "--protocol", options.protocol.name(), "--cores", "0"].map(Into::into).into();
    again.extend(["--listen".into(), new.to_string(), "--socks".into(), socks.to_string()]);
    again.extend(["--key-file".into(), key.display().to_string()]);
    let entry = Role::start("inter-server at its new address", &again);
    await_some("it to listen", WATCHDOG, || (listens(new) && listens(socks)).then_some(()));
    resolver.set(name, Answer::Fresh(1, vec![new.ip()]));
    entry.await_state("the server that has found it", |state| state.tunnels >= 1);
    works(socks);
}
