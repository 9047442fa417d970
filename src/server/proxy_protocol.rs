//! Takes a PROXY protocol header off the front of a connection, where one may or must be.
//!
//! Exactly the header's bytes are taken: what follows, TLS or HTTP, is whole for whoever reads next. Only those in
//! `trusted_proxies` are asked: from anybody else a header is a forgery, and is refused as the malformed request
//! that it is. Not here: what a header says (`wire::proxy_protocol`).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::listener::Arrival;
use super::worker::Worker;
use crate::config::raw::ProxyProtocol;
use crate::wire::client::is_trusted;
use crate::wire::proxy_protocol::{Look, MAX_HEADER, Outcome, look};

/// How soon to look again when so few bytes have come that they may be anything. A load balancer sends its header in
/// one piece, so it hardly ever happens.
const AGAIN: Duration = Duration::from_millis(10);

/// Whom a connection is for: whoever it comes from, or the client that a header names. `None`: it is not to be
/// served.
pub async fn client_of(worker: &Worker, stream: &mut TcpStream, arrival: Arrival) -> Option<Arrival> {
    let peer = arrival.address;
    let active = worker.active();
    let required = match active.snapshot.proxy_protocol {
        ProxyProtocol::Off => return Some(arrival),
        ProxyProtocol::Optional => false,
        ProxyProtocol::Required => true,
    };
    let trusted = is_trusted(peer.ip().to_canonical(), active.trusted_proxies());
    let limit = active.connection_limits().header_timeout;
    drop(active);
    let (outcome, client) = match (trusted, required) {
        (false, false) => return Some(arrival),
        (false, true) => (Outcome::Untrusted, None),
        // Its buffer is no part of a connection's task.
        (true, _) => Box::pin(take(stream, peer, required, limit)).await,
    };
    worker.gateway.metrics.proxy_header(outcome);
    // Cut short are those, too, who only look whether somebody listens.
    if client.is_none() && outcome != Outcome::CutShort {
        worker.gateway.warn_of_proxy_header(peer.ip().to_canonical(), outcome.code());
    }
    // The load balancer's own word was the header. Behind one that names nobody, anybody may be.
    Some(Arrival { address: client?, stranger: arrival.stranger || outcome == Outcome::Local, ..arrival })
}

async fn take(
    stream: &mut TcpStream,
    peer: SocketAddr,
    required: bool,
    limit: Duration,
) -> (Outcome, Option<SocketAddr>) {
    // Where one need not come, whoever says nothing yet may be a client that is not sure what it wants.
    let without = |outcome| if required { (outcome, None) } else { (Outcome::Absent, Some(peer)) };
    let mut header = Vec::new();
    match timeout(limit, read(stream, &mut header)).await {
        Ok(Ok(Found::Header(Some(client)))) => (Outcome::Client, Some(client)),
        Ok(Ok(Found::Header(None))) => (Outcome::Local, Some(peer)),
        Ok(Ok(Found::None)) => without(Outcome::Missing),
        Ok(Ok(Found::Malformed)) => (Outcome::Malformed, None),
        Ok(Err(_)) => (Outcome::CutShort, None),
        // It has begun, so it is no request.
        Err(_) if !header.is_empty() => (Outcome::CutShort, None),
        Err(_) => without(Outcome::CutShort),
    }
}

enum Found {
    Header(Option<SocketAddr>),
    None,
    Malformed,
}

/// Reads a header and not a byte more. `header` holds what has been taken so far.
async fn read(stream: &mut TcpStream, header: &mut Vec<u8>) -> io::Result<Found> {
    let mut ahead = [0; MAX_HEADER];
    loop {
        let come = stream.peek(&mut ahead[..MAX_HEADER - header.len()]).await?;
        let before = header.len();
        header.extend_from_slice(&ahead[..come]);
        let found = look(header);
        let taken = match found {
            Ok(Look::Whole { length, .. }) => length,
            Ok(Look::Partial) => header.len(),
            _ => before,
        };
        header.truncate(taken);
        stream.read_exact(&mut ahead[..taken - before]).await?;
        match found {
            Ok(Look::Whole { client, .. }) => return Ok(Found::Header(client)),
            Ok(Look::Absent) => return Ok(Found::None),
            Err(_) => return Ok(Found::Malformed),
            Ok(Look::Undecided | Look::Partial) if come == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Look::Partial) => {}
            Ok(Look::Undecided) => sleep(AGAIN).await,
        }
    }
}
