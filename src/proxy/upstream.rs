//! Connections to the upstream: a stack of idle ones for each request thread, no lock between them.
//!
//! The last one used is the first used again, so a few stay warm and the rest fall idle and close. A
//! connection goes back on the stack only when hyper says that it is ready for another request: one with
//! unread bytes, or a request half sent, never is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::body::RequestBody;
use crate::config::snapshot::UpstreamSettings;
use crate::wire::answer::Refusal;

/// What all threads share of an upstream: the number of connections that may still be opened.
#[derive(Debug)]
pub struct Slots(Arc<Semaphore>);

impl Slots {
    /// At most `max_connections` at a time.
    pub fn new(max_connections: usize) -> Self {
        Self(Arc::new(Semaphore::new(max_connections)))
    }
}

/// One thread's connections to one upstream.
pub struct Upstream {
    settings: UpstreamSettings,
    slots: Arc<Semaphore>,
    idle: RefCell<Vec<Idle>>,
    returned: Notify,
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
    pub fn new(settings: UpstreamSettings, slots: &Slots) -> Rc<Self> {
        Rc::new(Self {
            settings,
            slots: Arc::clone(&slots.0),
            idle: RefCell::new(Vec::new()),
            returned: Notify::new(),
        })
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
        let slot = loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                break slot;
            }
            let waited = tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => break slot.map_err(|_| Refusal::UpstreamBusy)?,
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
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors reach the request that they concern.
        tokio::task::spawn_local(connection.with_upgrades());
        Ok(sender)
    }

    /// Closes the connections that have been idle for too long.
    pub fn close_stale(&self) {
        let mut idle = self.idle.borrow_mut();
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

    fn put_back(&self, sender: Sender) {
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
