//! Password hashing: Argon2id (RFC 9106), off the request threads, in equal time for every failure.
//!
//! One verification takes some 20 ms of a core and 19 MiB, so it runs on blocking threads, as many at
//! once as there are cores; a bounded number waits and the rest is turned away. Not here: who may try
//! again and when, and the formats of other systems' hashes.

use crate::store::UserRecord;
use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
    password_hash::{self, phc::PasswordHash},
};
use std::{error::Error, fmt, sync::Arc};
use tokio::{sync::Semaphore, task};
use zeroize::Zeroizing;

/// Shortest password that a user can be given, in bytes.
pub const MIN_PASSWORD_BYTES: usize = 8;
/// Longest password, in bytes: what is longer is wrong at login and refused for a user.
pub const MAX_PASSWORD_BYTES: usize = 1024;

/// How many verifications may wait for a core.
const QUEUE: usize = 64;

/// Memory in KiB, passes and lanes of the hashes made here: OWASP's first choice for Argon2id.
const OWN: (u32, u32, u32) = (19 * 1024, 2, 1);
/// The most that a stored hash may ask for: a row must not be able to exhaust the machine.
const MOST: (u32, u32, u32) = (256 * 1024, 10, 8);

/// The hash that an unknown user's password is checked against: the parameters of [`OWN`], a salt and
/// an output that no password is known for. A match would count for nothing anyway.
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

/// Why a stored hash cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnusableHash {
    /// Not a PHC string with version, parameters, salt and output.
    Malformed,
    /// A PHC string of another algorithm than Argon2id version 19 (or 16).
    Algorithm,
    /// Parameters out of bounds: at most 256 MiB, 10 passes and 8 lanes, or too little memory.
    Parameters,
}

impl fmt::Display for UnusableHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnusableHash::Malformed => "the password hash is not a complete PHC string",
            UnusableHash::Algorithm => "the password hash is not Argon2id",
            UnusableHash::Parameters => "the password hash asks for parameters that are out of bounds",
        })
    }
}

impl Error for UnusableHash {}

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

/// Checks that a hash from elsewhere is one that [`Hasher::verify`] takes.
///
/// # Errors
/// What is wrong with it.
pub fn check_hash(hash: &str) -> Result<(), UnusableHash> {
    StoredHash::parse(hash).map(drop)
}

/// Makes and checks hashes, within bounds that hold for the whole process. The clones share them.
#[derive(Clone, Debug)]
pub struct Hasher {
    /// Running or waiting.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Hasher {
    /// `cores` is how many hashes are computed at once, at least 1.
    #[must_use]
    pub fn new(cores: usize) -> Hasher {
        let cores = cores.clamp(1, 1024);
        Hasher { admitted: Arc::new(Semaphore::new(cores + QUEUE)), running: Arc::new(Semaphore::new(cores)) }
    }

    /// Whether `password` is the one of `user`, `None` being an unknown user.
    ///
    /// An unknown or disabled user, an unusable hash and a password that is too long cost the same
    /// time as a wrong password for a hash made here. (A hash that was imported with other parameters
    /// takes its own time.)
    ///
    /// # Errors
    /// `Busy` at once when the queue is full; nothing was computed.
    pub async fn verify(&self, password: Password, user: Option<&UserRecord>) -> Result<Verdict, HashError> {
        let stored = user.filter(|user| !user.disabled).map(|user| user.password_hash.clone());
        self.run(move || verdict(&password, stored.as_deref())).await?
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
        task::spawn_blocking(move || {
            let _held = (admitted, turn);
            work()
        })
        .await
        .map_err(|_| HashError::Failed)
    }
}

fn argon2(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// A hash whose algorithm and cost have been checked.
struct StoredHash(PasswordHash);

impl StoredHash {
    fn parse(text: &str) -> Result<StoredHash, UnusableHash> {
        let hash = PasswordHash::new(text).map_err(|_| UnusableHash::Malformed)?;
        if hash.algorithm.as_str() != "argon2id" || !matches!(hash.version, Some(16 | 19)) {
            return Err(UnusableHash::Algorithm);
        }
        // Exactly these three, since the crate fills in a missing one and takes the last of two.
        if hash.params.iter().count() != 3
            || ["m", "t", "p"].iter().any(|name| hash.params.get(*name).is_none())
        {
            return Err(UnusableHash::Malformed);
        }
        let params = Params::try_from(&hash).map_err(|_| UnusableHash::Parameters)?;
        if params.m_cost() > MOST.0 || params.t_cost() > MOST.1 || params.p_cost() > MOST.2 {
            return Err(UnusableHash::Parameters);
        }
        // A shorter output would be found by chance.
        match (&hash.salt, &hash.hash) {
            (Some(_), Some(output)) if output.len() >= 16 => Ok(StoredHash(hash)),
            _ => Err(UnusableHash::Malformed),
        }
    }
}

fn verdict(password: &Password, stored: Option<&str>) -> Result<Verdict, HashError> {
    let (hash, otherwise) = match stored.map(StoredHash::parse) {
        Some(Ok(hash)) => (hash, None),
        Some(Err(why)) => (dummy()?, Some(Verdict::Unusable(why))),
        None => (dummy()?, Some(Verdict::Differs)),
    };
    let bytes = password.as_bytes();
    let within = &bytes[..bytes.len().min(MAX_PASSWORD_BYTES)];
    let equal = match argon2(Params::DEFAULT).verify_password(within, &hash.0) {
        Ok(()) => true,
        Err(password_hash::Error::PasswordInvalid) => false,
        Err(_) => return Err(HashError::Failed),
    };
    Ok(match otherwise {
        Some(verdict) => verdict,
        None if equal && bytes.len() <= MAX_PASSWORD_BYTES => Verdict::Matches,
        None => Verdict::Differs,
    })
}

fn dummy() -> Result<StoredHash, HashError> {
    StoredHash::parse(DUMMY).map_err(|_| HashError::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text.as_bytes().to_vec())
    }

    fn user(password_hash: String, disabled: bool) -> UserRecord {
        UserRecord {
            id: 1,
            username: "vera".into(),
            password_hash,
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled,
            created_at: 0,
            changed_at: 0,
        }
    }

    async fn hashed(text: &str) -> String {
        Hasher::new(1).hash(NewPassword::parse(password(text)).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_users_own_password_matches_and_only_while_they_are_enabled() {
        let hasher = Hasher::new(2);
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
            assert_eq!(hasher.verify(password(tried), who).await, Ok(is), "{tried}");
        }
    }

    #[tokio::test]
    async fn a_password_counts_to_its_last_byte_and_not_past_the_limit() {
        let longest = "ü".repeat(MAX_PASSWORD_BYTES / 2);
        let vera = user(hashed(&longest).await, false);
        let hasher = Hasher::new(1);
        assert_eq!(hasher.verify(password(&longest), Some(&vera)).await, Ok(Verdict::Matches));
        let cut = &longest[..MAX_PASSWORD_BYTES - 2];
        assert_eq!(hasher.verify(password(cut), Some(&vera)).await, Ok(Verdict::Differs));
        // Its first 1024 bytes are the password, and yet it is another one.
        let longer = format!("{longest}x");
        assert_eq!(hasher.verify(password(&longer), Some(&vera)).await, Ok(Verdict::Differs));
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
    async fn the_dummy_costs_what_a_real_hash_costs() {
        let real = StoredHash::parse(&hashed("correct horse").await).unwrap().0;
        let dummy = dummy().unwrap().0;
        assert_eq!(dummy.algorithm, real.algorithm);
        assert_eq!(dummy.version, real.version);
        assert_eq!(dummy.params, real.params);
        assert_eq!(dummy.salt.map(|salt| salt.len()), real.salt.map(|salt| salt.len()));
        assert_eq!(dummy.hash.map(|hash| hash.len()), real.hash.map(|hash| hash.len()));
        assert_ne!(hashed("correct horse").await, hashed("correct horse").await);
    }

    #[tokio::test]
    async fn a_stored_hash_that_is_damaged_or_too_costly_is_never_computed_and_never_matches() {
        let salt_and_output = DUMMY.rsplit_once("p=1$").unwrap().1;
        let hash = |head: &str| format!("${head}${salt_and_output}");
        for (hash, is) in [
            (hash("argon2id$v=19$m=262144,t=10,p=8"), Ok(())),
            (hash("argon2id$v=16$m=64,t=1,p=1"), Ok(())),
            (hash("argon2id$v=19$m=262145,t=1,p=1"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=19456,t=11,p=1"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=19456,t=2,p=9"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=4294967295,t=4294967295,p=4294967295"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=8,t=1,p=2"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=19456,t=0,p=1"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=19456,t=2"), Err(UnusableHash::Malformed)),
            (hash("argon2id$v=19$m=99999999999,t=2,p=1"), Err(UnusableHash::Parameters)),
            (hash("argon2id$v=19$m=64,t=2,p=1,m=9999999"), Err(UnusableHash::Malformed)),
            (hash("argon2id$v=19$m=64,t=2,t=3"), Err(UnusableHash::Malformed)),
            (hash("argon2id$m=19456,t=2,p=1"), Err(UnusableHash::Algorithm)),
            (hash("argon2i$v=19$m=19456,t=2,p=1"), Err(UnusableHash::Algorithm)),
            (hash("scrypt$v=19$ln=14,r=8,p=1"), Err(UnusableHash::Algorithm)),
            ("$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0".into(), Err(UnusableHash::Malformed)),
            (
                "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$c2hvcnRoYXNoMTA".into(),
                Err(UnusableHash::Malformed),
            ),
            ("$2y$10$abcdefghijklmnopqrstuv".into(), Err(UnusableHash::Malformed)),
            ("correct horse".into(), Err(UnusableHash::Malformed)),
            (String::new(), Err(UnusableHash::Malformed)),
        ] {
            assert_eq!(check_hash(&hash), is, "{hash}");
            if let Err(why) = is {
                let vera = user(hash, false);
                let verdict = Hasher::new(1).verify(password("correct horse"), Some(&vera)).await;
                assert_eq!(verdict, Ok(Verdict::Unusable(why)));
            }
        }
    }

    #[tokio::test]
    async fn a_full_queue_turns_away_and_recovers() {
        let hasher = Hasher::new(1);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let holding = hasher.clone();
        let holder = tokio::spawn(async move { holding.run(move || gate.recv()).await });
        let mut waiting = Vec::new();
        for _ in 0..QUEUE {
            let hasher = hasher.clone();
            waiting.push(tokio::spawn(async move { hasher.run(|| ()).await }));
        }
        while hasher.admitted.available_permits() > 0 {
            task::yield_now().await;
        }
        assert_eq!(hasher.verify(password("correct horse"), None).await, Err(HashError::Busy));

        // One that stops waiting makes room.
        waiting.pop().unwrap().abort();
        while hasher.admitted.available_permits() == 0 {
            task::yield_now().await;
        }
        release.send(()).unwrap();
        holder.await.unwrap().unwrap().unwrap();
        assert_eq!(hasher.verify(password("correct horse"), None).await, Ok(Verdict::Differs));
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
