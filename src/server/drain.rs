//! From the signal to stop to the last byte.
//!
//! SIGTERM: `/readyz` says 503 and serving goes on for `shutdown.drain`, so that load balancers
//! notice; then no new connections, and requests under way finish within `shutdown.timeout`. SIGINT does
//! the same without the wait. A second signal ends everything at once.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Gateway, PAUSE, Stage};

/// The signals to stop, caught from the moment that this is made: before anybody is told that the
/// gateway serves, or a signal could still end it the short way.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them.
    ///
    /// # Errors
    /// One sentence if the system does not let it.
    pub fn catch() -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("cannot wait for signals: {error}");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(fail)?,
            interrupt: signal(SignalKind::interrupt()).map_err(fail)?,
        })
    }
}

/// Waits for a signal, then stops: `accepting` ends, `closing` tells connections to finish, `end` cuts
/// what is left, `threads` are waited for.
pub async fn until_stopped(
    gateway: Arc<Gateway>,
    mut accepting: JoinSet<()>,
    closing: watch::Sender<bool>,
    end: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    Signals { mut terminate, mut interrupt }: Signals,
) {
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
}
