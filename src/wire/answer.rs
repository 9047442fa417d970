//! Every response of the gateway's own.
//!
//! A [`Refusal`] becomes a status, a message and a code here and nowhere else, by matches without `_`:
//! the client learns the row of the contract's table, the log the reason.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::credentials::Ambiguous;
use super::hygiene::HeadError;
use crate::config::template::Template;
use crate::policy::path::PathError;
use crate::token::InvalidToken;

/// Why the gateway answers a request itself, with an error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The bytes, or the framing, could be taken for another request.
    Head(HeadError),
    /// The path could be taken for another.
    Path(PathError),
    /// More than one `Authorization`, or the cookie more than once.
    AmbiguousCredentials(Ambiguous),
    /// What a load balancer says of the request that it asks about cannot be relied on.
    Description(Misdescribed),
    /// A load balancer asks about a path that it should send to the gateway itself.
    OwnPath,
    /// A request for the upstream where there is none: load balancers forward, and ask.
    NoUpstream,
    /// What only a page of this site may ask for, from somewhere else.
    CrossSite,
    /// The body announced or sent is larger than `limits.body_bytes`.
    BodyTooLarge,
    /// No credentials where some are needed.
    NoCredentials,
    /// A token that is not genuine; why is for the log.
    InvalidToken(InvalidToken),
    /// A token that is genuine but expired.
    ExpiredToken,
    /// The role is too low or unknown, or nothing is enough.
    AccessDenied,
    /// Wrong user name or password, unknown or disabled user: told apart in the log alone.
    WrongCredentials(WrongCredentials),
    /// Too many logins have failed, or somebody is locked out: by what, is for the log.
    TooManyLogins {
        /// In how many seconds it is worth trying again, at least 1.
        retry_after: u64,
        /// What is locked.
        by: LockedBy,
    },
    /// A login body that is neither JSON nor a form.
    LoginMediaType,
    /// A login body that is malformed or lacks a field.
    LoginBody(String),
    /// A browser at a page without HTTPS, which would not keep the cookie that a login is for.
    LoginWithoutHttps,
    /// A login body over its cap.
    LoginBodyTooLarge,
    /// The user store failed during a login.
    UserStore,
    /// The session store failed: nothing was ended and nothing rotated.
    SessionStore,
    /// What was revoked has not been read yet, so no token can be judged.
    SessionsLoading,
    /// The token is genuine but cannot be rotated: another issuer's, or it belongs to no login.
    NotRotatable,
    /// The method is not one of those that the gateway's own endpoint takes.
    MethodNotAllowed(&'static str),
    /// No connection to the upstream.
    UpstreamUnreachable,
    /// The connection to the upstream broke before a response.
    UpstreamReset,
    /// The upstream's response did not begin in time.
    UpstreamTimeout,
    /// The upstream switched to a protocol that nobody asked for.
    UpstreamUpgrade,
    /// All connections to the upstream are in use.
    UpstreamBusy,
    /// Too many connections from clients.
    TooManyConnections,
    /// Too many passwords wait to be checked.
    LoginBusy,
    /// The gateway failed; closed, not open.
    Internal(&'static str),
}

/// What is wrong with a load balancer's description of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Misdescribed {
    /// A header that `forward_auth.headers` names is not there.
    Missing,
    /// One of them is there more than once, or in another spelling beside it.
    Twice,
    /// Another header speaks of the path, the method or the caller, and an upstream could believe it.
    Contradicted,
}

/// Why a name and a password are nobody's. One answer to the client, byte for byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrongCredentials {
    /// Nobody has that name.
    UnknownUser,
    /// The password is another.
    WrongPassword,
    /// The user may not log in.
    DisabledUser,
    /// The stored hash is of no use.
    UnusableHash,
    /// A user of the CMS, none of whose roles is one here.
    NoRole,
    /// A user of the CMS whose rows are of no use.
    UnusableUser,
}

/// What keeps a login from being tried. One answer to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockedBy {
    /// Failures of this account from this address.
    Pair,
    /// Failures from this address.
    Address,
    /// Failures of this account.
    Account,
    /// `ban add` of this account.
    AccountBan,
    /// `ban add` of this address, or of a network that it is in.
    AddressBan,
}

impl LockedBy {
    /// Those that failures bring.
    pub const FAILURES: [Self; 3] = [Self::Pair, Self::Address, Self::Account];

    /// The reason's fixed name, for logs and metric labels. The list is closed.
    pub fn code(self) -> &'static str {
        match self {
            Self::Pair => "locked_pair",
            Self::Address => "locked_address",
            Self::Account => "locked_account",
            Self::AccountBan => "banned_account",
            Self::AddressBan => "banned_address",
        }
    }
}

impl WrongCredentials {
    /// The reason's fixed name, for logs and metric labels. The list is closed.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownUser => "unknown_user",
            Self::WrongPassword => "wrong_password",
            Self::DisabledUser => "disabled_user",
            Self::UnusableHash => "unusable_hash",
            Self::NoRole => "no_role",
            Self::UnusableUser => "unusable_user",
        }
    }
}

impl Refusal {
    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Head(HeadError::TargetTooLong) => StatusCode::URI_TOO_LONG,
            Self::Head(HeadError::HeadTooLarge | HeadError::TooManyHeaders) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Head(HeadError::HeadTooSlow | HeadError::BodyTooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Head(_)
            | Self::Path(_)
            | Self::AmbiguousCredentials(_)
            | Self::Description(_)
            | Self::LoginBody(_)
            | Self::LoginWithoutHttps
            | Self::NotRotatable => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge | Self::LoginBodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoCredentials | Self::InvalidToken(_) | Self::ExpiredToken | Self::WrongCredentials(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::TooManyLogins { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::AccessDenied | Self::CrossSite | Self::OwnPath => StatusCode::FORBIDDEN,
            Self::NoUpstream => StatusCode::NOT_FOUND,
            Self::LoginMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::UserStore | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::UpstreamUnreachable | Self::UpstreamReset | Self::UpstreamUpgrade => {
                StatusCode::BAD_GATEWAY
            }
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::UpstreamBusy
            | Self::TooManyConnections
            | Self::LoginBusy
            | Self::SessionStore
            | Self::SessionsLoading => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// `$message`: what the client reads.
    pub fn message(&self) -> String {
        match self {
            Self::Head(why) => format!("Bad request: {why}"),
            Self::Path(why) => format!("Bad request: {why}"),
            Self::AmbiguousCredentials(Ambiguous::Authorization) => {
                "Bad request: there is more than one Authorization header".to_owned()
            }
            Self::AmbiguousCredentials(Ambiguous::Cookie) => {
                "Bad request: the cookie with the token is there more than once".to_owned()
            }
            Self::Description(Misdescribed::Missing) => {
                "Bad request: the load balancer did not describe the request".to_owned()
            }
            Self::Description(Misdescribed::Twice) => {
                "Bad request: the request is described more than once".to_owned()
            }
            Self::Description(Misdescribed::Contradicted) => {
                "Bad request: a header could mislead the upstream".to_owned()
            }
            Self::OwnPath => "This path is the gateway's own".to_owned(),
            Self::NoUpstream => "Not found".to_owned(),
            Self::CrossSite => "Refused: this did not come from a page of this site".to_owned(),
            Self::BodyTooLarge => "Request body too large".to_owned(),
            Self::NoCredentials => "Missing Authorization header".to_owned(),
            Self::InvalidToken(_) => "Invalid token".to_owned(),
            Self::ExpiredToken => "Token expired".to_owned(),
            Self::AccessDenied => "Access denied".to_owned(),
            Self::WrongCredentials(_) => "Invalid username or password".to_owned(),
            Self::TooManyLogins { .. } => "Too many login attempts".to_owned(),
            Self::LoginMediaType => "The login body must be JSON or a form".to_owned(),
            Self::LoginBody(what) => what.clone(),
            Self::LoginWithoutHttps => "The cookie of a login is kept over HTTPS only".to_owned(),
            Self::LoginBodyTooLarge => "Login body too large".to_owned(),
            Self::UserStore => "Failed to fetch user".to_owned(),
            Self::SessionStore => "Session store unavailable".to_owned(),
            Self::SessionsLoading => "Starting, try again in a moment".to_owned(),
            Self::NotRotatable => "Only tokens that were issued here at a login can be rotated".to_owned(),
            Self::MethodNotAllowed(_) => "Method not allowed".to_owned(),
            Self::UpstreamUnreachable
            | Self::UpstreamReset
            | Self::UpstreamTimeout
            | Self::UpstreamUpgrade => "Upstream unavailable".to_owned(),
            Self::UpstreamBusy | Self::TooManyConnections | Self::LoginBusy => {
                "Too busy, try again in a moment".to_owned()
            }
            Self::Internal(_) => "Internal error".to_owned(),
        }
    }

    /// `$code`: a closed list, documented in `docs/reference.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Head(why) => why.code(),
            Self::Path(why) => why.code(),
            Self::AmbiguousCredentials(_) => "ambiguous_credentials",
            Self::Description(Misdescribed::Missing) => "description_missing",
            Self::Description(Misdescribed::Twice) => "description_twice",
            Self::Description(Misdescribed::Contradicted) => "description_contradicted",
            Self::OwnPath => "own_path",
            Self::NoUpstream => "no_upstream",
            Self::CrossSite => "cross_site",
            Self::BodyTooLarge => "body_too_large",
            Self::NoCredentials => "no_credentials",
            Self::InvalidToken(_) => "invalid_token",
            Self::ExpiredToken => "expired_token",
            Self::AccessDenied => "access_denied",
            Self::WrongCredentials(_) => "wrong_credentials",
            Self::TooManyLogins { .. } => "too_many_logins",
            Self::LoginMediaType => "login_media_type",
            Self::LoginBody(_) => "login_body",
            Self::LoginWithoutHttps => "login_without_https",
            Self::LoginBodyTooLarge => "login_body_too_large",
            Self::UserStore => "user_store",
            Self::SessionStore => "session_store",
            Self::SessionsLoading => "sessions_loading",
            Self::NotRotatable => "not_rotatable",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamUpgrade => "upstream_upgrade",
            Self::UpstreamBusy => "upstream_busy",
            Self::TooManyConnections => "too_many_connections",
            Self::LoginBusy => "login_busy",
            Self::Internal(_) => "internal",
        }
    }

    /// What the log says beyond the code.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::InvalidToken(why) => Some(why.code()),
            Self::WrongCredentials(why) => Some(why.code()),
            Self::TooManyLogins { by, .. } => Some(by.code()),
            Self::Internal(why) => Some(why),
            Self::LoginBody(what) => Some(what),
            _ => None,
        }
    }

    /// Headers that say more than the status (RFC 6750 §3, RFC 9110 §10.2.1, §10.2.3, RFC 6585 §4).
    fn headers(&self, headers: &mut HeaderMap) {
        let challenge = match self {
            Self::NoCredentials => Some("Bearer"),
            Self::InvalidToken(_) => Some("Bearer error=\"invalid_token\""),
            Self::ExpiredToken => Some("Bearer error=\"invalid_token\", error_description=\"Token expired\""),
            _ => None,
        };
        if let Some(challenge) = challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Self::MethodNotAllowed(allowed) = self {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        if let Self::TooManyLogins { retry_after, .. } = self {
            headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after));
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
    }

    /// The response: `template` with its values filled in.
    pub fn response(&self, template: &Template, request_id: &str) -> Response<Bytes> {
        let status = self.status();
        let body = template.render(&|name| match name {
            "message" => Value::from(self.message()),
            "reason" => Value::from(status.canonical_reason().unwrap_or_default()),
            "status" => Value::from(status.as_u16()),
            "code" => Value::from(self.code()),
            "request_id" => Value::from(request_id),
            _ => Value::Null,
        });
        let mut response = json(status, &body);
        self.headers(response.headers_mut());
        response
    }

    /// The same as bytes, for a connection that hyper never got to see a request of. It is the last
    /// answer on that connection and says so. `to_head`: without the body, which an answer to HEAD never has
    /// (RFC 9110 §9.3.2).
    pub fn bytes(&self, template: &Template, request_id: &str, to_head: bool) -> Vec<u8> {
        let mut response = self.response(template, request_id);
        let length = response.body().len();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let status = response.status();
        let mut head =
            format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
        for (name, value) in response.headers() {
            write!(head, "{name}: {}\r\n", value.to_str().unwrap_or_default())
                .expect("writing to a string cannot fail");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !to_head {
            bytes.extend_from_slice(response.body());
        }
        bytes
    }
}

/// 204, which nobody may store.
pub fn no_content() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A JSON response that nobody may store.
pub fn json(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
