//! The CMS's own login: it is given the name and the password, and its answer says who that is.
//!
//! For a CMS whose users cannot be read. The statuses that `users.login.failures` lists are somebody's wrong
//! password; whatever else is not a success with all that is needed in it is told as the CMS's fault. It counts
//! as a failure all the same, unless it says that nothing was tried: a CMS may have ways of its own to refuse a
//! password, and none of them is to be free of charge. Not here: who may try (`throttle`).

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::body::Credentials;
use super::throttle::Outcome;
use crate::config::snapshot::UserEndpoint;
use crate::fetch::{Client, Question};
use crate::store::cms::Roles;
use crate::store::{UserId, UserRecord};
use crate::token::{ClaimPath, fits_identity};
use crate::wire::answer::{Refusal, WrongCredentials};

/// The longest answer, in bytes.
const MOST_BYTES: usize = 1024 * 1024;

/// The longest id, name or e-mail address in it, in bytes.
const MOST_TEXT: usize = 255;

/// As many are asked at a time; more are turned away.
const AT_ONCE: usize = 64;

/// As many of its cookies are handed on.
const MOST_COOKIES: usize = 16;

/// The login of a CMS.
pub struct Endpoint {
    settings: UserEndpoint,
    roles: Roles,
    client: Client,
    slots: Semaphore,
}

/// Whom the CMS has let in.
pub struct Accepted {
    /// Who that is; without a password hash.
    pub user: UserRecord,
    /// The values of its `Set-Cookie`, if they are to be handed on.
    pub cookies: Vec<HeaderValue>,
}

/// Nobody was let in.
pub struct Turned {
    /// What the client is told.
    pub refusal: Refusal,
    /// What it counts as.
    pub outcome: Outcome,
}

impl Endpoint {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(settings: UserEndpoint) -> Endpoint {
        let source = &settings.roles;
        let roles = Roles::new(&source.ranked, source.map.as_deref(), source.default.as_deref());
        Endpoint { settings, roles, client: Client::default(), slots: Semaphore::new(AT_ONCE) }
    }

    /// Asks the CMS whether these credentials are somebody's; `client` is who brings them.
    ///
    /// # Errors
    /// `WrongCredentials`; `UserStore` where the CMS does not say so or so, with the reason in the log;
    /// `LoginBusy` when too many are being asked. No answer, a 429 and a 5xx are `Void`, all others `Failed`.
    pub async fn check(&self, credentials: &Credentials, client: IpAddr) -> Result<Accepted, Turned> {
        let told = |why: &str, outcome| {
            tracing::error!(url = self.settings.shown(), why, "the login of the CMS failed");
            Turned { refusal: Refusal::UserStore, outcome }
        };
        let failed = |why: &str| told(why, Outcome::Void);
        let unclear = |why: &str| told(why, Outcome::Failed);
        let wrong = |why| Turned { refusal: Refusal::WrongCredentials(why), outcome: Outcome::Failed };
        let busy = Turned { refusal: Refusal::LoginBusy, outcome: Outcome::Void };
        let _slot = self.slots.try_acquire().map_err(|_| busy)?;
        let question = self.question(credentials, client).ok_or_else(|| failed("it cannot be asked"))?;
        let asking = timeout(self.settings.timeout, self.client.ask(&self.settings.url, question));
        let answer = match asking.await {
            Ok(answer) => answer.map_err(|why| failed(&why))?,
            Err(_) => return Err(failed("it did not answer in time")),
        };
        let status = answer.status.as_u16();
        if self.settings.failures.contains(&status) {
            return Err(wrong(WrongCredentials::WrongPassword));
        }
        if !answer.status.is_success() {
            let said_nothing = answer.status.is_server_error() || status == 429;
            let outcome = if said_nothing { Outcome::Void } else { Outcome::Failed };
            return Err(told(&format!("it answered {status}"), outcome));
        }
        let body = answer.body.map_err(|why| unclear(&why))?;
        let body = serde_json::from_slice::<Map<String, Value>>(&body);
        let body = body.map_err(|_| unclear("its answer is not a JSON object"))?;
        let user = self.user(&body).map_err(|why| match why {
            Unfit::Answer(why) => unclear(&why),
            Unfit::Role(name, theirs) => {
                tracing::warn!(user = name, roles = ?theirs, "none of the roles of a user of the CMS is one here");
                wrong(WrongCredentials::NoRole)
            }
        })?;
        let cookies = answer.headers.get_all(SET_COOKIE).iter().filter(|_| self.settings.cookies);
        Ok(Accepted { user, cookies: cookies.take(MOST_COOKIES).cloned().collect() })
    }

    fn question(&self, credentials: &Credentials, client: IpAddr) -> Option<Question> {
        let UserEndpoint { json, username_field, password_field, .. } = &self.settings;
        let password = std::str::from_utf8(credentials.password.as_bytes()).ok()?;
        let fields = [(username_field, credentials.username.as_str()), (password_field, password)];
        let (kind, body) = if *json {
            let object: Map<String, Value> =
                fields.iter().map(|(name, value)| ((*name).clone(), json!(value))).collect();
            ("application/json", Value::Object(object).to_string())
        } else {
            let pairs = fields.map(|(name, value)| format!("{}={}", form_encoded(name), form_encoded(value)));
            ("application/x-www-form-urlencoded", pairs.join("&"))
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let client = HeaderValue::try_from(client.to_string()).ok()?;
        headers.insert(HeaderName::from_static("x-forwarded-for"), client);
        Some(Question { method: Method::POST, headers, body: Bytes::from(body), most: MOST_BYTES })
    }

    fn user(&self, body: &Map<String, Value>) -> Result<UserRecord, Unfit> {
        let settings = &self.settings;
        let required = |path: &ClaimPath| {
            let text = text_at(body, path)?.filter(|text| fits_identity(text));
            text.ok_or_else(|| Unfit::Answer(format!("its answer has no usable '{path}'")))
        };
        let optional = |path: &Option<ClaimPath>| match path {
            Some(path) => {
                let text = text_at(body, path)?;
                Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
            }
            None => Ok(None),
        };
        let number = settings.id.find(body).and_then(Value::as_i64);
        let id = match number {
            Some(number) => UserId::Number(number),
            None => UserId::Text(required(&settings.id)?),
        };
        let username = required(&settings.username)?;
        let theirs = match settings.role.as_ref().and_then(|path| path.find(body)) {
            None => Vec::new(),
            Some(Value::Array(roles)) => roles.iter().filter_map(word).collect(),
            Some(role) => word(role).into_iter().collect::<Vec<_>>(),
        };
        let role = self.roles.highest(&theirs).map(str::to_owned);
        let role = role.ok_or_else(|| Unfit::Role(username.clone(), theirs))?;
        Ok(UserRecord {
            id,
            username,
            password_hash: String::new(),
            password_salt: None,
            role,
            name: optional(&settings.name)?,
            email: optional(&settings.email)?,
            disabled: false,
            created_at: 0,
            changed_at: 0,
        })
    }
}

/// Why an answer is nobody's.
enum Unfit {
    Answer(String),
    /// Of this user, who has these roles over there.
    Role(String, Vec<String>),
}

/// A text that may go into a token, a header and a log line.
fn text_at(body: &Map<String, Value>, path: &ClaimPath) -> Result<Option<String>, Unfit> {
    let Some(value) = path.find(body) else { return Ok(None) };
    let text = word(value).filter(|text| text.len() <= MOST_TEXT && !text.chars().any(char::is_control));
    text.map(Some).ok_or_else(|| Unfit::Answer(format!("'{path}' of its answer is no short text")))
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(switch) => Some(switch.to_string()),
        _ => None,
    }
}

/// As a form has it (WHATWG URL §5.2), but for blanks, which every reader takes as `%20` as well.
fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
