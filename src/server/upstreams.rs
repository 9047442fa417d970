//! How the upstream's servers are: asked on the control runtime, never by a request.
//!
//! A server that requests took out, or that does not say it is well, is asked again until it does: after
//! a while that grows each time it fails again soon, and in short order while no other is up. Without a path to ask for
//! (`upstream.health`) one that takes connections is taken to be well. Not here: who gets requests
//! (`proxy::balance`).

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Gateway;
use crate::config::snapshot::{UpstreamServer, UpstreamSettings};
use crate::fetch::Client;
use crate::proxy::Servers;
use crate::proxy::balance::Fault;

/// Between two health checks of a server that is up.
const EVERY: Duration = Duration::from_secs(2);

/// The longest that a server may take to say that it is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Before a check that failed once is made again, and between two while no server is up.
const SOON: Duration = Duration::from_millis(250);

/// Failed checks in a row that take a server out.
const MISSES: u32 = 2;

/// For how long a server is out at least, unless no other is up.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// For how long at most.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// A server that was up for so long begins with the shortest pause again.
const STEADY: Duration = Duration::from_secs(60);

/// Looks after the servers of whatever upstream is configured, until dropped.
pub(super) async fn keep(gateway: Arc<Gateway>) {
    let mut tasks = JoinSet::new();
    let mut of: Option<Arc<Servers>> = None;
    loop {
        let active = gateway.current();
        if of.as_ref().is_none_or(|of| !Arc::ptr_eq(of, &active.servers)) {
            tasks.shutdown().await;
            gateway.metrics.forget_upstreams();
            if let Some(settings) = &active.snapshot.upstream {
                for (index, place) in settings.servers.iter().enumerate() {
                    let asking = Asking {
                        place: place.clone(),
                        settings: settings.clone(),
                        client: Client::default(),
                    };
                    tasks.spawn(look_after(Arc::clone(&gateway), Arc::clone(&active.servers), index, asking));
                }
            }
            of = Some(Arc::clone(&active.servers));
        }
        drop(active);
        gateway.upstream_changed.notified().await;
    }
}

async fn look_after(gateway: Arc<Gateway>, servers: Arc<Servers>, index: usize, asking: Asking) {
    let Some(server) = servers.iter().nth(index) else { return };
    let (mut misses, mut pause) = (0, FIRST_PAUSE);
    let mut up_since: Option<Instant> = None;
    loop {
        gateway.metrics.upstream(server.url(), server.is_up());
        while server.is_up() {
            let wait = if misses > 0 { SOON } else { EVERY };
            tokio::select! {
                () = server.taken_out() => {}
                () = sleep(wait), if asking.settings.health.is_some() => match asking.ask().await {
                    Ok(()) => misses = 0,
                    Err(why) => {
                        tracing::debug!(upstream = server.url(), why, "a health check failed");
                        misses += 1;
                        if misses >= MISSES {
                            server.take_out(Fault::Check);
                        }
                    }
                },
            }
        }
        misses = 0;
        gateway.metrics.upstream(server.url(), false);
        tracing::warn!(upstream = server.url(), why = server.fault().words(), "an upstream is down");
        if up_since.is_some_and(|since| since.elapsed() < STEADY) {
            pause = (pause * 2).min(LAST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
        }
        let down_since = Instant::now();
        loop {
            sleep(SOON).await;
            let due = down_since.elapsed() >= pause || !servers.any_up();
            if due && asking.ask().await.is_ok() {
                break;
            }
        }
        server.bring_back();
        up_since = Some(Instant::now());
        tracing::info!(upstream = server.url(), "an upstream is up again");
    }
}

/// How a server is asked whether it is well.
struct Asking {
    place: UpstreamServer,
    settings: UpstreamSettings,
    client: Client,
}

impl Asking {
    async fn ask(&self) -> Result<(), String> {
        let Some(path) = &self.settings.health else {
            let connecting =
                timeout(self.settings.connect_timeout, TcpStream::connect(self.place.address.as_str()));
            return match connecting.await {
                Ok(connected) => connected.map(drop).map_err(|error| error.to_string()),
                Err(_) => Err("it does not answer".to_owned()),
            };
        };
        let authority = self.place.authority.to_str().unwrap_or_default();
        let url = format!("http://{authority}{path}");
        match timeout(PATIENCE, self.client.status(&url)).await {
            Ok(Ok(status)) if status.is_success() || status.is_redirection() => Ok(()),
            Ok(Ok(status)) => Err(format!("it answered {status}")),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}
