//! Keeps the login throttle and its database in step: counts are written, and `ban` is followed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Gateway;
use crate::login::throttle::Limits;
use crate::store::StoreError;

/// How long a count may be in memory only, and a ban unnoticed.
const STEP: Duration = Duration::from_millis(500);

/// Steps between two looks for what has been forgiven.
const TIDY_EVERY: u32 = 120;

/// Steps between two attempts to open a store that fails.
const OPEN_EVERY: u32 = 10;

/// Writes and follows.
pub struct Keeper {
    gateway: Arc<Gateway>,
    step: u32,
    answers: bool,
}

impl Keeper {
    /// Reads what the session store remembers. One that does not answer now may do so later; until then
    /// counts are in memory alone.
    pub async fn start(gateway: Arc<Gateway>) -> Self {
        let mut keeper = Self { gateway, step: 0, answers: true };
        let outcome = keeper.keep_up().await;
        keeper.note(outcome);
        keeper
    }

    /// Goes on for ever.
    pub async fn run(mut self) {
        let mut steps = tokio::time::interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            steps.tick().await;
            self.step = self.step.wrapping_add(1);
            if self.step.is_multiple_of(TIDY_EVERY)
                && let Some(login) = &self.gateway.current().snapshot.login
            {
                let limits = Limits { pair: login.max_failures, network: login.max_failures_per_address };
                self.gateway.login.guard().tidy(limits);
            }
            let outcome = self.keep_up().await;
            self.note(outcome);
        }
    }

    async fn keep_up(&self) -> Result<(), StoreError> {
        let guard = self.gateway.login.guard();
        if !guard.is_open() {
            if !self.step.is_multiple_of(OPEN_EVERY) {
                return Ok(());
            }
            guard.open(&self.gateway.current().snapshot.fixed.sessions).await?;
        }
        guard.follow_orders().await?;
        guard.write().await
    }

    fn note(&mut self, outcome: Result<(), StoreError>) {
        let guard = self.gateway.login.guard();
        let (counts, bans) = guard.held();
        let metrics = &self.gateway.metrics;
        metrics.throttled.set(i64::try_from(counts).unwrap_or(i64::MAX));
        metrics.bans.set(i64::try_from(bans).unwrap_or(i64::MAX));
        match outcome {
            Ok(()) if !self.answers && guard.is_open() => {
                self.answers = true;
                tracing::info!("bans and failed logins can be read and written again");
            }
            Ok(()) => {}
            Err(error) => {
                metrics.throttle_failures.inc();
                // Once: the next steps would say the same.
                if self.answers {
                    tell(&error);
                }
                self.answers = false;
            }
        }
    }
}

/// Writes what is not written yet, before the process ends.
pub async fn keep_for_the_next_start(gateway: &Gateway) {
    let guard = gateway.login.guard();
    if let Err(error) = guard.write().await {
        tell(&error);
    }
    guard.close().await;
}

fn tell(error: &StoreError) {
    tracing::warn!(
        %error,
        "bans and failed logins cannot be read or written; those in memory go on counting"
    );
}
