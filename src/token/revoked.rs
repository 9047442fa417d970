//! Tokens that ended before their time: what has been revoked and not expired since.
//!
//! Three things end a token early: its own revocation, the end of the login that it descends from
//! (`sid`, our own tokens alone), and a mark on its user, which ends everything issued before it. Each
//! is known by a [`Key`], never by a token's text: one token can be spelled in several ways. An entry
//! goes when the last token that it could be about has expired. Not here: where revocations are kept
//! so that they outlive the process (`store`), and who may revoke.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use super::{Claims, InvalidToken};

/// `tokens.leeway` is at most this, in seconds: an entry that outlives its token's `exp` by so much
/// outlives it under every configuration.
pub const MOST_LEEWAY: u64 = 5 * 60;

/// `tokens.ttl` is at most this, in seconds: what was issued longer ago has expired, whatever the
/// configuration was then.
pub const MOST_TTL: u64 = 366 * 24 * 60 * 60;

/// Parts of the set, each with a lock of its own: enough that two threads seldom want the same one,
/// and that one part is soon rebuilt when it grows.
const SHARDS: usize = 64;

/// What a revocation is about: a token, a login or a user.
///
/// 128 bits of SHA-256 over what names it, as many as a `jti` of ours is random: that two names share a
/// key is as likely as that two tokens share a `jti`. It cannot be turned back into what it names.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Key([u64; 2]);

impl Key {
    /// The token with this `jti`. `issuer` is empty for our own tokens, so that renaming ourselves
    /// revives nothing.
    pub fn token(issuer: &str, jti: &str) -> Self {
        Self::of(b't', issuer, jti)
    }

    /// A trusted issuer's token without a `jti`: `signed` is its header and payload as sent, with the
    /// dot between them. The signature is not part of it, since one token can have several.
    pub fn unnamed_token(signed: &str) -> Self {
        Self::of(b'u', "", signed)
    }

    /// All tokens that descend from one login of ours.
    pub fn family(sid: &str) -> Self {
        Self::of(b'f', "", sid)
    }

    /// All tokens of a user: `subject` is [`Claims::subject`], `issuer` as for [`Key::token`].
    pub fn subject(issuer: &str, subject: &str) -> Self {
        Self::of(b's', issuer, subject)
    }

    fn of(kind: u8, issuer: &str, name: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[kind]);
        // The length keeps issuer and name apart.
        context.update(&(issuer.len() as u64).to_le_bytes());
        context.update(issuer.as_bytes());
        context.update(name.as_bytes());
        let digest = context.finish();
        let half = |at: usize| {
            let bytes = digest.as_ref()[at..at + 8].try_into().expect("a SHA-256 digest has 32 bytes");
            u64::from_le_bytes(bytes)
        };
        Self([half(0), half(8)])
    }

    /// As it is stored.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0[0].to_le_bytes());
        bytes[8..].copy_from_slice(&self.0[1].to_le_bytes());
        bytes
    }

    /// What [`Key::to_bytes`] gave; `None` for anything of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        let (low, high) = (u128::from_le_bytes(bytes) as u64, (u128::from_le_bytes(bytes) >> 64) as u64);
        Some(Self([low, high]))
    }

    fn shard(self) -> usize {
        // The map inside hashes the rest anew.
        (self.0[1] % SHARDS as u64) as usize
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Everything by which one token can be ended, worked out once, when it is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keys {
    /// The token itself.
    pub token: Key,
    /// The login it descends from; our own tokens with a `sid` alone. A trusted issuer's `sid` names a
    /// session over there, which goes on when one of its tokens ends here.
    pub family: Option<Key>,
    /// Its user.
    pub subject: Key,
}

/// One thing that ends tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Revocation {
    /// A token or a family is over.
    End {
        /// [`Key::token`], [`Key::unnamed_token`] or [`Key::family`].
        key: Key,
        /// Unix seconds from which no token that it is about can be valid any more.
        until: u64,
    },
    /// Every token of a user that was issued before `generation` is over. A later one takes the place of
    /// an earlier one.
    Mark {
        /// [`Key::subject`].
        subject: Key,
        /// See [`OwnClaims::generation`](super::OwnClaims::generation); milliseconds of Unix time where a token has none.
        generation: u64,
        /// As in `End`.
        until: u64,
    },
}

/// All live revocations, shared by all threads.
///
/// Every change bumps [`Revocations::epoch`] after it is in the set. Whoever remembers the epoch from
/// before a check need not check again while it is the same.
pub struct Revocations {
    ended: [RwLock<Map<u64>>; SHARDS],
    marks: [RwLock<Map<Mark>>; SHARDS],
    epoch: AtomicU64,
    len: AtomicUsize,
}

type Map<V> = HashMap<Key, V, foldhash::fast::RandomState>;

#[derive(Clone, Copy)]
struct Mark {
    generation: u64,
    until: u64,
}

impl Revocations {
    /// None yet, at epoch 1.
    pub fn new() -> Self {
        Self {
            ended: std::array::from_fn(|_| RwLock::default()),
            marks: std::array::from_fn(|_| RwLock::default()),
            epoch: AtomicU64::new(1),
            len: AtomicUsize::new(0),
        }
    }

    /// Grows with every change.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Adds one, or makes one last longer; `false` if that was known already. When this returns, every
    /// check that begins knows it.
    pub fn add(&self, revocation: Revocation) -> bool {
        let (is_new, is_news) = match revocation {
            Revocation::End { key, until } => {
                let mut ended = self.ended[key.shard()].write().unwrap_or_else(PoisonError::into_inner);
                let before = ended.len();
                let entry = ended.entry(key).or_default();
                let is_news = until > *entry;
                *entry = until.max(*entry);
                (ended.len() > before, is_news)
            }
            Revocation::Mark { subject, generation, until } => {
                let mut marks = self.marks[subject.shard()].write().unwrap_or_else(PoisonError::into_inner);
                let before = marks.len();
                let entry = marks.entry(subject).or_insert(Mark { generation: 0, until: 0 });
                let is_news = generation > entry.generation;
                if is_news {
                    entry.generation = generation;
                }
                entry.until = until.max(entry.until);
                (marks.len() > before, is_news)
            }
        };
        if is_new {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
        if is_news {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        is_news
    }

    /// Whether a token that was verified counts still.
    ///
    /// # Errors
    /// `TokenRevoked`, `SessionRevoked` or `UserRevoked`.
    pub fn check(&self, claims: &Claims) -> Result<(), InvalidToken> {
        let keys = &claims.keys;
        if self.has_ended(keys.token) {
            return Err(InvalidToken::TokenRevoked);
        }
        if keys.family.is_some_and(|family| self.has_ended(family)) {
            return Err(InvalidToken::SessionRevoked);
        }
        let marks = self.marks[keys.subject.shard()].read().unwrap_or_else(PoisonError::into_inner);
        match marks.get(&keys.subject) {
            Some(mark) if !claims.is_of(mark.generation) => Err(InvalidToken::UserRevoked),
            _ => Ok(()),
        }
    }

    /// The mark on a user: what a token issued now may call itself. 0 without one.
    pub fn generation(&self, subject: Key) -> u64 {
        let marks = self.marks[subject.shard()].read().unwrap_or_else(PoisonError::into_inner);
        marks.get(&subject).map_or(0, |mark| mark.generation)
    }

    fn has_ended(&self, key: Key) -> bool {
        let ended = self.ended[key.shard()].read().unwrap_or_else(PoisonError::into_inner);
        ended.contains_key(&key)
    }

    /// Drops what can be about no live token any more at `now` (Unix seconds).
    pub fn forget_expired(&self, now: u64) {
        for shard in &self.ended {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let before = shard.len();
            shard.retain(|_, until| *until > now);
            shrink(&mut shard);
            self.len.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
        for shard in &self.marks {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let before = shard.len();
            shard.retain(|_, mark| mark.until > now);
            shrink(&mut shard);
            self.len.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Gives memory back after a wave of revocations, without doing so at every small change.
fn shrink<V>(map: &mut Map<V>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 4 {
        map.shrink_to_fit();
    }
}

impl Default for Revocations {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Claims {
    fn is_of(&self, mark: u64) -> bool {
        is_of(self.own.and_then(|own| own.generation), self.issued_at, mark)
    }

    /// Until when a revocation of this token has to be remembered, in Unix seconds.
    pub fn remembered_until(&self) -> u64 {
        self.expires_at.saturating_add(MOST_LEEWAY)
    }

    /// Until when a revocation of its whole login has to be remembered, in Unix seconds: a copy of it may
    /// have been renewed just before `now`, and then lasts for `ttl`.
    pub fn login_remembered_until(&self, now: u64, ttl: Duration) -> u64 {
        // A reload may have made tokens last less long since.
        let lasts = self.expires_at.saturating_sub(self.issued_at).max(ttl.as_secs());
        self.remembered_until().max(now.saturating_add(lasts).saturating_add(MOST_LEEWAY))
    }
}

/// Whether a token was issued after its user's tokens were ended with `mark`.
///
/// Our own carry the generation that they were issued in, and are told apart exactly. Those without one
/// have only `issued_at`, in whole seconds: one of the mark's own second is taken for older.
pub fn is_of(generation: Option<u64>, issued_at: u64, mark: u64) -> bool {
    match generation {
        Some(generation) => generation >= mark,
        None => issued_at.saturating_mul(1000) > mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::OwnClaims;

    fn claims(issuer: &str, jti: &str, sid: Option<&str>, generation: Option<u64>) -> Claims {
        Claims {
            issuer: issuer.into(),
            subject: "7".into(),
            username: None,
            role: None,
            name: None,
            email: None,
            jti: Some(jti.into()),
            sid: sid.map(Into::into),
            issued_at: 50,
            expires_at: 100,
            own: generation.map(|generation| OwnClaims { generation: Some(generation), auth_time: 50 }),
            keys: Keys {
                token: Key::token(issuer, jti),
                family: sid.map(Key::family),
                subject: Key::subject(issuer, "7"),
            },
        }
    }

    #[test]
    fn a_token_ends_by_itself_with_its_login_or_with_its_user_and_by_nothing_else() {
        let ours = claims("", "a", Some("s"), Some(3));
        let end = |key| Revocation::End { key, until: 400 };
        let mark = |issuer, generation| Revocation::Mark {
            subject: Key::subject(issuer, "7"),
            generation,
            until: 400,
        };
        for (revocation, verdict) in [
            (end(Key::token("", "a")), Err(InvalidToken::TokenRevoked)),
            (end(Key::family("s")), Err(InvalidToken::SessionRevoked)),
            (mark("", 4), Err(InvalidToken::UserRevoked)),
            (mark("", 3), Ok(())),
            (mark("idp", 4), Ok(())),
            (end(Key::token("", "b")), Ok(())),
            (end(Key::token("idp", "a")), Ok(())),
            (end(Key::token("", "s")), Ok(())),
            (end(Key::family("a")), Ok(())),
            (end(Key::unnamed_token("a")), Ok(())),
        ] {
            let revoked = Revocations::new();
            assert_eq!(revoked.check(&ours), Ok(()));
            let before = revoked.epoch();
            assert!(revoked.add(revocation));
            assert!(revoked.epoch() > before);
            assert_eq!(revoked.check(&ours), verdict, "{revocation:?}");
        }
    }

    #[test]
    fn a_token_without_a_generation_is_older_than_a_mark_of_its_own_second() {
        for (mark_ms, alive) in [(49_999, true), (50_000, false), (50_999, false), (51_000, false)] {
            let revoked = Revocations::new();
            let subject = Key::subject("idp", "7");
            revoked.add(Revocation::Mark { subject, generation: mark_ms, until: 400 });
            assert_eq!(revoked.check(&claims("idp", "a", None, None)).is_ok(), alive, "{mark_ms}");
        }
    }

    #[test]
    fn a_login_that_ended_is_remembered_for_as_long_as_a_renewed_copy_of_its_token_could_count() {
        let ours = claims("", "a", Some("s"), Some(3));
        for (now, ttl, until) in [
            // Renewed at 80, it would last until 130.
            (80, 50, 130),
            (80, 10, 130),
            (80, 500, 580),
            (20, 10, 100),
        ] {
            let remembered = ours.login_remembered_until(now, Duration::from_secs(ttl));
            assert_eq!(remembered, until + MOST_LEEWAY, "{now} {ttl}");
        }
    }

    #[test]
    fn a_mark_only_rises_and_an_entry_only_lasts_longer() {
        let revoked = Revocations::new();
        let subject = Key::subject("", "7");
        assert!(revoked.add(Revocation::Mark { subject, generation: 5, until: 10 }));
        assert!(!revoked.add(Revocation::Mark { subject, generation: 4, until: 20 }));
        assert_eq!(revoked.generation(subject), 5);
        let key = Key::token("", "a");
        assert!(revoked.add(Revocation::End { key, until: 20 }));
        let epoch = revoked.epoch();
        assert!(!revoked.add(Revocation::End { key, until: 10 }));
        assert_eq!(revoked.epoch(), epoch, "nothing changed, so nobody has to look again");
        revoked.forget_expired(15);
        assert_eq!(revoked.len(), 2);
    }

    #[test]
    fn an_entry_goes_when_its_tokens_have_expired_and_not_a_second_earlier() {
        let revoked = Revocations::new();
        for n in 0..1000 {
            revoked.add(Revocation::End { key: Key::token("", &n.to_string()), until: 100 + n % 2 });
        }
        let subject = Key::subject("", "7");
        revoked.add(Revocation::Mark { subject, generation: 5, until: 101 });
        for (now, left) in [(99, 1001), (100, 501), (101, 0)] {
            revoked.forget_expired(now);
            assert_eq!(revoked.len(), left, "{now}");
        }
        assert!(revoked.is_empty());
    }

    #[test]
    fn keys_survive_being_stored_and_say_nothing() {
        let key = Key::token("portcullis", "id");
        assert_eq!(Key::from_bytes(&key.to_bytes()), Some(key));
        assert_eq!(Key::from_bytes(&[0; 15]), None);
        assert_eq!(format!("{key:?}"), "Key(…)");
        // What is stored must mean the same to every later version.
        assert_eq!(key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>(), STORED,);
    }

    const STORED: &str = "057643c2cc32b18f6b56fcdf69efb9c4";
}
