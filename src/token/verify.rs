//! Verification: the raw token, the issuers and the time in, [`VerifiedClaims`] out.
//!
//! The order is the point (RFC 8725 §3): `iss` picks the issuer, the issuer and `kid` pick the key,
//! the key decides the algorithm, the signature is checked, and only then does anything the token
//! says count. Expiry comes last, so that "expired" never vouches for a forgery. Not here: whether
//! the token was revoked, or what its role may do.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;

use super::compact::{self, Header, Object, Parts};
use super::keys::VerifyingKey;
use super::revoked::{Key, Keys};
use super::{Claims, InvalidToken, OwnClaims, TokenError, fits_display, fits_identity};

/// How far `iat` may lie ahead, besides the leeway: clocks differ, but not by more.
const CLOCK_SKEW_SECONDS: u64 = 60;

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write. A later date is a mistake, or an
/// attempt at an overflow.
const LAST_DATE: u64 = 253_402_300_799;

/// Each signature tried costs; a token without `kid` must not buy a long series of them.
const MOST_KEYS_TRIED: usize = 8;

/// Claims of a token that [`Verifier::verify`] accepted; nothing else makes them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedClaims(Claims);

impl Deref for VerifiedClaims {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.0
    }
}

/// Somebody whose tokens count: we ourselves, or an issuer that the configuration trusts.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// `iss`, to the letter. No two issuers of a [`Verifier`] share it: the first would count.
    pub issuer: Arc<str>,
    /// What `aud` must be or contain.
    pub audience: String,
    /// Those without a `kid` answer to every token's.
    pub keys: Vec<VerifyingKey>,
    pub kind: IssuerKind,
}

/// How an issuer's claims become ours.
#[derive(Clone, Debug)]
pub enum IssuerKind {
    /// Our own tokens: `jti`, `role` and `preferred_username` are required, and taken as they are.
    Own,
    Trusted(Trusted),
}

/// What an issuer of `tokens.trust` calls things.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// Where the role is; `None`: its tokens have no role.
    pub role_claim: Option<ClaimPath>,
    /// Its name for a role -> ours, and no others count. `None`: the names are the same.
    pub role_map: Option<HashMap<String, String>>,
    /// What becomes the username; commonly `sub`.
    pub user_claim: ClaimPath,
    /// Put before `sub`, so that its users are nobody else's.
    pub id_prefix: String,
}

/// A claim by its name, or by a dotted path into objects: `realm_access.roles`. A claim whose whole
/// name has dots (`https://example.com/role`) is found first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClaimPath {
    whole: String,
    steps: Vec<String>,
}

impl ClaimPath {
    pub fn new(path: &str) -> Self {
        Self { whole: path.to_owned(), steps: path.split('.').map(str::to_owned).collect() }
    }

    /// What is there; `null` is as good as absent.
    pub fn find<'a>(&self, claims: &'a Object) -> Option<&'a Value> {
        let (first, rest) = self.steps.split_first()?;
        let nested = || rest.iter().try_fold(claims.get(first)?, |value, step| value.get(step));
        claims.get(&self.whole).or_else(nested).filter(|value| !value.is_null())
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

/// Checks tokens. Holds no clock: the same token and time always give the same answer.
#[derive(Clone)]
pub struct Verifier {
    issuers: Vec<Issuer>,
    leeway_seconds: u64,
    max_token_bytes: usize,
    /// Lowest first.
    roles: Vec<String>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuers", &self.issuers)
            .field("leeway_seconds", &self.leeway_seconds)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// `roles_lowest_to_highest` are the configured names, by which a trusted issuer's several roles
    /// become the highest.
    pub fn new(
        issuers: Vec<Issuer>,
        leeway_seconds: u64,
        max_token_bytes: usize,
        roles_lowest_to_highest: Vec<String>,
    ) -> Self {
        Self { issuers, leeway_seconds, max_token_bytes, roles: roles_lowest_to_highest }
    }

    /// Checks a compact JWS and returns its claims.
    ///
    /// `token` is the bare credential, without `Bearer`; `now` is Unix time in seconds. Accepted
    /// while `now < exp + leeway` (RFC 7519 §4.1.4). The key that `kid` names decides the algorithm;
    /// the header's `alg` can only agree with it (RFC 8725 §3.1).
    ///
    /// One set of claims can have several spellings as a token: whoever holds an ECDSA token can
    /// turn its signature into a second valid one. Nobody gains by that, but the text of a token is
    /// not its identity. `jti` is.
    ///
    /// # Errors
    /// `Expired` only for a token that is genuine otherwise, so that "expired" never vouches for a
    /// forgery; every other fault is `Invalid`, its reason kept for the log.
    pub fn verify(&self, token: &str, now: u64) -> Result<VerifiedClaims, TokenError> {
        if token.len() > self.max_token_bytes {
            return Err(InvalidToken::TooLarge.into());
        }
        let parts = Parts::split(token)?;
        let header = Header::read(&parts.header)?;
        let claims = compact::object(&parts.payload)?;

        // Believed only as far as choosing a key goes: the signature must then be that key's.
        let named = required_text(&claims, "iss")?;
        let issuer = self.issuers.iter().find(|issuer| *issuer.issuer == *named);
        let issuer = issuer.ok_or(InvalidToken::UnknownIssuer)?;
        check_signature(&issuer.keys, &header, &parts)?;

        if !is_for(&claims, &issuer.audience)? {
            return Err(InvalidToken::WrongAudience.into());
        }
        let expires_at = required_date(&claims, "exp")?;
        let issued_at = required_date(&claims, "iat")?;
        let latest_start = now.saturating_add(self.leeway_seconds);
        if date(&claims, "nbf")?.is_some_and(|not_before| not_before > latest_start) {
            return Err(InvalidToken::NotYetValid.into());
        }
        if issued_at > latest_start.saturating_add(CLOCK_SKEW_SECONDS) {
            return Err(InvalidToken::IssuedInFuture.into());
        }
        let verified = self.read(issuer, &claims, parts.signed, issued_at, expires_at)?;
        if now >= expires_at.saturating_add(self.leeway_seconds) {
            return Err(TokenError::Expired);
        }
        Ok(VerifiedClaims(verified))
    }

    /// Whether this is the `iss` of a trusted issuer, not our own.
    pub fn trusts(&self, issuer: &str) -> bool {
        let named = |known: &&Issuer| *known.issuer == *issuer;
        self.issuers.iter().find(named).is_some_and(|known| matches!(known.kind, IssuerKind::Trusted(_)))
    }

    fn read(
        &self,
        issuer: &Issuer,
        claims: &Object,
        signed: &str,
        issued_at: u64,
        expires_at: u64,
    ) -> Result<Claims, InvalidToken> {
        let subject = required_text(claims, "sub")?;
        let (jti, sid) =
            (optional_text(claims, "jti", fits_identity)?, optional_text(claims, "sid", fits_identity)?);
        let (subject, username, role) = match &issuer.kind {
            IssuerKind::Own => {
                required_text(claims, "jti")?;
                let username = required_text(claims, "preferred_username")?;
                (
                    subject.to_owned(),
                    Some(username.to_owned()),
                    Some(required_text(claims, "role")?.to_owned()),
                )
            }
            IssuerKind::Trusted(trusted) => {
                let username = match trusted.user_claim.find(claims) {
                    None => None,
                    Some(Value::String(username)) if fits_identity(username) => Some(username.clone()),
                    Some(Value::String(_)) => return Err(InvalidToken::UnfitText("user_claim")),
                    Some(_) => return Err(InvalidToken::BadClaim("user_claim")),
                };
                (format!("{}{subject}", trusted.id_prefix), username, self.highest_role(trusted, claims)?)
            }
        };
        let own = match issuer.kind {
            IssuerKind::Own => Some(OwnClaims {
                generation: generation(claims)?,
                auth_time: date(claims, "auth_time")?.unwrap_or(issued_at),
            }),
            IssuerKind::Trusted(_) => None,
        };
        // Under its own name, or a change of `tokens.issuer` would bring back what was revoked.
        let named_by = if own.is_some() { "" } else { &*issuer.issuer };
        let keys = Keys {
            token: jti.as_deref().map_or_else(|| Key::unnamed_token(signed), |jti| Key::token(named_by, jti)),
            family: sid.as_deref().filter(|_| own.is_some()).map(Key::family),
            subject: Key::subject(named_by, &subject),
        };
        Ok(Claims {
            issuer: Arc::clone(&issuer.issuer),
            subject,
            username,
            role,
            name: optional_text(claims, "name", fits_display)?,
            email: optional_text(claims, "email", fits_identity)?,
            jti,
            sid,
            issued_at,
            expires_at,
            own,
            keys,
        })
    }

    /// The highest configured role among those that the token names, after mapping. Names that map
    /// to nothing are the issuer's business; none left is no role.
    fn highest_role(&self, trusted: &Trusted, claims: &Object) -> Result<Option<String>, InvalidToken> {
        let Some(value) = trusted.role_claim.as_ref().and_then(|path| path.find(claims)) else {
            return Ok(None);
        };
        let names = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(names) => names,
            _ => return Err(InvalidToken::BadClaim("role_claim")),
        };
        let mut highest = None;
        for name in names {
            let name = name.as_str().ok_or(InvalidToken::BadClaim("role_claim"))?;
            let ours = match &trusted.role_map {
                None => Some(name),
                Some(map) => map.get(name).map(String::as_str),
            };
            let rank = ours.and_then(|ours| self.roles.iter().position(|role| role == ours));
            highest = highest.max(rank);
        }
        Ok(highest.map(|rank| self.roles[rank].clone()))
    }
}

/// Finds the key and checks the signature with it. The reasons tell a key that is not there, which
/// may have been added since (`UnknownKey`), from one that is there and does not fit.
pub(super) fn check_signature(
    keys: &[VerifyingKey],
    header: &Header,
    parts: &Parts<'_>,
) -> Result<(), InvalidToken> {
    let named = |key: &&VerifyingKey| match (&header.kid, key.kid()) {
        (Some(kid), Some(own)) => kid == own,
        (None, _) | (_, None) => true,
    };
    let mut fitting = keys.iter().filter(named).peekable();
    if fitting.peek().is_none() {
        return Err(InvalidToken::UnknownKey);
    }
    let mut fitting = fitting.filter(|key| key.algorithm() == header.algorithm).peekable();
    if fitting.peek().is_none() {
        return Err(InvalidToken::AlgorithmMismatch);
    }
    let signed = parts.signed.as_bytes();
    if fitting.take(MOST_KEYS_TRIED).any(|key| key.verifies(signed, &parts.signature)) {
        Ok(())
    } else {
        Err(InvalidToken::BadSignature)
    }
}

/// `aud` is one string or a list of strings (RFC 7519 §4.1.3).
fn is_for(claims: &Object, audience: &str) -> Result<bool, InvalidToken> {
    match claims.get("aud") {
        None => Err(InvalidToken::MissingClaim("aud")),
        Some(Value::String(one)) => Ok(one == audience),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            Ok(list.iter().any(|one| one == audience))
        }
        Some(_) => Err(InvalidToken::BadClaim("aud")),
    }
}

fn required_text<'a>(claims: &'a Object, name: &'static str) -> Result<&'a str, InvalidToken> {
    match claims.get(name) {
        None => Err(InvalidToken::MissingClaim(name)),
        Some(Value::String(text)) if text.is_empty() => Err(InvalidToken::BadClaim(name)),
        Some(Value::String(text)) if !fits_identity(text) => Err(InvalidToken::UnfitText(name)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(InvalidToken::BadClaim(name)),
    }
}

/// Absent, `null` and empty are the same: nothing known.
fn optional_text(
    claims: &Object,
    name: &'static str,
    fits: fn(&str) -> bool,
) -> Result<Option<String>, InvalidToken> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if !fits(text) => Err(InvalidToken::UnfitText(name)),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(InvalidToken::BadClaim(name)),
    }
}

fn required_date(claims: &Object, name: &'static str) -> Result<u64, InvalidToken> {
    date(claims, name)?.ok_or(InvalidToken::MissingClaim(name))
}

/// `gen` of our own tokens: a whole number, or absent.
fn generation(claims: &Object) -> Result<Option<u64>, InvalidToken> {
    match claims.get("gen") {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(InvalidToken::BadClaim("gen")),
    }
}

/// A NumericDate (RFC 7519 §2): a JSON number of seconds, possibly with a fraction, which is cut.
/// A string, a negative number or a date past the year 9999 is none.
fn date(claims: &Object, name: &'static str) -> Result<Option<u64>, InvalidToken> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = match (value.as_u64(), value.as_f64()) {
        (Some(seconds), _) => Some(seconds),
        // In range, so the cast only cuts the fraction.
        (None, Some(seconds))
            if (0.0..=LAST_DATE as f64).contains(&seconds) && seconds.is_sign_positive() =>
        {
            Some(seconds as u64)
        }
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds <= LAST_DATE => Ok(Some(seconds)),
        _ => Err(InvalidToken::BadClaim(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::token::{
        Algorithm, Session, Signer, SigningKey, Subject, generate_pkcs8_pem, jwks, parse_jwks,
    };

    const NOW: u64 = 1_000_000;
    const SECRET: [u8; 64] = [7; 64];

    fn secret_key() -> SigningKey {
        SigningKey::from_secret("k1", &SECRET, Algorithm::HS256).unwrap()
    }

    fn fresh_key(kid: &str, algorithm: Algorithm) -> SigningKey {
        match algorithm.least_secret_bytes() {
            Some(_) => SigningKey::from_secret(kid, &SECRET, algorithm).unwrap(),
            None => {
                SigningKey::from_pkcs8_pem(kid, &generate_pkcs8_pem(algorithm).unwrap(), algorithm).unwrap()
            }
        }
    }

    fn own(keys: &[SigningKey]) -> Issuer {
        Issuer {
            issuer: "portcullis".into(),
            audience: "cms".into(),
            keys: keys.iter().map(SigningKey::verifying_key).collect(),
            kind: IssuerKind::Own,
        }
    }

    fn trusted(role_claim: &str, role_map: &[(&str, &str)]) -> Trusted {
        Trusted {
            role_claim: Some(ClaimPath::new(role_claim)),
            role_map: (!role_map.is_empty())
                .then(|| role_map.iter().map(|(theirs, ours)| ((*theirs).into(), (*ours).into())).collect()),
            user_claim: ClaimPath::new("sub"),
            id_prefix: String::new(),
        }
    }

    fn foreign(key: &SigningKey, trusted: Trusted) -> Issuer {
        Issuer {
            issuer: "https://idp.example".into(),
            audience: "cms".into(),
            keys: vec![key.verifying_key()],
            kind: IssuerKind::Trusted(trusted),
        }
    }

    fn verifier(issuers: Vec<Issuer>) -> Verifier {
        Verifier::new(issuers, 0, 8192, ["Viewer", "Editor", "SuperAdmin"].map(str::to_owned).to_vec())
    }

    /// Signs whatever it is given: a token as a faulty or hostile issuer could make it.
    fn signed(key: &SigningKey, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", compact::encode(header.as_bytes()), compact::encode(claims.as_bytes()));
        let signature = key.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", compact::encode(&signature))
    }

    fn claims() -> Value {
        json!({
            "iss": "portcullis", "sub": "7", "aud": "cms", "exp": NOW + 60, "iat": NOW,
            "jti": "id", "sid": "login", "preferred_username": "vera", "role": "Viewer",
        })
    }

    fn foreign_claims() -> Value {
        json!({ "iss": "https://idp.example", "sub": "u1", "aud": "cms", "exp": NOW + 60, "iat": NOW })
    }

    fn with(mut claims: Value, name: &str, value: Value) -> Value {
        claims[name] = value;
        claims
    }

    fn without(mut claims: Value, name: &str) -> Value {
        claims.as_object_mut().unwrap().remove(name);
        claims
    }

    fn verify(verifier: &Verifier, claims: &Value) -> Result<VerifiedClaims, TokenError> {
        let key = secret_key();
        verifier.verify(&signed(&key, r#"{"alg":"HS256","kid":"k1","typ":"JWT"}"#, &claims.to_string()), NOW)
    }

    fn invalid(reason: InvalidToken) -> Option<TokenError> {
        Some(TokenError::Invalid(reason))
    }

    #[test]
    fn a_token_of_every_algorithm_comes_back_as_it_was_issued() {
        for algorithm in Algorithm::ALL {
            let key = fresh_key("k1", algorithm);
            let verifier = verifier(vec![own(std::slice::from_ref(&key))]);
            let signer = Signer::new(key, "portcullis", "cms");
            let subject = Subject {
                id: "7",
                username: "vera",
                role: "Editor",
                name: Some("Vera Ödegård"),
                email: Some("v@example.com"),
            };
            let issued = signer.issue(&subject, &Session::begin(NOW, Duration::from_secs(60), 0)).unwrap();
            let claims = verifier.verify(&issued.token, NOW).unwrap();
            assert_eq!((&*claims.issuer, claims.subject.as_str()), ("portcullis", "7"), "{algorithm}");
            assert_eq!(claims.username.as_deref(), Some("vera"));
            assert_eq!(claims.role.as_deref(), Some("Editor"));
            assert_eq!(claims.name.as_deref(), Some("Vera Ödegård"));
            assert_eq!(claims.email.as_deref(), Some("v@example.com"));
            assert_eq!(claims.jti.as_deref(), Some(issued.jti.as_str()));
            assert!(claims.sid.is_some());
            assert_eq!((claims.issued_at, claims.expires_at), (NOW, issued.expires_at));
            assert_eq!(verifier.verify(&issued.token, NOW + 60).err(), Some(TokenError::Expired));
        }
    }

    #[test]
    fn a_claim_that_is_missing_or_of_the_wrong_kind_is_refused() {
        use InvalidToken::{BadClaim, MissingClaim, UnfitText};
        let verifier = verifier(vec![own(&[secret_key()])]);
        assert!(verify(&verifier, &claims()).is_ok());
        for name in ["iss", "sub", "aud", "exp", "iat", "jti", "role", "preferred_username"] {
            assert_eq!(
                verify(&verifier, &without(claims(), name)).err(),
                invalid(MissingClaim(name)),
                "{name}"
            );
            assert_eq!(verify(&verifier, &with(claims(), name, Value::Null)).err(), invalid(BadClaim(name)));
            assert_eq!(verify(&verifier, &with(claims(), name, json!(true))).err(), invalid(BadClaim(name)));
            assert_eq!(verify(&verifier, &with(claims(), name, json!({}))).err(), invalid(BadClaim(name)));
        }
        for name in ["iss", "sub", "jti", "role", "preferred_username"] {
            for wrong in [json!(7), json!(""), json!(["a"])] {
                assert_eq!(
                    verify(&verifier, &with(claims(), name, wrong)).err(),
                    invalid(BadClaim(name)),
                    "{name}"
                );
            }
        }
        for name in ["sid", "name", "email"] {
            assert_eq!(
                verify(&verifier, &with(claims(), name, json!(7))).err(),
                invalid(BadClaim(name)),
                "{name}"
            );
            for nothing in [json!(""), Value::Null] {
                assert!(verify(&verifier, &with(claims(), name, nothing)).is_ok(), "{name}");
            }
        }
        for name in ["sub", "preferred_username", "role", "email", "jti", "sid"] {
            for text in ["a\nb", "a\r", "\0", "a\u{7f}", "a\u{85}", " a", "a ", "a\u{a0}", "\ta"] {
                let refused = verify(&verifier, &with(claims(), name, json!(text))).err();
                assert_eq!(refused, invalid(UnfitText(name)), "{name} {text:?}");
            }
        }
        assert_eq!(
            verify(&verifier, &with(claims(), "name", json!("a\nb"))).err(),
            invalid(UnfitText("name"))
        );
        assert!(
            verify(&verifier, &with(claims(), "name", json!("Vera "))).is_ok(),
            "nobody is told apart by it"
        );
    }

    #[test]
    fn a_date_is_a_sane_number_of_seconds() {
        let verifier = verifier(vec![own(&[secret_key()])]);
        for name in ["exp", "iat", "nbf"] {
            for wrong in
                ["\"1000060\"", "-1", "-0.5", "-0.0", "1e300", "253402300800", "18446744073709551616", "[1]"]
            {
                let text = with(claims(), name, json!("PLACE")).to_string().replace("\"PLACE\"", wrong);
                let token = signed(&secret_key(), r#"{"alg":"HS256"}"#, &text);
                let refused = verifier.verify(&token, NOW).err();
                assert_eq!(refused, invalid(InvalidToken::BadClaim(name)), "{name} {wrong}");
            }
        }
        let fraction = verify(&verifier, &with(claims(), "exp", json!(NOW as f64 + 9.9))).unwrap();
        assert_eq!(fraction.expires_at, NOW + 9);
        assert!(verify(&verifier, &with(claims(), "exp", json!(LAST_DATE))).is_ok());
        assert!(verify(&verifier, &with(claims(), "exp", json!(1.000_06e6))).is_ok());
    }

    #[test]
    fn every_date_holds_to_the_second_and_leeway_moves_it() {
        let early = invalid(InvalidToken::NotYetValid);
        let ahead = invalid(InvalidToken::IssuedInFuture);
        let expired = Some(TokenError::Expired);
        for (leeway, name, value, refused) in [
            (0, "exp", NOW + 1, None),
            (0, "exp", NOW, expired),
            (0, "exp", 0, expired),
            (5, "exp", NOW - 4, None),
            (5, "exp", NOW - 5, expired),
            (0, "nbf", NOW, None),
            (0, "nbf", NOW + 1, early),
            (5, "nbf", NOW + 5, None),
            (5, "nbf", NOW + 6, early),
            (0, "iat", NOW + 60, None),
            (0, "iat", NOW + 61, ahead),
            (5, "iat", NOW + 65, None),
            (5, "iat", NOW + 66, ahead),
            (0, "iat", 0, None),
        ] {
            let verifier = Verifier::new(vec![own(&[secret_key()])], leeway, 8192, vec![]);
            let result = verify(&verifier, &with(claims(), name, json!(value)));
            assert_eq!(result.err(), refused, "leeway {leeway}, {name} {value}");
        }
        let endless = Verifier::new(vec![own(&[secret_key()])], u64::MAX, 8192, vec![]);
        assert!(verify(&endless, &claims()).is_ok(), "sums must not wrap");
    }

    #[test]
    fn expired_never_vouches_for_a_token_with_another_fault() {
        let verifier = verifier(vec![own(&[secret_key()])]);
        let old = with(claims(), "exp", json!(NOW - 1));
        assert_eq!(verify(&verifier, &old).err(), Some(TokenError::Expired));
        for (claims, reason) in [
            (with(old.clone(), "aud", json!("other")), InvalidToken::WrongAudience),
            (with(old.clone(), "iss", json!("other")), InvalidToken::UnknownIssuer),
            (with(old.clone(), "nbf", json!(NOW + 1)), InvalidToken::NotYetValid),
            (without(old.clone(), "jti"), InvalidToken::MissingClaim("jti")),
            (with(old.clone(), "sub", json!("")), InvalidToken::BadClaim("sub")),
        ] {
            assert_eq!(verify(&verifier, &claims).err(), invalid(reason), "{claims}");
        }
        let stranger = SigningKey::from_secret("k1", &[8; 64], Algorithm::HS256).unwrap();
        let forged = signed(&stranger, r#"{"alg":"HS256","kid":"k1"}"#, &old.to_string());
        assert_eq!(verifier.verify(&forged, NOW).err(), invalid(InvalidToken::BadSignature));
    }

    #[test]
    fn the_audience_is_one_name_or_a_list_that_has_ours() {
        let verifier = verifier(vec![own(&[secret_key()])]);
        for (aud, refused) in [
            (json!("cms"), None),
            (json!(["cms"]), None),
            (json!(["other", "cms"]), None),
            (json!("CMS"), invalid(InvalidToken::WrongAudience)),
            (json!("cms "), invalid(InvalidToken::WrongAudience)),
            (json!(""), invalid(InvalidToken::WrongAudience)),
            (json!([]), invalid(InvalidToken::WrongAudience)),
            (json!(["other"]), invalid(InvalidToken::WrongAudience)),
            (json!([["cms"]]), invalid(InvalidToken::BadClaim("aud"))),
            (json!(["cms", 1]), invalid(InvalidToken::BadClaim("aud"))),
            (json!(1), invalid(InvalidToken::BadClaim("aud"))),
        ] {
            assert_eq!(verify(&verifier, &with(claims(), "aud", aud.clone())).err(), refused, "{aud}");
        }
    }

    #[test]
    fn a_claim_that_stands_twice_is_refused_even_when_signed() {
        let verifier = verifier(vec![own(&[secret_key()])]);
        let text = claims().to_string();
        for doubled in [
            text.replace("\"role\":", "\"role\":\"SuperAdmin\",\"role\":"),
            text.replace("\"role\":", "\"\\u0072ole\":\"SuperAdmin\",\"role\":"),
            text.replace("\"role\":", "\"x\":{\"y\":1,\"y\":2},\"role\":"),
        ] {
            let token = signed(&secret_key(), r#"{"alg":"HS256","kid":"k1"}"#, &doubled);
            let refused = verifier.verify(&token, NOW).err();
            assert_eq!(refused, invalid(InvalidToken::DuplicateMember), "{doubled}");
        }
    }

    #[test]
    fn the_key_decides_the_algorithm_whatever_the_header_says() {
        let text = claims().to_string();
        let rsa = fresh_key("k1", Algorithm::RS256);
        let verifier = verifier(vec![own(std::slice::from_ref(&rsa))]);
        let jwk = rsa.public_jwk().unwrap();
        // The attacker's secret is text that everybody can read: the public key in its usual forms.
        for secret in [
            jwk.to_string(),
            jwk["n"].as_str().unwrap().to_owned(),
            jwks(std::slice::from_ref(&rsa)).to_string(),
        ] {
            let key = SigningKey::from_secret("k1", secret.as_bytes(), Algorithm::HS256).unwrap();
            for header in [r#"{"alg":"HS256","kid":"k1"}"#, r#"{"alg":"HS256"}"#] {
                let refused = verifier.verify(&signed(&key, header, &text), NOW).err();
                assert_eq!(refused, invalid(InvalidToken::AlgorithmMismatch));
            }
            let refused = verifier.verify(&signed(&key, r#"{"alg":"RS256","kid":"k1"}"#, &text), NOW).err();
            assert_eq!(refused, invalid(InvalidToken::BadSignature));
        }
        for (header, reason) in [
            (r#"{"alg":"PS256","kid":"k1"}"#, InvalidToken::AlgorithmMismatch),
            (r#"{"alg":"ES256","kid":"k1"}"#, InvalidToken::AlgorithmMismatch),
            (r#"{"alg":"none","kid":"k1"}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":"RS256","kid":"k2"}"#, InvalidToken::UnknownKey),
            (r#"{"alg":"RS256","kid":"k1","jwk":{"kty":"oct"}}"#, InvalidToken::ForbiddenHeader),
        ] {
            assert_eq!(verifier.verify(&signed(&rsa, header, &text), NOW).err(), invalid(reason), "{header}");
        }
    }

    #[test]
    fn the_kid_picks_the_key_and_without_one_each_that_fits_is_tried() {
        let key = |kid: &str, byte| SigningKey::from_secret(kid, &[byte; 64], Algorithm::HS256).unwrap();
        let (one, two, three) = (key("k1", 1), key("k2", 2), key("k3", 3));
        let verifier = verifier(vec![own(&[one.clone(), two.clone()])]);
        let text = claims().to_string();
        for (key, header, refused) in [
            (&one, r#"{"alg":"HS256","kid":"k1"}"#, None),
            (&two, r#"{"alg":"HS256","kid":"k2"}"#, None),
            (&two, r#"{"alg":"HS256"}"#, None),
            (&two, r#"{"alg":"HS256","kid":"k1"}"#, invalid(InvalidToken::BadSignature)),
            (&three, r#"{"alg":"HS256"}"#, invalid(InvalidToken::BadSignature)),
            (&three, r#"{"alg":"HS256","kid":"k3"}"#, invalid(InvalidToken::UnknownKey)),
            (&one, r#"{"alg":"HS256","kid":""}"#, invalid(InvalidToken::UnknownKey)),
            (&one, r#"{"alg":"HS384","kid":"k1"}"#, invalid(InvalidToken::AlgorithmMismatch)),
        ] {
            assert_eq!(verifier.verify(&signed(key, header, &text), NOW).err(), refused, "{header}");
        }
    }

    #[test]
    fn a_key_without_a_kid_answers_to_every_name() {
        let key = secret_key();
        let nameless = VerifyingKey::from_secret(None, &SECRET, Algorithm::HS256).unwrap();
        let verifier = verifier(vec![Issuer { keys: vec![nameless], ..own(&[]) }]);
        for header in [r#"{"alg":"HS256","kid":"whatever"}"#, r#"{"alg":"HS256"}"#] {
            assert!(verifier.verify(&signed(&key, header, &claims().to_string()), NOW).is_ok(), "{header}");
        }
    }

    #[test]
    fn a_token_without_a_kid_does_not_buy_a_long_series_of_signatures() {
        let key = |byte| SigningKey::from_secret(&format!("k{byte}"), &[byte; 64], Algorithm::HS256).unwrap();
        let keys: Vec<_> = (0..20).map(key).collect();
        let verifier = verifier(vec![own(&keys)]);
        let text = claims().to_string();
        for (index, accepted) in [(0, true), (MOST_KEYS_TRIED - 1, true), (MOST_KEYS_TRIED, false)] {
            let token = signed(&keys[index], r#"{"alg":"HS256"}"#, &text);
            assert_eq!(verifier.verify(&token, NOW).is_ok(), accepted, "key {index}");
        }
    }

    #[test]
    fn an_issuer_speaks_for_itself_only() {
        let (ours, theirs) = (secret_key(), fresh_key("k1", Algorithm::ES256));
        let verifier =
            verifier(vec![own(std::slice::from_ref(&ours)), foreign(&theirs, trusted("role", &[]))]);
        let es256 = r#"{"alg":"ES256","kid":"k1"}"#;
        let genuine = verifier.verify(&signed(&theirs, es256, &foreign_claims().to_string()), NOW).unwrap();
        assert_eq!(&*genuine.issuer, "https://idp.example");
        // Their key cannot sign in our name, nor ours in theirs.
        let refused = verifier.verify(&signed(&theirs, es256, &claims().to_string()), NOW).err();
        assert_eq!(refused, invalid(InvalidToken::AlgorithmMismatch));
        assert_eq!(verify(&verifier, &foreign_claims()).err(), invalid(InvalidToken::AlgorithmMismatch));
        for iss in ["https://idp.example/", "HTTPS://idp.example", "portcullis2"] {
            let refused = verify(&verifier, &with(foreign_claims(), "iss", json!(iss))).err();
            assert_eq!(refused, invalid(InvalidToken::UnknownIssuer), "{iss}");
        }
    }

    #[test]
    fn a_trusted_role_is_the_highest_that_maps_to_one_of_ours() {
        let nobody: &[(&str, &str)] = &[];
        let map: &[(&str, &str)] = &[("staff", "Viewer"), ("boss", "SuperAdmin"), ("odd", "NotConfigured")];
        let bad = || Err(InvalidToken::BadClaim("role_claim"));
        for (path, map, claim, role) in [
            ("role", nobody, json!({ "role": "Editor" }), Ok(Some("Editor"))),
            ("role", nobody, json!({ "role": "editor" }), Ok(None)),
            ("role", nobody, json!({ "role": "Unknown" }), Ok(None)),
            ("role", nobody, json!({}), Ok(None)),
            ("role", nobody, json!({ "role": null }), Ok(None)),
            ("role", nobody, json!({ "role": [] }), Ok(None)),
            ("role", nobody, json!({ "role": ["Editor", "SuperAdmin", "Viewer"] }), Ok(Some("SuperAdmin"))),
            ("role", map, json!({ "role": ["staff", "other"] }), Ok(Some("Viewer"))),
            ("role", map, json!({ "role": ["boss", "staff"] }), Ok(Some("SuperAdmin"))),
            ("role", map, json!({ "role": "odd" }), Ok(None)),
            // With a map, a name of ours that is not in it does not slip through.
            ("role", map, json!({ "role": "SuperAdmin" }), Ok(None)),
            ("role", nobody, json!({ "role": 1 }), bad()),
            ("role", nobody, json!({ "role": { "Editor": true } }), bad()),
            ("role", nobody, json!({ "role": ["Editor", 1] }), bad()),
            ("a.b.roles", nobody, json!({ "a": { "b": { "roles": ["Editor"] } } }), Ok(Some("Editor"))),
            ("a.b.roles", nobody, json!({ "a": { "b": "roles" } }), Ok(None)),
            ("a.b.roles", nobody, json!({ "a": ["b"] }), Ok(None)),
            (
                "https://x.example/role",
                nobody,
                json!({ "https://x.example/role": "Editor" }),
                Ok(Some("Editor")),
            ),
            ("a.b", nobody, json!({ "a.b": "Viewer", "a": { "b": "Editor" } }), Ok(Some("Viewer"))),
        ] {
            let verifier = verifier(vec![foreign(&secret_key(), trusted(path, map))]);
            let mut claims = foreign_claims();
            claims.as_object_mut().unwrap().extend(claim.as_object().unwrap().clone());
            let expected = role.map(|role| role.map(str::to_owned)).map_err(TokenError::Invalid);
            assert_eq!(
                verify(&verifier, &claims).map(|claims| claims.role.clone()),
                expected,
                "{path} {claim}"
            );
        }
        let none = Trusted { role_claim: None, ..trusted("role", &[]) };
        let verifier = verifier(vec![foreign(&secret_key(), none)]);
        let roleless = verify(&verifier, &with(foreign_claims(), "role", json!("SuperAdmin"))).unwrap();
        assert_eq!(roleless.role, None);
    }

    #[test]
    fn a_trusted_user_is_known_by_the_configured_claim_and_prefix() {
        for (user_claim, claims, username) in [
            ("sub", foreign_claims(), Ok(Some("u1"))),
            ("email", with(foreign_claims(), "email", json!("u@example.com")), Ok(Some("u@example.com"))),
            ("profile.login", with(foreign_claims(), "profile", json!({ "login": "u" })), Ok(Some("u"))),
            ("email", foreign_claims(), Ok(None)),
            ("nick", with(foreign_claims(), "nick", json!(5)), Err(InvalidToken::BadClaim("user_claim"))),
            (
                "nick",
                with(foreign_claims(), "nick", json!("admin ")),
                Err(InvalidToken::UnfitText("user_claim")),
            ),
            ("nick", with(foreign_claims(), "nick", json!("")), Err(InvalidToken::UnfitText("user_claim"))),
        ] {
            let kind = Trusted {
                user_claim: ClaimPath::new(user_claim),
                id_prefix: "idp:".into(),
                ..trusted("role", &[])
            };
            let verifier = verifier(vec![foreign(&secret_key(), kind)]);
            let result = verify(&verifier, &claims);
            let expected = username.map(|name| name.map(str::to_owned)).map_err(TokenError::Invalid);
            assert_eq!(result.as_ref().map(|one| one.username.clone()).map_err(|e| *e), expected, "{claims}");
            if let Ok(claims) = result {
                assert_eq!(claims.subject, "idp:u1");
                assert_eq!((&claims.jti, &claims.sid), (&None, &None), "not required of others");
            }
        }
    }

    #[test]
    fn a_token_is_measured_before_it_is_read() {
        let token = signed(&secret_key(), r#"{"alg":"HS256","kid":"k1"}"#, &claims().to_string());
        for (limit, refused) in [(token.len(), None), (token.len() - 1, invalid(InvalidToken::TooLarge))] {
            let verifier = Verifier::new(vec![own(&[secret_key()])], 0, limit, vec![]);
            assert_eq!(verifier.verify(&token, NOW).err(), refused);
        }
    }

    #[test]
    fn another_spelling_of_a_good_token_is_refused() {
        let token = signed(&secret_key(), r#"{"alg":"HS256","kid":"k1"}"#, &claims().to_string());
        let verifier = verifier(vec![own(&[secret_key()])]);
        assert!(verifier.verify(&token, NOW).is_ok());
        for other in [
            format!("{token}="),
            format!("{token}."),
            format!("{token} "),
            format!(" {token}"),
            format!("{token}\n"),
            format!("Bearer {token}"),
            token.replacen('.', "..", 1),
            token.replacen('.', "=.", 1),
            token[..token.len() - 1].to_owned(),
            format!("{token}A"),
        ] {
            assert!(matches!(verifier.verify(&other, NOW), Err(TokenError::Invalid(_))), "{other}");
        }
    }

    #[test]
    fn what_a_token_is_ended_by_follows_from_its_claims_and_never_from_its_text() {
        let verifier = verifier(vec![
            own(&[secret_key()]),
            foreign(&secret_key(), Trusted { id_prefix: "idp:".into(), ..trusted("role", &[]) }),
        ]);
        let ours = verify(&verifier, &claims()).unwrap();
        assert_eq!(
            ours.keys,
            Keys {
                token: Key::token("", "id"),
                family: Some(Key::family("login")),
                subject: Key::subject("", "7")
            }
        );
        // Another text: one more claim, another order.
        let again = verify(&verifier, &with(claims(), "email", json!("v@example.com"))).unwrap();
        assert_eq!(again.keys, ours.keys);
        let named = with(with(foreign_claims(), "jti", json!("id")), "sid", json!("login"));
        let issuer = "https://idp.example";
        let theirs =
            Keys { token: Key::token(issuer, "id"), family: None, subject: Key::subject(issuer, "idp:u1") };
        assert_eq!(verify(&verifier, &named).unwrap().keys, theirs);
        let token = signed(&secret_key(), r#"{"alg":"HS256","kid":"k1"}"#, &foreign_claims().to_string());
        let unnamed = verifier.verify(&token, NOW).unwrap().keys.token;
        assert_eq!(unnamed, Key::unnamed_token(token.rsplit_once('.').unwrap().0));
    }

    #[test]
    fn our_own_tokens_say_when_the_login_was_and_what_mark_the_user_had() {
        let verifier = verifier(vec![own(&[secret_key()]), foreign(&secret_key(), trusted("role", &[]))]);
        let is = |claims: &Value| verify(&verifier, claims).map(|claims| claims.own);
        let told = |generation, auth_time| Ok(Some(OwnClaims { generation, auth_time }));
        let both = with(with(claims(), "gen", json!(9)), "auth_time", json!(NOW - 5));
        for (claims, expected) in [
            (both, told(Some(9), NOW - 5)),
            (claims(), told(None, NOW)),
            (with(claims(), "gen", json!(-1)), Err(InvalidToken::BadClaim("gen").into())),
            (with(claims(), "gen", json!("9")), Err(InvalidToken::BadClaim("gen").into())),
            (with(claims(), "gen", Value::Null), Err(InvalidToken::BadClaim("gen").into())),
            (with(claims(), "auth_time", json!("x")), Err(InvalidToken::BadClaim("auth_time").into())),
            (with(foreign_claims(), "gen", json!("theirs")), Ok(None)),
        ] {
            assert_eq!(is(&claims), expected, "{claims}");
        }
    }

    #[test]
    fn a_jwks_that_has_not_been_fetched_yet_is_an_unknown_key() {
        let verifier = verifier(vec![own(&[])]);
        assert_eq!(verify(&verifier, &claims()).err(), invalid(InvalidToken::UnknownKey));
        let none = Verifier::new(vec![], 0, 8192, vec![]);
        assert_eq!(verify(&none, &claims()).err(), invalid(InvalidToken::UnknownIssuer));
    }

    #[test]
    fn keys_from_a_published_jwks_verify_what_was_signed_elsewhere() {
        let key = fresh_key("2026-11", Algorithm::EdDSA);
        let published = jwks(std::slice::from_ref(&key)).to_string();
        let (keys, _) = parse_jwks(&published, &Algorithm::ASYMMETRIC).unwrap();
        let verifier = verifier(vec![Issuer { keys, ..own(&[]) }]);
        let token = signed(&key, r#"{"alg":"EdDSA","kid":"2026-11"}"#, &claims().to_string());
        assert!(verifier.verify(&token, NOW).is_ok());
    }

    #[test]
    fn a_verifier_can_be_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Verifier>();
        shared::<Signer>();
        shared::<VerifiedClaims>();
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_verifies_and_never_panics(text in "(?s).{0,300}") {
            let verifier = verifier(vec![own(&[secret_key()])]);
            prop_assert!(verifier.verify(&text, NOW).is_err());
        }

        #[test]
        fn arbitrary_parts_never_verify_and_never_panic(
            header in "\\{(\"alg\":\"(HS256|none|ES256)\")?(,\"[a-z]{1,4}\":.{0,10})?\\}",
            claims in "\\{(\"[a-z]{3}\":(\"[a-z]{0,5}\"|[0-9.e-]{1,9}|\\[\\]),?){0,5}\\}",
            signature in proptest::collection::vec(any::<u8>(), 1..80),
        ) {
            let verifier = verifier(vec![own(&[secret_key()])]);
            let token = [header.as_bytes(), claims.as_bytes(), &signature].map(compact::encode).join(".");
            prop_assert!(verifier.verify(&token, NOW).is_err());
            let _ = compact::decode_without_verifying(&token);
        }

        #[test]
        fn arbitrary_claims_that_are_signed_never_panic(claims in "(?s)\\{\"iss\":\"portcullis\".{0,200}\\}") {
            let verifier = verifier(vec![own(&[secret_key()])]);
            let token = signed(&secret_key(), r#"{"alg":"HS256"}"#, &claims);
            prop_assert!(verifier.verify(&token, NOW).is_err());
        }

        #[test]
        fn a_good_token_with_any_byte_changed_never_verifies(
            place in any::<proptest::sample::Index>(),
            byte in 0_u8..128,
            algorithm in proptest::sample::select(&[Algorithm::HS256, Algorithm::EdDSA]),
        ) {
            // HMAC and Ed25519 signatures have one spelling each, so every change is a forgery.
            let key = match algorithm {
                Algorithm::HS256 => secret_key(),
                _ => fresh_key("k1", algorithm),
            };
            let verifier = verifier(vec![own(std::slice::from_ref(&key))]);
            let header = format!(r#"{{"alg":"{algorithm}","kid":"k1"}}"#);
            let good = signed(&key, &header, &claims().to_string());
            let mut bytes = good.clone().into_bytes();
            let at = place.index(bytes.len());
            bytes[at] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(verifier.verify(&changed, NOW).is_ok(), changed == good);
        }

        #[test]
        fn a_good_token_cut_or_grown_anywhere_never_verifies(
            place in any::<proptest::sample::Index>(),
            insert in "[A-Za-z0-9_.=-]{1,4}",
        ) {
            let verifier = verifier(vec![own(&[secret_key()])]);
            let good = signed(&secret_key(), r#"{"alg":"HS256","kid":"k1"}"#, &claims().to_string());
            let at = place.index(good.len());
            prop_assert!(verifier.verify(&good[..at], NOW).is_err());
            prop_assert!(verifier.verify(&good[at + 1..], NOW).is_err());
            let grown = format!("{}{insert}{}", &good[..at], &good[at..]);
            prop_assert!(verifier.verify(&grown, NOW).is_err());
        }
    }
}
