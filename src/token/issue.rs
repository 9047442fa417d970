//! Tokens of our own: a subject and the time in, a signed compact JWS out.
//!
//! Writes the claims that `verify` requires of our own tokens, and refuses a subject whose token it
//! would refuse. Not here: who the subject is and whether they may have a token.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use serde::Serialize;

use super::keys::SigningKey;
use super::{compact, fits_display, fits_identity};

/// Whom a token is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `sub`: the local id as text, or whatever the user store knows the user by.
    pub id: &'a str,
    /// `preferred_username`
    pub username: &'a str,
    pub role: &'a str,
    pub name: Option<&'a str>,
    pub email: Option<&'a str>,
}

/// When a token counts, and what it descends from.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// `iat`, in Unix seconds.
    pub issued_at: u64,
    /// `exp`, in Unix seconds.
    pub expires_at: u64,
    /// `gen`: the mark that the user had before the record was read that the token is made from.
    pub generation: u64,
    /// The login that the token descends from; `None`: this is one.
    pub login: Option<Ancestor<'a>>,
}

impl Session<'_> {
    /// That of a login at `now` (Unix seconds), which lasts `ttl`; a fraction of a second is dropped.
    pub fn begin(now: u64, ttl: Duration, generation: u64) -> Self {
        Self { issued_at: now, expires_at: now.saturating_add(ttl.as_secs()), generation, login: None }
    }
}

/// The login that a token descends from.
#[derive(Clone, Copy, Debug)]
pub struct Ancestor<'a> {
    /// `sid`
    pub sid: &'a str,
    /// `auth_time`, in Unix seconds.
    pub auth_time: u64,
    /// `jti` of the new token: chosen before it is made, so that it can be made twice.
    pub jti: &'a str,
}

/// A token as it was just signed.
#[derive(Clone)]
pub struct Issued {
    /// The compact JWS: a credential.
    pub token: String,
    pub jti: String,
    /// `exp`, in Unix seconds.
    pub expires_at: u64,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("jti", &self.jti)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why no token was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IssueError {
    /// The claim is empty, or has control characters or blanks at an end (see
    /// [`fits_identity`]): as a header value it would not say who this is.
    Unfit(&'static str),
    /// The cryptographic library gave no random number or no signature.
    Library,
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(claim) => {
                write!(f, "the user's `{claim}` is empty or has control characters or blanks at an end")
            }
            Self::Library => f.write_str("the cryptographic library could not sign the token"),
        }
    }
}

impl std::error::Error for IssueError {}

/// Signs tokens with one key for one issuer and audience.
#[derive(Clone, Debug)]
pub struct Signer {
    key: SigningKey,
    issuer: String,
    audience: String,
    /// The encoded header, the same for every token.
    header: String,
}

/// The claims in the order in which people read them.
#[derive(Serialize)]
struct Written<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    exp: u64,
    iat: u64,
    auth_time: u64,
    jti: &'a str,
    sid: &'a str,
    r#gen: u64,
    preferred_username: &'a str,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
}

impl Signer {
    /// `issuer` and `audience` become `iss` and `aud`.
    pub fn new(key: SigningKey, issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        let header = serde_json::json!({ "alg": key.algorithm().name(), "kid": key.kid(), "typ": "JWT" });
        let header = compact::encode(header.to_string().as_bytes());
        Self { key, issuer: issuer.into(), audience: audience.into(), header }
    }

    /// A token for `subject`, with a fresh `jti` and `sid` where it is a login's own.
    ///
    /// # Errors
    /// `Unfit` for a subject that could not be a header value, `Library` if signing fails.
    pub fn issue(&self, subject: &Subject<'_>, session: &Session<'_>) -> Result<Issued, IssueError> {
        let identity =
            [("sub", subject.id), ("preferred_username", subject.username), ("role", subject.role)];
        for (claim, text) in identity.into_iter().chain(subject.email.map(|email| ("email", email))) {
            if !fits_identity(text) {
                return Err(IssueError::Unfit(claim));
            }
        }
        if !subject.name.is_none_or(fits_display) {
            return Err(IssueError::Unfit("name"));
        }
        let (jti, sid, auth_time) = match session.login {
            None => (random_id()?, random_id()?, session.issued_at),
            Some(login) => (login.jti.to_owned(), login.sid.to_owned(), login.auth_time),
        };
        let expires_at = session.expires_at;
        let claims = Written {
            iss: &self.issuer,
            sub: subject.id,
            aud: &self.audience,
            exp: expires_at,
            iat: session.issued_at,
            auth_time,
            jti: &jti,
            sid: &sid,
            r#gen: session.generation,
            preferred_username: subject.username,
            role: subject.role,
            name: subject.name,
            email: subject.email,
        };
        let token = sign(&self.key, &self.header, &claims)?;
        Ok(Issued { token, jti, expires_at })
    }
}

/// The compact JWS of `claims` behind a `header` that is encoded already (RFC 7515 §7.1).
pub(super) fn sign(key: &SigningKey, header: &str, claims: &impl Serialize) -> Result<String, IssueError> {
    let claims = serde_json::to_vec(claims).map_err(|_| IssueError::Library)?;
    let mut token = format!("{header}.{}", compact::encode(&claims));
    let signature = key.sign(token.as_bytes()).map_err(|_| IssueError::Library)?;
    token.push('.');
    token.push_str(&compact::encode(&signature));
    Ok(token)
}

/// 128 random bits in base64url, for a `jti` or `sid`: never met twice (RFC 7519 §4.1.7).
///
/// # Errors
/// `Library` if there is no randomness.
pub fn random_id() -> Result<String, IssueError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| IssueError::Library)?;
    Ok(compact::encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Algorithm, decode_without_verifying};

    const VERA: Subject<'_> =
        Subject { id: "7", username: "vera", role: "Viewer", name: Some("Vera Ödegård"), email: None };

    fn signer() -> Signer {
        let key = SigningKey::from_secret("k1", &[7; 32], Algorithm::HS256).unwrap();
        Signer::new(key, "portcullis", "cms")
    }

    fn login(now: u64) -> Session<'static> {
        Session::begin(now, Duration::from_millis(3_600_900), 5)
    }

    #[test]
    fn a_token_says_who_it_is_for_and_nothing_that_is_not_known() {
        let issued = signer().issue(&VERA, &login(1000)).unwrap();
        assert_eq!(issued.expires_at, 4600, "whole seconds");
        let seen = decode_without_verifying(&issued.token).unwrap();
        assert_eq!(seen.header, serde_json::json!({ "alg": "HS256", "kid": "k1", "typ": "JWT" }));
        let claims = seen.claims.as_object().unwrap();
        let names: Vec<_> = claims.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "iss",
                "sub",
                "aud",
                "exp",
                "iat",
                "auth_time",
                "jti",
                "sid",
                "gen",
                "preferred_username",
                "role",
                "name"
            ]
        );
        assert_eq!(
            (&claims["sub"], &claims["exp"], &claims["iat"]),
            (&"7".into(), &4600.into(), &1000.into())
        );
        assert_eq!(claims["jti"], issued.jti);
        assert_eq!(issued.jti.len(), 22, "128 bits in base64url");
        assert_ne!(claims["sid"], claims["jti"]);
    }

    #[test]
    fn a_successor_belongs_to_the_login_that_it_descends_from_and_can_be_made_twice() {
        let ancestor = Ancestor { sid: "login", auth_time: 900, jti: "next" };
        let session = Session { login: Some(ancestor), ..login(1000) };
        let issued = signer().issue(&VERA, &session).unwrap();
        let claims = decode_without_verifying(&issued.token).unwrap().claims;
        assert_eq!((&claims["sid"], &claims["jti"]), (&"login".into(), &"next".into()));
        assert_eq!(claims["auth_time"], 900);
        assert_eq!(signer().issue(&VERA, &session).unwrap().token, issued.token);
    }

    #[test]
    fn no_two_tokens_share_an_id() {
        let (one, two) =
            (signer().issue(&VERA, &login(1)).unwrap(), signer().issue(&VERA, &login(1)).unwrap());
        assert_ne!(one.jti, two.jti);
        assert_ne!(one.token, two.token);
    }

    #[test]
    fn a_lifetime_past_the_end_of_time_does_not_wrap() {
        let issued = signer().issue(&VERA, &login(u64::MAX - 1)).unwrap();
        assert_eq!(issued.expires_at, u64::MAX);
    }

    #[test]
    fn a_subject_that_could_not_be_a_header_value_gets_no_token() {
        for (subject, claim) in [
            (Subject { id: "", ..VERA }, "sub"),
            (Subject { username: " vera", ..VERA }, "preferred_username"),
            (Subject { username: "vera\r\nX-Auth-Role: Admin", ..VERA }, "preferred_username"),
            (Subject { role: "", ..VERA }, "role"),
            (Subject { email: Some("v@example.com "), ..VERA }, "email"),
            (Subject { name: Some("Ve\u{85}ra"), ..VERA }, "name"),
        ] {
            assert_eq!(signer().issue(&subject, &login(1)).unwrap_err(), IssueError::Unfit(claim));
        }
    }

    #[test]
    fn debug_output_shows_no_token() {
        let issued = signer().issue(&VERA, &login(1)).unwrap();
        assert!(!format!("{issued:?}").contains(&issued.token));
    }
}
