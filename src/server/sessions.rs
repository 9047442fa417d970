//! Keeps the revocations in memory up to date with the store, where other processes add theirs.
//!
//! Every change has a number, so what is new is what comes after the last one seen: a cheap look, five
//! times a second. What is in memory is only added to, whatever the store says after it was away. Not
//! here: what this process revokes itself (`login::session`), which is in memory at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Gateway;
use super::handler::unix_now;
use crate::observe::metrics::Store;
use crate::store::StoreError;
use crate::store::sessions::Sessions;
use crate::store::sqlite::sessions::SqliteSessions;

/// How often the store is asked for what is new: what another process revokes counts here within this
/// time and that of the question.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often what has expired is dropped.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Changes that are read at a time.
const PAGE: u32 = 5_000;

/// Seconds for which what has expired stays in the store: no process that shares it must still have a
/// mark that a login does not find any more.
const KEPT: u64 = 3600;

/// Follows the session store from its beginning on.
pub struct Follower {
    gateway: Arc<Gateway>,
    /// The last change that was read.
    last: i64,
    answers: bool,
}

impl Follower {
    /// Opens the store and reads all of it. A store that does not answer now may do so later: until it
    /// has, no token counts, and everything else is served.
    ///
    /// # Errors
    /// One sentence where waiting would not help: the file is damaged, or not ours.
    pub async fn start(gateway: Arc<Gateway>) -> Result<Self, String> {
        let mut follower = Self { gateway, last: 0, answers: true };
        match follower.catch_up().await {
            Ok(()) => {}
            Err(error) if error.may_pass() => follower.note(Err(&error)),
            Err(error) => return Err(error.to_string()),
        }
        Ok(follower)
    }

    /// Looks for what is new, for ever.
    pub async fn run(mut self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pruned = Instant::now();
        loop {
            look.tick().await;
            let outcome = self.catch_up().await;
            self.note(outcome.as_ref().map(drop));
            if pruned.elapsed() >= PRUNE_EVERY {
                pruned = Instant::now();
                self.prune().await;
            }
            self.gateway.metrics.revocations(self.gateway.sessions.len());
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let sessions = Arc::clone(&self.gateway.sessions);
        let store = match sessions.store() {
            Some(store) => Arc::clone(store),
            None => {
                let path = self.gateway.current().snapshot.fixed.sessions.clone();
                let store: Arc<dyn Sessions> = Arc::new(SqliteSessions::open(&path).await?);
                sessions.open(Arc::clone(&store));
                store
            }
        };
        loop {
            let page = store.changes(self.last, PAGE).await?;
            for change in &page {
                self.last = change.seq;
                sessions.learn(change);
            }
            if page.len() < PAGE as usize {
                sessions.set_loaded();
                return Ok(());
            }
        }
    }

    fn note(&mut self, outcome: Result<(), &StoreError>) {
        self.gateway.metrics.store(Store::Sessions, outcome.is_ok());
        match outcome {
            Ok(()) => {
                self.gateway.metrics.sessions_read(unix_now());
                if !self.answers {
                    tracing::info!("the session store answers again");
                }
            }
            Err(error) if self.answers => {
                tracing::error!(%error, "the session store fails; logout and rotation are refused until it answers");
            }
            Err(_) => {}
        }
        self.answers = outcome.is_ok();
    }

    async fn prune(&self) {
        let now = unix_now();
        self.gateway.sessions.forget_expired(now);
        let Some(store) = self.gateway.sessions.store() else { return };
        // Bit by bit, so that nobody who has something to write waits for long.
        while let Ok(true) = store.prune(now.saturating_sub(KEPT)).await {
            tokio::time::sleep(super::PAUSE).await;
        }
    }
}
