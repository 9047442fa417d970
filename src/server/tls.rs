//! From a connection's first byte to the end of its TLS handshake.
//!
//! A client that has not got so far yet has cost little and may cost little more: it has `header_timeout`, and
//! of too many at a time the one that has been at it for longest gives way. Who speaks plain HTTP here is told
//! so. Not here: certificates (`config::certificates`), what is said over the connection (`connection`, `http2`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use http::header::STRICT_TRANSPORT_SECURITY;
use http::{Request, Response};
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::{self, Connection};
use super::http2;
use super::listener::Arrival;
use super::worker::{ConnectionCount, Worker};
use crate::observe::metrics::Handshake;
use crate::proxy::AnswerBody;
use crate::proxy::body::FromClient;
use crate::wire::answer::Refusal;
use crate::wire::hygiene::HeadError;

/// Handshakes under way at a time, on one thread. Each may hold the largest handshake message, 64 KiB.
const HANDSHAKES: usize = 512;

/// The first byte of a TLS connection: a handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 0x16;

/// Shakes hands and serves what follows.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, arrival: Arrival, count: ConnectionCount) {
    let active = worker.active();
    let limit = active.connection_limits().header_timeout;
    // A listener that speaks TLS keeps its certificates through every reload.
    let Some(config) = active.snapshot.tls.as_ref().map(|tls| Arc::clone(&tls.server)) else { return };
    drop(active);
    let metrics = &worker.gateway.metrics;
    let mut place = worker.handshakes.begin();
    let shaken = tokio::select! {
        biased;
        shaken = timeout(limit, shake(config, stream)) => shaken.unwrap_or(Shaken::No(Handshake::TimedOut)),
        _ = &mut place.gone => Shaken::No(Handshake::Crowded),
    };
    drop(place);
    match shaken {
        Shaken::No(why) => metrics.handshake(why),
        Shaken::PlainHttp(stream) => {
            metrics.handshake(Handshake::PlainHttp);
            let bytes =
                worker.refuse_unread(arrival.address.ip(), &Refusal::Head(HeadError::PlainHttp), false);
            connection::say_farewell(stream, &bytes).await;
        }
        Shaken::Yes(stream) => {
            metrics.handshake(Handshake::Success);
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2::serve(worker, *stream, arrival, count).await;
            } else {
                let answer = |worker: Rc<Worker>, connection, request: Request<Incoming>| {
                    worker.handle_https(connection, request.map(FromClient::new))
                };
                connection::serve(worker, *stream, arrival, count, answer).await;
            }
        }
    }
}

impl Worker {
    /// As [`Worker::handle`], for a request that came by HTTPS.
    ///
    /// # Errors
    /// Never.
    pub async fn handle_https(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<FromClient>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let mut response = Rc::clone(&self).handle(connection, request).await?;
        let active = self.active();
        if let Some(hsts) = active.snapshot.tls.as_ref().and_then(|tls| tls.hsts.as_ref()) {
            // The CMS may know better.
            response.headers_mut().entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
        }
        Ok(response)
    }
}

enum Shaken {
    Yes(Box<TlsStream<TcpStream>>),
    PlainHttp(TcpStream),
    No(Handshake),
}

async fn shake(config: Arc<ServerConfig>, stream: TcpStream) -> Shaken {
    let mut first = [0];
    match stream.peek(&mut first).await {
        // HTTP begins with a method; anything else is no client that could read an answer.
        Ok(1) if first[0].is_ascii_alphabetic() => return Shaken::PlainHttp(stream),
        Ok(1) if first[0] == HANDSHAKE => {}
        _ => return Shaken::No(Handshake::Failed),
    }
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => Shaken::Yes(Box::new(stream)),
        Err(error) => {
            if error.kind() == io::ErrorKind::InvalidData {
                tracing::debug!(%error, "a TLS handshake failed");
            }
            Shaken::No(Handshake::Failed)
        }
    }
}

/// The handshakes under way on one thread, oldest first.
#[derive(Debug, Default)]
pub struct Handshakes {
    under_way: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
    next: Cell<u64>,
}

impl Handshakes {
    /// All of them end: nobody has been promised anything yet.
    pub fn give_up(&self) {
        self.under_way.borrow_mut().clear();
    }

    fn begin(&self) -> Place<'_> {
        let id = self.next.get();
        self.next.set(id + 1);
        let (sender, gone) = oneshot::channel();
        let mut under_way = self.under_way.borrow_mut();
        if under_way.len() >= HANDSHAKES {
            // Who is honest takes milliseconds.
            under_way.pop_first();
        }
        under_way.insert(id, sender);
        Place { handshakes: self, id, gone }
    }
}

/// One handshake's place among them.
struct Place<'a> {
    handshakes: &'a Handshakes,
    id: u64,
    /// Completes when it has to give way.
    gone: oneshot::Receiver<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.under_way.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_handshakes_the_oldest_gives_way() {
        let handshakes = Handshakes::default();
        let mut places: Vec<_> = (0..HANDSHAKES).map(|_| handshakes.begin()).collect();
        assert!(
            places.iter_mut().all(|place| place.gone.try_recv() == Err(oneshot::error::TryRecvError::Empty))
        );
        let newest = handshakes.begin();
        let gone = |place: &mut Place<'_>| place.gone.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        assert!(gone(&mut places[0]));
        assert!(!gone(&mut places[1]));
        drop((places, newest));
        assert!(handshakes.under_way.borrow().is_empty());
    }
}
