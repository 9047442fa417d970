//! The throttle as the gateway runs it: one lock, the clock, a bounded queue of those that wait, and a
//! database that is written behind. Only logins come here, never a proxied request.
//!
//! The database is no more than memory across restarts: where it fails, counting goes on, and everything
//! is written when it is back. A process that is killed forgets what the last [`Guard::write`] did not
//! have. Who is admitted is for [`throttle`](super::throttle).

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore};

use super::throttle::{Admission, Limits, Outcome, Throttle, Ticket, network_of};
use crate::store::StoreError;
use crate::store::sqlite::throttle::SqliteThrottle;
use crate::store::throttle::account;
use crate::wire::answer::{LockedBy, Refusal};

/// How many attempts may wait for others on the same account or from the same network. Some 2 KiB each.
const WAITING: usize = 1024;

/// Admits attempts to log in, and remembers how they went.
pub struct Guard {
    throttle: Mutex<Throttle>,
    settled: Notify,
    waiting: Semaphore,
    /// Once it has been read.
    store: OnceLock<SqliteThrottle>,
    last_order: AtomicI64,
}

/// An attempt that is being tried. Dropped unsettled, by a panic, it counts as a failure.
#[must_use]
pub struct Pass<'a> {
    guard: &'a Guard,
    limits: Limits,
    ticket: Option<Ticket>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Guard {
    /// Without a store yet: what is counted is in memory alone.
    pub fn new() -> Guard {
        Guard {
            throttle: Mutex::default(),
            settled: Notify::new(),
            waiting: Semaphore::new(WAITING),
            store: OnceLock::new(),
            last_order: AtomicI64::new(0),
        }
    }

    /// Adds what the store at `path` remembers, and remembers there from now on.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself; to be called again then.
    pub async fn open(&self, path: &Path) -> Result<(), StoreError> {
        let store = SqliteThrottle::open(path).await?;
        let remembered = store.load(now()).await?;
        if let Some(order) = remembered.orders.last() {
            self.last_order.store(order.id, Ordering::Relaxed);
        }
        self.throttle().restore(remembered);
        let _ = self.store.set(store);
        Ok(())
    }

    /// Whether there is a store.
    pub fn is_open(&self) -> bool {
        self.store.get().is_some()
    }

    /// Closes the store.
    pub async fn close(&self) {
        if let Some(store) = self.store.get() {
            store.close().await;
        }
    }

    /// Waits until an attempt on `username` by `client` may be tried.
    ///
    /// # Errors
    /// `TooManyLogins`, at once or after a wait; `LoginBusy` when too many wait already.
    pub async fn admit(&self, limits: Limits, username: &str, client: IpAddr) -> Result<Pass<'_>, Refusal> {
        let (account, network) = (account(username), network_of(client));
        let mut place = None;
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            // Before the look: what is settled right after it must not be missed.
            settled.as_mut().enable();
            match self.throttle().begin(limits, &account, network, now()) {
                Admission::Admitted(ticket) => {
                    return Ok(Pass { guard: self, limits, ticket: Some(ticket) });
                }
                Admission::Refused { retry_after, by } => {
                    return Err(Refusal::TooManyLogins { retry_after, by });
                }
                Admission::Wait => {}
            }
            if place.is_none() {
                place = Some(self.waiting.try_acquire().map_err(|_| Refusal::LoginBusy)?);
            }
            settled.await;
        }
    }

    /// Looks for bans and their lifting in the database and follows them.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself; bans stay as they were.
    pub async fn follow_orders(&self) -> Result<(), StoreError> {
        let Some(store) = self.store.get() else { return Ok(()) };
        let (orders, bans) = store.orders_after(self.last_order.load(Ordering::Relaxed), now()).await?;
        let mut throttle = self.throttle();
        throttle.set_bans(&bans);
        for order in orders.iter().filter(|order| order.lifted) {
            throttle.lift(&order.subject);
        }
        drop(throttle);
        if let Some(order) = orders.last() {
            self.last_order.store(order.id, Ordering::Relaxed);
            // Whoever waits may be banned by now.
            self.settled.notify_waiters();
        }
        Ok(())
    }

    /// Writes what has changed since the last time.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself; the next call tries again, with everything.
    pub async fn write(&self) -> Result<(), StoreError> {
        let Some(store) = self.store.get() else { return Ok(()) };
        let changes = self.throttle().changes();
        if changes.is_empty() {
            return Ok(());
        }
        let written = store.write(&changes).await;
        if written.is_err() {
            self.throttle().not_written();
        }
        written
    }

    /// Drops what has been forgiven by now.
    pub fn tidy(&self, limits: Limits) {
        self.throttle().tidy(limits, now());
    }

    /// How many failures are remembered, and how many bans hold.
    pub fn held(&self) -> (usize, usize) {
        let throttle = self.throttle();
        (throttle.len(), throttle.bans(now()))
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Says how the attempt went; answers what that has locked.
    pub fn settle(mut self, outcome: Outcome) -> Vec<LockedBy> {
        self.give_back(outcome)
    }

    fn give_back(&mut self, outcome: Outcome) -> Vec<LockedBy> {
        let Some(ticket) = self.ticket.take() else { return Vec::new() };
        let locks = self.guard.throttle().settle(self.limits, ticket, outcome, now());
        self.guard.settled.notify_waiters();
        locks
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.give_back(Outcome::Failed);
    }
}

/// Unix time in milliseconds.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
