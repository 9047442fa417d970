//! What follows a 101: bytes both ways, until either side ends or the token does.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

/// How long the client may take to switch after the upstream has.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries bytes between the two ends. `lifetime`: what is left of the token that the connection was
/// opened with; `None` for a public one. `end` ends it before that, when the gateway shuts down.
pub async fn carry(
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    lifetime: Option<Duration>,
    end: impl Future<Output = ()>,
) {
    let both = async { tokio::try_join!(downstream, upstream) };
    let Ok(Ok((downstream, upstream))) = timeout(HANDSHAKE_TIMEOUT, both).await else { return };
    let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    let expiry = async {
        match lifetime {
            Some(lifetime) => sleep(lifetime).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // An error of either end is the end of both; there is nobody left to tell.
        _ = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => {}
        () = expiry => {}
        () = end => {}
    }
}
