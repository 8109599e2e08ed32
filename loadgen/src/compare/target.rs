//! What can be compared, by name: how each is found, started on one core, and asked for its version.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compare::process::{Running, free_port};
use crate::spec::Via;

/// Something to compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// As in the tables.
    pub name: String,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    Zhwkprox(PathBuf, Version),
    ShadowsocksRust(&'static str),
    ShadowsocksLibev(&'static str),
    Ssh,
    Microsocks,
    Direct,
}

/// What ours speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V80,
    V81,
    /// … on its second engine, which is only compared when named.
    V81OnTokioUring,
}

/// Ours, by the version it speaks; each also as `NAME:LABEL=PATH` and `NAME=PATH`.
const OURS: &[(&str, Version)] =
    &[("zhwkprox", Version::V81), ("zhwkprox/0x80", Version::V80), ("zhwkprox/tokio-uring", Version::V81OnTokioUring)];

/// The names, beside ours.
const NAMED: &[(&str, Kind)] = &[
    ("shadowsocks-rust/aes-128-gcm", Kind::ShadowsocksRust("aes-128-gcm")),
    ("shadowsocks-rust/2022-blake3-aes-128-gcm", Kind::ShadowsocksRust("2022-blake3-aes-128-gcm")),
    ("shadowsocks-libev/aes-128-gcm", Kind::ShadowsocksLibev("aes-128-gcm")),
    ("ssh", Kind::Ssh),
    ("microsocks", Kind::Microsocks),
    ("direct", Kind::Direct),
];

/// A key of 16 bytes for those that want one, as base64. It protects nothing here.
const KEY: &str = "bG9hZGdlbi1iZW5jaG1hcg==";

/// Tunnels that our exit may have: on 0x80 each of many flows to one address takes one.
const TUNNELS: &str = "16384";

impl Target {
    /// Those that `names` stand for; `installed` is every one that is there.
    ///
    /// # Errors
    /// When there is no such name, or what it stands for is not installed.
    pub fn parse(names: &[String]) -> Result<Vec<Self>, String> {
        let mut targets: Vec<Self> = Vec::new();
        for name in names {
            if name == "installed" {
                let usual = OURS.iter().filter(|(_, version)| *version != Version::V81OnTokioUring);
                let ours = usual.map(|(name, version)| Self::zhwkprox(name, *version, None));
                let all = NAMED.iter().map(|(name, kind)| Self { name: (*name).to_owned(), kind: kind.clone() });
                for target in ours.chain(all).filter(|target| target.missing().is_none()) {
                    if targets.iter().all(|before| before.name != target.name) {
                        targets.push(target);
                    }
                }
            } else {
                targets.push(Self::named(name)?);
            }
        }
        for (index, target) in targets.iter().enumerate() {
            if targets[..index].iter().any(|before| before.name == target.name) {
                return Err(format!("{} is named twice; two builds of ours go as zhwkprox:new=PATH zhwkprox:old=PATH", target.name));
            }
        }
        match targets.iter().find_map(|target| Some((target, target.missing()?))) {
            Some((target, missing)) => Err(format!("{}: {missing} is not installed; benches/peers/README.md says how", target.name)),
            None => Ok(targets),
        }
    }

    /// Starts it on `core`. Gives what runs, and how to go through it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(&self, core: usize) -> io::Result<(Running, Via)> {
        let mut running = Running::new(core)?;
        let (tunnel, socks) = (free_port()?, free_port()?);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, socks));
        let (tunnel, socks) = (Tcp(tunnel), Tcp(socks));
        match &self.kind {
            Kind::Direct => return Ok((running, Via::Direct)),
            Kind::Zhwkprox(program, version) => zhwkprox(&mut running, program, *version, &tunnel, &socks)?,
            Kind::ShadowsocksRust(method) => {
                let common = ["-s", &tunnel.address(), "-k", KEY, "-m", method];
                running.start("ssserver", program("ssserver")?.args(common))?;
                running.start("sslocal", program("sslocal")?.args(["-b", &socks.address()]).args(common))?;
            }
            Kind::ShadowsocksLibev(method) => {
                let common = ["-s", "127.0.0.1", "-p", &tunnel.port(), "-k", KEY, "-m", method];
                running.start("ss-server", program("ss-server")?.args(common))?;
                running.start("ss-local", program("ss-local")?.args(["-b", "127.0.0.1", "-l", &socks.port()]).args(common))?;
            }
            Kind::Ssh => ssh(&mut running, &tunnel, &socks)?,
            Kind::Microsocks => running.start("microsocks", program("microsocks")?.args(["-i", "127.0.0.1", "-p", &socks.port()]))?,
        }
        running.await_service(at)?;
        Ok((running, Via::Socks(at)))
    }

    /// What it says of its version, if it says anything.
    #[must_use]
    pub fn version(&self) -> String {
        let asked = match &self.kind {
            Kind::Zhwkprox(path, _) => Ok((Command::new(path), "--version")),
            Kind::ShadowsocksRust(_) => program("ssserver").map(|ssserver| (ssserver, "--version")),
            Kind::ShadowsocksLibev(_) => program("ss-server").map(|ss_server| (ss_server, "--help")),
            Kind::Ssh => program("ssh").map(|ssh| (ssh, "-V")),
            Kind::Microsocks | Kind::Direct => return String::new(),
        };
        let said = asked.and_then(|(mut program, how)| program.arg(how).output());
        let said = said.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
    }

    fn named(name: &str) -> Result<Self, String> {
        let (label, path) = name.split_once('=').map_or((name, None), |(label, path)| (label, Some(path.into())));
        let base = label.split_once(':').map_or(label, |(base, _)| base);
        if let Some((_, version)) = OURS.iter().find(|(known, _)| *known == base)
            && (path.is_some() || base == label)
        {
            return Ok(Self::zhwkprox(label, *version, path));
        }
        match NAMED.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => Ok(Self { name: name.to_owned(), kind: kind.clone() }),
            None => {
                let known: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
                let ours = "zhwkprox, zhwkprox/0x80, zhwkprox/tokio-uring, each also as NAME=PATH and NAME:LABEL=PATH";
                Err(format!("{name}: expected {ours}, installed, {}", known.join(", ")))
            }
        }
    }

    /// Ours: at a path, or beside this program.
    fn zhwkprox(name: &str, version: Version, path: Option<PathBuf>) -> Self {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("zhwkprox");
        Self { name: name.to_owned(), kind: Kind::Zhwkprox(path.unwrap_or_else(beside), version) }
    }

    /// The program that is wanted and not there.
    fn missing(&self) -> Option<String> {
        let wanted: &[&str] = match &self.kind {
            Kind::Zhwkprox(path, _) => return (!path.is_file()).then(|| path.display().to_string()),
            Kind::ShadowsocksRust(_) => &["ssserver", "sslocal"],
            Kind::ShadowsocksLibev(_) => &["ss-server", "ss-local"],
            Kind::Ssh => &["sshd", "ssh", "ssh-keygen"],
            Kind::Microsocks => &["microsocks"],
            Kind::Direct => &[],
        };
        wanted.iter().find(|name| find(name).is_none()).map(|name| (*name).to_owned())
    }
}

/// A port on loopback, as programs want it.
struct Tcp(u16);

impl Tcp {
    fn port(&self) -> String {
        self.0.to_string()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0)
    }
}

fn zhwkprox(running: &mut Running, program: &Path, version: Version, tunnel: &Tcp, socks: &Tcp) -> io::Result<()> {
    let key = running.folder().join("key");
    // What it speaks by itself is not named, so that older builds can be measured too.
    let (protocol, tunnels): (&[&str], &[&str]) = match version {
        Version::V80 => (&["--protocol", "0x80"], &["--max-tunnels", TUNNELS]),
        Version::V81 | Version::V81OnTokioUring => (&[], &[]),
    };
    let engine: &[&str] = if version == Version::V81OnTokioUring { &["--engine", "tokio-uring"] } else { &[] };
    let made = Command::new(program).arg("keygen").args(protocol).arg("--out").arg(&key).output()?;
    if !made.status.success() {
        return Err(io::Error::other(format!("zhwkprox keygen: {}", String::from_utf8_lossy(&made.stderr).trim())));
    }
    let role = |name: &str| {
        let mut role = Command::new(program);
        role.arg(name).args(protocol).args(engine).arg("--key-file").arg(&key);
        role
    };
    running.start("inter-server", role("inter-server").args(["--listen", &tunnel.address(), "--socks", &socks.address()]))?;
    running.start("server", role("server").args(["--dial", &tunnel.address(), "--allow", "127.0.0.0/8"]).args(tunnels))
}

/// `ssh -D` to a private sshd, with the cipher that the others have.
fn ssh(running: &mut Running, tunnel: &Tcp, socks: &Tcp) -> io::Result<()> {
    let folder = running.folder().to_owned();
    let file = |name: &str| folder.join(name).display().to_string();
    for name in ["host_key", "key"] {
        let made = program("ssh-keygen")?.args(["-q", "-t", "ed25519", "-N", "", "-f", &file(name)]).status()?;
        if !made.success() {
            return Err(io::Error::other(format!("ssh-keygen ended with {made}")));
        }
    }
    fs::copy(file("key.pub"), file("authorized_keys"))?;
    let settings = format!(
        "ListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n",
        tunnel.address(),
        file("host_key"),
        file("authorized_keys")
    );
    let mut config = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file("sshd_config"))?;
    config.write_all(settings.as_bytes())?;
    running.start("sshd", program("sshd")?.args(["-D", "-e", "-f", &file("sshd_config")]))?;
    // The client does not try again.
    await_listener(tunnel)?;
    let user = String::from_utf8_lossy(&Command::new("id").arg("-un").output()?.stdout).trim().to_owned();
    running.start(
        "ssh",
        program("ssh")?
            .args(["-F", "none", "-N", "-D", &socks.address(), "-p", &tunnel.port(), "-i", &file("key"), "-c", "aes128-gcm@openssh.com"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"])
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"])
            .arg(format!("{user}@127.0.0.1")),
    )
}

fn await_listener(at: &Tcp) -> io::Result<()> {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match std::net::TcpStream::connect(at.address()) {
            Ok(_) => return Ok(()),
            Err(error) if std::time::Instant::now() > patience => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
}

fn program(name: &str) -> io::Result<Command> {
    find(name).map(Command::new).ok_or_else(|| io::Error::other(format!("{name} is not installed")))
}

/// In the path, and where daemons live and cargo installs.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).chain(home);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_help_and_others_are_refused() {
        let help = include_str!("../cli.rs");
        for (name, _) in NAMED {
            assert!(help.contains(name), "the help does not name {name}");
            assert_eq!(Target::named(name).unwrap().name, *name);
        }
        assert!(Target::parse(&["tor".to_owned()]).unwrap_err().contains("expected zhwkprox"));
        let nowhere = Target::parse(&["zhwkprox=/nowhere/zhwkprox".to_owned()]).unwrap_err();
        assert!(nowhere.contains("/nowhere/zhwkprox is not installed"), "{nowhere}");
        let named = |names: [&str; 2]| Target::parse(&names.map(str::to_owned));
        assert!(named(["direct", "direct"]).unwrap_err().contains("named twice"));
        assert_eq!(named(["direct", "installed"]).unwrap().iter().filter(|target| target.name == "direct").count(), 1);
        let two = named(["zhwkprox:a=/proc/self/exe", "zhwkprox:b=/proc/self/exe"]).unwrap();
        assert_eq!((two[0].name.as_str(), two[1].name.as_str()), ("zhwkprox:a", "zhwkprox:b"));
    }
}
