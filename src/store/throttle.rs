//! What is remembered of failed logins and of bans, in the session store.
//!
//! Counts are written behind, by the gateway that keeps them in memory; a ban or its lifting is durable
//! when the store answers, and leaves an order for the gateways that run meanwhile. Not here: what a
//! count means (`login::throttle`), where it is stored ([`super::sqlite::throttle`]).

use std::sync::Arc;

use ipnet::IpNet;

use super::Username;

/// Whom failures are counted for, and who can be banned.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    /// A name, wherever it is tried from.
    Account(Arc<str>),
    /// Whoever asks from there.
    Network(IpNet),
    /// A name tried from there.
    Pair(Arc<str>, IpNet),
}

impl Subject {
    /// The account of that name.
    pub fn account(name: &str) -> Subject {
        Subject::Account(account(name))
    }

    /// Whether lifting `self` lifts what is held against `other`, too.
    pub fn covers(&self, other: &Subject) -> bool {
        match (self, other) {
            (Subject::Account(own), Subject::Account(other) | Subject::Pair(other, _)) => own == other,
            // An address lies in its /64 as well: whoever lifts it means what it is counted with.
            (Subject::Network(own), Subject::Network(other) | Subject::Pair(_, other)) => {
                own.contains(other) || other.contains(own)
            }
            (Subject::Pair(..), _) => self == other,
            _ => false,
        }
    }
}

/// A name as the user store compares it: NFC, without regard to ASCII case. What no user can be called
/// is a name here all the same, since what is unknown is counted like what is known.
pub fn account(name: &str) -> Arc<str> {
    let name = Username::parse(name).map_or_else(|_| name.to_owned(), |name| name.to_string());
    name.to_ascii_lowercase().into()
}

/// A count as it is stored. Times are Unix milliseconds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failures {
    /// Whose.
    pub subject: Subject,
    /// How many.
    pub failures: u32,
    /// When that many were right.
    pub counted_at: u64,
    /// Until when nothing is tried.
    pub locked_until: u64,
}

/// A network that an account's owner has signed in from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Familiar {
    /// Whose.
    pub account: Arc<str>,
    /// An IPv4 address or an IPv6 /64.
    pub network: IpNet,
    /// The last time, in Unix milliseconds.
    pub seen_at: u64,
}

/// Somebody whom an operator has locked out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ban {
    /// Whom: an account or a network.
    pub subject: Subject,
    /// Unix milliseconds.
    pub since: u64,
    /// Unix milliseconds; `None`: for good.
    pub ends_at: Option<u64>,
}

/// What `ban` was told, for gateways that run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Order {
    /// Ever growing.
    pub id: i64,
    /// Whom it concerns.
    pub subject: Subject,
    /// `ban lift`; otherwise `ban add`.
    pub lifted: bool,
    /// Unix milliseconds.
    pub at: u64,
}

/// Everything that is remembered.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// Counts that are not zero.
    pub failures: Vec<Failures>,
    /// From where owners sign in.
    pub familiar: Vec<Familiar>,
    /// Bans that have not ended.
    pub bans: Vec<Ban>,
    /// The orders of the last day, by id.
    pub orders: Vec<Order>,
}

/// What has changed in memory since it was written.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Whether what is stored goes first, because it is not known any more what that is.
    pub everything: bool,
    /// Counts as they are now.
    pub failures: Vec<Failures>,
    /// Counts that are zero again.
    pub forgiven: Vec<Subject>,
    /// Networks that are familiar now.
    pub familiar: Vec<Familiar>,
    /// Networks that are not any more.
    pub forgotten: Vec<(Arc<str>, IpNet)>,
}

impl Changes {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.failures.is_empty()
            && self.forgiven.is_empty()
            && self.familiar.is_empty()
            && self.forgotten.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Subject {
        Subject::Network(text.parse().unwrap())
    }

    fn pair(name: &str, text: &str) -> Subject {
        Subject::Pair(account(name), text.parse().unwrap())
    }

    #[test]
    fn names_are_compared_as_the_user_store_compares_them() {
        for (typed, is) in [
            ("vera", "vera"),
            ("VERA", "vera"),
            ("ÖDEGåRD", "ÖdegåRD".to_ascii_lowercase().as_str()),
            ("O\u{308}degard", "Ödegard"),
            (" vera", " vera"),
            ("ve\nra", "ve\nra"),
        ] {
            assert_eq!(account(typed), account(is), "{typed:?}");
        }
        assert_ne!(account("vera"), account("vera "));
        assert_ne!(account("Ödegård"), account("ödegård"));
    }

    #[test]
    fn lifting_covers_what_is_counted_with_it() {
        for (lifted, other, is) in [
            (Subject::account("vera"), Subject::account("Vera"), true),
            (Subject::account("vera"), pair("vera", "192.0.2.1/32"), true),
            (Subject::account("vera"), pair("emil", "192.0.2.1/32"), false),
            (Subject::account("vera"), network("192.0.2.1/32"), false),
            (network("192.0.2.0/24"), network("192.0.2.1/32"), true),
            (network("192.0.2.0/24"), pair("vera", "192.0.2.1/32"), true),
            (network("192.0.2.0/24"), network("192.0.3.1/32"), false),
            (network("2001:db8::1/128"), network("2001:db8::/64"), true),
            (network("192.0.2.1/32"), Subject::account("vera"), false),
        ] {
            assert_eq!(lifted.covers(&other), is, "{lifted:?} {other:?}");
        }
    }
}
