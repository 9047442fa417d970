//! Tokens, arbitrary ones and arbitrary ones that are signed: what is accepted says what it must, once,
//! in its one spelling.
//!
//! Input: a byte, then the token as it is sent (even), or header, newline and claims, which are signed
//! with the real key first (odd).

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::token::{Algorithm, Issuer, IssuerKind, TokenError, Verifier, VerifyingKey};
use serde_json::Value;

/// Unix seconds.
const NOW: u64 = 1_700_000_000;

const SECRET: [u8; 64] = [7; 64];

fn verifier() -> Verifier {
    let key = |kid: &str, algorithm| {
        VerifyingKey::from_secret(Some(kid), &SECRET, algorithm).expect("long enough for every algorithm")
    };
    let own = Issuer {
        issuer: "portcullis".into(),
        audience: "portcullis".to_owned(),
        keys: vec![key("k1", Algorithm::HS256), key("k2", Algorithm::HS512)],
        kind: IssuerKind::Own,
    };
    Verifier::new(vec![own], 0, 8192, crate::ROLES.map(str::to_owned).to_vec())
}

/// See the module.
pub fn check(data: &[u8]) {
    let [kind, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let signed = kind & 1 == 1;
    let token = if signed {
        let (header, claims) = text.split_once('\n').unwrap_or((text, ""));
        let covered = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let algorithm = if kind & 2 == 0 { hmac::HMAC_SHA256 } else { hmac::HMAC_SHA512 };
        let tag = hmac::sign(&hmac::Key::new(algorithm, &SECRET), covered.as_bytes());
        format!("{covered}.{}", URL_SAFE_NO_PAD.encode(tag))
    } else {
        text.to_owned()
    };
    let verifier = verifier();
    let outcome = verifier.verify(&token, NOW);
    if !signed {
        // Nobody finds a signature of 256 bits by trying.
        assert!(outcome.is_err(), "forged: {token}");
        return;
    }
    let believed = match &outcome {
        Ok(_) => true,
        // "Expired" vouches for everything else, so all of that must hold.
        Err(TokenError::Expired) => true,
        Err(TokenError::Invalid(_)) => false,
    };
    if !believed {
        return;
    }
    assert!(token.len() <= 8192);
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("not three parts: {token}") };
    for part in [header, claims, signature] {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
        assert_eq!(URL_SAFE_NO_PAD.encode(bytes), part, "one spelling");
    }
    let object = |part: &str| -> serde_json::Map<String, Value> {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
        let text = String::from_utf8(bytes).expect("JSON is UTF-8");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let Value::Object(members) = value else { panic!("no object: {text}") };
        members
    };
    let (header, claims) = (object(header), object(claims));
    let algorithm = if kind & 2 == 0 { ("HS256", "k1") } else { ("HS512", "k2") };
    assert_eq!(header["alg"], algorithm.0, "the key decides");
    assert!(header.get("kid").is_none_or(|kid| kid == algorithm.1));
    for name in ["crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc"] {
        assert!(!header.contains_key(name), "{name}");
    }
    assert_eq!(claims["iss"], "portcullis");
    let audience = &claims["aud"];
    assert!(
        audience == "portcullis"
            || audience.as_array().is_some_and(|all| all.iter().any(|one| one == "portcullis"))
    );
    for name in ["sub", "jti", "role", "preferred_username"] {
        let text = claims[name].as_str().expect("text");
        assert!(
            !text.is_empty() && !text.chars().any(char::is_control) && text.trim() == text,
            "{name}: {text:?}"
        );
    }
    let seconds = |name: &str| claims[name].as_f64().expect("a number");
    assert!(seconds("iat") <= (NOW + 61) as f64, "issued in the future");
    assert!(claims.get("nbf").is_none() || seconds("nbf") < (NOW + 1) as f64);
    assert_eq!(outcome.is_ok(), seconds("exp").floor() > NOW as f64, "{claims:?}");
    if let Ok(verified) = &outcome {
        assert_eq!(verified.subject, claims["sub"].as_str().expect("text"));
        assert_eq!(verified.role.as_deref(), claims["role"].as_str());
        assert_eq!(verified.username.as_deref(), claims["preferred_username"].as_str());
        // Later it has expired and nothing else, and earlier than it was issued it is nothing at all.
        assert!(matches!(verifier.verify(&token, u64::MAX / 2), Err(TokenError::Expired)));
        // One bit of anything else, and it is nobody's.
        let flipped: String = token
            .chars()
            .enumerate()
            .map(|(at, c)| if at == token.len() / 2 && c != '.' { other(c) } else { c })
            .collect();
        assert!(flipped == token || verifier.verify(&flipped, NOW).is_err());
    }
}

fn other(c: char) -> char {
    if c == 'A' { 'B' } else { 'A' }
}
