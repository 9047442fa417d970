//! Who may try to log in, and when again: the budgets, as pure as the rules. Time is an argument.
//!
//! Three counts are kept of attempts that failed: of an account tried from a network (an IPv4 address or
//! an IPv6 /64), of the network, and of the account from anywhere. Within its limit a count costs
//! nothing; from there on each failure locks for twice as long as the one before, beginning with [`FIRST_LOCK`].
//! A count is forgiven bit by bit, a whole limit in [`REFILL`], so that typing errors never add up.
//!
//! - An attempt takes its place in all three before its password is looked at, and gives it back when
//!   it turns out not to have been a guess: however many come at once, no more are tried than one after
//!   the other would be. Who finds the places taken is told to wait, not refused.
//! - Refused attempts count for nothing: hammering on a lock does not lengthen it.
//! - The account's own lock comes far later ([`ACCOUNT_FACTOR`]), ends after a minute and does not hold
//!   where its owner has signed in of late: strangers cannot lock an owner out of the places that are theirs.
//! - Whether there is such a user is not known here, so it can make no difference.
//!
//! Memory is bounded by [`MOST_COUNTS`] a budget. In a full table those with the fewest failures make
//! room, the longest ago first: freeing one count takes more failures, spread over thousands of networks,
//! than waiting for its lock to end. Not here: the lock on this, the clock and the database (`guard`).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use crate::store::throttle::{Ban, Changes, Failures, Familiar, Order, Remembered, Subject};
use crate::wire::answer::LockedBy;

/// A second, in the unit of all times here: Unix milliseconds.
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long the failure locks that reaches a limit: time to look the password up.
pub const FIRST_LOCK: u64 = 15 * SECOND;

/// How long it takes until a count at its limit is zero again.
pub const REFILL: u64 = 5 * HOUR;

/// How many times `login.max_failures` an account as a whole may fail before it is locked to strangers.
pub const ACCOUNT_FACTOR: u32 = 20;

/// How long a place is an owner's after they signed in there.
pub const FAMILIAR_FOR: u64 = 30 * DAY;

/// How often a place that stays in use is noted again.
const FAMILIAR_NOTED_EVERY: u64 = HOUR;

/// Places of one owner; the one that was used longest ago makes room.
const FAMILIAR_PLACES: usize = 8;

/// Accounts whose owners' places are remembered.
const FAMILIAR_ACCOUNTS: usize = 65_536;

/// Counts of each of the three budgets. A count and its name take some 250 bytes at most, so all of them
/// some 40 MiB.
pub const MOST_COUNTS: usize = 65_536;

/// How long a ban that never ends asks to wait, in seconds.
const FOR_GOOD: u64 = 24 * 60 * 60;

/// `login.max_failures` and `login.max_failures_per_address`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Of an account from one network.
    pub pair: u32,
    /// Of a network.
    pub network: u32,
}

/// The three budgets, and where each is in [`Throttle::counts`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Budget {
    Pair = 0,
    Network = 1,
    Account = 2,
}

impl Budget {
    fn of(subject: &Subject) -> Budget {
        match subject {
            Subject::Pair(..) => Budget::Pair,
            Subject::Network(_) => Budget::Network,
            Subject::Account(_) => Budget::Account,
        }
    }

    fn rule(self, limits: Limits) -> Rule {
        let (limit, longest) = match self {
            Budget::Pair => (limits.pair, HOUR),
            Budget::Network => (limits.network, 15 * MINUTE),
            Budget::Account => (limits.pair.saturating_mul(ACCOUNT_FACTOR), MINUTE),
        };
        Rule { limit: limit.max(1), longest }
    }

    fn locked_by(self) -> LockedBy {
        match self {
            Budget::Pair => LockedBy::Pair,
            Budget::Network => LockedBy::Address,
            Budget::Account => LockedBy::Account,
        }
    }
}

/// What a budget allows.
#[derive(Clone, Copy)]
struct Rule {
    limit: u32,
    /// The longest lock, in milliseconds.
    longest: u64,
}

impl Rule {
    /// How long a count that has just become `failures` locks; 0 within the limit.
    fn lock(self, failures: u32) -> u64 {
        match failures.checked_sub(self.limit) {
            None => 0,
            Some(beyond) => (FIRST_LOCK << beyond.min(32)).min(self.longest),
        }
    }

    /// What a count never goes beyond: the first that locks for the longest. More would only take longer
    /// to be forgiven.
    fn most(self) -> u32 {
        let doublings = self.longest.div_ceil(FIRST_LOCK).next_power_of_two().ilog2();
        self.limit.saturating_add(doublings)
    }

    /// How long until one failure is forgiven.
    fn forgiven_every(self) -> u64 {
        (REFILL / u64::from(self.limit)).max(1)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    failures: u32,
    /// When `failures` was right.
    counted_at: u64,
    locked_until: u64,
    /// Attempts whose outcome is not known yet.
    in_flight: u32,
    /// Whether the database may have a row of it.
    stored: bool,
}

impl Count {
    fn forgive(&mut self, rule: Rule, now: u64) {
        // A clock that was set back must not lock for longer than it ever would have.
        self.counted_at = self.counted_at.min(now);
        self.locked_until = self.locked_until.min(now.saturating_add(rule.longest));
        let every = rule.forgiven_every();
        let forgiven = (now - self.counted_at) / every;
        match u32::try_from(forgiven).ok().and_then(|forgiven| self.failures.checked_sub(forgiven)) {
            Some(left) if left > 0 => {
                self.failures = left;
                self.counted_at += forgiven * every;
            }
            _ => (self.failures, self.counted_at) = (0, now),
        }
    }

    fn is_nothing(&self, now: u64) -> bool {
        self.failures == 0 && self.in_flight == 0 && self.locked_until <= now
    }
}

/// A place among the attempts that are tried: to be given to [`Throttle::settle`].
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    account: Arc<str>,
    network: IpNet,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The password was the account's.
    Right,
    /// It was not, or there is no such account, or it is disabled.
    Failed,
    /// Nothing was tried: too busy, or a store that failed.
    Void,
}

/// Whether an attempt may be tried.
#[must_use]
#[derive(Debug)]
pub enum Admission {
    /// Yes.
    Admitted(Ticket),
    /// Not now: as many are being tried as may fail. Ask again when one of them is settled.
    Wait,
    /// No.
    Refused {
        /// In how many seconds it is worth trying again, at least 1.
        retry_after: u64,
        /// What locks for the longest.
        by: LockedBy,
    },
}

/// The network that a client counts for: its address, or an IPv6 client's /64.
pub fn network_of(client: IpAddr) -> IpNet {
    match client.to_canonical() {
        IpAddr::V4(address) => IpNet::from(IpAddr::V4(address)),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            // 64 is a prefix length: the fallback never comes.
            Ipv6Net::new(network.into(), 64).map_or(IpNet::from(IpAddr::V6(address)), IpNet::V6)
        }
    }
}

/// All that is known of failed logins.
#[derive(Debug, Default)]
pub struct Throttle {
    counts: [HashMap<Subject, Count>; 3],
    familiar: HashMap<Arc<str>, Vec<(IpNet, u64)>>,
    banned_accounts: HashMap<Arc<str>, Option<u64>>,
    banned_networks: Vec<(IpNet, Option<u64>)>,
    /// Counts that differ from what is stored.
    changed: HashSet<Subject>,
    familiar_changed: HashSet<(Arc<str>, IpNet)>,
    /// Whether it is not known what is stored.
    unsure: bool,
}

impl Throttle {
    /// Adds what was remembered to what has been counted meanwhile: of a count in both, the stricter one
    /// holds.
    pub fn restore(&mut self, remembered: Remembered) {
        for count in remembered.failures {
            let kept =
                self.counts[Budget::of(&count.subject) as usize].entry(count.subject.clone()).or_default();
            kept.stored = true;
            // An order can have come between the last look of a gateway and its end.
            let lifted = |order: &Order| {
                order.lifted && order.at >= count.counted_at && order.subject.covers(&count.subject)
            };
            if remembered.orders.iter().any(lifted) {
                self.changed.insert(count.subject);
                continue;
            }
            if count.failures > kept.failures {
                (kept.failures, kept.counted_at) = (count.failures, count.counted_at);
            }
            kept.locked_until = kept.locked_until.max(count.locked_until);
        }
        for place in remembered.familiar {
            let places = self.familiar.entry(place.account).or_default();
            if !places.iter().any(|(network, _)| *network == place.network) {
                places.push((place.network, place.seen_at));
            }
        }
        self.set_bans(&remembered.bans);
    }

    /// Whether an attempt on `account` (a name as [`crate::store::throttle::account`] makes it) by
    /// `network` may be tried now.
    pub fn begin(&mut self, limits: Limits, account: &Arc<str>, network: IpNet, now: u64) -> Admission {
        if let Some((until, by)) = self.ban_on(account, network, now) {
            let retry_after = until.map_or(FOR_GOOD, |until| seconds(until - now));
            return Admission::Refused { retry_after, by };
        }
        let familiar = self.is_familiar(account, network, now);
        let subjects = subjects(account, network);
        let (mut locked, mut taken) = (None, false);
        for subject in &subjects {
            let budget = Budget::of(subject);
            let Some(count) = self.counts[budget as usize].get_mut(subject) else { continue };
            let rule = budget.rule(limits);
            count.forgive(rule, now);
            if budget == Budget::Account && familiar {
                continue;
            }
            if count.locked_until > now {
                locked = locked.max(Some((count.locked_until, budget as usize)));
            } else if count.in_flight >= rule.limit.saturating_sub(count.failures).max(1) {
                taken = true;
            }
        }
        if let Some((until, budget)) = locked {
            let by = [LockedBy::Pair, LockedBy::Address, LockedBy::Account][budget];
            return Admission::Refused { retry_after: seconds(until - now), by };
        }
        if taken {
            return Admission::Wait;
        }
        for subject in subjects {
            self.count(limits, subject, now).in_flight += 1;
        }
        Admission::Admitted(Ticket { account: Arc::clone(account), network })
    }

    /// What became of an attempt that was admitted, and which locks that brought.
    pub fn settle(&mut self, limits: Limits, ticket: Ticket, outcome: Outcome, now: u64) -> Vec<LockedBy> {
        let Ticket { account, network } = ticket;
        let mut locks = Vec::new();
        for subject in subjects(&account, network) {
            let budget = Budget::of(&subject);
            let rule = budget.rule(limits);
            let count = self.count(limits, subject.clone(), now);
            count.forgive(rule, now);
            count.in_flight = count.in_flight.saturating_sub(1);
            let before = (count.failures, count.locked_until);
            match outcome {
                Outcome::Failed => {
                    count.failures = count.failures.saturating_add(1).min(rule.most());
                    let lock = rule.lock(count.failures);
                    if lock > 0 {
                        count.locked_until = count.locked_until.max(now.saturating_add(lock));
                        locks.push(budget.locked_by());
                    }
                }
                // Of the pair alone: with a password of one's own, nobody gets a network's or an
                // account's failures forgiven.
                Outcome::Right if budget == Budget::Pair => (count.failures, count.locked_until) = (0, 0),
                Outcome::Right | Outcome::Void => {}
            }
            let changed = before != (count.failures, count.locked_until);
            let (nothing, stored) = (count.is_nothing(now), count.stored);
            if nothing {
                self.counts[budget as usize].remove(&subject);
            }
            if !self.unsure && (changed || nothing && stored) {
                self.changed.insert(subject);
            }
        }
        if outcome == Outcome::Right {
            self.note_familiar(account, network, now);
        }
        locks
    }

    /// Which accounts and networks are banned from now on.
    pub fn set_bans(&mut self, bans: &[Ban]) {
        self.banned_accounts.clear();
        self.banned_networks.clear();
        for ban in bans {
            match &ban.subject {
                Subject::Account(account) => {
                    self.banned_accounts.insert(Arc::clone(account), ban.ends_at);
                }
                Subject::Network(network) => self.banned_networks.push((*network, ban.ends_at)),
                // There is no such ban.
                Subject::Pair(..) => {}
            }
        }
    }

    /// Forgives everything that `subject` covers. Attempts under way keep their places.
    pub fn lift(&mut self, subject: &Subject) {
        for counts in &mut self.counts {
            let covered: Vec<Subject> =
                counts.keys().filter(|other| subject.covers(other)).cloned().collect();
            for other in covered {
                match counts.get_mut(&other) {
                    Some(count) if count.in_flight > 0 => (count.failures, count.locked_until) = (0, 0),
                    _ => drop(counts.remove(&other)),
                }
                if !self.unsure {
                    self.changed.insert(other);
                }
            }
        }
    }

    /// Drops what has been forgiven by now.
    pub fn tidy(&mut self, limits: Limits, now: u64) {
        for (counts, budget) in self.counts.iter_mut().zip([Budget::Pair, Budget::Network, Budget::Account]) {
            let rule = budget.rule(limits);
            counts.retain(|subject, count| {
                count.forgive(rule, now);
                let kept = !count.is_nothing(now);
                if !kept && count.stored && !self.unsure {
                    self.changed.insert(subject.clone());
                }
                kept
            });
        }
        self.familiar.retain(|account, places| {
            places.retain(|(network, seen_at)| {
                let kept = now.saturating_sub(*seen_at) < FAMILIAR_FOR;
                if !kept && !self.unsure {
                    self.familiar_changed.insert((Arc::clone(account), *network));
                }
                kept
            });
            !places.is_empty()
        });
    }

    /// What has to be written, from now on taken for written.
    pub fn changes(&mut self) -> Changes {
        let mut changes = Changes { everything: self.unsure, ..Changes::default() };
        if std::mem::take(&mut self.unsure) {
            self.changed = self.counts.iter().flat_map(HashMap::keys).cloned().collect();
            let places = self.familiar.iter();
            self.familiar_changed = places
                .flat_map(|(account, places)| {
                    places.iter().map(|(network, _)| (Arc::clone(account), *network))
                })
                .collect();
        }
        for subject in std::mem::take(&mut self.changed) {
            match self.counts[Budget::of(&subject) as usize].get_mut(&subject) {
                Some(count) if count.failures > 0 => {
                    count.stored = true;
                    changes.failures.push(Failures {
                        failures: count.failures,
                        counted_at: count.counted_at,
                        locked_until: count.locked_until,
                        subject,
                    });
                }
                _ => changes.forgiven.push(subject),
            }
        }
        for (account, network) in std::mem::take(&mut self.familiar_changed) {
            let places = self.familiar.get(&account);
            match places.and_then(|places| places.iter().find(|(other, _)| *other == network)) {
                Some((_, seen_at)) => {
                    changes.familiar.push(Familiar { account, network, seen_at: *seen_at });
                }
                None => changes.forgotten.push((account, network)),
            }
        }
        changes
    }

    /// The last [`Throttle::changes`] could not be written: everything will be, the next time. Until then
    /// nothing is noted, so that what is not written cannot grow.
    pub fn not_written(&mut self) {
        self.unsure = true;
        self.changed = HashSet::new();
        self.familiar_changed = HashSet::new();
    }

    /// How many counts there are, of all budgets.
    pub fn len(&self) -> usize {
        self.counts.iter().map(HashMap::len).sum()
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bans hold at `now`.
    pub fn bans(&self, now: u64) -> usize {
        let all = self.banned_accounts.values().chain(self.banned_networks.iter().map(|(_, until)| until));
        all.filter(|until| holds(**until, now)).count()
    }

    fn ban_on(&self, account: &Arc<str>, network: IpNet, now: u64) -> Option<(Option<u64>, LockedBy)> {
        let of_account = self.banned_accounts.get(account).map(|until| (*until, LockedBy::AccountBan));
        let mut all = of_account.into_iter().chain(
            self.banned_networks
                .iter()
                // A ban on one address of a /64 is one on its holder, who has them all.
                .filter(|(banned, _)| banned.contains(&network) || network.contains(banned))
                .map(|(_, until)| (*until, LockedBy::AddressBan)),
        );
        all.find(|(until, _)| holds(*until, now))
    }

    fn is_familiar(&self, account: &Arc<str>, network: IpNet, now: u64) -> bool {
        let places = self.familiar.get(account).map_or(&[][..], Vec::as_slice);
        places.iter().any(|(place, seen_at)| *place == network && now.saturating_sub(*seen_at) < FAMILIAR_FOR)
    }

    fn note_familiar(&mut self, account: Arc<str>, network: IpNet, now: u64) {
        if !self.familiar.contains_key(&account) && self.familiar.len() >= FAMILIAR_ACCOUNTS {
            self.forget_owners();
        }
        let places = self.familiar.entry(Arc::clone(&account)).or_default();
        match places.iter_mut().find(|(place, _)| *place == network) {
            Some((_, seen_at)) if now.saturating_sub(*seen_at) < FAMILIAR_NOTED_EVERY => return,
            Some((_, seen_at)) => *seen_at = now,
            None => {
                if places.len() >= FAMILIAR_PLACES
                    && let Some(oldest) = (0..places.len()).min_by_key(|index| places[*index].1)
                {
                    let (forgotten, _) = places.swap_remove(oldest);
                    if !self.unsure {
                        self.familiar_changed.insert((Arc::clone(&account), forgotten));
                    }
                }
                places.push((network, now));
            }
        }
        if !self.unsure {
            self.familiar_changed.insert((account, network));
        }
    }

    /// The quarter of the owners who have been away longest make room.
    fn forget_owners(&mut self) {
        let last_seen = |places: &[(IpNet, u64)]| places.iter().map(|(_, at)| *at).max().unwrap_or(0);
        let mut times: Vec<u64> = self.familiar.values().map(|places| last_seen(places)).collect();
        let at = times.len() / 4;
        let (_, threshold, _) = times.select_nth_unstable(at);
        let threshold = *threshold;
        self.familiar.retain(|account, places| {
            let kept = last_seen(places) > threshold;
            if !kept && !self.unsure {
                let gone = places.iter().map(|(network, _)| (Arc::clone(account), *network));
                self.familiar_changed.extend(gone);
            }
            kept
        });
    }

    /// The count of `subject`, made if it is not there.
    fn count(&mut self, limits: Limits, subject: Subject, now: u64) -> &mut Count {
        let budget = Budget::of(&subject);
        let counts = &self.counts[budget as usize];
        if counts.len() >= MOST_COUNTS && !counts.contains_key(&subject) {
            self.make_room(budget, limits, now);
        }
        // What is still to be deleted has a row yet.
        let stored = self.changed.contains(&subject);
        let fresh = Count { counted_at: now, stored, ..Count::default() };
        self.counts[budget as usize].entry(subject).or_insert(fresh)
    }

    /// What has been forgiven goes, and then the quarter that does the least harm: the fewest failures,
    /// the longest ago. Looked through once for each quarter that comes in, so the cost for one is small.
    fn make_room(&mut self, budget: Budget, limits: Limits, now: u64) {
        let rule = budget.rule(limits);
        let counts = &mut self.counts[budget as usize];
        for count in counts.values_mut() {
            count.forgive(rule, now);
        }
        let harm = |count: &Count| (count.failures, count.counted_at);
        let mut harms: Vec<_> = counts.values().filter(|count| count.in_flight == 0).map(harm).collect();
        if harms.is_empty() {
            return;
        }
        let at = (MOST_COUNTS / 4).min(harms.len() - 1);
        let (_, threshold, _) = harms.select_nth_unstable(at);
        let threshold = *threshold;
        counts.retain(|subject, count| {
            let kept = count.in_flight > 0 || harm(count) > threshold;
            if !kept && count.stored && !self.unsure {
                self.changed.insert(subject.clone());
            }
            // What was noted and never stored is not worth noting any more.
            if !kept && !count.stored {
                self.changed.remove(subject);
            }
            kept
        });
    }
}

fn holds(until: Option<u64>, now: u64) -> bool {
    until.is_none_or(|until| until > now)
}

fn subjects(account: &Arc<str>, network: IpNet) -> [Subject; 3] {
    [
        Subject::Pair(Arc::clone(account), network),
        Subject::Network(network),
        Subject::Account(Arc::clone(account)),
    ]
}

/// Whole seconds, at least one.
fn seconds(milliseconds: u64) -> u64 {
    milliseconds.div_ceil(SECOND).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::throttle::account;

    const LIMITS: Limits = Limits { pair: 5, network: 50 };
    /// Any time at all; in milliseconds.
    const START: u64 = 1_800_000_000_000;

    fn from(text: &str) -> IpNet {
        network_of(text.parse().unwrap())
    }

    /// Many networks, one a number.
    fn stranger(number: u32) -> IpNet {
        network_of(IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(number) << 64).to_be_bytes()))
    }

    impl Throttle {
        fn attempt(&mut self, name: &str, network: IpNet, outcome: Outcome, now: u64) -> Result<(), u64> {
            match self.begin(LIMITS, &account(name), network, now) {
                Admission::Admitted(ticket) => {
                    self.settle(LIMITS, ticket, outcome, now);
                    Ok(())
                }
                Admission::Refused { retry_after, .. } => Err(retry_after),
                Admission::Wait => panic!("nothing is under way"),
            }
        }

        fn fail(&mut self, name: &str, network: IpNet, now: u64) -> Result<(), u64> {
            self.attempt(name, network, Outcome::Failed, now)
        }

        fn locked_by(&mut self, name: &str, network: IpNet, now: u64) -> Option<LockedBy> {
            match self.begin(LIMITS, &account(name), network, now) {
                Admission::Refused { by, .. } => Some(by),
                Admission::Admitted(ticket) => {
                    self.settle(LIMITS, ticket, Outcome::Void, now);
                    None
                }
                Admission::Wait => panic!("nothing is under way"),
            }
        }

        /// Fails as often as it may, waiting out each lock; answers how often within `during`.
        fn guess(&mut self, name: &str, network: IpNet, during: u64) -> u32 {
            let (mut now, mut guesses) = (START, 0);
            while now < START + during {
                match self.fail(name, network, now) {
                    Ok(()) => guesses += 1,
                    Err(retry_after) => now += retry_after * SECOND,
                }
            }
            guesses
        }

        /// Fails from so many networks that no other budget is ever used up.
        fn lock_account(&mut self, name: &str, now: u64) {
            for number in 0..LIMITS.pair * ACCOUNT_FACTOR {
                self.fail(name, stranger(1_000_000 + number), now).unwrap();
            }
        }
    }

    #[test]
    fn a_pair_may_fail_five_times_and_then_waits_twice_as_long_each_time() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        let mut now = START;
        for _ in 0..5 {
            assert_eq!(throttle.fail("vera", here, now), Ok(()));
        }
        for wait in [15, 30, 60, 120, 240, 480, 960, 1920] {
            assert_eq!(throttle.fail("vera", here, now), Err(wait));
            // Asking again in between changes nothing, and a fraction of a second is a second.
            assert_eq!(throttle.fail("vera", here, now + wait * SECOND - 1), Err(1));
            assert_eq!(throttle.locked_by("vera", here, now), Some(LockedBy::Pair));
            now += wait * SECOND;
            assert_eq!(throttle.fail("vera", here, now), Ok(()));
        }
        // Elsewhere, and as somebody else, there is nothing to wait for.
        assert_eq!(throttle.fail("vera", from("192.0.2.2"), now), Ok(()));
        assert_eq!(throttle.fail("emil", here, now), Ok(()));
    }

    #[test]
    fn who_never_stops_guessing_gets_few_guesses() {
        for (during, most) in [(HOUR, 13), (DAY, 37), (30 * DAY, 24 * 31)] {
            let guesses = Throttle::default().guess("vera", from("192.0.2.1"), during);
            assert!(guesses <= most && guesses > 5, "{guesses} in {during}");
        }
    }

    #[test]
    fn a_right_password_forgives_the_pair_and_nothing_else() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        for _ in 0..3 {
            for _ in 0..4 {
                throttle.fail("vera", here, START).unwrap();
            }
            throttle.attempt("vera", here, Outcome::Right, START).unwrap();
        }
        assert_eq!(throttle.locked_by("vera", here, START), None);
        // Somebody who guesses at others' and signs in with an account of their own in between.
        for number in 12..50 {
            throttle.fail(&format!("user{number}"), here, START).unwrap();
            let _ = throttle.attempt("mallory", here, Outcome::Right, START);
        }
        assert_eq!(throttle.locked_by("mallory", here, START), Some(LockedBy::Address));
    }

    #[test]
    fn an_address_may_fail_fifty_times_whoever_it_tries() {
        for [first, same, other] in
            [["192.0.2.1", "192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2:3:4:5", "2001:db8:0:1::1"]]
        {
            let mut throttle = Throttle::default();
            for number in 0..50 {
                throttle.fail(&format!("user{number}"), from(first), START).unwrap();
            }
            assert_eq!(throttle.locked_by("user99", from(same), START), Some(LockedBy::Address));
            assert_eq!(throttle.locked_by("user99", from(other), START), None);
        }
        assert_eq!(from("::ffff:192.0.2.1"), from("192.0.2.1"));
    }

    #[test]
    fn strangers_lock_an_account_for_a_minute_at_most_and_never_where_its_owner_has_signed_in() {
        let (mut throttle, home) = (Throttle::default(), from("203.0.113.7"));
        throttle.attempt("vera", home, Outcome::Right, START).unwrap();
        let mut now = START + HOUR;
        throttle.lock_account("vera", now);
        let mut longest = 0;
        for number in 0..200 {
            if let Err(wait) = throttle.fail("vera", stranger(number), now) {
                longest = longest.max(wait);
                now += wait * SECOND;
                throttle.fail("vera", stranger(number), now).unwrap();
            }
            assert_eq!(throttle.locked_by("vera", stranger(9_999), now), Some(LockedBy::Account));
            assert_eq!(throttle.locked_by("vera", home, now), None);
        }
        assert_eq!(longest, 60);
        assert_eq!(throttle.attempt("vera", home, Outcome::Right, now), Ok(()));
        // Their own failures count there all the same.
        for _ in 0..5 {
            throttle.fail("vera", home, now).unwrap();
        }
        assert_eq!(throttle.locked_by("vera", home, now), Some(LockedBy::Pair));
    }

    #[test]
    fn a_place_is_an_owners_for_a_month_and_an_owner_has_eight() {
        let mut throttle = Throttle::default();
        for number in 0..9 {
            throttle.attempt("vera", stranger(number), Outcome::Right, START + u64::from(number)).unwrap();
        }
        let vera = account("vera");
        assert!(!throttle.is_familiar(&vera, stranger(0), START + 10), "the oldest has made room");
        assert!(throttle.is_familiar(&vera, stranger(1), START + 10));
        assert!(throttle.is_familiar(&vera, stranger(8), START + FAMILIAR_FOR));
        assert!(!throttle.is_familiar(&vera, stranger(8), START + 10 + FAMILIAR_FOR));
        assert!(!throttle.is_familiar(&account("emil"), stranger(8), START + 10));
        throttle.tidy(LIMITS, START + 10 + FAMILIAR_FOR);
        assert!(throttle.familiar.is_empty());
    }

    #[test]
    fn however_many_come_at_once_no_more_are_tried_than_may_fail() {
        let (mut throttle, here, vera) = (Throttle::default(), from("192.0.2.1"), account("vera"));
        let mut tickets = Vec::new();
        let mut waiting = 0;
        for _ in 0..1000 {
            match throttle.begin(LIMITS, &vera, here, START) {
                Admission::Admitted(ticket) => tickets.push(ticket),
                Admission::Wait => waiting += 1,
                Admission::Refused { .. } => panic!("nothing has failed yet"),
            }
        }
        assert_eq!((tickets.len(), waiting), (5, 995));
        // One that proves to be no guess gives its place back.
        throttle.settle(LIMITS, tickets.pop().unwrap(), Outcome::Void, START);
        let Admission::Admitted(next) = throttle.begin(LIMITS, &vera, here, START) else { panic!("a place") };
        tickets.push(next);
        let locks: Vec<_> = tickets
            .into_iter()
            .map(|ticket| throttle.settle(LIMITS, ticket, Outcome::Failed, START))
            .collect();
        assert_eq!(locks.concat(), [LockedBy::Pair]);
        assert_eq!(throttle.fail("vera", here, START), Err(15));
        // Past the limit they are tried one at a time.
        let later = START + FIRST_LOCK;
        let Admission::Admitted(ticket) = throttle.begin(LIMITS, &vera, here, later) else {
            panic!("a place")
        };
        assert!(matches!(throttle.begin(LIMITS, &vera, here, later), Admission::Wait));
        throttle.settle(LIMITS, ticket, Outcome::Right, later);
        assert_eq!(throttle.len(), 2, "the address' and the account's failures are left");
    }

    #[test]
    fn failures_are_forgiven_bit_by_bit() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        for _ in 0..4 {
            throttle.fail("vera", here, START).unwrap();
        }
        // One an hour: two hours later there is room for three.
        let later = START + 2 * HOUR;
        for _ in 0..3 {
            throttle.fail("vera", here, later).unwrap();
        }
        assert_eq!(throttle.fail("vera", here, later), Err(15));
        throttle.tidy(LIMITS, later + 30 * HOUR);
        assert!(throttle.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_locks_for_no_longer_than_the_longest_lock() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        for _ in 0..5 {
            throttle.fail("vera", here, START + 1000 * DAY).unwrap();
        }
        assert_eq!(throttle.fail("vera", here, START), Err(3600));
        assert_eq!(throttle.fail("vera", here, START + HOUR), Ok(()));
    }

    #[test]
    fn a_full_table_keeps_those_that_have_failed_most() {
        let (mut throttle, attacker) = (Throttle::default(), from("192.0.2.1"));
        let mut now = START;
        for wait in [0, 0, 0, 0, 0, 15, 30, 60, 120] {
            now += wait * SECOND;
            throttle.fail("vera", attacker, now).unwrap();
        }
        // More of others' failures than each table holds.
        for number in 0..u32::try_from(MOST_COUNTS).unwrap() + 20_000 {
            let _ = throttle.fail("vera", stranger(number), now + 100 * SECOND);
            let _ = throttle.fail(&format!("user{number}"), stranger(number), now + 100 * SECOND);
        }
        for counts in &throttle.counts {
            assert!(counts.len() <= MOST_COUNTS);
        }
        assert_eq!(throttle.locked_by("vera", attacker, now + 100 * SECOND), Some(LockedBy::Pair));
        let changes = throttle.changes();
        assert!(changes.failures.len() + changes.forgiven.len() <= 3 * MOST_COUNTS);
        assert!(changes.forgiven.is_empty(), "what was never stored is not deleted");
    }

    #[test]
    fn owners_are_remembered_up_to_a_bound() {
        let mut throttle = Throttle::default();
        for number in 0..FAMILIAR_ACCOUNTS + 10 {
            let at = START + u64::try_from(number).unwrap();
            throttle.note_familiar(account(&format!("user{number}")), from("192.0.2.1"), at);
        }
        assert!(throttle.familiar.len() <= FAMILIAR_ACCOUNTS);
        assert!(!throttle.familiar.contains_key("user0"), "who was away longest makes room");
    }

    #[test]
    fn what_is_written_and_read_again_counts_as_before() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        let mut stored: HashMap<Subject, Failures> = HashMap::new();
        let mut places: HashSet<(Arc<str>, IpNet)> = HashSet::new();
        for step in 0..40_u64 {
            let now = START + step * 90 * SECOND;
            let outcome = if step % 9 == 8 { Outcome::Right } else { Outcome::Failed };
            let _ = throttle.attempt(["vera", "emil"][step as usize % 2], here, outcome, now);
            throttle.tidy(LIMITS, now);
            if step == 20 {
                let _ = throttle.changes();
                throttle.not_written();
            }
            let changes = throttle.changes();
            if changes.everything {
                stored.clear();
                places.clear();
            }
            stored.extend(changes.failures.into_iter().map(|count| (count.subject.clone(), count)));
            for subject in changes.forgiven {
                stored.remove(&subject);
            }
            places.extend(changes.familiar.into_iter().map(|place| (place.account, place.network)));
        }
        let now = START + 39 * 90 * SECOND;
        let remembered = Remembered { failures: stored.into_values().collect(), ..Remembered::default() };
        let mut again = Throttle::default();
        again.restore(remembered);
        again.tidy(LIMITS, now);
        let counted = |throttle: &Throttle| {
            let counts = throttle.counts.iter().flatten();
            let mut counts: Vec<_> = counts
                .map(|(subject, count)| (subject.clone(), count.failures, count.locked_until))
                .collect();
            counts.sort();
            counts
        };
        assert_eq!(counted(&again), counted(&throttle));
        assert!(!again.is_empty() && !places.is_empty());
        assert!(throttle.changes().is_empty(), "nothing is left to write");
    }

    #[test]
    fn a_ban_holds_until_it_ends_wherever_and_whoever() {
        let mut throttle = Throttle::default();
        let ban = |subject, ends_at| Ban { subject, since: START, ends_at };
        let network = |text: &str| Subject::Network(text.parse().unwrap());
        throttle.attempt("vera", from("203.0.113.7"), Outcome::Right, START).unwrap();
        throttle.set_bans(&[
            ban(Subject::account("Vera"), Some(START + MINUTE)),
            ban(network("192.0.2.0/24"), None),
            ban(network("2001:db8::1/128"), None),
        ]);
        for (name, client, is) in [
            ("vera", "203.0.113.7", Some(LockedBy::AccountBan)),
            ("VERA", "203.0.113.8", Some(LockedBy::AccountBan)),
            ("emil", "192.0.2.200", Some(LockedBy::AddressBan)),
            ("emil", "192.0.3.1", None),
            ("emil", "2001:db8::2", Some(LockedBy::AddressBan)),
            ("emil", "2001:db8:0:1::1", None),
        ] {
            assert_eq!(throttle.locked_by(name, from(client), START), is, "{name} {client}");
        }
        assert_eq!(throttle.fail("vera", from("203.0.113.7"), START + 1), Err(60));
        assert_eq!(throttle.fail("emil", from("192.0.2.1"), START), Err(FOR_GOOD));
        assert_eq!(throttle.bans(START), 3);
        assert_eq!(throttle.bans(START + MINUTE), 2);
        assert_eq!(throttle.fail("vera", from("203.0.113.7"), START + MINUTE), Ok(()));
    }

    #[test]
    fn lifting_forgives_all_that_it_covers_and_a_restart_knows_of_it() {
        let (mut throttle, here) = (Throttle::default(), from("192.0.2.1"));
        for _ in 0..5 {
            throttle.fail("vera", here, START).unwrap();
            throttle.fail("emil", here, START).unwrap();
        }
        let failures = throttle.changes().failures;
        throttle.lift(&Subject::account("vera"));
        assert_eq!(throttle.locked_by("vera", here, START), None);
        assert_eq!(throttle.locked_by("emil", here, START), Some(LockedBy::Pair));
        assert_eq!(throttle.changes().forgiven.len(), 2, "the pair and the account");
        throttle.lift(&Subject::Network("192.0.2.0/24".parse().unwrap()));
        assert_eq!(throttle.locked_by("emil", here, START), None);

        // Killed before it saw the order.
        for (at, is) in [(START, None), (START - 1, Some(LockedBy::Pair))] {
            let order = Order { id: 1, subject: Subject::account("vera"), lifted: true, at };
            let remembered =
                Remembered { failures: failures.clone(), orders: vec![order], ..Remembered::default() };
            let mut again = Throttle::default();
            again.restore(remembered);
            assert_eq!(again.locked_by("vera", here, START), is);
        }
    }

    #[test]
    fn limits_that_a_reload_changes_hold_from_the_next_attempt_on() {
        let (mut throttle, here, vera) = (Throttle::default(), from("192.0.2.1"), account("vera"));
        for _ in 0..4 {
            throttle.fail("vera", here, START).unwrap();
        }
        let strict = Limits { pair: 1, network: 1 };
        let Admission::Admitted(ticket) = throttle.begin(strict, &vera, here, START) else {
            panic!("unlocked yet")
        };
        assert_eq!(
            throttle.settle(strict, ticket, Outcome::Failed, START),
            [LockedBy::Pair, LockedBy::Address]
        );
    }
}
