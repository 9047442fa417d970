//! Where users and revocations are kept: the traits [`Users`], [`LocalUsers`] and [`Sessions`](sessions::Sessions),
//! their records and errors, the same for every backend.
//!
//! A backend answers with rows; whether a password is right is for `login::password`, whether a role
//! is a configured one for the command line and the policy. Nothing here is on the path of a request
//! that brings a token: only logins, logouts, rotations and commands come here.

pub mod cms;
pub mod htpasswd;
pub mod sessions;
pub mod sqlite;
pub mod throttle;

use aws_lc_rs::digest::{Context, SHA256};
use std::{error::Error, fmt, future::Future, path::PathBuf, pin::Pin};
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark, is_nfc};

/// What a method of [`Users`] returns: boxed, so that the trait can be a `dyn Users`.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Longest user name in bytes, after normalisation.
pub const MAX_USERNAME_BYTES: usize = 128;

/// A store of users, as a login sees it.
///
/// How names are compared is the store's own matter (see [`LocalUsers`] for the gateway's); a name that no user
/// can have is an unknown one, not an error.
///
/// # Errors
/// Every method may fail with what [`StoreError`] says of the store itself.
pub trait Users: Send + Sync {
    /// The user of that name, disabled or not; `None` when there is none. `UnusableUser` where there is somebody
    /// whom no password lets in.
    fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>>;

    /// Whether the store answers at all: one cheap read.
    fn ping(&self) -> StoreFuture<'_, ()>;

    /// Up to `most` users, any of them: what their hashes cost to check, an unknown user's name is made to
    /// cost. A store that can only look names up answers with an example of what its system writes, or
    /// with nobody, and is learnt from login to login.
    fn sample(&self, most: u32) -> StoreFuture<'_, Vec<UserRecord>>;

    /// Waits for what is running and lets go of the store. Not needed for durability: what was acknowledged lasts
    /// already.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }

    /// Whether the users are the gateway's own: nobody else changes them, and their hashes may be replaced by
    /// better ones. Never those of a CMS.
    fn is_own(&self) -> bool {
        false
    }

    /// Replaces a hash by a stronger one of the same password, if it is still `from`; else nothing is
    /// changed. Not a change of the password: what such a change ends, this does not.
    fn upgrade_hash<'a>(&'a self, _username: &'a str, _from: &'a str, _to: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async { Err(StoreError::ReadOnly) })
    }
}

/// A store of users that are the gateway's own.
///
/// Names are looked up in Unicode NFC and without regard to ASCII case (see [`Username::parse`]). A change is
/// durable when its future answers `Ok`, and other processes that have the store open see it from then on.
///
/// # Errors
/// As for [`Users`]; those that change a user answer `NotFound` for an unknown name.
pub trait LocalUsers: Users {
    /// All users, by id.
    fn list(&self) -> StoreFuture<'_, Vec<UserRecord>>;

    /// Adds a user and answers the record with its new id. `Duplicate` when the name is taken.
    fn add(&self, user: NewUser) -> StoreFuture<'_, UserRecord>;

    /// Replaces a user's password hash by a PHC string of Argon2id; a salt of its own column goes.
    fn set_password<'a>(&'a self, username: &'a str, password_hash: &'a str) -> StoreFuture<'a, ()>;

    /// Gives a user another role. That it is a configured one is the caller's to check.
    fn set_role<'a>(&'a self, username: &'a str, role: &'a str) -> StoreFuture<'a, ()>;

    /// Locks a user out, or lets them in again. Doing so twice is no error.
    fn set_disabled<'a>(&'a self, username: &'a str, disabled: bool) -> StoreFuture<'a, ()>;

    /// Removes a user. Their id is never given to another one.
    fn remove<'a>(&'a self, username: &'a str) -> StoreFuture<'a, ()>;

    /// Adds all of these users or, at the first failure, none. `Duplicate` names the one in the way.
    fn import(&self, users: Vec<NewUser>) -> StoreFuture<'_, ()>;
}

/// What a user is known by for good: a number here, whatever it is in a CMS.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum UserId {
    /// A number.
    Number(i64),
    /// A text, not empty: a UUID, for example.
    Text(String),
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserId::Number(number) => number.fmt(f),
            UserId::Text(text) => f.write_str(text),
        }
    }
}

impl From<&UserId> for serde_json::Value {
    fn from(id: &UserId) -> serde_json::Value {
        match id {
            UserId::Number(number) => (*number).into(),
            UserId::Text(text) => text.as_str().into(),
        }
    }
}

/// A user as the store has it.
#[derive(Clone, Eq, PartialEq)]
pub struct UserRecord {
    /// Never reused: a token that outlives its user can never become somebody else's.
    pub id: UserId,
    /// As it was written when the user was added, which need not be as it was typed at login.
    pub username: String,
    /// In one of the formats of `docs/password-hashes.md`. Secret: it is in no log, no error and no
    /// `Debug` output.
    pub password_hash: String,
    /// The salt, for the formats that have it in a column of its own; the others ignore it.
    pub password_salt: Option<String>,
    /// A role's name; it need not be configured any longer.
    pub role: String,
    /// The name for people to read.
    pub name: Option<String>,
    /// The e-mail address, unchecked.
    pub email: Option<String>,
    /// A disabled user cannot log in.
    pub disabled: bool,
    /// Unix time in seconds.
    pub created_at: i64,
    /// Unix time in seconds of the last change of anything above.
    pub changed_at: i64,
}

impl UserRecord {
    /// 16 bytes that another hash or salt would make others, and that cannot be turned back into either.
    pub fn password_mark(&self) -> [u8; 16] {
        let mut context = Context::new(&SHA256);
        // The lengths keep the parts apart.
        let salt = self.password_salt.as_deref().unwrap_or_default();
        for part in [self.id.to_string().as_str(), &self.password_hash, salt] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let digest = context.finish();
        digest.as_ref()[..16].try_into().expect("a SHA-256 digest has 32 bytes")
    }
}

impl fmt::Debug for UserRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserRecord")
            .field("id", &self.id)
            .field("username", &self.username)
            .field("role", &self.role)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}

/// A user to be added. The fields are those of [`UserRecord`].
#[derive(Clone)]
pub struct NewUser {
    /// The name, already in the form in which it is stored.
    pub username: Username,
    /// As in [`UserRecord`].
    pub password_hash: String,
    /// As in [`UserRecord`].
    pub password_salt: Option<String>,
    /// A role's name.
    pub role: String,
    /// The name for people to read.
    pub name: Option<String>,
    /// The e-mail address.
    pub email: Option<String>,
    /// Whether the user starts locked out.
    pub disabled: bool,
}

impl fmt::Debug for NewUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewUser")
            .field("username", &self.username)
            .field("role", &self.role)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}

/// A user name in the only form that is stored: NFC, 1 to [`MAX_USERNAME_BYTES`] bytes, no control
/// characters or line separators, no blank at either end. Any other Unicode is a name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Username(String);

/// Why a text is no user name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UsernameError {
    /// Nothing in it.
    Empty,
    /// More than [`MAX_USERNAME_BYTES`].
    TooLong,
    /// A control character (NUL among them) or a line or paragraph separator.
    Control,
    /// A blank at the beginning or the end, where nobody sees it.
    Blank,
}

impl Username {
    /// Normalises `raw` to NFC and checks it.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(raw: &str) -> Result<Username, UsernameError> {
        // NFC can triple a text's length: what is far too long is not worth normalising.
        if raw.len() > MAX_USERNAME_BYTES * 3 {
            return Err(UsernameError::TooLong);
        }
        let name: String = if is_nfc(raw) { raw.to_owned() } else { raw.nfc().collect() };
        if name.is_empty() {
            Err(UsernameError::Empty)
        } else if name.len() > MAX_USERNAME_BYTES {
            Err(UsernameError::TooLong)
        } else if name.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
            Err(UsernameError::Control)
        } else if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
            Err(UsernameError::Blank)
        } else {
            Ok(Username(name))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for UsernameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsernameError::Empty => f.write_str("a user name cannot be empty"),
            UsernameError::TooLong => {
                write!(f, "a user name has at most {MAX_USERNAME_BYTES} bytes")
            }
            UsernameError::Control => {
                f.write_str("a user name cannot contain control characters or line breaks")
            }
            UsernameError::Blank => f.write_str("a user name cannot begin or end with a blank"),
        }
    }
}

impl Error for UsernameError {}

/// A name without what some CMS's collation may overlook: case, accents, compatibility forms, blanks around it.
/// Names that a store takes for one are one here; a few that it tells apart are one here, too.
#[must_use]
pub fn folded(name: &str) -> String {
    let plain: String = name.trim().nfkd().filter(|c| !is_combining_mark(*c)).collect();
    plain.to_lowercase()
}

/// What a driver said, kept for the log: [`StoreError`]'s own text does not repeat it.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a store could not do what it was asked.
///
/// The text is one sentence that names the store and says what to do; the driver's own words are the
/// [`source`](Error::source).
#[derive(Debug)]
pub enum StoreError {
    /// Something that is not a file stands at the path.
    NotAFile(PathBuf),
    /// The file or its folder could not be made.
    CannotCreate(PathBuf, std::io::Error),
    /// The file is no SQLite database, or a damaged one. It was not changed.
    Corrupt(PathBuf, Option<Cause>),
    /// The database belongs to another application. It was not changed.
    Foreign(PathBuf),
    /// The database was written by a later version of Portcullis. It was not changed.
    Newer(PathBuf),
    /// The file or its folder may not be opened or written.
    Unwritable(PathBuf, Cause),
    /// The file that was opened is not there any more, or was moved. Nothing is written to it, since a
    /// change would be lost with it.
    Gone(PathBuf),
    /// The disk is full. The change was not made.
    Full(PathBuf, Cause),
    /// Another process has kept the database locked. The change was not made.
    Busy(PathBuf, Option<Cause>),
    /// The store cannot be reached, for a reason that none of the others names.
    Unavailable(PathBuf, Cause),
    /// The user name is taken, perhaps in another letter case.
    Duplicate(String),
    /// There is no user of that name.
    NotFound(String),
    /// The store takes no changes, a CMS's own table for example.
    ReadOnly,
    /// Another system's users, by the name of the store without secrets, and what is wrong with it.
    Cms(String, Fault),
    /// There is somebody of that name, who cannot log in whatever the password is.
    UnusableUser(String, UnusableUser),
}

/// What is wrong with another system's database, or with the query.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// No connection, or one that broke; what the system or the database says.
    Unreachable(String),
    /// A file that cannot be read; why.
    File(String),
    /// No answer for so long.
    Slow(std::time::Duration),
    /// The database refuses the query; what it says.
    Query(String),
    /// The query answers without this column.
    MissingColumn(&'static str),
    /// It has this column twice.
    ColumnTwice(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unreachable(why) => {
                write!(f, "cannot be used ({why}): check that it runs, its address and its password")
            }
            Fault::File(why) => write!(f, "cannot be read: {why}"),
            Fault::Slow(patience) => write!(f, "did not answer within {} seconds", patience.as_secs()),
            Fault::Query(why) => {
                write!(f, "refuses 'users.query' ({why}): correct it, or grant SELECT on what it reads")
            }
            Fault::MissingColumn(name) => {
                write!(f, "answers 'users.query' without a column '{name}': write … AS {name}")
            }
            Fault::ColumnTwice(name) => {
                write!(f, "answers 'users.query' with two columns '{name}': leave one out")
            }
        }
    }
}

/// What keeps a user of another system out, whatever the password is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UnusableUser {
    /// None of their roles over there is one here.
    NoRole {
        /// Those that they have.
        theirs: String,
    },
    /// The query finds several users by that name.
    Several,
    /// It finds more rows than a user can have roles.
    TooManyRows,
    /// Their rows say different things about them.
    Contradiction {
        /// In this column.
        column: &'static str,
    },
    /// A value of a type that is not read.
    Type {
        /// In this column.
        column: &'static str,
        /// The database's name of the type.
        kind: String,
    },
    /// A value that is of no use.
    Value {
        /// In this column.
        column: &'static str,
        /// Why.
        what: &'static str,
    },
}

impl fmt::Display for UnusableUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnusableUser::NoRole { theirs } if theirs.is_empty() => f.write_str("they have no role"),
            UnusableUser::NoRole { theirs } => {
                let theirs: String = theirs.chars().take(200).collect();
                write!(f, "none of their roles is one here ({}): see 'users.role_map'", theirs.escape_debug())
            }
            UnusableUser::Several => f.write_str("'users.query' finds several users by that name"),
            UnusableUser::TooManyRows => write!(f, "'users.query' finds more than {} rows", cms::MOST_ROWS),
            UnusableUser::Contradiction { column } => {
                write!(f, "'users.query' finds rows that differ in the column '{column}'")
            }
            UnusableUser::Type { column, kind } => write!(
                f,
                "'users.query' finds them with a column '{column}' of the type {kind}, which is neither a text nor a whole \
                 number: cast it to a text"
            ),
            UnusableUser::Value { column, what } => write!(f, "the column '{column}' {what}"),
        }
    }
}

impl StoreError {
    /// Whether it may pass by itself, or when somebody makes room: trying again makes sense.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            StoreError::Gone(_)
                | StoreError::Full(..)
                | StoreError::Busy(..)
                | StoreError::Unavailable(..)
                | StoreError::Cms(..)
        )
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::NotAFile(path) => write!(
                f,
                "{} is not a file, so it cannot be a database: name a file in `users` and `sessions`",
                path.display()
            ),
            StoreError::CannotCreate(path, cause) => write!(
                f,
                "cannot create the database {} ({cause}): make its folder writable for the user that \
                 runs the gateway",
                path.display()
            ),
            StoreError::Corrupt(path, _) => write!(
                f,
                "the database {} is damaged or not an SQLite file, and was left as it is: restore it \
                 from a backup, or move it away to begin with an empty one",
                path.display()
            ),
            StoreError::Foreign(path) => write!(
                f,
                "{} is another application's database, and was left as it is: name a file of the gateway's \
                 own in `users` and `sessions`",
                path.display()
            ),
            StoreError::Newer(path) => write!(
                f,
                "the database {} was written by a later version of Portcullis, and was left as it is: \
                 run that version",
                path.display()
            ),
            StoreError::Unwritable(path, _) => write!(
                f,
                "the database {} cannot be opened for writing: make the file and its folder writable \
                 for the user that runs the gateway",
                path.display()
            ),
            StoreError::Gone(path) => write!(
                f,
                "the database {} has been moved or removed: put it back, or restart to begin with an empty one",
                path.display()
            ),
            StoreError::Full(path, _) => write!(
                f,
                "no space is left on the disk that holds the database {}, nothing was changed: free \
                 some and try again",
                path.display()
            ),
            StoreError::Busy(path, _) => write!(
                f,
                "the database {} is locked by another process, nothing was changed: try again when \
                 that one is done",
                path.display()
            ),
            StoreError::Unavailable(path, _) => write!(
                f,
                "the database {} cannot be read or written: check the disk that holds it",
                path.display()
            ),
            StoreError::Duplicate(name) => {
                write!(f, "there is a user `{name}` already (letter case makes no difference)")
            }
            StoreError::NotFound(name) => write!(f, "there is no user `{}`", name.escape_debug()),
            StoreError::ReadOnly => {
                f.write_str("this user store is read-only: change its users in the system that owns them")
            }
            StoreError::Cms(shown, fault) => write!(f, "the user store {shown} {fault}"),
            StoreError::UnusableUser(name, why) => {
                write!(f, "the user `{}` cannot log in: {why}", name.escape_debug())
            }
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StoreError::CannotCreate(_, cause) => Some(cause),
            StoreError::Corrupt(_, Some(cause))
            | StoreError::Busy(_, Some(cause))
            | StoreError::Unwritable(_, cause)
            | StoreError::Full(_, cause)
            | StoreError::Unavailable(_, cause) => Some(cause.as_ref()),
            StoreError::NotAFile(_)
            | StoreError::Gone(_)
            | StoreError::Corrupt(_, None)
            | StoreError::Busy(_, None)
            | StoreError::Foreign(_)
            | StoreError::Newer(_)
            | StoreError::Duplicate(_)
            | StoreError::NotFound(_)
            | StoreError::ReadOnly
            | StoreError::Cms(..)
            | StoreError::UnusableUser(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_is_any_visible_text_of_bounded_length() {
        let long = "x".repeat(MAX_USERNAME_BYTES);
        for (raw, is) in [
            ("vera", Ok("vera")),
            ("Vera Ödegård", Ok("Vera Ödegård")),
            ("o\u{308}de", Ok("öde")),
            ("日本 語", Ok("日本 語")),
            ("vera@example.org", Ok("vera@example.org")),
            (long.as_str(), Ok(long.as_str())),
            ("", Err(UsernameError::Empty)),
            (" vera", Err(UsernameError::Blank)),
            ("vera\u{a0}", Err(UsernameError::Blank)),
            ("ve\nra", Err(UsernameError::Control)),
            ("ve\u{0}ra", Err(UsernameError::Control)),
            ("ve\u{85}ra", Err(UsernameError::Control)),
            ("ve\u{2028}ra", Err(UsernameError::Control)),
            (&format!("{long}x"), Err(UsernameError::TooLong)),
            (&"\u{390}".repeat(300), Err(UsernameError::TooLong)),
        ] {
            assert_eq!(Username::parse(raw).as_ref().map(Username::as_str), is.as_ref().copied(), "{raw:?}");
        }
    }

    #[test]
    fn a_hash_is_in_no_debug_output() {
        let user = NewUser {
            username: Username::parse("vera").unwrap(),
            password_hash: "$argon2id$secret".into(),
            password_salt: Some("secret".into()),
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled: false,
        };
        assert!(!format!("{user:?}").contains("secret"));
        let record = UserRecord {
            id: UserId::Number(1),
            username: "vera".into(),
            password_hash: "$argon2id$secret".into(),
            password_salt: Some("secret".into()),
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled: false,
            created_at: 0,
            changed_at: 0,
        };
        assert!(!format!("{record:?}").contains("secret"));
    }
}
