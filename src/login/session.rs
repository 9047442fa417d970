//! How sessions end, and how they go on: logout, rotation, and what every request asks of them.
//!
//! [`LiveSessions`] holds the revocations in memory, where requests look, and changes them through the
//! store, where they last: a change is in the store before it is in memory, and in memory before anybody
//! is told. Not here: reading what other processes have changed (`server::sessions`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Response;
use tokio::sync::watch;

use super::answer_with_token;
use crate::config::snapshot::Snapshot;
use crate::observe::audit::UserChange;
use crate::store::sessions::{
    Change, Rotated, Rotation, Seen, Sessions, Successor, end_user, find_with_generation, local_subject,
};
use crate::store::{StoreError, UnusableUser, UserRecord, Users};
use crate::token::issue::random_id;
use crate::token::revoked::Key;
use crate::token::{Ancestor, Claims, InvalidToken, Issued, Revocations, Session, Subject, VerifiedClaims};
use crate::wire::answer::{Refusal, no_content};

/// Which tokens are over: in memory for every request, in the store for good.
pub struct LiveSessions {
    revoked: Revocations,
    /// Whether everything that the store had has been read once.
    loaded: AtomicBool,
    store: OnceLock<Arc<dyn Sessions>>,
    /// For whoever waits for a revocation: the epoch.
    changed: watch::Sender<u64>,
}

/// What a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The session that the token belongs to.
    Session,
    /// Everything that its user had.
    Everything,
    /// The token, which has a successor.
    Rotated,
    /// The session of a token that had one already.
    Reused,
}

/// What became of a token that was live.
pub struct Outcome {
    /// The answer.
    pub answer: Result<Response<Bytes>, Refusal>,
    /// What ended, if anything did.
    pub ended: Option<Ended>,
    /// One of a closed list, for the metric: `success`, `repeated`, `over`, `reuse`, or the refusal's code.
    pub outcome: &'static str,
}

impl Outcome {
    /// Nothing was changed.
    pub fn refused(refusal: Refusal) -> Self {
        Self { outcome: refusal.code(), answer: Err(refusal), ended: None }
    }
}

impl LiveSessions {
    /// Without a store, and with nothing loaded: until then no token counts.
    pub fn new() -> Arc<Self> {
        let revoked = Revocations::new();
        let changed = watch::Sender::new(revoked.epoch());
        Arc::new(Self { revoked, loaded: AtomicBool::new(false), store: OnceLock::new(), changed })
    }

    /// Gives it its store, once.
    pub fn open(&self, store: Arc<dyn Sessions>) {
        let _ = self.store.set(store);
    }

    /// The store, once it is open.
    pub fn store(&self) -> Option<&Arc<dyn Sessions>> {
        self.store.get()
    }

    /// Everything that the store had has been read.
    pub fn set_loaded(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    /// Whether a token can be judged.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// How many revocations are in memory.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// Grows with every revocation: a token that was found live at an epoch is live while it lasts.
    pub fn epoch(&self) -> u64 {
        self.revoked.epoch()
    }

    /// Whether a verified token counts still.
    ///
    /// # Errors
    /// `InvalidToken` when it is over, `SessionsLoading` while nobody knows.
    pub fn check(&self, claims: &Claims) -> Result<(), Refusal> {
        if !self.is_loaded() {
            return Err(Refusal::SessionsLoading);
        }
        self.revoked.check(claims).map_err(Refusal::InvalidToken)
    }

    /// Completes when a token that was live is over; not for its expiry.
    pub async fn over(&self, claims: &Claims) {
        let mut changed = self.changed.subscribe();
        while self.revoked.check(claims).is_ok() {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Takes in what the store has; `false` if it was known already.
    pub fn learn(&self, change: &Change) -> bool {
        let is_news = self.revoked.add(change.revocation);
        if is_news {
            self.changed.send_replace(self.revoked.epoch());
        }
        is_news
    }

    /// Drops what no live token can be about any more at `now` (Unix seconds).
    pub fn forget_expired(&self, now: u64) {
        self.revoked.forget_expired(now);
    }

    /// A user and the mark that a token made from this record carries.
    ///
    /// While the store fails, what is in memory has to do: it may be behind, and then the token ends as
    /// soon as the store is read again, but none outlives a change.
    ///
    /// # Errors
    /// Those of [`Users::find`].
    pub async fn find_user(
        &self,
        users: &dyn Users,
        username: &str,
    ) -> Result<Option<(UserRecord, u64)>, StoreError> {
        find_with_generation(users, username, async |subject| Ok(self.generation(subject).await)).await
    }

    /// The mark on a user, as far as it is known; see [`find_user`](LiveSessions::find_user).
    pub async fn generation(&self, subject: Key) -> u64 {
        let known = self.revoked.generation(subject);
        let Some(store) = self.store() else { return known };
        store.generation(subject).await.map_or(known, |stored| stored.max(known))
    }

    /// Remembers who a user of another system is, whose session lasts until `until` at most, so that a change over
    /// there can be found; where they have changed since they were last seen, ends what they had from before.
    ///
    /// # Errors
    /// `SessionStore`: nobody would notice a change, so there is to be no session.
    pub async fn notice(&self, user: &UserRecord, now: u64, until: u64) -> Result<(), Refusal> {
        let store = self.store().ok_or(Refusal::SessionStore)?;
        let noticing = async {
            let seen = Seen::of(user, until);
            if let Some(before) = store.seen(seen.subject).await?
                && (before.password != seen.password || before.role != seen.role)
            {
                // First, since what is noted is not looked at again.
                self.end_all(&**store, seen.subject, now).await?;
            }
            store.note(seen).await
        };
        noticing.await.map_err(|error| store_failed(&error))
    }

    /// Looks at a user of another system again, and ends all their sessions if they are another than they were.
    ///
    /// # Errors
    /// Those of either store; nothing is ended then.
    pub async fn look_again(
        &self,
        users: &dyn Users,
        seen: &Seen,
        now: u64,
    ) -> Result<Option<UserChange>, StoreError> {
        let Some(store) = self.store() else { return Ok(None) };
        let found = match users.find(&seen.username).await {
            Err(StoreError::UnusableUser(_, UnusableUser::NoRole { .. })) => Err(UserChange::Role),
            Err(StoreError::UnusableUser(..)) => Err(UserChange::Disabled),
            Err(error) => return Err(error),
            Ok(None) => Err(UserChange::Removed),
            Ok(Some(user)) if local_subject(&user.id) != seen.subject => Err(UserChange::Removed),
            Ok(Some(user)) if user.disabled => Err(UserChange::Disabled),
            Ok(Some(user)) => Ok(user),
        };
        let change = match found {
            Ok(user) => {
                let now_is = Seen::of(&user, seen.until);
                let change = if now_is.role != seen.role {
                    UserChange::Role
                } else if now_is.password != seen.password {
                    UserChange::Password
                } else {
                    return Ok(None);
                };
                self.end_all(&**store, seen.subject, now).await?;
                store.note(now_is).await?;
                change
            }
            Err(change) => {
                self.end_all(&**store, seen.subject, now).await?;
                store.forget(seen.subject).await?;
                change
            }
        };
        Ok(Some(change))
    }

    async fn end_all(&self, store: &dyn Sessions, subject: Key, now: u64) -> Result<(), StoreError> {
        let change = end_user(store, subject, true, now).await?;
        self.learn(&change);
        Ok(())
    }

    /// Ends the session that a token belongs to, or everything that its user has. 204; what was over
    /// already is none the worse for it.
    ///
    /// `ttl` is how long a token lasts.
    pub async fn log_out(
        &self,
        claims: &VerifiedClaims,
        everywhere: bool,
        now: u64,
        ttl: Duration,
    ) -> Outcome {
        if self.is_loaded() && self.revoked.check(claims).is_err() {
            // Nothing left to do, and nobody who may do more.
            return Outcome { answer: Ok(no_content()), ended: None, outcome: "over" };
        }
        let Some(store) = self.store() else { return Outcome::refused(Refusal::SessionStore) };
        let changed = if everywhere {
            end_user(&**store, claims.keys.subject, claims.own.is_some(), now).await
        } else {
            end_session(&**store, claims, now, ttl).await
        };
        match changed {
            Ok(change) => {
                self.learn(&change);
                let ended = if everywhere { Ended::Everything } else { Ended::Session };
                Outcome { answer: Ok(no_content()), ended: Some(ended), outcome: "success" }
            }
            Err(error) => Outcome::refused(store_failed(&error)),
        }
    }

    /// Puts a fresh token in the place of a live one of ours, made from the user's record as it is now.
    pub async fn rotate(&self, snapshot: &Snapshot, users: &dyn Users, claims: &VerifiedClaims) -> Outcome {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match self.try_rotate(snapshot, users, claims, now).await {
            Ok(outcome) => outcome,
            Err(refusal) => Outcome::refused(refusal),
        }
    }

    async fn try_rotate(
        &self,
        snapshot: &Snapshot,
        users: &dyn Users,
        claims: &VerifiedClaims,
        now: Duration,
    ) -> Result<Outcome, Refusal> {
        let (Some(own), Some(family), Some(sid)) = (claims.own, claims.keys.family, &claims.sid) else {
            return Err(Refusal::NotRotatable);
        };
        let signer = snapshot.keys.signer(now.as_secs());
        let (Some(settings), Some(signer)) = (&snapshot.login, signer) else {
            return Err(Refusal::Internal("there is no signing key"));
        };
        let store = self.store().ok_or(Refusal::SessionStore)?;
        let user = self.owner(users, claims).await?;
        let seconds = now.as_secs();
        if !users.is_own() {
            self.notice(&user, seconds, snapshot.sessions_end(seconds)).await?;
        }
        let session_ends = own.auth_time.saturating_add(snapshot.max_session.as_secs());
        if session_ends <= seconds {
            return Err(Refusal::ExpiredToken);
        }
        let rotation = Rotation {
            token: claims.keys.token,
            family,
            subject: claims.keys.subject,
            generation: own.generation,
            issued_at: claims.issued_at,
            until: claims.login_remembered_until(seconds, snapshot.ttl),
            successor: Successor {
                jti: random_id().map_err(|_| Refusal::Internal("there is no randomness"))?,
                issued_at: seconds,
                expires_at: session_ends.min(seconds.saturating_add(snapshot.ttl.as_secs())),
                generation: 0,
            },
            now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            grace_ms: u64::try_from(settings.rotate_grace.as_millis()).unwrap_or(u64::MAX),
        };
        // Whatever changes the user after the record was read raises the mark, and the store then either
        // refuses or gives a successor that is over with it.
        let (successor, outcome) = match store.rotate(rotation).await.map_err(|error| store_failed(&error))? {
            Rotated::Fresh(successor, change) => {
                self.learn(&change);
                (successor, "success")
            }
            Rotated::Again(successor) => (successor, "repeated"),
            Rotated::Reused(change) => {
                self.learn(&change);
                let refusal = Refusal::InvalidToken(InvalidToken::TokenRevoked);
                return Ok(Outcome { answer: Err(refusal), ended: Some(Ended::Reused), outcome: "reuse" });
            }
            Rotated::Ended => return Err(Refusal::InvalidToken(InvalidToken::TokenRevoked)),
        };
        let session = Session {
            issued_at: successor.issued_at,
            expires_at: successor.expires_at,
            generation: successor.generation,
            login: Some(Ancestor { sid, auth_time: own.auth_time, jti: &successor.jti }),
        };
        let answer = answer_with_token(settings, signer, &user, &session, seconds);
        Ok(Outcome { answer, ended: Some(Ended::Rotated), outcome })
    }

    /// The user of the local store whose token it is, if there is such a one still.
    async fn owner(&self, users: &dyn Users, claims: &Claims) -> Result<UserRecord, Refusal> {
        let over = Refusal::InvalidToken(InvalidToken::UserRevoked);
        let Some(username) = &claims.username else { return Err(over) };
        let found = match users.find(username).await {
            Err(StoreError::UnusableUser(..)) => return Err(over),
            Err(error) => {
                tracing::error!(error = %error, "the user store failed during a rotation; nothing was changed");
                return Err(Refusal::SessionStore);
            }
            Ok(found) => found,
        };
        found.filter(|user| !user.disabled && user.id.to_string() == claims.subject).ok_or(over)
    }
}

/// Whether a logout is to end everything that the user has: `?all`, whatever it is set to but `false`
/// or `0`, so that nobody takes a misspelt one for done.
pub fn is_everywhere(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.eq_ignore_ascii_case("all") && !["false", "0"].contains(&value)
    })
}

/// Ends the session that a token belongs to: with our own its whole family, else the token itself. `now` is
/// Unix time in seconds, `ttl` how long a token lasts.
///
/// # Errors
/// Those of the store.
pub async fn end_session(
    store: &dyn Sessions,
    claims: &VerifiedClaims,
    now: u64,
    ttl: Duration,
) -> Result<Change, StoreError> {
    match claims.keys.family {
        Some(family) => store.end_family(family, claims.login_remembered_until(now, ttl)).await,
        None => store.end_token(claims.keys.token, claims.remembered_until()).await,
    }
}

/// A fresh token of the same login for a browser that is in use: once the old one is past half its life, and
/// not beyond `tokens.max_session`. `None` where there is no need, or nothing to gain.
///
/// It says what the old one says, its mark (`gen`) included, so whatever ends that one's login or all tokens
/// of its user ends it as well. That the old one counts still is for the caller to know. `now` is Unix time
/// in seconds.
pub fn renewed(snapshot: &Snapshot, claims: &VerifiedClaims, now: u64) -> Option<Issued> {
    if !is_half_over(claims, now) {
        return None;
    }
    let (own, sid, username, role) =
        (claims.own?, claims.sid.as_deref()?, claims.username.as_deref()?, claims.role.as_deref()?);
    let session_ends = own.auth_time.saturating_add(snapshot.max_session.as_secs());
    let expires_at = session_ends.min(now.saturating_add(snapshot.ttl.as_secs()));
    if expires_at <= claims.expires_at {
        return None;
    }
    let subject = Subject {
        id: &claims.subject,
        username,
        role,
        name: claims.name.as_deref(),
        email: claims.email.as_deref(),
    };
    let jti = random_id().ok()?;
    let login = Some(Ancestor { sid, auth_time: own.auth_time, jti: &jti });
    let session = Session { issued_at: now, expires_at, generation: own.generation?, login };
    let issued = snapshot.keys.signer(now)?.issue(&subject, &session);
    issued.inspect_err(|error| tracing::error!(%error, "a token could not be renewed")).ok()
}

/// Whether a token is past half its life.
pub fn is_half_over(claims: &Claims, now: u64) -> bool {
    let life = claims.expires_at.saturating_sub(claims.issued_at);
    now >= claims.issued_at.saturating_add(life / 2)
}

fn store_failed(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the session store failed; nothing was changed");
    Refusal::SessionStore
}
