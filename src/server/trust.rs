//! Keeps the keys of trusted issuers fresh: fetched in the background, never while a request waits.
//!
//! A source that is away changes nothing: the keys that were good stay. A key that nobody knows makes
//! the sources be looked at again, but not more often than every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Gateway;
use super::handler::unix_now;
use crate::fetch::Client;

/// How long a set of keys is used before it is fetched again.
const FRESH: Duration = Duration::from_secs(300);

/// The least time between two attempts.
const PATIENCE: Duration = Duration::from_secs(10);

/// For one fetch, from the name's resolution to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest set of keys, in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// Fetches for as long as the gateway runs.
pub async fn keep_fresh(gateway: Arc<Gateway>) {
    let mut fetched: HashMap<String, Instant> = HashMap::new();
    loop {
        let remote = gateway.current().snapshot.remote_keys.clone();
        for source in remote {
            if fetched.get(&source.url).is_some_and(|at| at.elapsed() < FRESH) {
                continue;
            }
            let outcome = match timeout(TIMEOUT, fetch(&source.url)).await {
                Ok(outcome) => outcome,
                Err(_) => Err("it did not answer in time".to_owned()),
            };
            match outcome {
                Ok(jwks) => {
                    fetched.insert(source.url.clone(), Instant::now());
                    // A refusal has been logged with its reason.
                    let taken =
                        gateway.reload_keys(&source.url, jwks).await.map(|()| unix_now()).map_err(drop);
                    gateway.metrics.jwks(&source.issuer, taken);
                }
                Err(why) => {
                    gateway.metrics.jwks(&source.issuer, Err(()));
                    tracing::warn!(
                        issuer = source.issuer,
                        url = source.url,
                        why,
                        "cannot fetch a trusted issuer's keys"
                    );
                }
            }
        }
        let pause = Instant::now() + PATIENCE;
        tokio::select! {
            () = sleep(PATIENCE) => {}
            () = gateway.keys_wanted() => {
                tokio::time::sleep_until(pause).await;
                fetched.clear();
            }
        }
    }
}

/// Gets the keys at `url` once.
///
/// # Errors
/// What went wrong, in a few words.
pub async fn fetch(url: &str) -> Result<String, String> {
    Client::default().get(url, "application/jwk-set+json, application/json", MAX_BYTES).await
}
