//! Paths and processes that go silent without a word, and a line so narrow that it looks like it: what is dead is noticed within half a minute at
//! both ends, what is slow is left alone. In real time, all of it side by side.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::harness::net::End;
use crate::harness::socks;
use crate::harness::traffic::works;
use crate::harness::{Destination, Role, await_some};
use crate::path::{Line, Path};
use crate::support::{Entry, Keys, await_tunnels, entry, exit};
use crate::wire::Way;

/// Within this, at both ends; for a machine that has other things to do, a little more.
const NOTICED: Duration = Duration::from_secs(30 + 3);
/// Twenty pairs of roles need no more than this each.
const SMALL: [&str; 2] = ["--buffer-memory", "2MiB"];

/// What is on the tunnel.
#[derive(Clone, Copy, Debug)]
enum Load {
    Idle,
    Up,
    Down,
    Both,
}

impl Load {
    const fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Both)
    }

    const fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::Both)
    }
}

/// Uses one end of a flow until it is over; says how and when that was. Paced: what is at stake is time, not bytes.
fn use_until_over(mut stream: TcpStream, sends: bool) -> Receiver<(End, Instant)> {
    let (sender, over) = channel();
    // What is awaited here takes as long as the watchdogs of other tests.
    stream.set_read_timeout(None).unwrap();
    stream.set_write_timeout(None).unwrap();
    let mut upload = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        if !sends {
            return false;
        }
        loop {
            if let Err(error) = upload.write_all(&[7; 10_000]) {
                return error.kind() == std::io::ErrorKind::ConnectionReset;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    std::thread::spawn(move || {
        let mut piece = vec![0; 65_536];
        let end = loop {
            match stream.read(&mut piece) {
                Ok(0) => break End::Clean,
                Ok(_) => {}
                Err(_) => break End::Reset,
            }
        };
        let at = Instant::now();
        // A reset is told once, to whichever thread asks first: if that was the other one, reading finds a plain end.
        let was_told = sending.join().unwrap_or_default();
        let _ = sender.send((if was_told { End::Reset } else { end }, at));
    });
    over
}

/// Both roles with a path between them and a flow that runs.
struct Pair {
    what: String,
    entry: Entry,
    exit: Role,
    path: Path,
    client: Receiver<(End, Instant)>,
    destination: Receiver<(End, Instant)>,
    _serves: Destination,
    _keys: Keys,
}

impl Pair {
    fn start(what: String, load: Load) -> Self {
        let keys = Keys::new();
        let key = keys.write("key", 1);
        let entry = entry(&[&key], &SMALL);
        let path = Path::start(entry.tunnel, Line::PLAIN);
        let exit = exit(path.address, &key, &SMALL);
        await_tunnels(&entry.role, 1);
        let (sender, accepted) = channel();
        let serves = Destination::serve(move |stream, _| {
            let _ = sender.send(use_until_over(stream, load.is_down()));
        });
        let client = use_until_over(socks::open(entry.socks, serves.address).unwrap(), load.is_up());
        let destination = accepted.recv().unwrap();
        let pair = Self { what, entry, exit, path, client, destination, _serves: serves, _keys: keys };
        // The load has begun and the first PING is long over.
        std::thread::sleep(Duration::from_secs(1));
        pair
    }

    /// Waits for the end of a flow's end: it must be a reset, in time.
    fn is_reset(&self, whose: &str, over: &Receiver<(End, Instant)>, since: Instant) {
        let what = &self.what;
        let limit = Duration::from_secs(120);
        let (end, at) = over.recv_timeout(limit).unwrap_or_else(|_| panic!("{what}: the {whose} has not been told for {limit:?}"));
        let took = at - since;
        assert!(end == End::Reset && took < NOTICED, "{what}: the {whose} saw {end:?} after {took:?}");
    }

    /// Flows are served, and by a new tunnel.
    fn serves(&self, within: Duration) {
        let what = &self.what;
        await_some(&format!("{what}: service"), within, || {
            (self.entry.role.state().tunnels == 1 && self.exit.state().tunnels == 1).then_some(())
        });
        works(self.entry.socks);
        assert!(self.path.connections() > 1, "{what}: the tunnel was never dialled again");
        for role in [&self.entry.role, &self.exit] {
            role.await_state(&format!("{what}: no flow left"), |state| state.flows == 0 && state.detached == 0 && state.slots_in_use == 0);
        }
    }
}

fn a_path_goes_silent(load: Load, ways: &[Way]) {
    let pair = Pair::start(format!("{load:?}, silent {ways:?}"), load);
    let since = Instant::now();
    pair.path.go_silent(ways);
    pair.is_reset("client", &pair.client, since);
    pair.is_reset("destination", &pair.destination, since);
    pair.serves(Duration::from_secs(5));
}

fn a_role_is_stopped(load: Load, is_exit: bool) {
    let pair = Pair::start(format!("{load:?}, {} stopped", if is_exit { "the exit" } else { "the entry" }), load);
    let (stopped, theirs, other) = if is_exit {
        (&pair.exit, ("client", &pair.client), ("destination", &pair.destination))
    } else {
        (&pair.entry.role, ("destination", &pair.destination), ("client", &pair.client))
    };
    let since = Instant::now();
    stopped.signal("STOP");
    pair.is_reset(theirs.0, theirs.1, since);
    let goes_on = Instant::now();
    stopped.signal("CONT");
    pair.is_reset(other.0, other.1, goes_on);
    // The next try is at most a pause of the dialler away.
    pair.serves(Duration::from_secs(30));
}

/// Four uploads that would like to be faster than a megabit, for a minute.
fn a_narrow_line_is_left_alone() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &SMALL);
    let path = Path::start(entry.tunnel, Line { rate: 125_000, delay: Duration::from_millis(20) });
    let exit = exit(path.address, &key, &SMALL);
    await_tunnels(&entry.role, 1);
    let serves = Destination::serve(|stream, _| {
        use_until_over(stream, false);
    });
    let start = Instant::now();
    let mut over = Vec::new();
    for _ in 0..4 {
        let stream = socks::open(entry.socks, serves.address).unwrap();
        let mut upload = stream.try_clone().unwrap();
        over.push(use_until_over(stream, false));
        std::thread::spawn(move || while upload.write_all(&[7; 65_536]).is_ok() {});
    }
    std::thread::sleep(Duration::from_secs(60));
    for (number, over) in over.iter().enumerate() {
        assert!(over.try_recv().is_err(), "upload {number} was ended");
    }
    let came = exit.state().bytes_from_tunnels;
    let expected = 125_000 * start.elapsed().as_secs();
    assert!(came > expected * 3 / 5 && came < expected * 2, "the line was to be full: {came} bytes came in {:?}", start.elapsed());
    assert_eq!((path.connections(), entry.role.state().flows, exit.state().flows), (1, 4, 4), "one tunnel, and it is still the same");
    let complaint = entry.role.log().into_iter().find(|line| line.contains("WARN") || line.contains("ERROR"));
    assert_eq!(complaint, None);
}

#[test]
fn a_silent_path_and_a_stopped_role_are_noticed_within_thirty_seconds_at_both_ends_and_a_narrow_line_is_left_alone() {
    std::thread::scope(|scope| {
        let mut all = vec![scope.spawn(a_narrow_line_is_left_alone)];
        for load in [Load::Idle, Load::Up, Load::Down, Load::Both] {
            for ways in [&[Way::ToEntry, Way::ToExit][..], &[Way::ToEntry], &[Way::ToExit]] {
                all.push(scope.spawn(move || a_path_goes_silent(load, ways)));
            }
        }
        for is_exit in [false, true] {
            all.push(scope.spawn(move || a_role_is_stopped(Load::Idle, is_exit)));
            all.push(scope.spawn(move || a_role_is_stopped(Load::Both, is_exit)));
        }
        let wrong = all.into_iter().filter_map(|scenario| scenario.join().err()).count();
        assert_eq!(wrong, 0, "scenarios failed, see above");
    });
}
