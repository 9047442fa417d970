//! Where revocations are kept so that they outlive the process: the trait [`Sessions`], the same for
//! every backend.
//!
//! A store keeps [`Change`]s in the order in which they were made; every gateway that shares it holds
//! those that are live in memory and reads what is new. It decides about rotations, too, since only it
//! sees two of them at once. Not here: what is done with a token (`login::session`), the set in memory
//! (`token::revoked`).

use std::pin::Pin;

use crate::token::Revocation;
use crate::token::revoked::{Key, MOST_LEEWAY, MOST_TTL};

use super::{LocalUsers, NewUser, StoreError, StoreFuture, UserId, UserRecord, Users};

/// A store of revocations and rotations.
///
/// A change is durable when its future answers `Ok`. What is there already is not undone: a revocation
/// that comes again can only last longer, a mark only rise.
///
/// # Errors
/// Every method may fail with what [`StoreError`] says of the store itself; nothing was changed then.
pub trait Sessions: Send + Sync {
    /// Up to `most` changes after the one numbered `after`, in their order; from 0 on, all. A store that has
    /// not come that far, because it was restored, begins anew.
    fn changes(&self, after: i64, most: u32) -> StoreFuture<'_, Vec<Change>>;

    /// Ends one token; no spelling or copy of it is valid from `until` on anyway (Unix seconds).
    fn end_token(&self, token: Key, until: u64) -> StoreFuture<'_, Change>;

    /// Ends every token that descends from one login. `until` is that of the token at hand; those that
    /// rotations made of it are known here.
    fn end_family(&self, family: Key, until: u64) -> StoreFuture<'_, Change>;

    /// Ends every token of a user that was issued before: gives them a higher mark, which is in the
    /// change. To be remembered until `until`; see [`end_user`].
    fn raise(&self, subject: Key, until: u64) -> StoreFuture<'_, Change>;

    /// The mark on a user; 0 without one.
    fn generation(&self, subject: Key) -> StoreFuture<'_, u64>;

    /// Puts one token in the place of another, or says why not: in one step, however often and in however
    /// many processes it is asked for at once.
    fn rotate(&self, rotation: Rotation) -> StoreFuture<'_, Rotated>;

    /// Remembers a user of another system as they are now; what was known of them before is replaced, but never
    /// for a shorter time.
    fn note(&self, seen: Seen) -> StoreFuture<'_, ()>;

    /// What a user of another system was when they were last seen.
    fn seen(&self, subject: Key) -> StoreFuture<'_, Option<Seen>>;

    /// Up to `most` of those who may have a session at `now` (Unix seconds), in the order of their keys: after
    /// this one, or from the first on.
    fn seen_after(&self, after: Option<Key>, now: u64, most: u32) -> StoreFuture<'_, Vec<Seen>>;

    /// Forgets a user of another system, who has no session any more.
    fn forget(&self, subject: Key) -> StoreFuture<'_, ()>;

    /// Drops some of what has been over since `before` (Unix seconds), and answers whether there may be
    /// more.
    fn prune(&self, before: u64) -> StoreFuture<'_, bool>;
}

/// One revocation, as the store has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Its place among all of them; a later change has a higher one.
    pub seq: i64,
    /// What ended.
    pub revocation: Revocation,
}

/// A user of another system who has signed in, as they were then: whoever is another by now has to sign in anew.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// [`local_subject`] of their id.
    pub subject: Key,
    /// By which they are found.
    pub username: String,
    /// The gateway's role that they had.
    pub role: String,
    /// [`UserRecord::password_mark`].
    pub password: [u8; 16],
    /// None of their sessions lasts beyond it, in Unix seconds.
    pub until: u64,
}

impl Seen {
    /// What is to be remembered of a user.
    pub fn of(user: &UserRecord, until: u64) -> Seen {
        Seen {
            subject: local_subject(&user.id),
            username: user.username.clone(),
            role: user.role.clone(),
            password: user.password_mark(),
            until,
        }
    }
}

/// A token that is to be replaced by another.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The token.
    pub token: Key,
    /// The login that it descends from.
    pub family: Key,
    /// Its user.
    pub subject: Key,
    /// `gen` of the token; where it has none, `iat` in milliseconds decides.
    pub generation: Option<u64>,
    /// `iat` of the token, in Unix seconds.
    pub issued_at: u64,
    /// When no spelling of the token is valid any more, in Unix seconds.
    pub until: u64,
    /// What is to take its place; its `generation` is for the store to say.
    pub successor: Successor,
    /// Unix time in milliseconds.
    pub now_ms: u64,
    /// How long after its rotation the token gets the same successor again, in milliseconds.
    pub grace_ms: u64,
}

/// What a successor is made from, beside its user's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Successor {
    /// `jti`
    pub jti: String,
    /// `iat`, in Unix seconds.
    pub issued_at: u64,
    /// `exp`, in Unix seconds.
    pub expires_at: u64,
    /// `gen`
    pub generation: u64,
}

/// What became of a rotation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rotated {
    /// The old token has ended, which is the change, and this is to be issued in its place.
    Fresh(Successor, Change),
    /// It was rotated a moment ago, and its successor is to be issued once more.
    Again(Successor),
    /// It was rotated long ago, and somebody has it still: the whole family has ended now.
    Reused(Change),
    /// The token, its family or its user's tokens have ended.
    Ended,
}

/// Ends all tokens of a user, with a mark that is remembered for as long as any of them could count.
///
/// # Errors
/// As [`Sessions::raise`].
pub async fn end_user(
    sessions: &dyn Sessions,
    subject: Key,
    is_ours: bool,
    now: u64,
) -> Result<Change, StoreError> {
    sessions.raise(subject, last_expiry(is_ours, now)).await
}

/// When every token that was issued until `now` has expired, in Unix seconds: nobody knows how long
/// another issuer's last.
pub fn last_expiry(is_ours: bool, now: u64) -> u64 {
    if is_ours { now.saturating_add(MOST_TTL + MOST_LEEWAY) } else { FOREVER }
}

/// 9999-12-31T23:59:59Z: no token's `exp` is later.
const FOREVER: u64 = 253_402_300_799 + MOST_LEEWAY;

/// A user and the mark that they had before the record was read: what a token is made from.
///
/// In this order, whatever changes the record meanwhile raises the mark past the one that was read, and
/// so ends the token that is made from the old record. `generation` is [`Sessions::generation`].
///
/// # Errors
/// As [`Users::find`] and `generation`.
pub async fn find_with_generation(
    users: &dyn Users,
    username: &str,
    generation: impl AsyncFnOnce(Key) -> Result<u64, StoreError>,
) -> Result<Option<(UserRecord, u64)>, StoreError> {
    // Twice, since the mark goes by the id, and only the record knows that.
    let Some(found) = users.find(username).await? else { return Ok(None) };
    let generation = generation(local_subject(&found.id)).await?;
    let user = users.find(username).await?.filter(|user| user.id == found.id);
    Ok(user.map(|user| (user, generation)))
}

/// The key of a user of the configured store.
pub fn local_subject(id: &UserId) -> Key {
    Key::subject("", &id.to_string())
}

/// Users whose tokens end when they are changed: what everybody uses who may change them.
///
/// A mark is raised before a change and after it, so no token that was made from the old record
/// survives, whenever it was made: one from before the change has a mark below the second.
pub struct EndingTokens<U> {
    users: U,
    sessions: Box<dyn Sessions>,
}

impl<U: LocalUsers> EndingTokens<U> {
    /// Both stores, opened.
    pub fn new(users: U, sessions: Box<dyn Sessions>) -> Self {
        Self { users, sessions }
    }

    /// The users alone.
    pub fn users(&self) -> &U {
        &self.users
    }

    async fn ending(&self, username: &str, change: StoreFuture<'_, ()>) -> Result<(), StoreError> {
        let Some(user) = self.users.find(username).await? else {
            // Nobody's tokens; and it is for the store to say what is wrong.
            return change.await;
        };
        self.raise(&user).await?;
        change.await?;
        self.raise(&user).await
    }

    async fn raise(&self, user: &UserRecord) -> Result<(), StoreError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        end_user(&*self.sessions, local_subject(&user.id), true, now).await.map(drop)
    }
}

impl<U: LocalUsers> Users for EndingTokens<U> {
    fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>> {
        self.users.find(username)
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        self.users.ping()
    }

    fn sample(&self, most: u32) -> StoreFuture<'_, Vec<UserRecord>> {
        self.users.sample(most)
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.users.close()
    }

    fn is_own(&self) -> bool {
        self.users.is_own()
    }

    fn upgrade_hash<'a>(&'a self, username: &'a str, from: &'a str, to: &'a str) -> StoreFuture<'a, ()> {
        self.users.upgrade_hash(username, from, to)
    }
}

impl<U: LocalUsers> LocalUsers for EndingTokens<U> {
    fn list(&self) -> StoreFuture<'_, Vec<UserRecord>> {
        self.users.list()
    }

    fn add(&self, user: NewUser) -> StoreFuture<'_, UserRecord> {
        self.users.add(user)
    }

    fn set_password<'a>(&'a self, username: &'a str, password_hash: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(self.ending(username, self.users.set_password(username, password_hash)))
    }

    fn set_role<'a>(&'a self, username: &'a str, role: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(self.ending(username, self.users.set_role(username, role)))
    }

    fn set_disabled<'a>(&'a self, username: &'a str, disabled: bool) -> StoreFuture<'a, ()> {
        let change = self.users.set_disabled(username, disabled);
        // A disabled user has no tokens that letting them in again could end.
        if disabled { Box::pin(self.ending(username, change)) } else { change }
    }

    fn remove<'a>(&'a self, username: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(self.ending(username, self.users.remove(username)))
    }

    fn import(&self, users: Vec<NewUser>) -> StoreFuture<'_, ()> {
        self.users.import(users)
    }
}
