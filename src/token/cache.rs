//! Tokens that have been verified already, so that the next request pays a look-up only.
//!
//! A cache belongs to one worker thread: nothing is locked. The key is the whole text of the token,
//! compared byte for byte, so one token can never be answered with another's claims; the hash only
//! finds the place, and its seed is random so that nobody can aim for one. Only tokens that were
//! verified are kept, and none past its expiry. Not here: what else ends a token's life. A cache
//! serves one configuration: where keys, issuers or roles change, another takes its place.

use std::fmt;

use quick_cache::Weighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

/// What an entry costs besides its text: the cache's own structures and the value's fixed part.
const ENTRY_OVERHEAD: u64 = 256;

/// At most so many verified tokens, and at most so many bytes of them, whichever is reached first;
/// the least useful go.
///
/// `V` is what a hit gives back, as a clone: an `Arc` makes a hit free of allocation.
pub struct TokenCache<V> {
    entries: Cache<Box<str>, Entry<V>, Weight, foldhash::quality::RandomState>,
    leeway_seconds: u64,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    /// The first second at which the token no longer counts.
    ends_at: u64,
}

impl<V: Clone> TokenCache<V> {
    /// A cache of at most `max_entries` tokens that take about `max_bytes` at most; zero of either
    /// keeps nothing. Meant for hundreds of tokens at least: a token that takes most of the room by
    /// itself is not kept. `leeway_seconds` is the verifier's.
    pub fn new(max_entries: usize, max_bytes: u64, leeway_seconds: u64) -> Self {
        // One bound serves for both: no entry weighs less than its share of the bytes.
        let least = max_bytes.div_ceil(u64::try_from(max_entries).unwrap_or(u64::MAX).max(1)).max(1);
        let capacity = if max_entries == 0 { 0 } else { max_bytes };
        Self {
            entries: Cache::with(
                max_entries,
                capacity,
                Weight { least },
                foldhash::quality::RandomState::default(),
                DefaultLifecycle::default(),
            ),
            leeway_seconds,
        }
    }

    /// What was kept for exactly this token, unless it has expired by `now` (Unix seconds). An
    /// expired one is dropped.
    pub fn get(&mut self, token: &str, now: u64) -> Option<V> {
        let entry = self.entries.get(token)?;
        if now < entry.ends_at {
            return Some(entry.value.clone());
        }
        self.entries.remove(token);
        None
    }

    /// Keeps `value` for a token that was verified; `expires_at` is its `exp`, without leeway.
    pub fn insert(&mut self, token: &str, value: V, expires_at: u64) {
        let ends_at = expires_at.saturating_add(self.leeway_seconds);
        self.entries.insert(token.into(), Entry { value, ends_at });
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<V> fmt::Debug for TokenCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The keys are live credentials.
        f.debug_struct("TokenCache").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Weight {
    least: u64,
}

impl<V> Weighter<Box<str>, Entry<V>> for Weight {
    fn weight(&self, token: &Box<str>, _: &Entry<V>) -> u64 {
        // Claims are read out of the token, so they are never longer than it; nor is what is asserted of them.
        (3 * token.len() as u64 + ENTRY_OVERHEAD).max(self.least)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_hit_needs_the_same_text_to_the_last_byte() {
        let mut cache = TokenCache::new(10, 1 << 20, 0);
        cache.insert("header.claims.signature", 1, 100);
        for (token, found) in [
            ("header.claims.signature", Some(1)),
            ("header.claims.signaturf", None),
            ("header.claims.signatur", None),
            ("header.claims.signature ", None),
            ("", None),
        ] {
            assert_eq!(cache.get(token, 0), found, "{token:?}");
        }
    }

    #[test]
    fn an_entry_lasts_to_its_expiry_with_leeway_and_not_a_second_longer() {
        for (leeway, now, found) in [(0, 99, true), (0, 100, false), (5, 104, true), (5, 105, false)] {
            let mut cache = TokenCache::new(10, 1 << 20, leeway);
            cache.insert("t", (), 100);
            assert_eq!(cache.get("t", now).is_some(), found, "leeway {leeway}, now {now}");
            assert_eq!(cache.len(), usize::from(found));
        }
        let mut cache = TokenCache::new(10, 1 << 20, u64::MAX);
        cache.insert("t", (), u64::MAX - 1);
        assert!(cache.get("t", u64::MAX - 1).is_some(), "a sum past the end of time must not wrap");
    }

    #[test]
    fn neither_the_count_nor_the_bytes_are_exceeded() {
        for (entries, bytes) in [(8, 1 << 20), (1000, 10_000), (0, 1 << 20), (8, 0)] {
            let mut cache = TokenCache::new(entries, bytes, 0);
            for n in 0..500 {
                cache.insert(&format!("{n:0>400}"), n, 100);
                let kept = cache.len();
                assert!(kept <= entries && kept as u64 * 400 <= bytes, "{kept} of {entries}, {bytes} bytes");
            }
            assert_eq!(cache.is_empty(), entries == 0 || bytes == 0, "{entries}, {bytes} bytes");
        }
    }

    #[test]
    fn a_token_heavier_than_the_cache_is_simply_not_kept() {
        let mut cache = TokenCache::new(10, 2000, 0);
        cache.insert(&"x".repeat(4000), (), 100);
        assert!(cache.is_empty());
    }

    #[test]
    fn a_second_insert_replaces_the_first() {
        let mut cache = TokenCache::new(10, 1 << 20, 0);
        cache.insert("t", Arc::new(1), 100);
        cache.insert("t", Arc::new(2), 100);
        assert_eq!(cache.get("t", 0).as_deref(), Some(&2));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn debug_output_shows_no_token() {
        let mut cache = TokenCache::new(10, 1 << 20, 0);
        cache.insert("secret", (), 100);
        assert!(!format!("{cache:?}").contains("secret"));
    }
}
