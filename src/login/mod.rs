//! Credentials in, token out.
//!
//! [`body`] reads what was sent, [`throttle`] says who may try (and [`guard`] is how the gateway runs it),
//! [`password`] checks it against a [`hash`] in a [`pool`] of its own, [`cors`] says who else's pages may
//! ask; [`session`] ends what a login began; [`page`] is what browsers show, and [`next`] where they go from
//! there. Wrong password, unknown user and disabled user are one answer, byte for byte, and cost the same
//! time; the log alone tells them apart. Not here: who may do what with the token (`policy`).

pub mod body;
pub mod cors;
pub mod guard;
pub mod hash;
pub mod next;
pub mod page;
pub mod password;
pub mod pool;
pub mod session;
pub mod throttle;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::config::{recipe::HashPolicy, snapshot::LoginSettings};
use crate::store::{StoreError, UserRecord, Users};
use crate::token::{Session, Signer, Subject};
use crate::wire::answer::{LockedBy, Refusal, WrongCredentials, json};
use crate::wire::cookies;
use body::{BodyError, FieldNames};
use guard::Guard;
use password::{HashError, Hasher, NewPassword, Password, Verdict};
use session::LiveSessions;
use throttle::{Limits, Outcome};

/// As many users are looked at to learn what checking their passwords takes.
const SAMPLE: u32 = 10_000;

/// What a login needs beside the configuration.
pub struct Login {
    users: Arc<dyn Users>,
    sessions: Arc<LiveSessions>,
    guard: Guard,
    hasher: Hasher,
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
        users: Arc<dyn Users>,
        sessions: Arc<LiveSessions>,
        guard: Guard,
        cores: usize,
        policy: HashPolicy,
    ) -> Self {
        Self { users, sessions, guard, hasher: Hasher::new(pool::threads_for(cores), policy) }
    }

    /// Who may try, and when again.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Looks at what the users' hashes cost, so that unknown names take as long from the first login on.
    /// A store that fails here is no reason not to start: logins will say so.
    pub async fn prepare(&self) {
        match self.users.sample(SAMPLE).await {
            Ok(users) => self.hasher.learn(&users),
            Err(error) => tracing::warn!(%error, "the user store could not be looked at"),
        }
    }

    /// The user store, for whoever has to know that it answers.
    pub fn users(&self) -> &dyn Users {
        &*self.users
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
        let Attempt { content_type, body, client, now } = attempt;
        let parsed = body::parse(content_type.as_deref(), &body, &names);
        // It may be a while until it is this one's turn.
        drop(body);
        let credentials = match parsed {
            Ok(credentials) => credentials,
            Err(error) => return Attempted { user: None, answer: Err(refusal_of(error)), locks: Vec::new() },
        };
        let user = Some(credentials.username.clone());
        let limits = Limits { pair: settings.max_failures, network: settings.max_failures_per_address };
        let pass = match self.guard.admit(limits, &credentials.username, client).await {
            Ok(pass) => pass,
            Err(refusal) => return Attempted { user, answer: Err(refusal), locks: Vec::new() },
        };
        let checked = self.check(credentials).await;
        let locks = pass.settle(match &checked {
            Ok(_) => Outcome::Right,
            Err(Refusal::WrongCredentials(_)) => Outcome::Failed,
            // Nobody has learnt whether the password is right.
            Err(_) => Outcome::Void,
        });
        let answer = checked.and_then(|(found, generation)| {
            let signer = signer.ok_or(Refusal::Internal("there is no signing key"))?;
            let session = Session::begin(now, ttl, generation);
            answer_with_token(settings, signer, &found, &session, now)
        });
        Attempted { user, answer, locks }
    }

    /// The user, and the mark that the token is to carry.
    async fn check(&self, credentials: body::Credentials) -> Result<(UserRecord, u64), Refusal> {
        let user = match credentials.name_to_look_up() {
            Some(name) => self.users.find(name).await.map_err(|error| store_failed(&error))?,
            None => None,
        };
        // For a store of the gateway's own, a second copy to hash anew; zeroed when dropped.
        let again = (user.as_ref())
            .filter(|user| self.users.is_own() && self.hasher.wants_upgrade(&credentials.password, user))
            .map(|_| Password::new(credentials.password.as_bytes().to_vec()));
        match self.hasher.verify(credentials.password, &credentials.username, user.as_ref()).await {
            Ok(Verdict::Matches) => {
                let checked = user.ok_or(Refusal::Internal("a password matched nobody's"))?;
                self.as_of_now(&checked, again).await
            }
            Ok(Verdict::Differs) => Err(Refusal::WrongCredentials(match &user {
                None => WrongCredentials::UnknownUser,
                Some(user) if user.disabled => WrongCredentials::DisabledUser,
                Some(_) => WrongCredentials::WrongPassword,
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
        let found = self.sessions.find_user(&*self.users, &checked.username).await;
        let found = found.map_err(|error| store_failed(&error))?;
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
        match self.users.upgrade_hash(&user.username, &user.password_hash, &hash).await {
            Ok(()) => tracing::info!(user = user.username, "a password hash was upgraded to Argon2id"),
            Err(error) => {
                tracing::warn!(%error, user = user.username, "a password hash could not be upgraded");
            }
        }
    }
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
        "user.id" => Value::from(user.id),
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
