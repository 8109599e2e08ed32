//! The roles as processes: ready, state lines, signals, sockets, names, the demo.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};

use crate::process::Process;
use crate::support::{Folder, KEY, one_line, said, zhwkprox};

const ENTRY: [&str; 4] = ["--listen", "127.0.0.1:0", "--socks", "127.0.0.1:0"];

fn entry(folder: &Folder, more: &[&str]) -> Process {
    let key = folder.text("key");
    Process::start(&mut zhwkprox(&[&["inter-server", "--protocol", "0x80", "--key-file", &key], more].concat()))
}

fn exit(folder: &Folder, entry: SocketAddr, more: &[&str]) -> Process {
    let (key, entry) = (folder.text("key"), entry.to_string());
    let base = ["server", "--protocol", "0x80", "--key-file", &key, "--allow", "127.0.0.0/8", "::1", "--dial", &entry];
    Process::start(&mut zhwkprox(&[&base[..], more].concat()))
}

/// Both roles with a tunnel between them; the address for clients.
fn pair(folder: &Folder, entry_more: &[&str], exit_more: &[&str]) -> (Process, Process, SocketAddr) {
    let mut entry = entry(folder, &[&ENTRY[..], entry_more].concat());
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    let exit = exit(folder, servers, exit_more);
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    (entry, exit, clients)
}

/// Connects through the relay, to a name or an IPv4 address.
fn connect(clients: SocketAddr, host: &str, port: u16) -> TcpStream {
    let mut client = TcpStream::connect(clients).unwrap();
    client.set_read_timeout(Some(crate::process::WATCHDOG)).unwrap();
    client.write_all(&[5, 1, 0]).unwrap();
    let mut chosen = [0; 2];
    client.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 0]);
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    client.write_all(&request).unwrap();
    let mut reply = [0; 10];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..2], [5, 0], "{host}");
    client
}

/// A destination that sends back what it gets.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn echoes(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn usr1_prints_one_json_line_and_term_ends_in_order() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &[&ENTRY[..], &["--cores", "0"]].concat());
    entry.listens("socks5 clients");
    let state = entry.state();
    assert_eq!(state["role"], "inter-server");
    assert_eq!(state["shards"], 1);
    for count in ["flows", "half_open", "tunnels", "slots_in_use", "parked", "timers", "stale_completions"] {
        assert!(state[count].is_u64(), "{count} in {state}");
    }
    assert!(state["descriptors"].as_u64() > Some(5));
    assert_eq!(state, entry.state(), "nothing has happened in between");
    entry.signal("TERM");
    let (status, out, _) = entry.ended();
    assert_eq!(status.code(), Some(0));
    assert_eq!(out, "", "one line per signal");
}

#[test]
fn the_start_says_what_the_protocol_does_not_protect_and_what_is_listened_on() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &[&ENTRY[..], &["--socks", "unix:/tmp/../tmp/never", "--cores", "0"]].concat()[..4]);
    let warning = entry.said("trusted wires only");
    assert!(warning.contains("WARN") && warning.contains("nothing is authenticated"), "{warning}");
    entry.said("started");
    entry.said("open files");
    entry.listens("servers");
    entry.signal("INT");
    assert_eq!(entry.ended().0.code(), Some(0));
}

#[test]
fn a_standard_output_that_nobody_reads_holds_up_neither_flows_nor_the_end() {
    let folder = Folder::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    while (&theirs).write(&[b'x'; 4096]).is_ok() {}
    while (&theirs).write(b"x").is_ok() {}
    theirs.set_nonblocking(false).unwrap();
    let key = folder.text("key");
    let base = ["inter-server", "--protocol", "0x80", "--key-file", &key];
    let mut entry = Process::with_output(&mut zhwkprox(&[&base[..], &ENTRY[..]].concat()), OwnedFd::from(theirs).into());
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    entry.signal("USR1");
    let mut exit = exit(&folder, servers, &[]);
    exit.said("started");
    exit.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    let port = echo();
    // A name has to pass the control thread.
    echoes(&mut connect(clients, "localhost", port), b"still there");
    entry.signal("USR1");
    entry.signal("TERM");
    assert_eq!(entry.ended().0.code(), Some(0));
    drop(ours);
}

#[test]
fn hup_is_noted_and_changes_nothing() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &ENTRY);
    entry.listens("socks5 clients");
    entry.signal("HUP");
    entry.said("nothing to reload in 0x80");
    entry.state();
}

#[test]
fn json_logs_are_json_on_every_line() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &[&ENTRY[..], &["--log", "json", "--log-level", "debug"]].concat());
    entry.said("listening");
    entry.signal("TERM");
    let (status, _, err) = entry.ended();
    assert_eq!(status.code(), Some(0));
    for line in err.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string());
    }
}

#[test]
fn an_address_in_use_is_one_line_with_the_address() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for cores in ["0", "0-1"] {
        if cores == "0-1" && std::thread::available_parallelism().unwrap().get() < 2 {
            eprintln!("SKIPPED: two shards need two cores");
            continue;
        }
        let mut process = entry(&folder, &["--listen", "127.0.0.1:0", "--socks", &address, "--cores", cores]);
        let (status, out, err) = process.ended();
        assert_eq!(status.code(), Some(1));
        assert_eq!(out, "");
        one_line(&err, &["cannot listen on", &address, "in use"]);
    }
}

#[test]
fn a_second_relay_on_the_same_port_is_refused_though_both_would_share_it() {
    let folder = Folder::new();
    let mut first = entry(&folder, &ENTRY);
    let clients = first.listens("socks5 clients").to_string();
    let mut second = entry(&folder, &["--listen", "127.0.0.1:0", "--socks", &clients]);
    let (status, _, err) = second.ended();
    assert_eq!(status.code(), Some(1));
    one_line(&err, &[&clients, "in use"]);
}

#[test]
fn an_address_that_the_machine_has_not_is_one_line() {
    let folder = Folder::new();
    let mut process = entry(&folder, &["--listen", "192.0.2.1:1992", "--socks", "127.0.0.1:0"]);
    let (status, _, err) = process.ended();
    assert_eq!(status.code(), Some(1));
    one_line(&err, &["192.0.2.1:1992", "no such address"]);
}

#[test]
fn a_unix_socket_is_its_owners_is_replaced_when_stale_and_goes_at_the_end() {
    let folder = Folder::new();
    let path = folder.path("socks");
    let at = format!("unix:{}", path.display());
    // Left behind by somebody who was killed.
    drop(UnixListener::bind(&path).unwrap());
    let mut first = entry(&folder, &["--listen", "127.0.0.1:0", "--socks", &at]);
    first.said(&at);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(crate::process::WATCHDOG)).unwrap();
    client.write_all(&[5, 1, 0]).unwrap();
    let mut chosen = [0; 2];
    client.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 0]);

    let mut second = entry(&folder, &["--listen", "127.0.0.1:0", "--socks", &at]);
    let (status, _, err) = second.ended();
    assert_eq!(status.code(), Some(1));
    one_line(&err, &[&at, "in use"]);
    assert!(path.exists(), "the first one's");

    first.signal("TERM");
    first.signal("TERM");
    assert_eq!(first.ended().0.code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_way_of_a_unix_socket_is_left_alone() {
    let folder = Folder::new();
    let file = folder.write("precious", "data", 0o644);
    let mut process = entry(&folder, &["--listen", "127.0.0.1:0", "--socks", &format!("unix:{file}")]);
    let (status, _, err) = process.ended();
    assert_eq!(status.code(), Some(1));
    one_line(&err, &[&file, "no socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");
}

#[test]
fn a_running_flow_outlives_the_first_signal_and_not_the_second() {
    let folder = Folder::new();
    let (mut entry, mut exit, clients) = pair(&folder, &[], &[]);
    let mut client = connect(clients, "127.0.0.1", echo());
    echoes(&mut client, b"before");
    entry.signal("TERM");
    entry.said("stopping");
    echoes(&mut client, b"after the first");
    entry.signal("TERM");
    assert_eq!(entry.ended().0.code(), Some(0));
    let ended = client.read(&mut [0; 1]);
    assert!(!matches!(ended, Ok(1)), "{ended:?}");
    exit.signal("TERM");
    assert_eq!(exit.ended().0.code(), Some(0));
}

#[test]
fn a_stop_waits_for_the_last_flow_and_no_longer() {
    let folder = Folder::new();
    let (mut entry, _exit, clients) = pair(&folder, &[], &[]);
    let mut client = connect(clients, "127.0.0.1", echo());
    echoes(&mut client, b"before");
    entry.signal("INT");
    entry.said("stopping");
    echoes(&mut client, b"after");
    drop(client);
    assert_eq!(entry.ended().0.code(), Some(0));
}

#[test]
fn secrets_are_in_no_line_of_either_role_at_any_level() {
    let folder = Folder::new();
    let password = "hunter2hunter2";
    let credentials = folder.write("credentials", &format!("somebody:{password}\n"), 0o600);
    let trace = ["--log-level", "trace"];
    let mut entry = entry(&folder, &[&ENTRY[..], &trace[..], &["--credentials-file", &credentials]].concat());
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    let mut exit = exit(&folder, servers, &trace);
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    let mut client = TcpStream::connect(clients).unwrap();
    client.set_read_timeout(Some(crate::process::WATCHDOG)).unwrap();
    client.write_all(&[5, 1, 2]).unwrap();
    let mut chosen = [0; 2];
    client.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 2]);
    let mut wrong = vec![1, 8];
    wrong.extend_from_slice(b"somebody");
    wrong.push(14);
    wrong.extend_from_slice(b"hunter3hunter3");
    client.write_all(&wrong).unwrap();
    client.read_exact(&mut chosen).unwrap();
    assert_ne!(chosen[1], 0);
    for process in [&mut entry, &mut exit] {
        process.signal("TERM");
        let (status, out, err) = process.ended();
        assert_eq!(status.code(), Some(0));
        for secret in [KEY, password, "hunter3hunter3", "736978746565"] {
            assert!(!out.contains(secret) && !err.contains(secret), "{secret}");
        }
    }
}

/// Answers every question for an A record with 127.0.0.1.
fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            answer.add_query(query.clone());
            if query.query_type() == RecordType::A {
                answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::A(A::new(127, 0, 0, 1))));
            }
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    address
}

#[test]
fn one_shared_port_serves_servers_and_clients() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &["--shared", "127.0.0.1:0"]);
    let shared = entry.listens("servers and socks5 clients");
    let _exit = exit(&folder, shared, &[]);
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    echoes(&mut connect(shared, "127.0.0.1", echo()), b"through one port");
}

#[test]
fn a_shared_port_on_every_address_closes_on_clients_and_takes_servers() {
    let folder = Folder::new();
    let mut entry = entry(&folder, &["--shared", "0.0.0.0:0"]);
    entry.said("clients are not taken");
    let port = entry.listens("servers").port();
    let shared = SocketAddr::from(([127, 0, 0, 1], port));
    let _exit = exit(&folder, shared, &[]);
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    let mut client = TcpStream::connect(shared).unwrap();
    client.set_read_timeout(Some(crate::process::WATCHDOG)).unwrap();
    client.write_all(&[5, 1, 0]).unwrap();
    let answer = client.read(&mut [0; 1]);
    assert!(matches!(answer, Ok(0)) || answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_panic_of_a_shard_ends_the_process_with_one_line() {
    const INSIDE: &str = "ZHWKPROX_TEST_PANIC";
    if std::env::var_os(INSIDE).is_some() {
        // The child: what `run` sets up, and a shard's thread that panics.
        let runtime = zhwkprox::run::runtime().unwrap();
        let _events = runtime.block_on(async { zhwkprox::run::events().unwrap() });
        let shard = std::thread::Builder::new().name("shard-1".to_owned());
        let _ = shard.spawn(|| panic!("on purpose\nover two lines")).unwrap().join();
        unreachable!("the process has ended");
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output =
        again.args(["--exact", "running::a_panic_of_a_shard_ends_the_process_with_one_line", "--nocapture"]).env(INSIDE, "1").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    one_line(&said(&output), &["shard-1 panicked at tests/cli/running.rs:", "on purpose, over two lines"]);
}

#[test]
fn names_are_looked_up_at_the_inter_server_and_for_dialling() {
    let folder = Folder::new();
    let resolver = name_server().to_string();
    let mut entry = entry(&folder, &[&ENTRY[..], &["--resolver", &resolver]].concat());
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    let key = folder.text("key");
    let dial = format!("entry.test:{}", servers.port());
    let base = ["server", "--protocol", "0x80", "--key-file", &key, "--allow", "127.0.0.0/8", "--dial", &dial, "--resolver", &resolver];
    let _exit = Process::start(&mut zhwkprox(&base));
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    let port = echo();
    for host in ["echo.test", "127.0.0.1"] {
        echoes(&mut connect(clients, host, port), host.as_bytes());
    }
}

#[test]
fn without_resolv_conf_addresses_and_the_hosts_file_still_work() {
    let folder = Folder::new();
    let hosts = folder.write("hosts", "127.0.0.1 echo.lan\n", 0o644);
    let hide = format!("mount --bind /dev/null /etc/resolv.conf && mount --bind {hosts} /etc/hosts && exec \"$@\"");
    let possible = Command::new("unshare").args(["-rm", "sh", "-c", &hide, "sh", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "unshare -rm does not work here: apt-get install util-linux");
        eprintln!("SKIPPED: unshare -rm does not work here");
        return;
    }
    let key = folder.text("key");
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &hide, "sh", env!("CARGO_BIN_EXE_zhwkprox")]);
    command.args(["inter-server", "--protocol", "0x80", "--key-file", &key]).args(ENTRY);
    let mut entry = Process::start(&mut command);
    let (servers, clients) = (entry.listens("servers"), entry.listens("socks5 clients"));
    entry.said("no name server");
    let _exit = exit(&folder, servers, &[]);
    entry.wait_for_state(|state| state["tunnels"].as_u64() >= Some(1));
    let port = echo();
    for host in ["echo.lan", "127.0.0.1"] {
        echoes(&mut connect(clients, host, port), host.as_bytes());
    }
}

#[test]
fn the_demo_prints_two_lines_to_try_and_the_first_one_works() {
    let mut demo = Process::start(&mut zhwkprox(&["demo"]));
    let first = demo.printed("curl ");
    let second = demo.printed("curl ");
    let words: Vec<&str> = first.split(' ').collect();
    let ["curl", "-x", proxy, page] = words[..] else { panic!("{first}") };
    let proxy = proxy.strip_prefix("socks5h://").unwrap();
    let page = page.strip_prefix("http://").unwrap().strip_suffix('/').unwrap();
    assert!(second.starts_with(&format!("curl -x socks5h://{proxy} https://")), "{second}");
    let (host, port) = page.split_once(':').unwrap();
    for host in [host, "localhost"] {
        let mut client = connect(proxy.parse().unwrap(), host, port.parse().unwrap());
        client.write_all(b"GET / HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        client.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("through the relay"), "{page}");
    }
    demo.signal("INT");
    let (status, _, err) = demo.ended();
    assert_eq!(status.code(), Some(0), "{err}");
    assert!(!err.contains("ERROR") && !err.contains("panicked"), "{err}");
}

#[test]
fn doctor_says_what_it_found() {
    let output = zhwkprox(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(String::from_utf8(output.stdout).unwrap().contains("io_uring"));
}
