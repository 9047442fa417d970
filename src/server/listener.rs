//! Binds and accepts, and hands each connection to the request thread that has the fewest.
//!
//! One thread accepts for all, so that even two connections use two cores; the kernel's own spreading
//! over sockets (SO_REUSEPORT) would put both on one as often as not.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::worker::{ConnectionCount, WorkerHandle};
use super::{Gateway, PAUSE, random_hex};
use crate::config::value::{ListenAddress, UNIX_PEER};
use crate::wire::answer::Refusal;
use crate::wire::client::{Peer, Scheme};

/// Connections that the kernel keeps waiting for us.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel takes on for a client beyond what is on its way already. Without a limit a slow
/// reader costs up to `tcp_wmem`, megabytes; and the less waits there, the sooner it shows that it moves.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// What those who connect speak and come for: the listener that they come through says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    /// Plain HTTP: clients have their requests answered.
    Http,
    /// TLS: likewise.
    Https,
    /// Plain HTTP: everybody is sent to HTTPS.
    Redirect,
    /// Plain HTTP: load balancers are told whether they may forward a request themselves.
    ForwardAuth,
}

/// Where a connection comes from and what it comes for.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The other end; [`UNIX_PEER`] for that of a Unix socket, which has no address.
    pub address: SocketAddr,
    /// As its listener.
    pub door: Door,
    /// What comes is a stranger's, though the address is one that is trusted: that of whoever passes it on.
    pub stranger: bool,
}

impl Arrival {
    /// The other end, for whoever asks who that is.
    pub fn peer(&self, trusted: &[IpNet]) -> Peer {
        let trusted = if self.stranger { &[] } else { trusted };
        Peer::new(self.address, trusted, self.scheme())
    }

    /// What requests come by.
    pub fn scheme(&self) -> Scheme {
        match self.door {
            Door::Http | Door::Redirect | Door::ForwardAuth => Scheme::Http,
            Door::Https => Scheme::Https,
        }
    }
}

/// A connection on its way to the thread that serves it.
pub enum Accepted {
    /// From a TCP listener.
    Tcp(std::net::TcpStream),
    /// From a Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

/// A bound listener.
pub struct Listener {
    socket: Socketed,
    door: Door,
    /// Removed when nothing listens there any more.
    _file: Option<SocketFile>,
}

enum Socketed {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// A TCP listener at `host:port`.
    ///
    /// # Errors
    /// One sentence with the address in it.
    pub fn tcp(address: &str, door: Door) -> Result<Self, String> {
        Ok(Self { socket: Socketed::Tcp(bind(address)?), door, _file: None })
    }

    /// The port, for a TCP listener whose clients speak `door`.
    pub fn port_of(&self, door: Door) -> Option<u16> {
        self.tcp_address().filter(|_| self.door == door).map(|address| address.port())
    }

    /// Where it ended up, for a port of 0; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socketed::Tcp(listener) => listener.local_addr().ok(),
            Socketed::Unix(..) => None,
        }
    }

    /// Says where it listens.
    pub fn announce(&self) {
        let address = match &self.socket {
            Socketed::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Socketed::Unix(_, path) => format!("unix:{}", path.display()),
        };
        match self.door {
            Door::Http | Door::Https => tracing::info!(%address, "listening"),
            Door::Redirect => tracing::info!(%address, "redirecting to HTTPS"),
            Door::ForwardAuth => tracing::info!(%address, "forward-auth listening"),
        }
    }

    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match &self.socket {
            Socketed::Tcp(listener) => {
                listener.accept().await.map(|(stream, from)| (Stream::Tcp(stream), from))
            }
            Socketed::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), SocketAddr::new(UNIX_PEER, 0)))
            }
        }
    }
}

/// A connection that has just been accepted.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn hand_over(self) -> io::Result<Accepted> {
        match self {
            Stream::Tcp(stream) => {
                // Without it every answer of two packets would wait for an acknowledgement.
                stream.set_nodelay(true)?;
                stream.into_std().map(Accepted::Tcp)
            }
            Stream::Unix(stream) => stream.into_std().map(Accepted::Unix),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Unix(stream) => stream.try_write(bytes),
        }
    }
}

/// Opens what `listen` and `tls.redirect` name, all of it or nothing. `secure`: TCP listeners speak TLS.
///
/// # Errors
/// One sentence with the address in it.
pub fn open_all(
    listen: &[ListenAddress],
    redirect: Option<&ListenAddress>,
    secure: bool,
    socket_mode: u32,
) -> Result<Vec<Listener>, String> {
    let mut inherited = Inherited::take();
    let mut open = Vec::new();
    let wanted = redirect.map(|address| (address, true)).into_iter();
    let wanted: Vec<_> = wanted.chain(listen.iter().map(|address| (address, false))).collect();
    // Those by name first, so that `systemd` alone is the rest.
    let is_rest = |address: &ListenAddress| *address == ListenAddress::Systemd(None);
    let by_name = wanted.iter().filter(|(address, _)| !is_rest(address));
    for (address, redirects) in by_name.chain(wanted.iter().filter(|(address, _)| is_rest(address))) {
        let tcp = match (redirects, secure) {
            (true, _) => Door::Redirect,
            (false, true) => Door::Https,
            (false, false) => Door::Http,
        };
        let unix = if *redirects { Door::Redirect } else { Door::Http };
        match address {
            ListenAddress::Tcp(address) => {
                let socket = Socketed::Tcp(bind(&address.to_string())?);
                open.push(Listener { socket, door: tcp, _file: None });
            }
            ListenAddress::Unix(path) => {
                let (socket, file) = bind_unix(path, socket_mode)?;
                open.push(Listener { socket, door: unix, _file: Some(file) });
            }
            ListenAddress::Systemd(name) => {
                let found = inherited.take_by(name.as_deref())?;
                open.extend(found.into_iter().map(|socket| {
                    let door = if matches!(socket, Socketed::Tcp(_)) { tcp } else { unix };
                    Listener { socket, door, _file: None }
                }));
            }
        }
    }
    Ok(open)
}

/// Sockets that systemd has opened for this process (sd_listen_fds(3)).
struct Inherited {
    fds: listenfd::ListenFd,
    names: Vec<String>,
}

impl Inherited {
    /// Takes them over, and the variables that speak of them out of the environment.
    fn take() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Self { fds: listenfd::ListenFd::from_env(), names: names.split(':').map(str::to_owned).collect() }
    }

    fn take_by(&mut self, name: Option<&str>) -> Result<Vec<Socketed>, String> {
        let mut found = Vec::new();
        for index in 0..self.fds.len() {
            if name.is_some_and(|name| self.names.get(index).is_none_or(|known| known != name)) {
                continue;
            }
            let fail =
                |error: io::Error| format!("cannot listen on a socket that systemd handed over: {error}");
            match self.fds.take_tcp_listener(index) {
                Ok(Some(listener)) => {
                    listener.set_nonblocking(true).map_err(fail)?;
                    #[cfg(target_os = "linux")]
                    socket2::SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT).map_err(fail)?;
                    found.push(Socketed::Tcp(TcpListener::from_std(listener).map_err(fail)?));
                    continue;
                }
                // Taken under its name already.
                Ok(None) => continue,
                Err(_) => {}
            }
            if let Some(listener) = self.fds.take_unix_listener(index).map_err(fail)? {
                listener.set_nonblocking(true).map_err(fail)?;
                let path =
                    listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
                let listener = UnixListener::from_std(listener).map_err(fail)?;
                found.push(Socketed::Unix(listener, path.unwrap_or_default()));
            }
        }
        match (found.is_empty(), name) {
            (false, _) => Ok(found),
            (true, None) => Err("'listen: systemd' found no socket: start it by its .socket unit".to_owned()),
            (true, Some(name)) => Err(format!(
                "'systemd:{name}' found no socket: the .socket unit needs 'FileDescriptorName={name}'"
            )),
        }
    }
}

/// The file of a Unix socket of ours: gone with the listener, unless it is another's by then.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket that only those whom `mode` lets can connect to, from its first moment on.
fn bind_unix(path: &Path, mode: u32) -> Result<(Socketed, SocketFile), String> {
    let shown = path.display();
    let fail = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => ": its folder is not there",
            io::ErrorKind::PermissionDenied => ": its folder is not writable",
            _ => return format!("cannot listen on unix:{shown}: {error}"),
        };
        format!("cannot listen on unix:{shown}{hint}")
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(format!("cannot listen on unix:{shown}: there is a file that is no socket"));
        }
        // Nobody answers: its process has ended without removing it.
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(fail)?;
            }
            _ => return Err(format!("cannot listen on unix:{shown}: another process listens there")),
        },
        Err(_) => {}
    }
    let open = || {
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let file = SocketFile { path: path.to_path_buf(), inode: fs::symlink_metadata(path)?.ino() };
        Ok((Socketed::Unix(listener, path.to_path_buf()), file))
    };
    open().map_err(fail)
}

/// Binds `host:port`.
///
/// # Errors
/// One sentence with the address in it.
pub fn bind(address: &str) -> Result<TcpListener, String> {
    let fail = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": another process listens there",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)",
            io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
            _ => return format!("cannot listen on {address}: {error}"),
        };
        format!("cannot listen on {address}{hint}")
    };
    let mut addresses = address.to_socket_addrs().map_err(fail)?;
    let resolved = addresses.next().ok_or_else(|| format!("cannot listen on {address}: it is no address"))?;
    let open = || {
        let socket = Socket::new(Domain::for_address(resolved), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Every accepted connection inherits it.
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.bind(&resolved.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(fail)
}

/// Where a listener ended up, for a port of 0.
///
/// # Errors
/// One sentence.
pub fn local_address(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error| format!("cannot listen: {error}"))
}

/// Accepts until dropped.
pub async fn accept(gateway: Arc<Gateway>, listener: Listener, workers: Vec<WorkerHandle>) {
    let mut next = 0;
    let mut complained = None::<Instant>;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: wait instead of spinning, and say so now and then.
                if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                    tracing::error!(%error, "cannot accept a connection");
                    complained = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let limit = gateway.current().snapshot.limits.connections;
        if gateway.connections.load(Ordering::Relaxed) >= limit {
            turn_away(&gateway, &listener, &stream);
            continue;
        }
        let count = ConnectionCount::new(Arc::clone(&gateway));
        let Ok(stream) = stream.hand_over() else { continue };
        // The least loaded; among equals each in turn.
        next = (next + 1) % workers.len();
        let in_turn = workers[next..].iter().chain(&workers[..next]);
        if let Some(worker) = in_turn.min_by_key(|worker| worker.load()) {
            worker.take(stream, Arrival { address, door: listener.door, stranger: false }, count);
        }
    }
}

/// One connection too many: told so, without waiting for what it wants.
fn turn_away(gateway: &Gateway, listener: &Listener, stream: &Stream) {
    let refusal = Refusal::TooManyConnections;
    gateway.metrics.refusal(refusal.code());
    if listener.door == Door::Https {
        // It could not be told without a handshake, and that is what there are too many for.
        return;
    }
    gateway.metrics.response(refusal.status().as_u16());
    let bytes = refusal.bytes(&gateway.current().snapshot.errors, &random_hex(8), false);
    // Whoever does not take it at once learns it from the closed connection.
    let _ = stream.try_write(&bytes);
}

impl ConnectionCount {
    /// One more connection, until it is dropped.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        gateway.connections.fetch_add(1, Ordering::Relaxed);
        gateway.metrics.connections.inc();
        Self(gateway)
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        let open: &AtomicUsize = &self.0.connections;
        open.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections.dec();
    }
}
