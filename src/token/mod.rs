//! Tokens: the claims that the rest of the gateway works with, and the reasons a token is refused.
//!
//! A token is a compact JWS (RFC 7515 §7.1) whose payload is a JWT claims set (RFC 7519). Every
//! module here is pure: keys, time and limits are arguments, nothing reads a clock, a file or a
//! socket, and nothing logs. The cryptography is `jsonwebtoken`'s; which key decides which
//! algorithm, and what a claim may look like, is decided here (RFC 8725).
//!
//! Not here: where keys and revocations are kept and when they are read again, and what a role may do.

pub mod assertion;
pub mod cache;
pub mod compact;
pub mod issue;
pub mod keys;
pub mod revoked;
pub mod ring;
pub mod verify;
#[cfg(test)]
mod wycheproof;

use std::fmt;
use std::sync::Arc;

pub use assertion::{Asserter, Assertion};
pub use cache::TokenCache;
pub use compact::{Unverified, decode_without_verifying};
pub use issue::{Ancestor, IssueError, Issued, Session, Signer, Subject};
pub use keys::{
    Algorithm, KeyError, SigningKey, SkipReason, SkippedKey, VerifyingKey, generate_pkcs8_pem, jwks,
    parse_jwks,
};
pub use revoked::{Revocation, Revocations};
pub use ring::{KeyState, Ring, RingKey};
pub use verify::{ClaimPath, Issuer, IssuerKind, Trusted, VerifiedClaims, Verifier};

/// What a token says, in the gateway's own terms. Times are Unix seconds.
///
/// The text fields become header values of the forwarded request: none holds a control character,
/// and those that tell people apart (`subject`, `username`, `role`, `email`) are neither empty nor
/// begin or end with a blank, which an upstream would trim off and so read as somebody else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// `iss`, shared with the issuer that it names.
    pub issuer: Arc<str>,
    /// `sub`, preceded by the trusted issuer's `id_prefix`.
    pub subject: String,
    /// `preferred_username`, or what a trusted issuer's `user_claim` names.
    pub username: Option<String>,
    /// Our own tokens: `role` as written, configured or not. A trusted issuer's: the highest
    /// configured role among those it maps to.
    pub role: Option<String>,
    pub name: Option<String>,
    pub email: Option<String>,
    /// Always there in our own tokens.
    pub jti: Option<String>,
    /// The login that a token descends from.
    pub sid: Option<String>,
    pub issued_at: u64,
    /// `exp` as written; the leeway is not in it.
    pub expires_at: u64,
    /// What only our own tokens say; `None` for a trusted issuer's.
    pub own: Option<OwnClaims>,
    /// By what the token can be ended.
    pub keys: revoked::Keys,
}

/// Claims that count in our own tokens alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OwnClaims {
    /// `gen`: the mark that its user had when it was issued. A token whose user has been given a higher
    /// one since is over. Absent where somebody else makes tokens with our key; then `iat` has to do.
    pub generation: Option<u64>,
    /// `auth_time` (OpenID Connect Core 1.0 §2): when the login was that it descends from. `iat` where it
    /// is absent.
    pub auth_time: u64,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenError {
    /// Genuine in every other respect: right signature, issuer, audience and claims.
    Expired,
    Invalid(InvalidToken),
}

impl TokenError {
    /// The reason's fixed name, for logs and metric labels: `expired`, or one of [`InvalidToken::code`].
    pub fn code(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Invalid(reason) => reason.code(),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("the token has expired"),
            Self::Invalid(reason) => reason.fmt(f),
        }
    }
}

impl std::error::Error for TokenError {}

impl From<InvalidToken> for TokenError {
    fn from(reason: InvalidToken) -> Self {
        Self::Invalid(reason)
    }
}

/// Why a token is not genuine, or does not count any more. For the log and the metrics only: a client is told "Invalid token".
/// Holds nothing that a client sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InvalidToken {
    /// Longer than `limits.token_bytes`.
    TooLarge,
    /// Not three non-empty parts separated by dots: a JWE, an unsecured JWS, or no token at all.
    NotCompact,
    /// A part is not unpadded base64url in its only canonical spelling.
    NotBase64Url,
    /// The header or the claims are not a JSON object.
    NotJson,
    /// A JSON object, at any depth, names a member twice.
    DuplicateMember,
    /// `alg` is missing, or `alg`, `kid` or `typ` is not a string.
    BadHeader,
    /// `typ` is there and says that this is something other than a JWT.
    WrongType,
    /// The header asks for what is never honoured: `crit`, a key of its own, `b64`, `zip`, `enc`.
    ForbiddenHeader,
    /// `alg` is `none` or no algorithm of ours.
    UnsupportedAlgorithm,
    /// `iss` names nobody we trust.
    UnknownIssuer,
    /// The issuer has no key that `kid` names. Worth looking at its keys again.
    UnknownKey,
    /// The key is for another algorithm than `alg` says.
    AlgorithmMismatch,
    BadSignature,
    /// A required claim is absent.
    MissingClaim(&'static str),
    /// A claim has the wrong type or an impossible value.
    BadClaim(&'static str),
    /// A claim could not be told from another, or break a line, once it is a header value.
    UnfitText(&'static str),
    /// `aud` does not name us.
    WrongAudience,
    /// `nbf` lies ahead.
    NotYetValid,
    /// `iat` lies further ahead than clocks differ.
    IssuedInFuture,
    /// Genuine, but it was revoked, rotated or logged out.
    TokenRevoked,
    /// Genuine, but the login that it descends from was ended.
    SessionRevoked,
    /// Genuine, but older than the last thing that ended all tokens of its user.
    UserRevoked,
}

impl InvalidToken {
    /// The reason's fixed name, for logs and metric labels. The list is closed.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotCompact => "not_compact",
            Self::NotBase64Url => "not_base64url",
            Self::NotJson => "not_json",
            Self::DuplicateMember => "duplicate_member",
            Self::BadHeader => "bad_header",
            Self::WrongType => "wrong_type",
            Self::ForbiddenHeader => "forbidden_header",
            Self::UnsupportedAlgorithm => "unsupported_algorithm",
            Self::UnknownIssuer => "unknown_issuer",
            Self::UnknownKey => "unknown_key",
            Self::AlgorithmMismatch => "algorithm_mismatch",
            Self::BadSignature => "bad_signature",
            Self::MissingClaim(_) => "missing_claim",
            Self::BadClaim(_) => "bad_claim",
            Self::UnfitText(_) => "unfit_text",
            Self::WrongAudience => "wrong_audience",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::TokenRevoked => "token_revoked",
            Self::SessionRevoked => "session_revoked",
            Self::UserRevoked => "user_revoked",
        }
    }
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            Self::TooLarge => "the token is longer than limits.token_bytes allows",
            Self::NotCompact => "the token is not three non-empty parts separated by dots",
            Self::NotBase64Url => "a part of the token is not canonical unpadded base64url",
            Self::NotJson => "the token's header or claims are not a JSON object",
            Self::DuplicateMember => "the token names a header or claim twice",
            Self::BadHeader => "the token's header lacks `alg`, or `alg`, `kid` or `typ` is not a string",
            Self::WrongType => "the token's `typ` is neither JWT nor at+jwt",
            Self::ForbiddenHeader => {
                "the token's header asks for `crit`, an embedded key, `b64`, `zip` or `enc`"
            }
            Self::UnsupportedAlgorithm => "the token's `alg` is not one that is accepted here",
            Self::UnknownIssuer => "the token's issuer is not trusted here",
            Self::UnknownKey => "the issuer has no key with the token's `kid`",
            Self::AlgorithmMismatch => "the token's `alg` is not the key's algorithm",
            Self::BadSignature => "the token's signature does not match",
            Self::MissingClaim(claim) => return write!(f, "the token has no `{claim}`"),
            Self::BadClaim(claim) => return write!(f, "the token's `{claim}` has a wrong type or value"),
            Self::UnfitText(claim) => {
                return write!(f, "the token's `{claim}` has control characters or blanks at an end");
            }
            Self::WrongAudience => "the token is for another audience",
            Self::NotYetValid => "the token is not valid yet",
            Self::IssuedInFuture => "the token says it was issued in the future",
            Self::TokenRevoked => "the token was revoked",
            Self::SessionRevoked => "the login that the token descends from was ended",
            Self::UserRevoked => "all tokens of the user that were issued before were ended",
        };
        f.write_str(sentence)
    }
}

impl std::error::Error for InvalidToken {}

/// Whether `text` can stand for a person or a role in a header value and still be told from every
/// other: not empty, no control characters (C0, DEL, C1), no blank at either end.
///
/// [`Signer::issue`] refuses what does not fit, so a user store checks with this before it keeps one.
pub fn fits_identity(text: &str) -> bool {
    !text.is_empty() && text.trim().len() == text.len() && !text.chars().any(char::is_control)
}

/// Whether `text` can be a header value that nobody is recognised by, such as a display name.
fn fits_display(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
