//! What a password is checked at whose user nobody knows, so that time does not tell who is one.
//!
//! A store may hold hashes of several formats and parameters: users from before and after an upgrade of
//! their CMS. If every unknown name took the time of one of them, a name that takes another would be
//! known to be somebody. So an unknown name takes that of one of the users, always the same one for the
//! same name, and each as often as it occurs among the users. Not here: what a hash costs (`hash`).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{hmac, rand};

use super::Cost;
use crate::store::folded;

/// As many different costs are told apart; a store has a handful.
const MOST_COSTS: usize = 64;
/// As many users are remembered; more of them would change little.
const MOST_USERS: usize = 65_536;

/// The costs of the users that were seen.
pub struct Mix {
    /// Secret and of this process, or anybody could work out which cost a name has when it is unknown.
    key: hmac::Key,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Each cost with how many users have it.
    costs: Vec<(Cost, u32)>,
    /// By a keyed hash of the name, where in `costs`: a user counts once, however often they log in,
    /// or somebody could shift the mix by logging in again and again.
    users: HashMap<u64, usize>,
}

impl Mix {
    /// Without any user yet.
    #[must_use]
    pub fn new() -> Mix {
        let mut key = [0; 32];
        // Without randomness the costs are still spent, if predictably; TLS and tokens fail loudly then.
        let _ = rand::fill(&mut key);
        Mix { key: hmac::Key::new(hmac::HMAC_SHA256, &key), seen: Mutex::default() }
    }

    /// Takes notice of what a known user's hash costs; an earlier notice of theirs is replaced.
    pub fn saw(&self, username: &str, cost: Cost) {
        let user = self.number("user", &folded(username));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match seen.costs.iter().position(|(known, _)| *known == cost) {
            Some(at) => at,
            None if seen.costs.len() < MOST_COSTS => {
                seen.costs.push((cost, 0));
                seen.costs.len() - 1
            }
            None => return,
        };
        let before = match seen.users.get(&user) {
            None if seen.users.len() >= MOST_USERS => return,
            before => before.copied(),
        };
        if let Some(before) = before {
            seen.costs[before].1 -= 1;
        }
        seen.costs[at].1 += 1;
        seen.users.insert(user, at);
    }

    /// The cost at which a password for this unknown name is checked; `None` before any user was seen.
    ///
    /// The same for a name in all its letter cases and accents, which a store may take for one user.
    #[must_use]
    pub fn cost_of(&self, unknown: &str) -> Option<Cost> {
        let name = folded(unknown);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Weighted rendezvous hashing: when the users change, few names change their cost.
        let score = |at: usize, users: u32| {
            let draw = self.number(&at.to_string(), &name);
            // From 0 to 1, both excluded.
            let uniform = ((draw >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            -f64::from(users) / uniform.ln()
        };
        let costs = seen.costs.iter().enumerate().filter(|(_, (_, users))| *users > 0);
        costs
            .max_by(|(a, (_, of_a)), (b, (_, of_b))| score(*a, *of_a).total_cmp(&score(*b, *of_b)))
            .map(|(_, (cost, _))| cost.clone())
    }

    fn number(&self, purpose: &str, name: &str) -> u64 {
        let tag = hmac::sign(&self.key, format!("{purpose}\0{name}").as_bytes());
        tag.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl Default for Mix {
    fn default() -> Mix {
        Mix::new()
    }
}

impl std::fmt::Debug for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mix(..)")
    }
}
