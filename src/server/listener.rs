//! Binds and accepts, and hands each connection to the request thread that has the fewest.
//!
//! One thread accepts for all, so that even two connections use two cores; the kernel's own spreading
//! over sockets (SO_REUSEPORT) would put both on one as often as not.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::connection::Door;
use super::worker::{Arrival, ConnectionCount, WorkerHandle};
use super::{Gateway, PAUSE, random_hex};
use crate::wire::answer::Refusal;

/// Connections that the kernel keeps waiting for us.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel takes on for a client beyond what is on its way already. Without a limit a slow
/// reader costs up to `tcp_wmem`, megabytes; and the less waits there, the sooner it shows that it moves.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

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
pub async fn accept(gateway: Arc<Gateway>, listener: TcpListener, door: Door, workers: Vec<WorkerHandle>) {
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
            turn_away(&gateway, &stream);
            continue;
        }
        let count = ConnectionCount::new(Arc::clone(&gateway));
        // Without it every answer of two packets would wait for an acknowledgement.
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let Ok(stream) = prepared else { continue };
        // The least loaded; among equals each in turn.
        next = (next + 1) % workers.len();
        let in_turn = workers[next..].iter().chain(&workers[..next]);
        if let Some(worker) = in_turn.min_by_key(|worker| worker.load()) {
            worker.take(Arrival { stream, address, door, count });
        }
    }
}

/// One connection too many: told so, without waiting for what it wants.
fn turn_away(gateway: &Gateway, stream: &TcpStream) {
    let refusal = Refusal::TooManyConnections;
    gateway.metrics.refusal(refusal.code());
    gateway.metrics.response(refusal.status().as_u16());
    let bytes = refusal.bytes(&gateway.current().snapshot.errors, &random_hex(8));
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
