//! A ring of keys: which of them signs at a given time, and until when the others are needed.
//!
//! A new key lies in the ring, and so in the published set, for a while before it signs: whoever verifies
//! has it by then. Nothing happens at the moment when it begins; who signs is a function of the ring and the
//! time, so replicas that hold the same keys agree without a word, after a restart, too.
//! Not here: the folder that a ring is read from (`config::keyring`).

use std::cmp::Reverse;

use super::keys::{Algorithm, SigningKey};

/// How far the clocks of replicas may differ before a key is taken away too early, in seconds.
const CLOCKS_DIFFER: u64 = 60;

/// A key and what is known about its life; times are Unix seconds.
#[derive(Clone, Debug)]
pub struct RingKey {
    /// The key itself.
    pub key: SigningKey,
    /// When it was made. `None` for a secret.
    pub made: Option<u64>,
    /// From when on it may sign; 0 where nothing says that it has to wait.
    pub signs_from: u64,
    /// When it may have begun to sign at the latest: `signs_from`, or when its file came to lie there.
    pub began: u64,
    /// Made by this program, which therefore may remove it. What people put there, people take away.
    pub own: bool,
}

/// Where a key is in its life at one moment; times are Unix seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyState {
    /// Verifies, and will sign.
    Published {
        /// From when on.
        signs_from: u64,
    },
    /// The one that signs.
    Signing,
    /// Verifies what it signed.
    Verifying {
        /// When it stopped signing; unknown for a key of another algorithm.
        signed_until: Option<u64>,
    },
}

impl KeyState {
    /// The fixed name.
    pub fn code(self) -> &'static str {
        match self {
            Self::Published { .. } => "published",
            Self::Signing => "signing",
            Self::Verifying { .. } => "verifying",
        }
    }
}

/// The keys of one folder, in the order of their files' names. All verify.
#[derive(Clone, Debug)]
pub struct Ring {
    keys: Vec<RingKey>,
    algorithm: Algorithm,
}

impl Ring {
    /// `keys` in any order. Only those for `algorithm` ever sign.
    pub fn new(mut keys: Vec<RingKey>, algorithm: Algorithm) -> Self {
        keys.sort_by_cached_key(|one| file_name(one.key.kid()));
        Self { keys, algorithm }
    }

    /// Every key, by name.
    pub fn keys(&self) -> &[RingKey] {
        &self.keys
    }

    /// The key of that name.
    pub fn find(&self, kid: &str) -> Option<&RingKey> {
        self.keys.iter().find(|one| one.key.kid() == kid)
    }

    /// The place in [`Ring::keys`] of the key that signs at `now`: the last by name that has been published
    /// for long enough. Where there is none, the one that will be first: better than no login.
    pub fn signing(&self, now: u64) -> Option<usize> {
        let fit = || self.keys.iter().enumerate().filter(|(_, one)| one.key.algorithm() == self.algorithm);
        fit()
            .rfind(|(_, one)| one.signs_from <= now)
            .or_else(|| fit().min_by_key(|(place, one)| (one.signs_from, Reverse(*place))))
            .map(|(place, _)| place)
    }

    /// Where the key at `place` is in its life at `now`.
    pub fn state(&self, place: usize, now: u64) -> KeyState {
        let one = &self.keys[place];
        if self.signing(now) == Some(place) {
            return KeyState::Signing;
        }
        let signed_until = self.signed_until(place);
        if one.key.algorithm() == self.algorithm
            && one.signs_from > now
            && signed_until.is_none_or(|until| until > one.signs_from)
        {
            return KeyState::Published { signs_from: one.signs_from };
        }
        KeyState::Verifying { signed_until }
    }

    /// The next moment after `now` at which another key begins to sign.
    pub fn next_change(&self, now: u64) -> Option<u64> {
        self.keys.iter().map(|one| one.signs_from).filter(|from| *from > now).min()
    }

    /// When the key at `place` stops signing, or stopped: when the first of those behind it begins.
    fn signed_until(&self, place: usize) -> Option<u64> {
        let is_for = |one: &&RingKey| one.key.algorithm() == self.algorithm;
        is_for(&&self.keys[place]).then_some(())?;
        self.keys[place + 1..].iter().filter(is_for).map(|one| one.began).min()
    }

    /// The end of the life of the last token that the key at `place` may have signed, as far as that is known.
    /// `longest` is how long any token counts, leeway included, in seconds.
    pub fn needed_until(&self, place: usize, longest: u64) -> Option<u64> {
        Some(self.signed_until(place)?.saturating_add(longest).saturating_add(CLOCKS_DIFFER))
    }

    /// The keys of this program's own that nothing needs any more at `now`; `longest` as above.
    pub fn spent(&self, longest: u64, now: u64) -> impl Iterator<Item = &RingKey> {
        let spent = move |place: &usize| {
            self.keys[*place].own && self.needed_until(*place, longest).is_some_and(|until| until <= now)
        };
        (0..self.keys.len()).filter(spent).map(|place| &self.keys[place])
    }

    /// The name of the key that is due at `now` if the last was to last for `every` seconds. The same for
    /// whoever asks until somebody has made it, so that replicas do not make one each.
    pub fn due(&self, every: u64, now: u64) -> Option<String> {
        let last = self.keys.iter().rfind(|one| one.key.algorithm() == self.algorithm)?;
        let at = last.made?.saturating_add(every);
        (at <= now && last.signs_from <= now).then(|| self.next_kid(at))
    }

    /// A name that sorts behind all that are there: the time of its making, behind the name of a key that
    /// somebody named otherwise if need be.
    pub fn next_kid(&self, time: u64) -> String {
        let plain = format!("{time:012}");
        let Some(last) = self.keys.last().map(|one| one.key.kid()) else { return plain };
        if file_name(last) < file_name(&plain) {
            return plain;
        }
        let digits = last.len().saturating_sub(12);
        let is_stamp = |text: &&str| text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
        let stamp = last.get(digits..).filter(is_stamp);
        let (stem, least) = match (stamp.and_then(|text| text.parse::<u64>().ok()), &last.get(..digits)) {
            (Some(stamp), Some("")) => ("", stamp.saturating_add(1)),
            (Some(stamp), Some(front)) if front.ends_with('_') => (*front, stamp.saturating_add(1)),
            _ => return format!("{last}_{plain}"),
        };
        format!("{stem}{:012}", time.max(least))
    }
}

/// What a key's file is called; that is the order.
fn file_name(kid: &str) -> String {
    format!("{kid}.pem")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::generate_pkcs8_pem;

    /// A key of this program's own, made and published at once.
    fn key(kid: &str, made: u64, signs_from: u64) -> RingKey {
        of(Algorithm::EdDSA, kid, made, signs_from)
    }

    fn of(algorithm: Algorithm, kid: &str, made: u64, signs_from: u64) -> RingKey {
        let pem = generate_pkcs8_pem(algorithm).unwrap();
        let key = SigningKey::from_pkcs8_pem(kid, &pem, algorithm).unwrap();
        RingKey { key, made: Some(made), signs_from, began: signs_from, own: true }
    }

    /// As somebody puts it there at `placed`.
    fn by_hand(kid: &str, placed: u64) -> RingKey {
        RingKey { began: placed, own: false, ..key(kid, placed, 0) }
    }

    fn ring(keys: Vec<RingKey>) -> Ring {
        Ring::new(keys, Algorithm::EdDSA)
    }

    fn signing(ring: &Ring, now: u64) -> Option<&str> {
        ring.signing(now).map(|place| ring.keys()[place].key.kid())
    }

    #[test]
    fn a_key_signs_from_its_time_on_and_the_one_before_it_until_then() {
        let ring = ring(vec![key("a", 100, 160), key("b", 1000, 1060), key("c", 1030, 1090)]);
        for (now, kid) in [(0, "a"), (159, "a"), (1059, "a"), (1060, "b"), (1089, "b"), (1090, "c")] {
            assert_eq!(signing(&ring, now), Some(kid), "{now}");
        }
        assert_eq!(ring.next_change(0), Some(160));
        assert_eq!(ring.next_change(1060), Some(1090));
        assert_eq!(ring.next_change(1090), None);
        let states = |now| [0, 1, 2].map(|place| ring.state(place, now).code());
        assert_eq!(states(1000), ["signing", "published", "published"]);
        assert_eq!(states(1060), ["verifying", "signing", "published"]);
        assert_eq!(states(1090), ["verifying", "verifying", "signing"]);
        assert_eq!(ring.state(0, 1090), KeyState::Verifying { signed_until: Some(1060) });
    }

    #[test]
    fn a_key_that_says_nothing_about_its_time_signs_at_once_if_it_is_the_last_by_name() {
        let ring = ring(vec![by_hand("z", 500), key("001", 100, 160), by_hand("b", 600)]);
        assert_eq!(signing(&ring, 0), Some("z"), "whatever the clock says");
        assert_eq!(ring.state(0, 1000), KeyState::Verifying { signed_until: Some(500) }, "at the latest");
    }

    #[test]
    fn only_keys_for_the_algorithm_sign_and_an_empty_ring_does_not() {
        assert_eq!(signing(&ring(vec![]), 5), None);
        let keys = vec![key("a", 1, 1), of(Algorithm::ES256, "b", 1, 1)];
        let ring = ring(keys);
        assert_eq!(signing(&ring, 5), Some("a"));
        assert_eq!(ring.state(1, 5), KeyState::Verifying { signed_until: None });
        assert_eq!(ring.needed_until(1, 10), None, "nobody knows what it signed");
    }

    #[test]
    fn where_no_key_has_been_published_for_long_enough_the_first_of_them_signs() {
        assert_eq!(signing(&ring(vec![key("a", 1, 500), key("b", 1, 400)]), 5), Some("b"));
        assert_eq!(signing(&ring(vec![key("a", 1, 400), key("b", 1, 400)]), 5), Some("b"));
    }

    #[test]
    fn a_key_of_our_own_is_spent_when_its_last_token_has_expired_on_every_clock() {
        let ring = ring(vec![by_hand("0", 50), key("a", 100, 160), key("b", 1000, 1060)]);
        let spent = |now| ring.spent(3600, now).map(|one| one.key.kid()).collect::<Vec<_>>();
        let end = 1060 + 3600 + CLOCKS_DIFFER;
        assert_eq!(ring.needed_until(1, 3600), Some(end));
        assert!(spent(end - 1).is_empty());
        assert_eq!(spent(end), ["a"], "never one that somebody put there, nor the one that signs");
        assert_eq!(spent(u64::MAX), ["a"]);
    }

    #[test]
    fn a_key_is_due_once_the_last_is_old_enough_and_not_twice() {
        let first = ring(vec![key("000000000100", 100, 160)]);
        assert_eq!(first.due(1000, 1099), None);
        assert_eq!(first.due(1000, 1100).as_deref(), Some("000000001100"));
        assert_eq!(first.due(1000, 1234).as_deref(), Some("000000001100"), "the same for whoever comes late");
        let both = ring(vec![key("000000000100", 100, 160), key("000000001100", 1234, 1294)]);
        assert_eq!(both.due(1000, 1240), None);
        assert_eq!(both.due(10, 1290), None, "one that is published has not had its turn");
        assert_eq!(both.due(1000, 2234).as_deref(), Some("000000002234"));
        assert_eq!(ring(vec![]).due(1000, 5000), None, "the first is made at start");
    }

    #[test]
    fn the_next_name_sorts_behind_all_that_are_there() {
        for (names, time, next) in [
            (&[][..], 7, "000000000007"),
            (&["000000000003"], 7, "000000000007"),
            (&["000000000007"], 7, "000000000008"),
            (&["000000000009"], 7, "000000000010"),
            (&["000000000003", "es"], 7, "es_000000000007"),
            (&["es", "es_000000000007"], 9, "es_000000000009"),
            (&["es", "es_000000000007"], 7, "es_000000000008"),
            (&["key-2026"], 7, "key-2026_000000000007"),
            (&["2026"], 7, "2026_000000000007"),
            (&["schlüssel"], 7, "schlüssel_000000000007"),
            (&["€€€€"], 7, "€€€€_000000000007"),
        ] {
            let ring = ring(names.iter().map(|name| key(name, 1, 1)).collect());
            assert_eq!(ring.next_kid(time), next, "{names:?}");
            assert!(names.iter().all(|name| file_name(name) < file_name(next)), "{names:?}");
        }
    }
}
