//! Password hashing: Argon2id (RFC 9106), off the request threads, in equal time for every failure.
//!
//! One verification takes some 20 ms of a core and 19 MiB, or what another system's hash asks for, so it
//! runs in a [`pool`](super::pool) of threads; a bounded number waits and the rest is turned away. Not
//! here: who may try again and when (`throttle`), and the formats of stored hashes (`hash`).

use super::hash::{Cost, OutOfMemory, StoredHash, UnusableHash, mix::Mix};
use super::pool::Pool;
use crate::{config::recipe::HashPolicy, store::UserRecord};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version, password_hash::phc::PasswordHash};
use std::{
    error::Error,
    fmt,
    sync::{Arc, OnceLock},
};
use tokio::sync::{Semaphore, oneshot};
use zeroize::Zeroizing;

/// Shortest password that a user can be given, in bytes.
pub const MIN_PASSWORD_BYTES: usize = 8;
/// Longest password, in bytes: what is longer is wrong at login and refused for a user.
pub const MAX_PASSWORD_BYTES: usize = 1024;

/// How many verifications may wait for a core.
const QUEUE: usize = 64;

/// Memory in KiB, passes and lanes of the hashes made here: OWASP's first choice for Argon2id.
const OWN: (u32, u32, u32) = (19 * 1024, 2, 1);
/// What an unknown user's password is checked against while no user was seen: the parameters of [`OWN`].
const DUMMY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cG9ydGN1bGxpcy1kdW1teQ$Tm8gcGFzc3dvcmQgaGFzaGVzIHRvIHRoaXMsIHByYXk";

/// A password as it was sent, of any length. Zeroed when dropped, and in no `Debug` output.
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Takes the bytes over, whole: nothing is trimmed or normalised.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Password {
        Password(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A password that a user can be given: [`MIN_PASSWORD_BYTES`] to [`MAX_PASSWORD_BYTES`], no other rules.
#[derive(Debug)]
pub struct NewPassword(Password);

/// Why a password cannot be given to a user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PasswordRule {
    /// Fewer than [`MIN_PASSWORD_BYTES`].
    TooShort,
    /// More than [`MAX_PASSWORD_BYTES`].
    TooLong,
    /// Not UTF-8, so that neither JSON nor a form could ever bring it.
    NotUtf8,
}

impl NewPassword {
    /// Checks the length and that a login could send it.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(password: Password) -> Result<NewPassword, PasswordRule> {
        let bytes = password.as_bytes();
        if bytes.len() < MIN_PASSWORD_BYTES {
            Err(PasswordRule::TooShort)
        } else if bytes.len() > MAX_PASSWORD_BYTES {
            Err(PasswordRule::TooLong)
        } else if std::str::from_utf8(bytes).is_err() {
            Err(PasswordRule::NotUtf8)
        } else {
            Ok(NewPassword(password))
        }
    }
}

impl fmt::Display for PasswordRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PasswordRule::TooShort => write!(f, "a password has at least {MIN_PASSWORD_BYTES} bytes"),
            PasswordRule::TooLong => write!(f, "a password has at most {MAX_PASSWORD_BYTES} bytes"),
            PasswordRule::NotUtf8 => f.write_str("a password must be valid UTF-8, or no login could send it"),
        }
    }
}

impl Error for PasswordRule {}

/// What became of a password. All but `Matches` are the same answer to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The user exists, is not disabled, and this is their password.
    Matches,
    /// Wrong password, or an unknown or disabled user.
    Differs,
    /// The user exists and no password can be right, because the stored hash cannot be used: a
    /// matter for the log.
    Unusable(UnusableHash),
}

/// Why no verdict was reached or no hash made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HashError {
    /// As many as may wait are waiting already: the contract's 503.
    Busy,
    /// The machine ran out of memory or randomness, or the process is ending.
    Failed,
}

impl fmt::Display for HashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HashError::Busy => "too many passwords are waiting to be checked",
            HashError::Failed => "password hashing failed for want of memory or randomness",
        })
    }
}

impl Error for HashError {}

/// Makes and checks hashes, within bounds that hold for the whole process. The clones share them.
#[derive(Clone, Debug)]
pub struct Hasher {
    /// Running or waiting.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
    policy: Arc<HashPolicy>,
    mix: Arc<Mix>,
    threads: usize,
    /// Started with the first hash.
    pool: Arc<OnceLock<Option<Pool>>>,
}

impl Hasher {
    /// `threads` is how many hashes are computed at once, at least 1; `policy` says which weak ones are
    /// believed.
    #[must_use]
    pub fn new(threads: usize, policy: HashPolicy) -> Hasher {
        let threads = threads.clamp(1, 1024);
        Hasher {
            admitted: Arc::new(Semaphore::new(threads + QUEUE)),
            running: Arc::new(Semaphore::new(threads)),
            policy: Arc::new(policy),
            mix: Arc::new(Mix::new()),
            threads,
            pool: Arc::default(),
        }
    }

    /// Takes notice of what these users' hashes cost, so that unknown names cost the same from the first
    /// attempt on. A user who tries to log in is noticed anyway.
    pub fn learn(&self, users: &[UserRecord]) {
        for user in users {
            if let Ok(hash) = self.parse(user) {
                self.mix.saw(&user.username, hash.cost());
            }
        }
    }

    /// Whether any user's cost is known.
    pub fn knows_users(&self) -> bool {
        self.mix.cost_of("").is_some()
    }

    /// Whether `password` is the one of `user`, who is the one named `name`; `None` is an unknown user.
    ///
    /// A disabled user and a password that is too long cost the same time as a wrong password; an unknown
    /// user and one with an unusable hash that of some user of the store (see [`Mix`]).
    ///
    /// # Errors
    /// `Busy` at once when the queue is full; nothing was computed.
    pub async fn verify(
        &self,
        password: Password,
        name: &str,
        user: Option<&UserRecord>,
    ) -> Result<Verdict, HashError> {
        let stored = user.map(|user| (self.parse(user), user.disabled));
        if let (Some(user), Some((Ok(hash), _))) = (user, &stored) {
            self.mix.saw(&user.username, hash.cost());
        }
        let otherwise = match stored {
            Some((Ok(_), _)) => None,
            _ => Some(self.mix.cost_of(name).map_or_else(own_cost, Ok)?),
        };
        self.run(move || verdict(&password, stored, otherwise)).await?
    }

    /// Whether the user's hash is weaker than those made here and `password`, which matched it, can be
    /// hashed anew: only one that a user can be given, and that reads the same everywhere.
    #[must_use]
    pub fn wants_upgrade(&self, password: &Password, user: &UserRecord) -> bool {
        let rules = MIN_PASSWORD_BYTES..=MAX_PASSWORD_BYTES;
        self.parse(user).is_ok_and(|hash| {
            !hash.is_argon2id_of_at_least(OWN.0, OWN.1)
                && !hash.has_spellings(password.as_bytes())
                && rules.contains(&password.as_bytes().len())
        })
    }

    fn parse(&self, user: &UserRecord) -> Result<StoredHash, UnusableHash> {
        StoredHash::parse(&user.password_hash, user.password_salt.as_deref(), &self.policy)
    }

    /// Hashes a password with a fresh salt; the result is a PHC string.
    ///
    /// # Errors
    /// As [`verify`](Hasher::verify).
    pub async fn hash(&self, password: NewPassword) -> Result<String, HashError> {
        self.run(move || {
            let argon2 = argon2(Params::new(OWN.0, OWN.1, OWN.2, None).map_err(|_| HashError::Failed)?);
            let hash: PasswordHash =
                argon2.hash_password(password.0.as_bytes()).map_err(|_| HashError::Failed)?;
            Ok(hash.to_string())
        })
        .await?
    }

    /// A caller that goes away while waiting leaves the queue; one that goes away later still counts
    /// until its hash is done, or hanging up would be a way round the bounds.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| HashError::Busy)?;
        let turn = Arc::clone(&self.running).acquire_owned().await.map_err(|_| HashError::Failed)?;
        let pool = self.pool.get_or_init(|| {
            let started = Pool::start(self.threads);
            started.inspect_err(|error| tracing::error!(%error, "no threads to hash passwords on")).ok()
        });
        let (done, finished) = oneshot::channel();
        pool.as_ref().ok_or(HashError::Failed)?.run(move || {
            let _held = (admitted, turn);
            // Whoever asked may have gone.
            let _ = done.send(work());
        });
        finished.await.map_err(|_| HashError::Failed)
    }
}

fn argon2(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn verdict(
    password: &Password,
    stored: Option<(Result<StoredHash, UnusableHash>, bool)>,
    otherwise: Option<Cost>,
) -> Result<Verdict, HashError> {
    let bytes = password.as_bytes();
    let within = &bytes[..bytes.len().min(MAX_PASSWORD_BYTES)];
    if let Some(cost) = otherwise {
        cost.spend(within)?;
    }
    Ok(match stored {
        Some((Ok(hash), disabled)) => {
            let equal = hash.verify(within)?;
            if equal && !disabled && bytes.len() <= MAX_PASSWORD_BYTES {
                Verdict::Matches
            } else {
                Verdict::Differs
            }
        }
        // Of a disabled user, nobody needs to hear about it.
        Some((Err(why), false)) => Verdict::Unusable(why),
        Some((Err(_), true)) | None => Verdict::Differs,
    })
}

fn own_cost() -> Result<Cost, HashError> {
    StoredHash::parse(DUMMY, None, &HashPolicy::default())
        .map(|hash| hash.cost())
        .map_err(|_| HashError::Failed)
}

impl From<OutOfMemory> for HashError {
    fn from(_: OutOfMemory) -> HashError {
        HashError::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text.as_bytes().to_vec())
    }

    fn user(password_hash: String, disabled: bool) -> UserRecord {
        UserRecord {
            id: crate::store::UserId::Number(1),
            username: "vera".into(),
            password_hash,
            password_salt: None,
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled,
            created_at: 0,
            changed_at: 0,
        }
    }

    fn hasher() -> Hasher {
        Hasher::new(1, HashPolicy::default())
    }

    async fn hashed(text: &str) -> String {
        hasher().hash(NewPassword::parse(password(text)).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_users_own_password_matches_and_only_while_they_are_enabled() {
        let hasher = hasher();
        let vera = user(hashed("correct horse").await, false);
        let locked = UserRecord { disabled: true, ..vera.clone() };
        for (who, tried, is) in [
            (Some(&vera), "correct horse", Verdict::Matches),
            (Some(&vera), "correct horsf", Verdict::Differs),
            (Some(&vera), "correct horse ", Verdict::Differs),
            (Some(&vera), "", Verdict::Differs),
            (Some(&locked), "correct horse", Verdict::Differs),
            (None, "correct horse", Verdict::Differs),
        ] {
            assert_eq!(hasher.verify(password(tried), "vera", who).await, Ok(is), "{tried}");
        }
    }

    #[tokio::test]
    async fn a_password_counts_to_its_last_byte_and_not_past_the_limit() {
        let longest = "ü".repeat(MAX_PASSWORD_BYTES / 2);
        let vera = user(hashed(&longest).await, false);
        let hasher = hasher();
        assert_eq!(hasher.verify(password(&longest), "vera", Some(&vera)).await, Ok(Verdict::Matches));
        let cut = &longest[..MAX_PASSWORD_BYTES - 2];
        assert_eq!(hasher.verify(password(cut), "vera", Some(&vera)).await, Ok(Verdict::Differs));
        // Its first 1024 bytes are the password, and yet it is another one.
        let longer = format!("{longest}x");
        assert_eq!(hasher.verify(password(&longer), "vera", Some(&vera)).await, Ok(Verdict::Differs));
    }

    #[test]
    fn a_password_for_a_user_has_8_to_1024_bytes_and_no_other_rules() {
        for (bytes, is) in [
            (b"1234567".to_vec(), Err(PasswordRule::TooShort)),
            (b"12345678".to_vec(), Ok(())),
            (b"        ".to_vec(), Ok(())),
            ("üüüü".as_bytes().to_vec(), Ok(())),
            (vec![b'x'; 1024], Ok(())),
            (vec![b'x'; 1025], Err(PasswordRule::TooLong)),
            (vec![0xff; 8], Err(PasswordRule::NotUtf8)),
        ] {
            assert_eq!(NewPassword::parse(Password::new(bytes.clone())).map(drop), is, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn an_unknown_user_costs_what_a_hash_made_here_costs_until_others_are_seen() {
        let policy = HashPolicy::default();
        let own = StoredHash::parse(&hashed("correct horse").await, None, &policy).unwrap();
        assert_eq!(own_cost().unwrap(), own.cost());
        assert_ne!(hashed("correct horse").await, hashed("correct horse").await);

        let foreign = "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by";
        let cost = StoredHash::parse(foreign, None, &policy).unwrap().cost();
        let hasher = hasher();
        assert_eq!(hasher.mix.cost_of("nobody"), None);
        hasher.learn(&[user(foreign.into(), false), user("damaged".into(), false)]);
        assert_eq!(hasher.mix.cost_of("nobody"), Some(cost.clone()));
        // One who tries to log in is noticed, too, and only the hash they have now counts.
        let upgraded = user(hashed("correct horse").await, false);
        assert_eq!(hasher.verify(password("x"), "vera", Some(&upgraded)).await, Ok(Verdict::Differs));
        assert_eq!(hasher.mix.cost_of("nobody"), Some(own.cost()));
    }

    #[tokio::test]
    async fn a_stored_hash_that_is_damaged_or_too_costly_is_never_computed_and_never_matches() {
        for hash in [
            "$argon2id$v=19$m=4294967295,t=4294967295,p=4294967295$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "",
        ] {
            let why = StoredHash::parse(hash, None, &HashPolicy::default()).unwrap_err();
            for (disabled, is) in [(false, Verdict::Unusable(why)), (true, Verdict::Differs)] {
                let vera = user(hash.into(), disabled);
                assert_eq!(hasher().verify(password("correct horse"), "vera", Some(&vera)).await, Ok(is));
            }
        }
    }

    #[tokio::test]
    async fn a_hash_that_is_weaker_than_those_made_here_is_to_be_upgraded() {
        let salt = "c2FsdHNhbHRzYWx0$Tm8gcGFzc3dvcmQgaGFzaGVzIHRvIHRoaXMsIHByYXk";
        let bcrypt = "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by";
        let wordpress = "$P$BA6dFhaO2UUZKTCSYSMGBpD9VSNDmy0";
        for (hash, tried, is) in [
            (hashed("correct horse").await, "correct horse", false),
            (format!("$argon2id$v=19$m=65536,t=4,p=1${salt}"), "correct horse", false),
            (format!("$argon2id$v=19$m=8192,t=4,p=1${salt}"), "correct horse", true),
            (format!("$argon2i$v=19$m=65536,t=4,p=1${salt}"), "correct horse", true),
            (bcrypt.into(), "correct horse", true),
            (wordpress.into(), "correct horse", true),
            // WordPress takes this one with and without its blank, Argon2id would not.
            (wordpress.into(), "correct horse ", false),
            (bcrypt.into(), "short", false),
            ("damaged".into(), "correct horse", false),
        ] {
            assert_eq!(hasher().wants_upgrade(&password(tried), &user(hash.clone(), false)), is, "{hash}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_turns_away_and_recovers() {
        let hasher = hasher();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let holding = hasher.clone();
        let holder = tokio::spawn(async move { holding.run(move || gate.recv()).await });
        let mut waiting = Vec::new();
        for _ in 0..QUEUE {
            let hasher = hasher.clone();
            waiting.push(tokio::spawn(async move { hasher.run(|| ()).await }));
        }
        while hasher.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hasher.verify(password("correct horse"), "vera", None).await, Err(HashError::Busy));

        // One that stops waiting makes room.
        waiting.pop().unwrap().abort();
        while hasher.admitted.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        holder.await.unwrap().unwrap().unwrap();
        assert_eq!(hasher.verify(password("correct horse"), "vera", None).await, Ok(Verdict::Differs));
        for waited in waiting {
            assert_eq!(waited.await.unwrap(), Ok(()));
        }
    }

    #[test]
    fn a_password_is_in_no_debug_output() {
        let secret = NewPassword::parse(password("correct horse")).unwrap();
        assert_eq!(format!("{secret:?}"), "NewPassword(Password(..))");
    }
}
