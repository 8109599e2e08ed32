//! Other people's programs: curl, nginx, sshd and friends, each with a configuration of its own in a temporary directory.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::net::{free_port, has_ipv6};
use super::{WATCHDOG, await_some};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Says so, loudly and past the test harness's capture, when something is not tested for want of what it needs.
/// In CI (`CI` is set) that is a failure.
pub(crate) fn skip(what: &str, cure: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}; {cure}");
    let count = SKIPPED.fetch_add(1, Ordering::SeqCst) + 1;
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED ({count} so far): {what}; {cure}");
}

/// Whether all of these programs are here: (program, Debian package).
pub(crate) fn have(programs: &[(&str, &str)]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    let names: Vec<&str> = missing.iter().map(|(p, _)| *p).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, p)| *p).collect();
    skip(&format!("missing: {}", names.join(", ")), &format!("apt-get install --yes {}", packages.join(" ")));
    false
}

/// Where a program is; the system directories are looked into also for users.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).map(|d| d.join(program)).find(|p| p.is_file())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|l| l.starts_with("Uid:\t0\t0"))
}

/// curl through the inter-server; names are resolved by the relay.
pub(crate) fn curl(entry: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "120", "--socks5-hostname", &entry.to_string()]).args(arguments);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// Runs it and insists on success.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

/// A program that runs until it is dropped.
#[derive(Debug)]
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx with a directory to serve, PUT allowed under `/put/`.
#[derive(Debug)]
pub(crate) struct Nginx {
    pub(crate) port: u16,
    directory: TempDir,
    _daemon: Daemon,
}

impl Nginx {
    /// On 127.0.0.1 and, where there is one, [::1].
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, home) = (free_port(), directory.path().display().to_string());
        std::fs::create_dir_all(directory.path().join("www/put")).unwrap();
        let user = if is_root() { "user root;" } else { "" };
        let listen6 = if has_ipv6() { format!("listen [::1]:{port};") } else { String::new() };
        let configuration = format!(
            "daemon off; {user} worker_processes 1; error_log stderr; pid {home}/pid;
             events {{ worker_connections 1024; }}
             http {{
               access_log off; sendfile on; client_max_body_size 0; default_type application/octet-stream;
               client_body_temp_path {home}/body; proxy_temp_path {home}/t1; fastcgi_temp_path {home}/t2;
               uwsgi_temp_path {home}/t3; scgi_temp_path {home}/t4;
               server {{
                 listen 127.0.0.1:{port} backlog=4096; {listen6}
                 root {home}/www;
                 location /put/ {{ dav_methods PUT; create_full_put_path on; }}
                 location /close/ {{ alias {home}/www/; keepalive_timeout 0; }}
               }}
             }}"
        );
        std::fs::write(directory.path().join("conf"), configuration).unwrap();
        let mut daemon = Command::new(find("nginx").unwrap())
            .args(["-p", &home, "-c", &format!("{home}/conf"), "-e", "stderr"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map(Daemon)
            .unwrap();
        await_port(port, &mut daemon);
        Self { port, directory, _daemon: daemon }
    }

    /// A file in the served directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("www").join(name)
    }

    /// Where a file is fetched.
    pub(crate) fn url(&self, host: &str, name: &str) -> String {
        format!("http://{host}:{}/{name}", self.port)
    }
}

/// A real sshd, one key that may log in, and where it listens.
#[derive(Debug)]
pub(crate) struct Sshd {
    pub(crate) port: u16,
    directory: TempDir,
    _daemon: Daemon,
}

impl Sshd {
    /// On 127.0.0.1.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, home) = (free_port(), directory.path().display().to_string());
        for name in ["host", "id"] {
            let path = format!("{home}/{name}");
            succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path]));
        }
        if is_root() {
            // sshd refuses to start without its directory for privilege separation.
            let _ = std::fs::create_dir_all("/run/sshd");
        }
        let configuration = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile {home}/pid\nAuthorizedKeysFile {home}/id.pub\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
        );
        std::fs::write(directory.path().join("conf"), configuration).unwrap();
        let mut daemon = Command::new(find("sshd").unwrap())
            .args(["-D", "-e", "-f", &format!("{home}/conf")])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map(Daemon)
            .unwrap();
        await_port(port, &mut daemon);
        Self { port, directory, _daemon: daemon }
    }

    /// `ssh` to it by the given proxy command.
    pub(crate) fn ssh(&self, proxy_command: &str, command: &str) -> Command {
        let user = String::from_utf8(succeed(Command::new("id").arg("-un")).stdout).unwrap();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=30", "-o"])
            .arg(format!("ProxyCommand={proxy_command}"))
            .arg("-i")
            .arg(self.directory.path().join("id"))
            .args(["-p", &self.port.to_string(), &format!("{}@127.0.0.1", user.trim()), command])
            .stdin(Stdio::null());
        ssh
    }
}

fn await_port(port: u16, daemon: &mut Daemon) {
    await_some("a daemon to listen", WATCHDOG, || {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            let mut words = String::new();
            let _ = std::io::Read::read_to_string(&mut daemon.0.stderr.take().unwrap(), &mut words);
            panic!("the daemon ended: {status}: {words}");
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
    });
}

/// Writes `len` bytes of a flow to a file.
pub(crate) fn write_pattern(path: &Path, seed: u64, flow: u32, len: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    super::destination::send_pattern(&mut file, seed, flow, len).unwrap();
}
