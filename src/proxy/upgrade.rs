//! What follows a 101: bytes both ways, until either side ends or the connection's time is over.

use std::io;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

use super::upstream::{Lease, Upgraded};

/// How long the client may take to switch after the upstream has.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries bytes between the two ends, until `end`: that of the token that the connection was opened
/// with, or the gateway's.
pub async fn carry(downstream: OnUpgrade, upstream: Lease, end: impl Future<Output = ()>) {
    let both = async {
        // One after the other: the client hears of the switch only when the upstream has made it.
        let upstream = upstream.upgraded().await?;
        let downstream = downstream.await.map_err(io::Error::other)?;
        io::Result::Ok((downstream, upstream))
    };
    let Ok(Ok((downstream, upstream))) = timeout(HANDSHAKE_TIMEOUT, both).await else { return };
    let Upgraded { stream, first, lease: _lease } = upstream;
    let (mut from_client, mut to_client) = split(TokioIo::new(downstream));
    let (mut from_upstream, mut to_upstream) = split(stream);
    let to_the_client = async {
        to_client.write_all(&first).await?;
        to_client.flush().await?;
        pass_on(&mut from_upstream, &mut to_client).await
    };
    tokio::select! {
        // The end of either is the end of both: WebSocket knows no half-closed connection, and an upstream
        // that never closes must not keep one alive for a client that has gone. What went wrong, there
        // is nobody left to tell.
        _ = pass_on(&mut from_client, &mut to_upstream) => {}
        _ = to_the_client => {}
        () = end => {}
    }
}

/// Copies until `from` ends, and tells `to` so.
async fn pass_on<R, W>(from: &mut R, to: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    tokio::io::copy(from, to).await?;
    to.shutdown().await
}
