//! Connections to one server of the upstream: a stack of idle ones for each request thread, no lock between them.
//!
//! The last one used is the first used again, so a few stay warm and the rest fall idle and close. A
//! connection goes back on the stack only when hyper says that it is ready for another request: one with
//! unread bytes, or a request half sent, never is.
//!
//! A connection has no task of its own: the request that has it drives it, and while it is idle there is
//! nothing to drive. That saves two changes of task a request, which cost more than all that the gateway
//! itself does to it. Not here: which of several servers a request goes to (`balance`).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, timeout};

use super::balance::{Fault, Server};
use super::body::RequestBody;
use crate::config::snapshot::{UpstreamServer, UpstreamSettings};
use crate::stream::Stream;
use crate::wire::answer::Refusal;

/// Bytes that hyper may hold for a connection in each direction; a response's head has to fit.
const BUFFER: usize = 128 * 1024;

/// How often a request that waits for a slot says so again.
const REMINDER: Duration = Duration::from_millis(100);

/// Counts a request that waits for a connection, on its thread and in all.
struct Waiting<'a>(&'a Upstream);

impl<'a> Waiting<'a> {
    fn begin(upstream: &'a Upstream) -> Self {
        upstream.waiting_here.set(upstream.waiting_here.get() + 1);
        upstream.server.waiting.fetch_add(1, Ordering::Relaxed);
        Self(upstream)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting_here.set(self.0.waiting_here.get() - 1);
        self.0.server.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread's connections to one server.
pub struct Upstream {
    place: UpstreamServer,
    settings: UpstreamSettings,
    server: Arc<Server>,
    idle: RefCell<Vec<Idle>>,
    returned: Notify,
    waiting_here: Cell<usize>,
}

struct Idle {
    link: Box<Link>,
    since: Instant,
}

/// hyper's two ends of a connection, and the slot that it takes up.
struct Link {
    requests: SendRequest<RequestBody>,
    /// Does the work when it is polled. `None` when it has ended.
    connection: Option<http1::Connection<TokioIo<Recorded>, RequestBody>>,
    /// What it left: the stream of an upgrade, and what was read of it already.
    rest: Option<(Stream, Bytes)>,
    /// The request that was last sent, where it may be sent again.
    record: Rc<Record>,
    driver: Arc<Driver>,
    /// Wakes the driver.
    waker: Waker,
    _slot: OwnedSemaphorePermit,
}

/// The task that drives a connection. The connection itself knows this waker only, so that it need not
/// be told of every change, and taking it up again wakes nobody who had it before.
#[derive(Debug, Default)]
struct Driver {
    waker: Mutex<Option<Waker>>,
    /// What the task itself does to the connection is no news to it.
    muted: AtomicBool,
}

impl Driver {
    fn set(&self, waker: Option<&Waker>) {
        let mut current = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*current, waker) {
            (Some(current), Some(waker)) if current.will_wake(waker) => {}
            _ => *current = waker.cloned(),
        }
    }
}

impl Wake for Driver {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.muted.load(Ordering::Relaxed) {
            return;
        }
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }
}

impl Link {
    /// Reads and writes what can be; `waker`, if any, is woken when there is more to do.
    fn drive(&mut self, waker: Option<&Waker>) {
        let Some(connection) = &mut self.connection else { return };
        self.driver.set(waker);
        if Pin::new(connection).poll(&mut Context::from_waker(&self.waker)).is_ready()
            && let Some(connection) = self.connection.take()
        {
            // Its errors reach the request that they concern; one that was not begun comes back now.
            let parts = connection.into_parts();
            self.rest = Some((parts.io.into_inner().stream, parts.read_buf));
        }
    }

    /// What has been read of a response's body.
    fn take_frame(&self, body: &mut Incoming) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // There is room for more then: whoever takes comes back for it.
        self.driver.muted.store(true, Ordering::Relaxed);
        let taken = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
        self.driver.muted.store(false, Ordering::Relaxed);
        taken
    }

    /// Whether it would take a request now.
    fn is_ready(&self) -> bool {
        self.connection.is_some() && self.requests.is_ready()
    }
}

/// A connection that one request has to itself. Dropped before [`Lease::release`], it is closed.
///
/// Whoever has it drives it: with the task of the request, by [`Lease::drive`] and [`Lease::poll_frame`].
pub struct Lease {
    link: Box<Link>,
    place: Place,
    /// Whether it has served a request before: then it may have gone stale.
    pub reused: bool,
    /// When it was had.
    pub since: Instant,
}

/// A request's place at a server, before it has a connection and while it has one.
pub struct Place {
    upstream: Rc<Upstream>,
    /// Whether it counts among the requests under way there.
    counted: bool,
}

impl Place {
    /// `counted` where there are servers to choose from.
    pub fn take(upstream: &Rc<Upstream>, counted: bool) -> Self {
        if counted {
            upstream.server.busy.fetch_add(1, Ordering::Relaxed);
        }
        Self { upstream: Rc::clone(upstream), counted }
    }

    /// The connections that it is about.
    pub fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    /// The idle connection that was used last, if there is one. `now`: roughly, to save a look at the clock.
    ///
    /// # Errors
    /// The place, if there is none.
    pub fn idle(self, now: Instant) -> Result<Lease, Self> {
        match self.upstream.take_idle(now) {
            Some(link) => Ok(Lease { link, place: self, reused: true, since: now }),
            None => Err(self),
        }
    }

    /// A connection: an idle one if `fresh` does not forbid it, else a new one, else the first that comes free
    /// within the connect timeout.
    ///
    /// # Errors
    /// `UpstreamBusy` if none comes free, `UpstreamUnreachable` if none can be made.
    pub async fn lease(self, fresh: bool) -> Result<Lease, Refusal> {
        let (link, reused) = self.upstream.link(fresh).await?;
        Ok(Lease { link, place: self, reused, since: Instant::now() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.counted {
            self.upstream.server.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Upstream {
    /// No connection yet.
    pub fn new(place: UpstreamServer, settings: UpstreamSettings, server: &Arc<Server>) -> Rc<Self> {
        Rc::new(Self {
            place,
            settings,
            server: Arc::clone(server),
            idle: RefCell::new(Vec::new()),
            returned: Notify::new(),
            waiting_here: Cell::new(0),
        })
    }

    /// Its own name: the Host of a request that brings none.
    pub fn host(&self) -> &HeaderValue {
        &self.place.authority
    }

    /// Whether it is to see that instead of what a client names.
    pub fn sees_own_host(&self) -> bool {
        self.settings.own_host
    }

    /// What all threads know of it.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    async fn link(&self, fresh: bool) -> Result<(Box<Link>, bool), Refusal> {
        if !fresh && let Some(link) = self.take_idle(Instant::now()) {
            return Ok((link, true));
        }
        let deadline = Instant::now() + self.settings.connect_timeout;
        let waiting = Waiting::begin(self);
        let slot = loop {
            if let Ok(slot) = Arc::clone(&self.server.free).try_acquire_owned() {
                break slot;
            }
            self.server.wanted.notify_waiters();
            let waited = tokio::select! {
                slot = Arc::clone(&self.server.free).acquire_owned() => break slot.map_err(|_| Refusal::UpstreamBusy)?,
                () = self.returned.notified() => true,
                () = tokio::time::sleep_until(deadline.min(Instant::now() + REMINDER)) => Instant::now() < deadline,
            };
            if !waited {
                return Err(Refusal::UpstreamBusy);
            }
            if let Some(link) = self.take_idle(Instant::now()) {
                return Ok((link, true));
            }
        };
        drop(waiting);
        let link = match timeout(self.settings.connect_timeout, self.connect(slot)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) if is_our_own(&error) => return Err(Refusal::UpstreamUnreachable),
            Ok(Err(_)) | Err(_) => {
                self.server.take_out(Fault::Connection);
                return Err(Refusal::UpstreamUnreachable);
            }
        };
        Ok((link, false))
    }

    fn take_idle(&self, now: Instant) -> Option<Box<Link>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { link, since }) = idle.pop() {
            if now.duration_since(since) >= self.settings.idle_timeout {
                // The others have been idle for longer still.
                idle.clear();
                return None;
            }
            if link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    async fn connect(&self, slot: OwnedSemaphorePermit) -> io::Result<Box<Link>> {
        let stream = TcpStream::connect(self.place.address.as_str()).await?;
        stream.set_nodelay(true)?;
        let mut http = http1::Builder::new();
        http.max_buf_size(BUFFER);
        let record = Rc::<Record>::default();
        let stream = Recorded { stream: Stream(stream), record: Rc::clone(&record) };
        let (requests, connection) = http.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let driver = Arc::<Driver>::default();
        let waker = Waker::from(Arc::clone(&driver));
        Ok(Box::new(Link {
            requests,
            connection: Some(connection),
            rest: None,
            record,
            driver,
            waker,
            _slot: slot,
        }))
    }

    /// Closes the connections that have been idle for too long, or all if another thread waits for one.
    pub fn close_stale(&self) {
        let mut idle = self.idle.borrow_mut();
        if self.is_wanted_elsewhere() {
            idle.clear();
        }
        idle.retain_mut(|idle| {
            // To see whether the upstream has closed it.
            idle.link.drive(None);
            idle.link.is_ready() && idle.since.elapsed() < self.settings.idle_timeout
        });
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
    }

    /// Whether it is the one that is described.
    pub fn is(&self, place: &UpstreamServer, settings: &UpstreamSettings, server: &Arc<Server>) -> bool {
        Arc::ptr_eq(&self.server, server) && self.place == *place && self.settings == *settings
    }

    /// Whether a slot is of more use to another thread than an idle connection is to this one.
    fn is_wanted_elsewhere(&self) -> bool {
        self.waiting_here.get() == 0 && self.server.waiting.load(Ordering::Relaxed) > 0
    }

    fn put_back(&self, link: Box<Link>) {
        link.driver.set(None);
        if self.is_wanted_elsewhere() {
            return;
        }
        self.idle.borrow_mut().push(Idle { link, since: Instant::now() });
        self.returned.notify_one();
    }
}

/// Whether a connection failed for want of something on this side, which says nothing about the server.
fn is_our_own(error: &io::Error) -> bool {
    // EMFILE and ENFILE have no kind of their own; they have these numbers on every Unix.
    matches!(error.raw_os_error(), Some(23 | 24))
        || matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory)
}

impl Lease {
    /// Where it leads.
    pub fn upstream(&self) -> &Rc<Upstream> {
        &self.place.upstream
    }

    /// Hands a request over: the future completes with the head of its response, provided that
    /// [`Lease::drive`] is called. `repeatable`: it has no body, and [`Lease::sent`] can be asked for it.
    ///
    /// # Errors
    /// hyper's, with the request itself if nothing of it was sent.
    pub fn begin(
        &mut self,
        request: Request<RequestBody>,
        repeatable: bool,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.link.record.begin(repeatable);
        self.link.requests.try_send_request(request)
    }

    /// Reads and writes what can be; the task is woken when there is more to do.
    pub fn drive(&mut self, cx: &Context<'_>) {
        self.link.drive(Some(cx.waker()));
    }

    /// The repeatable request that was last sent, if all of it was.
    pub fn sent(&self) -> Option<Request<RequestBody>> {
        read_back(&self.link.record.bytes.borrow())
    }

    /// The next piece of the response's body; `body` came with the response of [`Lease::begin`].
    pub fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut taken = self.link.take_frame(body);
        if taken.is_pending() {
            self.link.drive(Some(cx.waker()));
            taken = self.link.take_frame(body);
        }
        taken
    }

    /// The response is complete: the connection may serve the next request, once it is ready to.
    pub fn release(self) {
        let Self { mut link, place, .. } = self;
        let upstream = Rc::clone(&place.upstream);
        drop(place);
        if link.is_ready() {
            upstream.put_back(link);
        } else if link.connection.is_some() {
            // The request body may still be on its way, or the end of the response not have been seen.
            tokio::task::spawn_local(async move {
                let ready = poll_fn(|cx| {
                    link.drive(Some(cx.waker()));
                    match link.connection {
                        Some(_) if !link.is_ready() => Poll::Pending,
                        _ => Poll::Ready(()),
                    }
                });
                if timeout(upstream.settings.idle_timeout, ready).await.is_ok() && link.is_ready() {
                    upstream.put_back(link);
                }
            });
        }
    }

    /// After a 101: the stream as it is, and what the upstream has sent on it already.
    ///
    /// # Errors
    /// The connection broke before it could be had.
    pub async fn upgraded(mut self) -> io::Result<Upgraded> {
        let rest = poll_fn(|cx| {
            self.link.drive(Some(cx.waker()));
            if self.link.connection.is_some() { Poll::Pending } else { Poll::Ready(self.link.rest.take()) }
        });
        let (stream, first) = rest.await.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Upgraded { stream, first, lease: self })
    }
}

/// What was an HTTP connection to the upstream.
pub struct Upgraded {
    /// The bytes from now on.
    pub stream: Stream,
    /// The bytes that came with the response.
    pub first: Bytes,
    /// Its slot is taken up for as long as this lives.
    pub lease: Lease,
}

/// What was written for a request. Cheaper than a copy of it, and exactly what a repetition has to say.
#[derive(Debug, Default)]
struct Record {
    on: Cell<bool>,
    bytes: RefCell<Vec<u8>>,
}

/// Capacity that an idle connection keeps for it, in bytes.
const RECORD: usize = 4096;

impl Record {
    fn begin(&self, on: bool) {
        self.on.set(on);
        let mut bytes = self.bytes.borrow_mut();
        bytes.clear();
        bytes.shrink_to(RECORD);
    }

    fn add(&self, written: &Poll<io::Result<usize>>, bufs: &[io::IoSlice<'_>]) {
        let Poll::Ready(Ok(mut left)) = *written else { return };
        if self.on.get() {
            let mut bytes = self.bytes.borrow_mut();
            for buf in bufs {
                let piece = left.min(buf.len());
                bytes.extend_from_slice(&buf[..piece]);
                left -= piece;
            }
        }
    }
}

/// A request without a body, from the bytes that hyper made of it.
fn read_back(bytes: &[u8]) -> Option<Request<RequestBody>> {
    let mut lines = bytes.strip_suffix(b"\r\n\r\n")?.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let mut start = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::builder().method(start.next()?).uri(start.next()?);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    request.body(RequestBody::Empty).ok()
}

/// The stream of a connection, whose requests are recorded.
struct Recorded {
    stream: Stream,
    record: Rc<Record>,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.record.add(&written, &[io::IoSlice::new(buf)]);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.record.add(&written, bufs);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_read_back_as_the_request_that_it_was() {
        let sent = b"GET /a%20b?c= HTTP/1.1\r\nhost: cms\r\nx-a: 1: 2\r\nx-a: \r\n\r\n";
        let request = read_back(sent).unwrap();
        assert_eq!((request.method().as_str(), request.uri().to_string()), ("GET", "/a%20b?c=".to_owned()));
        let values = |name| -> Vec<_> {
            let values = request.headers().get_all(name).iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!((values("host"), values("x-a")), (vec!["cms".into()], vec!["1: 2".into(), String::new()]));
        for cut in 0..sent.len() {
            assert!(read_back(&sent[..cut]).is_none(), "{cut}");
        }
    }
}
