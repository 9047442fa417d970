//! The life of our own keys while the gateway runs: made when due, announced when they begin to sign,
//! removed when nothing needs them.
//!
//! Which key signs is a function of the time (`token::ring`): nothing here has to happen for a login to be
//! right. Not here: noticing that the folder changed, which is a reload like any other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::handler::unix_now;
use crate::config::keyring::{self, KeyringError, NewKey, PUBLISHED_FIRST};
use crate::config::snapshot::OwnKeys;
use crate::observe::audit::{Audit, Event, KeyChange, Reason};

/// How often the keys are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// How long after a failure it is tried again.
const PATIENCE: Duration = Duration::from_secs(600);

/// Follows the keys until dropped.
pub async fn keep(gateway: Arc<Gateway>) {
    let mut signing = None;
    let mut failed_at = None;
    loop {
        let now = unix_now();
        let active = gateway.current();
        let keys = &active.snapshot.keys;
        signing = tell(&gateway, keys, now, signing);
        let may_try = failed_at.is_none_or(|at| now >= now.min(at) + PATIENCE.as_secs());
        if let Some(work) = Work::due(keys, now)
            && may_try
        {
            failed_at = carry_out(&gateway, work, now).await.err().map(|error| {
                tracing::error!(%error, "the signing keys cannot be rotated; what there is goes on signing");
                now
            });
        }
        let next = keys.ring.next_change(now).map_or(PERIOD, |at| Duration::from_secs(at - now));
        let _ = tokio::time::timeout(next.min(PERIOD), gateway.swapped.notified()).await;
    }
}

/// Brings the metrics up to date, and says so when another key signs than `before`.
fn tell(gateway: &Gateway, keys: &OwnKeys, now: u64, before: Option<String>) -> Option<String> {
    let signing = keys.ring.signing(now).map(|place| &keys.ring.keys()[place]);
    gateway.metrics.keys(keys.ring.keys().len(), signing.and_then(|one| one.made));
    let kid = signing.map(|one| one.key.kid().to_owned());
    if let (Some(kid), true) = (&kid, before.is_some() && before != kid) {
        tracing::info!(kid, "another key signs now");
        audit(gateway, KeyChange::Signs, kid);
    }
    kid
}

/// Writes the audit line of a change to a key.
pub(super) fn audit(gateway: &Gateway, change: KeyChange, kid: &str) {
    let reason = Some(Reason::KeyChange(change));
    gateway.audit(&Audit { reason, key: Some(kid), ..Audit::of(Event::KeyChange) });
}

/// What is to be done to a folder of keys.
#[derive(Debug)]
struct Work {
    folder: PathBuf,
    make: Option<NewKey>,
    remove: Vec<String>,
}

impl Work {
    /// `None` where nothing is to be done, or the gateway is not to do it.
    fn due(keys: &OwnKeys, now: u64) -> Option<Self> {
        let (every, folder) = (keys.rotate_every?, keys.folder.clone()?);
        let (algorithm, signs_from) = (keys.algorithm, now + PUBLISHED_FIRST);
        let due = keys.ring.due(every.as_secs(), now);
        let make = due.map(|kid| NewKey { kid, algorithm, made: now, signs_from });
        let spent = keys.ring.spent(keys.longest_token.as_secs(), now);
        let remove: Vec<_> = spent.map(|one| one.key.kid().to_owned()).collect();
        (make.is_some() || !remove.is_empty()).then_some(Self { folder, make, remove })
    }
}

async fn carry_out(gateway: &Arc<Gateway>, work: Work, now: u64) -> Result<(), KeyringError> {
    let made = work.make.clone();
    let folder = work.folder.clone();
    let outcome = tokio::task::spawn_blocking(move || {
        let made = work.make.map(|new| keyring::create(&folder, &new)).transpose()?;
        for kid in &work.remove {
            keyring::remove(&folder, kid)?;
        }
        // A replica may have been faster: then it says so in its log.
        let ours = made.filter(|one| one.made == Some(now));
        Ok((ours.map(|one| one.key.kid().to_owned()), work.remove))
    });
    let (made_by_us, removed) = outcome.await.unwrap_or_else(|_| Err(KeyringError::broke_off()))?;
    if let (Some(new), Some(kid)) = (made, made_by_us) {
        tracing::info!(kid, signs_in = new.signs_from - now, "a new signing key is made and published");
        audit(gateway, KeyChange::Made, &kid);
    }
    for kid in removed {
        tracing::info!(kid, "a key whose last token has expired is removed");
        audit(gateway, KeyChange::Removed, &kid);
    }
    // Not every file system says that it changed.
    gateway.look_at_files();
    Ok(())
}
