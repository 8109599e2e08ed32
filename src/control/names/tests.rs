//! Names against a name server of our own, on loopback.

use std::sync::Mutex;

use hickory_resolver::proto::op::{Message as Dns, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::shard::inbox::Inbox;

/// Ten times what the slowest test takes on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(60);

/// What the server says about a question.
enum Reply {
    Code(ResponseCode),
    Records { ttl: u32, data: Vec<RData> },
    Nothing,
}

/// A name server whose answers are a function of name and type. It counts the questions it gets, and keeps those that get no answer.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl Server {
    async fn start(reply: impl Fn(&str, RecordType) -> Reply + Send + Sync + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counts = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Dns::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_string().trim_end_matches('.').to_lowercase();
                *counts.lock().unwrap().entry(name.clone()).or_default() += 1;
                let mut answer = Dns::response(question.metadata.id, question.metadata.op_code);
                assert_eq!(answer.metadata.message_type, MessageType::Response);
                answer.metadata.recursion_desired = true;
                answer.metadata.recursion_available = true;
                answer.add_query(query.clone());
                match reply(&name, query.query_type()) {
                    Reply::Nothing => continue,
                    Reply::Code(code) => answer.metadata.response_code = code,
                    Reply::Records { ttl, data } => {
                        for data in data {
                            answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                        }
                    }
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, asked }
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

/// The part of the control thread's loop that concerns names, and one shard's inbox.
struct Bench {
    names: Names,
    sender: UnboundedSender<Found>,
    receiver: UnboundedReceiver<Found>,
    inbox: Inbox,
    postbox: Postbox,
}

impl Bench {
    fn new(server: SocketAddr) -> Self {
        let (sender, receiver) = unbounded_channel();
        let (inbox, postbox) = Inbox::new().unwrap();
        Self { names: Names::new(Some(server)), sender, receiver, inbox, postbox }
    }

    fn ask(&mut self, name: &str, ticket: u64) {
        self.names.look_up(name, Waiter { postbox: self.postbox.clone(), ticket, by_steps: false }, &self.sender);
    }

    fn answers(&self) -> Vec<(u64, Answer)> {
        let answer = |message| match message {
            Message::Resolved { ticket, result, .. } => (ticket, result),
            other => panic!("a shard that asked for names got {other:?}"),
        };
        self.inbox.drain().into_iter().map(answer).collect()
    }

    /// Runs until so many answers are there.
    async fn wait(&mut self, count: usize) -> Vec<(u64, Answer)> {
        let mut answers = self.answers();
        while answers.len() < count {
            let found = tokio::time::timeout(WATCHDOG, self.receiver.recv()).await.expect("an answer").unwrap();
            self.names.on_found(&found, &self.sender);
            answers.extend(self.answers());
        }
        answers
    }

    async fn resolve(&mut self, name: &str) -> Answer {
        self.ask(name, 7);
        let answers = self.wait(1).await;
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, 7);
        answers[0].1.clone()
    }
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
}

fn records(addresses: &[IpAddr]) -> Reply {
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    };
    Reply::Records { ttl: 300, data: addresses.iter().map(data).collect() }
}

impl Source {
    async fn find(&self, name: &str) -> Answer {
        self.addresses(name, |_, _| {}).await
    }
}

/// What the type asked for is answered with; nothing of the other.
fn both(kind: RecordType, v6: &[IpAddr], v4: &[IpAddr]) -> Reply {
    records(if kind == RecordType::AAAA { v6 } else { v4 })
}

#[tokio::test]
async fn addresses_of_both_families_come_by_turns_and_in_order() {
    let server = Server::start(|_, kind| both(kind, &[v6(1), v6(2), v6(3)], &[v4(1), v4(2), v4(3), v4(4), v4(5)])).await;
    let answer = Bench::new(server.address).resolve("many.test").await;
    // Resolvers shuffle on purpose, but what one says is kept.
    assert_eq!(answer, Ok(vec![v6(1), v4(1), v6(2), v4(2), v6(3), v4(3), v4(4), v4(5)]));
}

#[tokio::test]
async fn eight_addresses_are_all_passed_on() {
    let eight: Vec<IpAddr> = (1..=8).map(v4).collect();
    let all = eight.clone();
    let server = Server::start(move |_, kind| both(kind, &[], &all)).await;
    assert_eq!(Bench::new(server.address).resolve("eight.test").await, Ok(eight));
}

#[tokio::test]
async fn a_name_with_ipv6_only_is_found() {
    let server = Server::start(|_, kind| both(kind, &[v6(9)], &[])).await;
    assert_eq!(Bench::new(server.address).resolve("six.test").await, Ok(vec![v6(9)]));
}

#[tokio::test]
async fn no_such_name_and_no_address_are_not_found_and_a_failing_server_has_failed() {
    let server = Server::start(|name, _| match name {
        "nx.test" => Reply::Code(ResponseCode::NXDomain),
        "empty.test" => records(&[]),
        "refused.test" => Reply::Code(ResponseCode::Refused),
        _ => Reply::Code(ResponseCode::ServFail),
    })
    .await;
    let mut bench = Bench::new(server.address);
    assert_eq!(bench.resolve("nx.test").await, Err(NameError::NotFound));
    assert_eq!(bench.resolve("empty.test").await, Err(NameError::NotFound));
    assert_eq!(bench.resolve("servfail.test").await, Err(NameError::Failed));
    assert_eq!(bench.resolve("refused.test").await, Err(NameError::Failed));
    assert_eq!(bench.resolve("not a name").await, Err(NameError::NotFound));
    assert_eq!(bench.resolve(&"a".repeat(64)).await, Err(NameError::NotFound));
    assert_eq!(bench.resolve("").await, Err(NameError::NotFound));
    assert_eq!(bench.resolve("a..b").await, Err(NameError::NotFound));
}

#[tokio::test]
async fn a_failing_family_does_not_hide_the_other() {
    let server = Server::start(|_, kind| match kind {
        RecordType::AAAA => Reply::Code(ResponseCode::ServFail),
        _ => records(&[v4(1)]),
    })
    .await;
    assert_eq!(Bench::new(server.address).resolve("half.test").await, Ok(vec![v4(1)]));
}

#[tokio::test]
async fn a_swallowed_question_for_ipv6_does_not_cost_the_whole_time_limit() {
    let server = Server::start(|_, kind| if kind == RecordType::AAAA { Reply::Nothing } else { records(&[v4(1)]) }).await;
    let mut bench = Bench::new(server.address);
    bench.names.time_limit = WATCHDOG;
    let started = Instant::now();
    assert_eq!(bench.resolve("swallow.test").await, Ok(vec![v4(1)]));
    assert!(started.elapsed() < Duration::from_secs(4), "hickory's own time-out is 5 s");
}

/// What the steps are that one who wants them gets, the last one included.
async fn steps(bench: &mut Bench, name: &str) -> Vec<(Answer, bool)> {
    bench.names.look_up(name, Waiter { postbox: bench.postbox.clone(), ticket: 1, by_steps: true }, &bench.sender);
    let mut steps = Vec::new();
    loop {
        for message in bench.inbox.drain() {
            let Message::Resolved { ticket: 1, result, more } = message else { panic!("{message:?}") };
            steps.push((result, more));
            if !more {
                return steps;
            }
        }
        let found = tokio::time::timeout(WATCHDOG, bench.receiver.recv()).await.expect("an answer").unwrap();
        bench.names.on_found(&found, &bench.sender);
    }
}

#[tokio::test]
async fn one_who_wants_steps_gets_the_first_family_before_the_other_and_then_both() {
    let swallowed = Arc::new(Mutex::new(None));
    let now = Arc::clone(&swallowed);
    let reply = move |_: &str, kind| if *now.lock().unwrap() == Some(kind) { Reply::Nothing } else { both(kind, &[v6(1)], &[v4(1)]) };
    let server = Server::start(reply).await;
    for (late, first) in [(RecordType::AAAA, v4(1)), (RecordType::A, v6(1))] {
        *swallowed.lock().unwrap() = Some(late);
        let mut bench = Bench::new(server.address);
        let all = steps(&mut bench, "late.test").await;
        assert_eq!(all, [(Ok(vec![first]), true), (Ok(vec![first]), false)], "{late}: it never came, and what there was is enough");
    }
    *swallowed.lock().unwrap() = None;
    let all = steps(&mut Bench::new(server.address), "both.test").await;
    assert_eq!(all.last(), Some(&(Ok(vec![v6(1), v4(1)]), false)));
    assert!(all.len() <= 2, "{all:?}");
}

#[tokio::test]
async fn who_comes_while_the_other_family_is_awaited_is_told_what_there_is() {
    let (mut names, sender) = (Names::new(None), unbounded_channel::<Found>().0);
    let (inbox, postbox) = Inbox::new().unwrap();
    let waiter = |ticket, by_steps| Waiter { postbox: postbox.clone(), ticket, by_steps };
    let told = || {
        let answer = |message| match message {
            Message::Resolved { ticket, result, more } => (ticket, result, more),
            other => panic!("{other:?}"),
        };
        inbox.drain().into_iter().map(answer).collect::<Vec<_>>()
    };
    let found = |addresses: &[IpAddr], stage| Found { name: "x.test".into(), answer: Ok(addresses.to_vec()), stage };
    let task = tokio::spawn(std::future::ready(())).abort_handle();
    let look_up = LookUp { since: Instant::now(), task, waiters: vec![waiter(1, true), waiter(2, false)], so_far: None };
    names.under_way.insert("x.test".into(), look_up);
    names.on_found(&found(&[v6(1)], Stage::First), &sender);
    assert_eq!(told(), [(1, Ok(vec![v6(1)]), true)]);
    names.look_up("x.test", waiter(3, true), &sender);
    names.look_up("X.test", waiter(4, false), &sender);
    assert_eq!(told(), [(3, Ok(vec![v6(1)]), true)]);
    names.on_found(&found(&[v6(1)], Stage::Settled), &sender);
    assert_eq!(told(), [(2, Ok(vec![v6(1)]), false), (4, Ok(vec![v6(1)]), false)]);
    names.look_up("x.test", waiter(5, false), &sender);
    assert_eq!(told(), [(5, Ok(vec![v6(1)]), false)]);
    names.on_found(&found(&[v6(1), v4(1)], Stage::Last), &sender);
    assert_eq!(told(), [(1, Ok(vec![v6(1), v4(1)]), false), (3, Ok(vec![v6(1), v4(1)]), false)]);
    assert!(names.under_way.is_empty());
}

#[tokio::test]
async fn five_hundred_names_that_never_answer_do_not_keep_one_out_that_does() {
    let server = Server::start(|name, kind| if name == "fast.test" { both(kind, &[], &[v4(1)]) } else { Reply::Nothing }).await;
    let mut bench = Bench::new(server.address);
    (bench.names.time_limit, bench.names.slow) = (WATCHDOG, Duration::ZERO);
    for ticket in 0..500 {
        bench.ask(&format!("slow{ticket}.test"), ticket);
    }
    let given_up = bench.answers();
    assert_eq!(given_up.len(), 500 - NAMES_OUTSTANDING, "the oldest make room, one each");
    assert!(given_up.iter().all(|(ticket, answer)| *ticket < 244 && *answer == Err(NameError::Busy)), "{given_up:?}");
    bench.ask("fast.test", 1000);
    assert_eq!(bench.wait(2).await, [(244, Err(NameError::Busy)), (1000, Ok(vec![v4(1)]))]);
    assert_eq!(bench.names.under_way.len(), NAMES_OUTSTANDING - 1);
}

#[tokio::test]
async fn those_who_wait_are_bounded_also_for_one_name() {
    let server = Server::start(|_, _| Reply::Nothing).await;
    let mut bench = Bench::new(server.address);
    for ticket in 0..NAMES_WAITING as u64 {
        bench.ask("popular.test", ticket);
    }
    assert_eq!(bench.answers(), []);
    bench.ask("popular.test", 1_000_000);
    assert_eq!(bench.answers(), [(1_000_000, Err(NameError::Busy))]);
}

#[tokio::test]
async fn a_slow_name_holds_up_nobody_and_fails_at_its_time_limit() {
    let server = Server::start(|name, kind| if name == "slow.test" { Reply::Nothing } else { both(kind, &[], &[v4(1)]) }).await;
    let mut bench = Bench::new(server.address);
    bench.names.time_limit = Duration::from_secs(2);
    bench.ask("slow.test", 1);
    bench.ask("fast.test", 2);
    bench.ask("other.test", 3);
    let mut answers = bench.wait(2).await;
    answers.sort_by_key(|answer| answer.0);
    assert_eq!(answers, [(2, Ok(vec![v4(1)])), (3, Ok(vec![v4(1)]))]);
    assert_eq!(bench.wait(1).await, [(1, Err(NameError::Failed))]);
}

#[tokio::test]
async fn those_who_ask_for_one_name_share_one_look_up_and_later_ones_the_cache() {
    let server = Server::start(|_, kind| both(kind, &[v6(1)], &[v4(1)])).await;
    let mut bench = Bench::new(server.address);
    for ticket in 0..50 {
        bench.ask(if ticket % 2 == 0 { "shared.test" } else { "SHARED.Test" }, ticket);
    }
    let mut answers = bench.wait(50).await;
    answers.sort_by_key(|answer| answer.0);
    assert!(answers.iter().enumerate().all(|(index, (ticket, answer))| *ticket == index as u64 && *answer == Ok(vec![v6(1), v4(1)])));
    assert_eq!(server.asked("shared.test"), 2, "one question for each family");
    bench.resolve("shared.test").await.unwrap();
    assert_eq!(server.asked("shared.test"), 2, "the answer is good for 300 s");
}

#[tokio::test]
async fn an_answer_is_asked_for_again_when_its_time_is_over() {
    let server = Server::start(|_, kind| match both(kind, &[], &[v4(1)]) {
        Reply::Records { data, .. } => Reply::Records { ttl: 1, data },
        other => other,
    })
    .await;
    let mut bench = Bench::new(server.address);
    bench.resolve("short.test").await.unwrap();
    let first = server.asked("short.test");
    let started = Instant::now();
    while server.asked("short.test") == first {
        assert!(started.elapsed() < WATCHDOG, "never asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.resolve("short.test").await.unwrap();
    }
}

#[tokio::test]
async fn look_ups_are_bounded_and_one_too_many_waits_until_the_oldest_is_slow() {
    let server = Server::start(|name, kind| if name == "one.more.test" { both(kind, &[], &[v4(1)]) } else { Reply::Nothing }).await;
    let mut bench = Bench::new(server.address);
    (bench.names.time_limit, bench.names.slow) = (Duration::from_secs(4), Duration::from_secs(1));
    for ticket in 0..NAMES_OUTSTANDING as u64 {
        bench.ask(&format!("n{ticket}.test"), ticket);
    }
    bench.ask("one.more.test", 1000);
    assert_eq!((bench.names.under_way.len(), bench.answers().len()), (NAMES_OUTSTANDING, 0));
    bench.ask("n5.test", 1001);
    assert_eq!(bench.answers(), [], "behind those who wait, for what is being looked up");
    bench.ask("192.0.2.1", 1002);
    assert_eq!(bench.answers(), [(1002, Ok(vec![v4(1)]))], "an address needs no look-up");
    assert_eq!(bench.wait(2).await, [(0, Err(NameError::Busy)), (1000, Ok(vec![v4(1)]))]);
    let rest = bench.wait(NAMES_OUTSTANDING).await;
    assert!(rest.iter().all(|answer| answer.1 == Err(NameError::Failed)));
    assert_eq!(bench.resolve("one.more.test").await, Ok(vec![v4(1)]));
}

#[tokio::test]
async fn hosts_file_and_localhost_work_without_a_name_server() {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf("192.0.2.1 printer.lan printer\n192.0.2.2 printer.lan # second\n2001:db8::1 printer.lan\n".as_bytes()).unwrap();
    let source = Source { hosts, resolver: None };
    assert_eq!(source.find("printer.lan").await, Ok(vec![v6(1), v4(1), v4(2)]));
    assert_eq!(source.find("PRINTER").await, Ok(vec![v4(1)]));
    assert_eq!(source.find("printer.lan.").await, Ok(vec![v6(1), v4(1), v4(2)]));
    assert_eq!(source.find("localhost").await, Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]));
    assert_eq!(source.find("www.example.com").await, Err(NameError::Failed));
}

#[tokio::test]
async fn localhost_of_the_systems_hosts_file_is_loopback() {
    // Nobody answers at this address: the answer comes from the file, or is built in.
    let mut bench = Bench::new(SocketAddr::from(([127, 0, 0, 1], 9)));
    let found = bench.resolve("localhost").await.unwrap();
    assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
}

#[tokio::test]
async fn hosts_and_name_servers_are_read_again_when_their_files_change() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths { resolv_conf: folder.path().join("resolv.conf"), hosts: folder.path().join("hosts") };
    let (resolv_conf, hosts) = (paths.resolv_conf.clone(), paths.hosts.clone());
    let mut bench = Bench::new(SocketAddr::from(([127, 0, 0, 1], 9)));
    (bench.names.server, bench.names.paths, bench.names.look_again) = (None, paths, Duration::ZERO);
    // Neither is there.
    assert_eq!(bench.resolve("printer.lan").await, Err(NameError::Failed));
    assert!(bench.names.prepare().resolver.is_none());
    fs::write(&hosts, "192.0.2.1 printer.lan\n").unwrap();
    assert_eq!(bench.resolve("printer.lan").await, Ok(vec![v4(1)]));
    fs::write(&hosts, "192.0.2.22 printer.lan\n").unwrap();
    assert_eq!(bench.resolve("printer.lan").await, Ok(vec![v4(22)]));
    fs::write(&resolv_conf, "nameserver 192.0.2.53\n").unwrap();
    let first = bench.names.prepare();
    assert!(first.resolver.is_some());
    assert!(Arc::ptr_eq(&first, &bench.names.prepare()), "nothing has changed, and the cache is kept");
    fs::write(&resolv_conf, "# nobody\n").unwrap();
    assert!(bench.names.prepare().resolver.is_none());
}

#[test]
fn interleaving_keeps_order_and_drops_doubles() {
    assert_eq!(interleave(vec![], vec![v4(2), v4(1), v4(2)]), [v4(2), v4(1)]);
    assert_eq!(interleave(vec![v6(2), v6(1), v6(3)], vec![v4(1)]), [v6(2), v4(1), v6(1), v6(3)]);
    assert_eq!(interleave(vec![], vec![]), Vec::<IpAddr>::new());
}
