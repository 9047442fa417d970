//! Bodies on their way through: frames as they come, nothing buffered, back-pressure from end to end.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::upstream::Lease;
use crate::wire::headers::HeaderRules;

/// Why a body ended before its end.
#[derive(Debug)]
pub enum BodyError {
    /// The connection that it came from broke.
    Broken(hyper::Error),
    /// It is larger than `limits.body_bytes`.
    TooLarge,
    /// It stopped arriving.
    TooSlow,
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(_) => f.write_str("the body broke off"),
            Self::TooLarge => f.write_str("the body is too large"),
            Self::TooSlow => f.write_str("the body stopped arriving"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken(error) => Some(error),
            Self::TooLarge | Self::TooSlow => None,
        }
    }
}

/// Whether a client goes on sending, where the connection itself does not tell.
pub trait Pace {
    /// Nothing has come: whether that has been so for too long. If not, the task will be woken to ask again.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool;
    /// Something has come.
    fn moves(&mut self);
}

/// A request's body as the client sends it.
pub struct FromClient {
    incoming: Incoming,
    /// `None` for HTTP/1, where the connection's guard knows.
    pace: Option<Box<dyn Pace>>,
}

impl FromClient {
    /// The body of a connection that carries one request at a time.
    pub fn new(incoming: Incoming) -> Self {
        Self { incoming, pace: None }
    }

    /// The body of a stream among others.
    pub fn paced(incoming: Incoming, pace: Box<dyn Pace>) -> Self {
        Self { incoming, pace: Some(pace) }
    }
}

impl Body for FromClient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if let Some(pace) = &mut this.pace {
            match polled.is_pending() {
                true if pace.poll_late(cx) => return Poll::Ready(Some(Err(BodyError::TooSlow))),
                true => {}
                false => pace.moves(),
            }
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A request's body on its way to the upstream.
pub enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the client.
    Streaming {
        /// The client's.
        incoming: FromClient,
        /// How many bytes may still come.
        left: u64,
        /// Which trailers may not pass.
        rules: Rc<HeaderRules>,
        /// What the response's deadline depends on.
        progress: Rc<Progress>,
    },
}

/// How an upload gets on: the upstream's time to answer begins when it has everything.
#[derive(Debug)]
pub struct Progress {
    last: Cell<Instant>,
    waits_for_client: Cell<bool>,
}

impl Progress {
    /// An upload that begins now.
    pub fn begin() -> Rc<Self> {
        Rc::new(Self { last: Cell::new(Instant::now()), waits_for_client: Cell::new(false) })
    }

    /// When the upstream last took something; `None` while the client is to send.
    pub fn last(&self) -> Option<Instant> {
        (!self.waits_for_client.get()).then(|| self.last.get())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Streaming { incoming, left, rules, progress } = self.get_mut() else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(incoming).poll_frame(cx);
        progress.waits_for_client.set(polled.is_pending());
        let Some(frame) = ready!(polled) else { return Poll::Ready(None) };
        progress.last.set(Instant::now());
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            *left = left.checked_sub(data.len() as u64).ok_or(BodyError::TooLarge)?;
            return Poll::Ready(Some(Ok(frame)));
        }
        Poll::Ready(Some(Ok(without_forbidden_trailers(frame, rules))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// Trailers come after the decision was made, so they must not say anything that it rested on.
fn without_forbidden_trailers(frame: Frame<Bytes>, rules: &HeaderRules) -> Frame<Bytes> {
    let mut trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(frame) => return frame,
    };
    let gone: Vec<_> =
        trailers.keys().filter(|name| rules.is_forbidden_trailer(name.as_str())).cloned().collect();
    for name in gone {
        trailers.remove(name);
    }
    Frame::trailers(trailers)
}

/// A response's body on its way to the client.
pub enum AnswerBody {
    /// The gateway's own.
    Own(Option<Bytes>),
    /// The upstream's, with the connection that it comes from.
    Upstream(Box<Relay>),
    /// The upstream's, cut off when a future completes.
    Until(Box<Relay>, Pin<Box<dyn Future<Output = ()>>>),
}

/// The upstream's response body. When it is complete its connection is free again; dropped before
/// that, the connection is closed.
pub struct Relay {
    incoming: Incoming,
    lease: Option<Lease>,
    rules: Rc<HeaderRules>,
    /// Bytes so far, for the log.
    on_end: Option<Box<dyn FnOnce(u64, bool)>>,
    bytes: u64,
    /// What the body broke off with, to be told next.
    broken: Option<hyper::Error>,
}

impl Relay {
    /// `on_end` is told, once, how many bytes went through and whether that was all.
    pub fn new(
        incoming: Incoming,
        lease: Lease,
        rules: Rc<HeaderRules>,
        on_end: Box<dyn FnOnce(u64, bool)>,
    ) -> Self {
        let mut relay =
            Self { incoming, lease: Some(lease), rules, on_end: Some(on_end), bytes: 0, broken: None };
        if relay.incoming.is_end_stream() {
            relay.complete();
        }
        relay
    }

    fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let complete = self.lease.is_none();
        if let Some(on_end) = self.on_end.take() {
            on_end(self.bytes, complete);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let relay = match self.get_mut() {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(relay) => relay,
            Self::Until(relay, end) => {
                if end.as_mut().poll(cx).is_ready() {
                    // A stream of events has no length: to the client it just ends, and is asked for again.
                    return Poll::Ready(None);
                }
                relay
            }
        };
        if let Some(error) = relay.broken.take() {
            return Poll::Ready(Some(Err(BodyError::Broken(error))));
        }
        let Some(lease) = &mut relay.lease else { return Poll::Ready(None) };
        let frame = match ready!(lease.poll_frame(&mut relay.incoming, cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                // Told at once, hyper would drop what came before together with the connection. This way
                // that goes out first.
                relay.broken = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => {
                relay.complete();
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            relay.bytes += data.len() as u64;
            if relay.incoming.is_end_stream() {
                relay.complete();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        Poll::Ready(Some(Ok(without_forbidden_trailers(frame, &relay.rules))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(relay) | Self::Until(relay, _) => relay.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(relay) | Self::Until(relay, _) => relay.incoming.size_hint(),
        }
    }
}
