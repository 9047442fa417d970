//! Connections to the upstream: a stack of idle ones for each request thread, no lock between them.
//!
//! The last one used is the first used again, so a few stay warm and the rest fall idle and close. A
//! connection goes back on the stack only when hyper says that it is ready for another request: one with
//! unread bytes, or a request half sent, never is.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::body::RequestBody;
use crate::config::snapshot::UpstreamSettings;
use crate::stream::Stream;
use crate::wire::answer::Refusal;

/// Bytes that hyper may hold for a connection in each direction; a response's head has to fit.
const BUFFER: usize = 128 * 1024;

/// What all threads share of an upstream: the number of connections that may still be opened.
#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    /// Requests of all threads that wait for one.
    waiting: AtomicUsize,
}

impl Slots {
    /// At most `max_connections` at a time.
    pub fn new(max_connections: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max_connections)), waiting: AtomicUsize::new(0) }
    }
}

/// Counts a request that waits for a connection, on its thread and in all.
struct Waiting<'a>(&'a Upstream);

impl<'a> Waiting<'a> {
    fn begin(upstream: &'a Upstream) -> Self {
        upstream.waiting_here.set(upstream.waiting_here.get() + 1);
        upstream.slots.waiting.fetch_add(1, Ordering::Relaxed);
        Self(upstream)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_here.set(self.0.waiting_here.get() - 1);
        self.0.slots.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread's connections to one upstream.
pub struct Upstream {
    settings: UpstreamSettings,
    host: HeaderValue,
    slots: Arc<Slots>,
    idle: RefCell<Vec<Idle>>,
    returned: Notify,
    waiting_here: Cell<usize>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection and the slot that it takes up.
struct Sender {
    http: SendRequest<RequestBody>,
    _slot: OwnedSemaphorePermit,
}

/// A connection that one request has to itself. Dropped before [`Lease::release`], it is closed.
pub struct Lease {
    sender: Sender,
    /// Whether it has served a request before: then it may have gone stale.
    pub reused: bool,
}

impl Upstream {
    /// No connection yet.
    pub fn new(settings: UpstreamSettings, slots: &Arc<Slots>) -> Rc<Self> {
        Rc::new(Self {
            host: HeaderValue::try_from(&settings.address).expect("host and port are visible ASCII"),
            settings,
            slots: Arc::clone(slots),
            idle: RefCell::new(Vec::new()),
            returned: Notify::new(),
            waiting_here: Cell::new(0),
        })
    }

    /// Its own name: the Host of a request that brings none.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// A connection: an idle one if `fresh` does not forbid it, else a new one, else the first that
    /// comes free within the connect timeout.
    ///
    /// # Errors
    /// `UpstreamBusy` if none comes free, `UpstreamUnreachable` if none can be made.
    pub async fn lease(&self, fresh: bool) -> Result<Lease, Refusal> {
        if !fresh && let Some(lease) = self.take_idle() {
            return Ok(lease);
        }
        let deadline = Instant::now() + self.settings.connect_timeout;
        let waiting = Waiting::begin(self);
        let slot = loop {
            if let Ok(slot) = Arc::clone(&self.slots.free).try_acquire_owned() {
                break slot;
            }
            let waited = tokio::select! {
                slot = Arc::clone(&self.slots.free).acquire_owned() => break slot.map_err(|_| Refusal::UpstreamBusy)?,
                () = self.returned.notified() => true,
                () = tokio::time::sleep_until(deadline) => false,
            };
            if !waited {
                return Err(Refusal::UpstreamBusy);
            }
            if let Some(lease) = self.take_idle() {
                return Ok(lease);
            }
        };
        drop(waiting);
        let http = timeout(self.settings.connect_timeout, self.connect())
            .await
            .map_err(|_| Refusal::UpstreamUnreachable)?
            .map_err(|_| Refusal::UpstreamUnreachable)?;
        Ok(Lease { sender: Sender { http, _slot: slot }, reused: false })
    }

    fn take_idle(&self) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { sender, since }) = idle.pop() {
            if since.elapsed() >= self.settings.idle_timeout {
                // The others have been idle for longer still.
                idle.clear();
                return None;
            }
            if sender.http.is_ready() {
                return Some(Lease { sender, reused: true });
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.settings.address.as_str()).await?;
        stream.set_nodelay(true)?;
        let mut http = http1::Builder::new();
        http.max_buf_size(BUFFER);
        let (sender, connection) = http.handshake(TokioIo::new(Stream(stream))).await?;
        // Its errors reach the request that they concern.
        tokio::task::spawn_local(connection.with_upgrades());
        Ok(sender)
    }

    /// Closes the connections that have been idle for too long, or all if another thread waits for one.
    pub fn close_stale(&self) {
        let mut idle = self.idle.borrow_mut();
        if self.is_wanted_elsewhere() {
            idle.clear();
        }
        idle.retain(|idle| {
            !idle.sender.http.is_closed() && idle.since.elapsed() < self.settings.idle_timeout
        });
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
    }

    /// Whether it is the one that `settings` describe.
    pub fn is(&self, settings: &UpstreamSettings) -> bool {
        self.settings == *settings
    }

    /// Whether a slot is of more use to another thread than an idle connection is to this one.
    fn is_wanted_elsewhere(&self) -> bool {
        self.waiting_here.get() == 0 && self.slots.waiting.load(Ordering::Relaxed) > 0
    }

    fn put_back(&self, sender: Sender) {
        if self.is_wanted_elsewhere() {
            return;
        }
        self.idle.borrow_mut().push(Idle { sender, since: Instant::now() });
        self.returned.notify_one();
    }
}

impl Lease {
    /// The connection itself.
    pub fn http(&mut self) -> &mut SendRequest<RequestBody> {
        &mut self.sender.http
    }

    /// The response is complete: the connection may serve the next request, once it is ready to.
    pub fn release(self, upstream: &Rc<Upstream>) {
        let mut sender = self.sender;
        if sender.http.is_ready() {
            upstream.put_back(sender);
        } else if !sender.http.is_closed() {
            // The request body may still be on its way, or the connection task not have been polled.
            let upstream = Rc::clone(upstream);
            tokio::task::spawn_local(async move {
                let patience = upstream.settings.idle_timeout;
                if matches!(timeout(patience, sender.http.ready()).await, Ok(Ok(()))) {
                    upstream.put_back(sender);
                }
            });
        }
    }
}
