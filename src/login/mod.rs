//! Credentials in, token out.
//!
//! [`body`] reads what was sent, [`throttle`] says who may try (and [`guard`] is how the gateway runs it),
//! [`password`] checks it against a [`hash`] in a [`pool`] of its own, or the CMS's own [`endpoint`] does, [`cors`] says who else's pages may
//! ask; [`session`] ends what a login began; [`page`] is what browsers show, and [`next`] where they go from
//! there. Wrong password, unknown user and disabled user are one answer, byte for byte, and cost the same
//! time; the log alone tells them apart. Not here: who may do what with the token (`policy`).

pub mod body;
pub mod cors;
pub mod endpoint;
pub mod guard;
pub mod hash;
pub mod next;
pub mod page;
pub mod password;
pub mod pool;
pub mod session;
pub mod throttle;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use crate::config::{recipe::HashPolicy, snapshot::LoginSettings};
use crate::store::sessions::local_subject;
use crate::store::{StoreError, UnusableUser, UserRecord, Users, folded};
use crate::token::{Session, Signer, Subject};
use crate::wire::answer::{LockedBy, Refusal, WrongCredentials, json};
use crate::wire::cookies;
use body::{BodyError, FieldNames};
use endpoint::{Accepted, Endpoint, Turned};
use guard::Guard;
use password::{HashError, Hasher, NewPassword, Password, Verdict};
use session::LiveSessions;
use throttle::{Limits, Outcome};

/// As many users are looked at to learn what checking their passwords takes.
const SAMPLE: u32 = 10_000;

/// What a login needs beside the configuration.
pub struct Login {
    authority: Authority,
    sessions: Arc<LiveSessions>,
    guard: Guard,
    hasher: Hasher,
}

/// Who knows whose a name and a password are.
pub enum Authority {
    /// A store of users, whose password hashes are checked here.
    Store(Arc<dyn Users>),
    /// The CMS, which checks them itself.
    Endpoint(Box<Endpoint>),
}

/// One request to the login path.
pub struct Attempt {
    /// The `Content-Type`.
    pub content_type: Option<Vec<u8>>,
    /// At most [`body::MAX_BODY_BYTES`].
    pub body: Bytes,
    /// Who asks, behind trusted proxies too.
    pub client: IpAddr,
    /// Unix seconds.
    pub now: u64,
    /// When a session that begins now is over at the latest, in Unix seconds.
    pub sessions_end: u64,
}

/// What became of an attempt.
pub struct Attempted {
    /// Whom it was for, as it was sent, as far as that is known.
    pub user: Option<String>,
    /// The answer.
    pub answer: Result<Response<Bytes>, Refusal>,
    /// What its failure has locked.
    pub locks: Vec<LockedBy>,
}

impl Login {
    /// `cores` are what the machine has, on which passwords are checked; `policy` says which weak hashes
    /// are believed.
    pub fn new(
        authority: Authority,
        sessions: Arc<LiveSessions>,
        guard: Guard,
        cores: usize,
        policy: HashPolicy,
    ) -> Self {
        Self { authority, sessions, guard, hasher: Hasher::new(pool::threads_for(cores), policy) }
    }

    /// Who may try, and when again.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Looks at what the users' hashes cost, so that unknown names take as long from the first login on.
    /// A store that fails here is no reason not to start: logins will say so.
    pub async fn prepare(&self) {
        let Authority::Store(users) = &self.authority else { return };
        match users.sample(SAMPLE).await {
            Ok(users) => self.hasher.learn(&users),
            Err(error) => tracing::warn!(%error, "the user store could not be looked at"),
        }
    }

    /// As [`prepare`](Login::prepare), for a store that names nobody by itself: looks at `most` of those who are
    /// signed in at `now` (Unix seconds). Until one of its users has signed in, nothing is known.
    pub async fn prepare_from_sessions(&self, most: u32, now: u64) {
        let (Some(users), Some(sessions)) = (self.users(), self.sessions.store()) else { return };
        if self.hasher.knows_users() {
            return;
        }
        let Ok(signed_in) = sessions.seen_after(None, now, most).await else { return };
        for seen in signed_in {
            match users.find(&seen.username).await {
                Ok(found) => self.hasher.learn(found.as_slice()),
                Err(StoreError::UnusableUser(..)) => {}
                // Whoever watches the store tells of it.
                Err(_) => return,
            }
        }
    }

    /// The user store, for whoever has to know that it answers; `None` where the CMS alone knows its users.
    pub fn users(&self) -> Option<&dyn Users> {
        match &self.authority {
            Authority::Store(users) => Some(&**users),
            Authority::Endpoint(_) => None,
        }
    }

    /// Answers one attempt.
    ///
    /// # Errors
    /// As its answer: `LoginMediaType`, `LoginBody`, `LoginBodyTooLarge`, `TooManyLogins`,
    /// `WrongCredentials`, `UserStore`, `LoginBusy`; `Internal` if no token can be made.
    pub async fn log_in(
        &self,
        settings: &LoginSettings,
        signer: Option<&Signer>,
        ttl: Duration,
        attempt: Attempt,
    ) -> Attempted {
        let names = FieldNames {
            username: settings.username_field.clone(),
            password: settings.password_field.clone(),
        };
        let Attempt { content_type, body, client, now, sessions_end } = attempt;
        let parsed = body::parse(content_type.as_deref(), &body, &names);
        // It may be a while until it is this one's turn.
        drop(body);
        let credentials = match parsed {
            Ok(credentials) => credentials,
            Err(error) => return Attempted { user: None, answer: Err(refusal_of(error)), locks: Vec::new() },
        };
        let user = Some(credentials.username.clone());
        let limits = Limits { pair: settings.max_failures, network: settings.max_failures_per_address };
        let refused = |user, refusal| Attempted { user, answer: Err(refusal), locks: Vec::new() };
        let account = self.account(&credentials.username);
        let mut pass = match self.guard.admit(limits, &account, client).await {
            Ok(pass) => pass,
            Err(refusal) => return refused(user, refusal),
        };
        let found = self.look_up(&credentials).await;
        // A CMS may know a user by several names, or by one in several spellings: their failures are counted once.
        if let Ok(Found::User(found)) = &found
            && let known_as = self.account(&found.username)
            && known_as != account
        {
            pass.settle(Outcome::Void);
            pass = match self.guard.admit(limits, &known_as, client).await {
                Ok(pass) => pass,
                Err(refusal) => return refused(user, refusal),
            };
        }
        let mut counts_as = None;
        let checked = match found {
            Ok(Found::Elsewhere(endpoint)) => match endpoint.check(&credentials, client).await {
                Ok(accepted) => {
                    // Only now is it known whose name that was: a ban or a lock holds under each of them.
                    let known_as = self.account(&accepted.user.username);
                    if known_as != account {
                        // First, or it could wait for its own place in the network.
                        pass.settle(Outcome::Right);
                        pass = match self.guard.admit(limits, &known_as, client).await {
                            Ok(pass) => pass,
                            Err(refusal) => return refused(user, refusal),
                        };
                    }
                    self.welcome(accepted, now, sessions_end).await
                }
                Err(Turned { refusal, outcome }) => {
                    counts_as = Some(outcome);
                    Err(refusal)
                }
            },
            Ok(found) => self.check(credentials, found, now, sessions_end).await,
            Err(refusal) => Err(refusal),
        };
        let locks = pass.settle(match &checked {
            Ok(_) => Outcome::Right,
            Err(Refusal::WrongCredentials(_)) => Outcome::Failed,
            // Nobody has learnt whether the password is right, unless it is said.
            Err(_) => counts_as.unwrap_or(Outcome::Void),
        });
        let answer = checked.and_then(|Checked { user, generation, cookies }| {
            let signer = signer.ok_or(Refusal::Internal("there is no signing key"))?;
            let session = Session::begin(now, ttl, generation);
            let mut answer = answer_with_token(settings, signer, &user, &session, now)?;
            // The gateway's own is not the CMS's to set.
            let own = settings.cookie.as_ref().map(|cookie| cookie.name.as_str());
            for cookie in cookies.into_iter().filter(|cookie| cookies::name_of(cookie) != own) {
                answer.headers_mut().append(SET_COOKIE, cookie);
            }
            Ok(answer)
        });
        Attempted { user, answer, locks }
    }

    /// The account that failures of a name are counted for. The gateway's own store compares names as the
    /// throttle does; how another system does is not known, so that names which may be one there are one.
    fn account<'n>(&self, name: &'n str) -> Cow<'n, str> {
        if self.users().is_some_and(Users::is_own) { Cow::Borrowed(name) } else { Cow::Owned(folded(name)) }
    }

    async fn look_up(&self, credentials: &body::Credentials) -> Result<Found<'_>, Refusal> {
        let Some(name) = credentials.name_to_look_up() else { return Ok(Found::Nobody) };
        let users = match &self.authority {
            Authority::Store(users) => users,
            Authority::Endpoint(endpoint) => return Ok(Found::Elsewhere(endpoint)),
        };
        match users.find(name).await {
            Ok(found) => Ok(found.map_or(Found::Nobody, Found::User)),
            Err(error @ StoreError::UnusableUser(..)) => {
                tracing::warn!(%error, "a user of the CMS cannot be let in");
                Ok(Found::Unusable(match error {
                    StoreError::UnusableUser(_, UnusableUser::NoRole { .. }) => WrongCredentials::NoRole,
                    _ => WrongCredentials::UnusableUser,
                }))
            }
            Err(error) => Err(store_failed(&error)),
        }
    }

    /// Begins the session of somebody whom the CMS has let in.
    async fn welcome(&self, accepted: Accepted, now: u64, sessions_end: u64) -> Result<Checked, Refusal> {
        let Accepted { user, cookies } = accepted;
        // Another role than at the last login ends what that one began.
        self.sessions.notice(&user, now, sessions_end).await?;
        let generation = self.sessions.generation(local_subject(&user.id)).await;
        Ok(Checked { user, generation, cookies })
    }

    /// The user, and the mark that the token is to carry.
    async fn check(
        &self,
        credentials: body::Credentials,
        found: Found<'_>,
        now: u64,
        sessions_end: u64,
    ) -> Result<Checked, Refusal> {
        let (user, otherwise) = match found {
            Found::User(user) => (Some(user), WrongCredentials::WrongPassword),
            Found::Nobody | Found::Elsewhere(_) => (None, WrongCredentials::UnknownUser),
            Found::Unusable(why) => (None, why),
        };
        // For a store of the gateway's own, a second copy to hash anew; zeroed when dropped.
        let is_own = self.users().is_some_and(Users::is_own);
        let again = (user.as_ref())
            .filter(|user| is_own && self.hasher.wants_upgrade(&credentials.password, user))
            .map(|_| Password::new(credentials.password.as_bytes().to_vec()));
        match self.hasher.verify(credentials.password, &credentials.username, user.as_ref()).await {
            Ok(Verdict::Matches) => {
                let checked = user.ok_or(Refusal::Internal("a password matched nobody's"))?;
                if !is_own {
                    self.sessions.notice(&checked, now, sessions_end).await?;
                }
                let (user, generation) = self.as_of_now(&checked, again).await?;
                Ok(Checked { user, generation, cookies: Vec::new() })
            }
            Ok(Verdict::Differs) => Err(Refusal::WrongCredentials(match &user {
                Some(user) if user.disabled => WrongCredentials::DisabledUser,
                _ => otherwise,
            })),
            Ok(Verdict::Unusable(why)) => {
                tracing::error!(user = ?user.map(|user| user.username), %why, "a stored password hash cannot be used");
                Err(Refusal::WrongCredentials(WrongCredentials::UnusableHash))
            }
            Err(HashError::Busy) => Err(Refusal::LoginBusy),
            Err(error) => {
                tracing::error!(%error, "a password could not be checked");
                Err(Refusal::Internal("a password could not be checked"))
            }
        }
    }

    /// The record whose password was right, as it is after the mark was read: checking it took a while.
    /// `again` is the password, where its hash is to be replaced by a better one.
    async fn as_of_now(
        &self,
        checked: &UserRecord,
        again: Option<Password>,
    ) -> Result<(UserRecord, u64), Refusal> {
        let Some(users) = self.users() else { return Err(Refusal::UserStore) };
        let found = match self.sessions.find_user(users, &checked.username).await {
            // They have just become one.
            Err(StoreError::UnusableUser(..)) => None,
            found => found.map_err(|error| store_failed(&error))?,
        };
        let Some((user, generation)) = found.filter(|(user, _)| user.id == checked.id) else {
            return Err(Refusal::WrongCredentials(WrongCredentials::UnknownUser));
        };
        if user.disabled {
            return Err(Refusal::WrongCredentials(WrongCredentials::DisabledUser));
        }
        if user.password_hash == checked.password_hash {
            if let Some(password) = again {
                self.upgrade(&user, password).await;
            }
            return Ok((user, generation));
        }
        // Another password; or another login of this user has replaced the hash of the same one.
        let same = match again {
            Some(password) => self.hasher.verify(password, &user.username, Some(&user)).await,
            None => Ok(Verdict::Differs),
        };
        match same {
            Ok(Verdict::Matches) => Ok((user, generation)),
            Err(HashError::Busy) => Err(Refusal::LoginBusy),
            _ => Err(Refusal::WrongCredentials(WrongCredentials::WrongPassword)),
        }
    }
}

impl Login {
    /// Puts an Argon2id hash in the place of a weaker one. The login has succeeded: whatever goes wrong
    /// here is tried again at the next one.
    async fn upgrade(&self, user: &UserRecord, password: Password) {
        let Ok(password) = NewPassword::parse(password) else { return };
        let Ok(hash) = self.hasher.hash(password).await else { return };
        let Some(users) = self.users() else { return };
        match users.upgrade_hash(&user.username, &user.password_hash, &hash).await {
            Ok(()) => tracing::info!(user = user.username, "a password hash was upgraded to Argon2id"),
            Err(error) => {
                tracing::warn!(%error, user = user.username, "a password hash could not be upgraded");
            }
        }
    }
}

/// Whom a name is for.
enum Found<'l> {
    User(UserRecord),
    Nobody,
    /// The CMS knows.
    Elsewhere(&'l Endpoint),
    /// Somebody whom no password lets in.
    Unusable(WrongCredentials),
}

/// Whose password was right.
struct Checked {
    user: UserRecord,
    /// The mark that the token is to carry.
    generation: u64,
    /// Of the CMS, to be handed on.
    cookies: Vec<HeaderValue>,
}

fn store_failed(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the user store failed during a login");
    Refusal::UserStore
}

/// What a login and a rotation answer: every token that is given away here goes through this.
fn answer_with_token(
    settings: &LoginSettings,
    signer: &Signer,
    user: &UserRecord,
    session: &Session<'_>,
    now: u64,
) -> Result<Response<Bytes>, Refusal> {
    let issued = signer.issue(&subject_of(user, &user.id.to_string()), session).map_err(|error| {
        tracing::error!(%error, user = user.username, "a token could not be made");
        Refusal::Internal("a token could not be made")
    })?;
    let body = settings.response.render(&|name| match name {
        "token" => Value::from(issued.token.as_str()),
        "expires_in" => Value::from(issued.expires_at.saturating_sub(now)),
        "user.id" => Value::from(&user.id),
        "user.username" => Value::from(user.username.as_str()),
        "user.name" => Value::from(user.name.as_deref()),
        "user.email" => Value::from(user.email.as_deref()),
        "user.role" => Value::from(user.role.as_str()),
        _ => Value::Null,
    });
    let mut response = json(StatusCode::OK, &body);
    if let Some(cookie) = &settings.cookie {
        let max_age = issued.expires_at.saturating_sub(now);
        response.headers_mut().append(SET_COOKIE, cookies::set(cookie, &issued.token, max_age));
    }
    Ok(response)
}

/// Whom a token for this user is for; `id` is the user's, as text.
pub fn subject_of<'a>(user: &'a UserRecord, id: &'a str) -> Subject<'a> {
    Subject {
        id,
        username: &user.username,
        role: &user.role,
        name: user.name.as_deref(),
        email: user.email.as_deref(),
    }
}

fn refusal_of(error: BodyError) -> Refusal {
    match error {
        BodyError::UnsupportedMediaType => Refusal::LoginMediaType,
        BodyError::TooLarge => Refusal::LoginBodyTooLarge,
        BodyError::Malformed { .. } | BodyError::Missing { .. } => Refusal::LoginBody(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sessions::{Seen, Sessions};
    use crate::store::sqlite::sessions::SqliteSessions;
    use crate::store::{StoreFuture, UserId};

    /// Can only be looked up by name, like a table of a CMS; `broken` is nobody, for a reason.
    struct OnlyByName;

    fn user(name: &str) -> UserRecord {
        UserRecord {
            id: UserId::Text(name.into()),
            username: name.into(),
            password_hash: "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by".into(),
            password_salt: None,
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled: false,
            created_at: 0,
            changed_at: 0,
        }
    }

    impl Users for OnlyByName {
        fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>> {
            Box::pin(async move {
                match username {
                    "broken" => Err(StoreError::UnusableUser("broken".into(), UnusableUser::Several)),
                    name => Ok(Some(user(name))),
                }
            })
        }

        fn ping(&self) -> StoreFuture<'_, ()> {
            Box::pin(async { Ok(()) })
        }

        fn sample(&self, _most: u32) -> StoreFuture<'_, Vec<UserRecord>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    #[tokio::test]
    async fn what_hashes_cost_is_known_after_a_restart_from_those_who_are_signed_in() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap());
        let sessions = LiveSessions::new();
        sessions.open(store.clone());
        let authority = Authority::Store(Arc::new(OnlyByName));
        let login = Login::new(authority, sessions, Guard::new(), 1, HashPolicy::default());
        for (name, until, is_known) in [("over", 100, false), ("broken", 200, false), ("vera", 200, true)] {
            store.note(Seen::of(&user(name), until)).await.unwrap();
            login.prepare().await;
            login.prepare_from_sessions(10, 150).await;
            assert_eq!(login.hasher.knows_users(), is_known, "{name}");
        }
    }
}
