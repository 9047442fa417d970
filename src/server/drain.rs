//! From the signal to stop to the last byte.
//!
//! SIGTERM: `/readyz` says 503 and serving goes on for `shutdown.drain`, so that load balancers
//! notice; then no new connections, and requests under way finish within `shutdown.timeout`. SIGINT does
//! the same without the wait. A second signal ends everything at once.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Gateway, PAUSE, Stage};

/// Waits for a signal, then stops: `accepting` ends, `closing` tells connections to finish, `end` cuts
/// what is left, `threads` are waited for.
///
/// # Errors
/// One sentence if signals cannot be waited for.
pub async fn until_stopped(
    gateway: Arc<Gateway>,
    mut accepting: JoinSet<()>,
    closing: watch::Sender<bool>,
    end: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let patient = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    let shutdown = gateway.current().snapshot.shutdown;
    let deadline = Instant::now() + shutdown.timeout;
    gateway.set_stage(Stage::Draining);
    let drain = if patient { shutdown.drain } else { std::time::Duration::ZERO };
    tracing::info!(drain = ?drain, timeout = ?shutdown.timeout, "stopping");

    let finish = async {
        sleep(drain).await;
        accepting.abort_all();
        while accepting.join_next().await.is_some() {}
        let _ = closing.send(true);
        while threads.iter().any(|thread| !thread.is_finished()) {
            sleep(PAUSE).await;
        }
    };
    let complete = tokio::select! {
        () = finish => true,
        () = sleep_until(deadline) => false,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if complete {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped before every request was finished");
    }
    let _ = end.send(true);
    for thread in threads {
        // A panic in it has been logged and counted.
        let _ = thread.join();
    }
    Ok(())
}
