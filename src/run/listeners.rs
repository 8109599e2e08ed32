//! Listening sockets, made before any shard runs: one per shard and TCP address (the kernel spreads connections over them), and one
//! per unix path, which all shards share.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::config::{ListenAt, Listener};
use crate::exit::Failure;
use crate::limits::BACKLOG;
use crate::listen::ListenerKind;
use crate::shard::io::Purpose;
use crate::shard::options;

/// All listening sockets of a process.
#[derive(Debug, Default)]
pub struct Bound {
    /// For each shard, in order.
    pub per_shard: Vec<Vec<(ListenerKind, OwnedFd)>>,
    /// What is listened on, with ports that were chosen by the kernel.
    pub addresses: Vec<(ListenerKind, ListenAt)>,
    unix: Vec<UnixPath>,
}

/// A socket file of ours. It goes when the process ends in order, unless somebody has put another in its place.
#[derive(Debug)]
struct UnixPath {
    path: PathBuf,
    inode: u64,
}

impl Bound {
    /// Listens everywhere.
    ///
    /// # Errors
    /// An address cannot be had: which, and why.
    pub fn new(listeners: &[Listener], shards: usize) -> Result<Self, Failure> {
        let mut bound = Self { per_shard: (0..shards).map(|_| Vec::new()).collect(), ..Self::default() };
        for listener in listeners {
            let failed = |cause: &io::Error| Failure::other(format!("cannot listen on {}: {}", listener.at, explain(cause)));
            let made = match &listener.at {
                ListenAt::Tcp(address) => bound.tcp(listener.kind, *address),
                ListenAt::Unix(path) => bound.unix(listener.kind, path),
            };
            made.map_err(|cause| failed(&cause))?;
        }
        Ok(bound)
    }

    fn tcp(&mut self, kind: ListenerKind, wanted: SocketAddr) -> io::Result<()> {
        let many = self.per_shard.len() > 1;
        if many && wanted.port() != 0 {
            // With SO_REUSEPORT a second process of the same user would get the same port and take half of the connections.
            // Without it the kernel says that the port is taken.
            tcp(wanted, kind, false)?;
        }
        let mut address = wanted;
        for shard in &mut self.per_shard {
            let socket = tcp(address, kind, many)?;
            address = socket.local_addr()?.as_socket().unwrap_or(address);
            shard.push((kind, socket.into()));
        }
        self.addresses.push((kind, ListenAt::Tcp(address)));
        Ok(())
    }

    fn unix(&mut self, kind: ListenerKind, path: &Path) -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = SockAddr::unix(path)?;
        if let Err(error) = socket.bind(&address) {
            if error.kind() != io::ErrorKind::AddrInUse {
                return Err(error);
            }
            remove_stale(path)?;
            socket.bind(&address)?;
        }
        // Before listen: until then nobody can connect, whatever the file's mode.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        self.unix.push(UnixPath { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() });
        let socket = OwnedFd::from(socket);
        for shard in &mut self.per_shard {
            shard.push((kind, socket.try_clone()?));
        }
        self.addresses.push((kind, ListenAt::Unix(path.to_owned())));
        Ok(())
    }

    /// Gives the sockets of each shard away. What is left removes the socket files when dropped.
    #[must_use]
    pub fn take(&mut self) -> Vec<Vec<(ListenerKind, OwnedFd)>> {
        std::mem::take(&mut self.per_shard)
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // The next start replaces it in any case.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn tcp(address: SocketAddr, kind: ListenerKind, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let purpose = if let ListenerKind::Socks { .. } = kind { Purpose::Flow } else { Purpose::Tunnel };
    options::set(&SockRef::from(&socket), purpose)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket file that nobody listens on was left by a process that was killed. Anything else is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::other("there is a file of that name that is no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

fn explain(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "the address is in use by another program (ss -ltnp shows which)".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address (ip addr shows those it has)".to_owned(),
        io::ErrorKind::PermissionDenied => format!("{cause}. ports below 1024 need root or net.ipv4.ip_unprivileged_port_start"),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_is_accepted_has_the_options_of_what_its_listener_is_for() {
        let clients = ListenerKind::Socks { authenticate: false };
        for (kind, lowat) in [(ListenerKind::Tunnel, Some(128 << 10)), (clients, None)] {
            let at = ListenAt::Tcp("127.0.0.1:0".parse().unwrap());
            let mut bound = Bound::new(&[Listener { kind, at }], 1).unwrap();
            let (_, ListenAt::Tcp(address)) = bound.addresses[0].clone() else { panic!("listens on TCP") };
            let (_, listener) = bound.take().remove(0).remove(0);
            let _client = TcpStream::connect(address).unwrap();
            let (accepted, _) = Socket::from(listener).accept().unwrap();
            assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap(), "{kind:?}");
            let own = Some(accepted.tcp_notsent_lowat().unwrap());
            assert_eq!(own == lowat, lowat.is_some(), "{kind:?}: {own:?}");
        }
    }
}
