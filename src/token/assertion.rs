//! Assertions: what the gateway tells its upstream about a caller, signed and short-lived.
//!
//! A CMS that checks one with the published keys (JWKS) needs no secret shared with the gateway, and
//! what leaks from it is worth nothing after a minute. An assertion is no login token: its `typ` is one that
//! [`Verifier`](super::Verifier) refuses (RFC 8725 §3.11), and its `aud` is the upstream (§3.9).
//! Not here: for how long one is used again, which is whoever keeps it to say.

use std::time::Duration;

use serde::Serialize;

use super::issue::{IssueError, sign};
use super::keys::SigningKey;
use super::{Claims, compact};

/// The `typ` of an assertion. Verifiers have to ask for it: a login token of the same caller has another.
pub const TYPE: &str = "portcullis-assertion+jwt";

/// Signs assertions with one key for one upstream.
#[derive(Clone, Debug)]
pub struct Asserter {
    key: SigningKey,
    issuer: String,
    audience: String,
    ttl_seconds: u64,
    /// The encoded header, the same for every assertion.
    header: String,
}

/// An assertion, and how long it is good for.
#[derive(Clone)]
pub struct Assertion {
    /// The compact JWS.
    pub text: String,
    /// Unix seconds: from then on another is sent, so that none arrives with less than half its life.
    pub renew_at: u64,
}

/// The claims in the order in which people read them; what is not known of the caller is left out.
#[derive(Serialize)]
struct Written<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    preferred_username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
}

impl Asserter {
    /// `issuer` and `audience` become `iss` and `aud`; `ttl` is cut to whole seconds. `key` should be half of a
    /// pair: whoever can check a symmetric one's signature can make login tokens with it.
    pub fn new(
        key: SigningKey,
        issuer: impl Into<String>,
        audience: impl Into<String>,
        ttl: Duration,
    ) -> Self {
        let header = serde_json::json!({ "alg": key.algorithm().name(), "kid": key.kid(), "typ": TYPE });
        let header = compact::encode(header.to_string().as_bytes());
        Self { key, issuer: issuer.into(), audience: audience.into(), ttl_seconds: ttl.as_secs(), header }
    }

    /// Says at `now` (Unix seconds) who the caller is. The claims have the values of the identity headers,
    /// in UTF-8 and not percent-encoded.
    ///
    /// # Errors
    /// `Library` if signing fails.
    pub fn assert(&self, caller: &Claims, now: u64) -> Result<Assertion, IssueError> {
        let claims = Written {
            iss: &self.issuer,
            sub: &caller.subject,
            aud: &self.audience,
            exp: now.saturating_add(self.ttl_seconds),
            iat: now,
            preferred_username: caller.username.as_deref(),
            role: caller.role.as_deref(),
            name: caller.name.as_deref(),
            email: caller.email.as_deref(),
        };
        let text = sign(&self.key, &self.header, &claims)?;
        Ok(Assertion { text, renew_at: now.saturating_add(self.ttl_seconds / 2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{
        Algorithm, InvalidToken, Issuer, IssuerKind, Session, Signer, Subject, TokenError, Verifier,
        decode_without_verifying, generate_pkcs8_pem,
    };

    const NOW: u64 = 1_000_000;

    fn key() -> SigningKey {
        let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
        SigningKey::from_pkcs8_pem("k1", &pem, Algorithm::EdDSA).unwrap()
    }

    /// Of login tokens for `audience`, as the gateway that signs with `key` checks them.
    fn verifier(key: &SigningKey, audience: &str) -> Verifier {
        let own = Issuer {
            issuer: "portcullis".into(),
            audience: audience.into(),
            keys: vec![key.verifying_key()],
            kind: IssuerKind::Own,
        };
        Verifier::new(vec![own], 0, 8192, vec!["Viewer".into()])
    }

    /// The claims of a login token of `vera`.
    fn caller(key: &SigningKey) -> crate::token::VerifiedClaims {
        let vera = Subject { id: "7", username: "vera", role: "Viewer", name: Some("Vera Ö"), email: None };
        let session = Session::begin(NOW, Duration::from_secs(3600), 1);
        let token =
            Signer::new(key.clone(), "portcullis", "portcullis").issue(&vera, &session).unwrap().token;
        verifier(key, "portcullis").verify(&token, NOW).unwrap()
    }

    #[test]
    fn an_assertion_says_who_is_asking_of_whom_and_until_when() {
        let key = key();
        let asserter =
            Asserter::new(key.clone(), "portcullis", "http://cms:3000", Duration::from_millis(60_900));
        let assertion = asserter.assert(&caller(&key), NOW).unwrap();
        assert_eq!(assertion.renew_at, NOW + 30, "half its life");
        let seen = decode_without_verifying(&assertion.text).unwrap();
        assert_eq!(seen.header, serde_json::json!({ "alg": "EdDSA", "kid": "k1", "typ": TYPE }));
        let expected = serde_json::json!({
            "iss": "portcullis", "sub": "7", "aud": "http://cms:3000", "exp": NOW + 60, "iat": NOW,
            "preferred_username": "vera", "role": "Viewer", "name": "Vera Ö",
        });
        assert_eq!(seen.claims, expected);
    }

    #[test]
    fn an_assertion_is_never_a_login_token() {
        let key = key();
        // Even one for the gateway's own audience, which the configuration cannot ask for.
        for audience in ["http://cms:3000", "portcullis"] {
            let asserter = Asserter::new(key.clone(), "portcullis", audience, Duration::from_secs(60));
            let assertion = asserter.assert(&caller(&key), NOW).unwrap();
            assert_eq!(
                verifier(&key, audience).verify(&assertion.text, NOW),
                Err(TokenError::Invalid(InvalidToken::WrongType)),
                "{audience}"
            );
        }
    }
}
