//! Project Wycheproof's vectors, run through our own keys and header reading. Tests only.
//!
//! They are read from the folder that `PORTCULLIS_VECTORS` names, else from
//! `../shared/vectors/wycheproof`; where there are none the tests say `SKIPPED` and pass.
//!
//! Everything must get the verdict of its file, "acceptable" counting as invalid, but for these:
//!
//! - HMAC keys shorter than the hash are refused as keys, and HMAC tags cut short are refused even
//!   where the file calls them valid: JWS has none (RFC 7518 §3.2).
//! - JWS with RS384, RS512, PS384, PS512 and ES512, which are not algorithms here, and with an empty
//!   payload, which is no claims set, are refused.
//! - The group `jws_duplicate_kid` has two secrets of one name. There is no way to configure that
//!   here; that a JWKS cannot bring it either is shown beside `parse_jwks`.
//! - Four of the group `base64` cannot hold for anybody (see [`MISLABELLED`]).

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::compact::{Header, Parts};
use super::keys::{Algorithm, KeyError, VerifyingKey, parse_jwks};
use super::verify::check_signature;
use super::{InvalidToken, decode_without_verifying};

fn vectors(name: &str) -> Option<Value> {
    let folder = std::env::var_os("PORTCULLIS_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors/wycheproof"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(folder.join(name)) else {
        // Not `eprintln!`, which the test runner swallows when a test passes.
        let line =
            format!("SKIPPED: no test vectors {name} in {}; set PORTCULLIS_VECTORS\n", folder.display());
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    };
    Some(serde_json::from_str(&text).expect("a vector file is JSON"))
}

/// Every test of a file with its group.
fn cases(file: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let groups = file["testGroups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["tests"].as_array().unwrap().iter().map(move |test| (group, test)))
}

fn is_valid(test: &Value) -> bool {
    test["result"] == "valid"
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// The raw signature verdict against the file's; the key from its PEM and, where there is one, its JWK.
fn signatures(name: &str, algorithm: Algorithm) {
    let Some(file) = vectors(name) else { return };
    let mut count = 0;
    for (group, test) in cases(&file) {
        let pem = group["publicKeyPem"].as_str().unwrap();
        let mut keys = VerifyingKey::from_public_key_pem(None, pem, &[algorithm]).unwrap();
        let jwk = group.get("publicKeyJwk").or_else(|| group.get("keyJwk"));
        if let Some(jwk) = jwk {
            let (from_jwk, skipped) =
                parse_jwks(&json!({ "keys": [jwk] }).to_string(), &[algorithm]).unwrap();
            assert_eq!(skipped, [], "{jwk}");
            keys.extend(from_jwk);
        }
        for key in &keys {
            let verdict = key.verifies(&bytes(&test["msg"]), &bytes(&test["sig"]));
            assert_eq!(verdict, is_valid(test), "{name} {test}");
            count += 1;
        }
    }
    assert!(count > 100, "{name}: only {count} cases");
}

#[test]
fn ed25519_signatures_get_the_verdict_of_their_vectors() {
    signatures("ed25519_test.json", Algorithm::EdDSA);
}

#[test]
fn ecdsa_signatures_get_the_verdict_of_their_vectors() {
    signatures("ecdsa_secp256r1_sha256_p1363_test.json", Algorithm::ES256);
}

#[test]
fn rsa_pkcs1_signatures_get_the_verdict_of_their_vectors() {
    signatures("rsa_signature_2048_sha256_test.json", Algorithm::RS256);
}

#[test]
fn rsa_pss_signatures_get_the_verdict_of_their_vectors() {
    signatures("rsa_pss_2048_sha256_mgf1_32_test.json", Algorithm::PS256);
}

#[test]
fn ecdsa_signatures_in_der_are_never_a_jws_signature() {
    let Some(file) = vectors("ecdsa_secp256r1_sha256_test.json") else { return };
    for (group, test) in cases(&file) {
        let pem = group["publicKeyPem"].as_str().unwrap();
        let keys = VerifyingKey::from_public_key_pem(None, pem, &[Algorithm::ES256]).unwrap();
        assert!(!keys[0].verifies(&bytes(&test["msg"]), &bytes(&test["sig"])), "{test}");
    }
}

#[test]
fn hmac_tags_get_the_verdict_of_their_vectors() {
    let Some(file) = vectors("hmac_sha256_test.json") else { return };
    for (group, test) in cases(&file) {
        let key = VerifyingKey::from_secret(None, &bytes(&test["key"]), Algorithm::HS256);
        if group["keySize"].as_u64().unwrap() < 256 {
            assert!(matches!(key, Err(KeyError::WeakSecret { .. })), "{test}");
            continue;
        }
        let whole = group["tagSize"] == 256;
        let verdict = key.unwrap().verifies(&bytes(&test["msg"]), &bytes(&test["tag"]));
        assert_eq!(verdict, whole && is_valid(test), "{test}");
    }
}

/// The keys of a group as an operator would configure them: secrets one by one, public keys as a
/// JWKS. A set that mixes both is taken as a JWKS, which drops the secrets.
fn keys_of(group: &Value) -> Vec<VerifyingKey> {
    let published = group.get("public").unwrap_or(&group["private"]);
    let entries = published["keys"].as_array().cloned().unwrap_or_else(|| vec![published.clone()]);
    if entries.iter().all(|entry| entry["kty"] == "oct") {
        entries.iter().filter_map(secret_of).collect()
    } else {
        parse_jwks(&json!({ "keys": entries }).to_string(), &Algorithm::ASYMMETRIC).unwrap().0
    }
}

/// A secret of the group, if it is one that is accepted here.
fn secret_of(jwk: &Value) -> Option<VerifyingKey> {
    let algorithm = Algorithm::from_name(jwk["alg"].as_str()?)?;
    let secret = super::compact::decode(jwk["k"].as_str()?).ok()?;
    VerifyingKey::from_secret(jwk["kid"].as_str(), &secret, algorithm).ok()
}

/// Header and signature as `Verifier::verify` judges them; the vectors' payloads are no claims.
fn judge(token: &str, keys: &[VerifyingKey]) -> Result<(), InvalidToken> {
    let parts = Parts::split(token)?;
    check_signature(keys, &Header::read(&parts.header)?, &parts)
}

/// Two that are called invalid are, byte for byte, the group's `ValidMac`; two that are called valid
/// hold a `?`, which is no base64url.
const MISLABELLED: [(&str, bool); 4] = [
    ("invalidBase64Padding", true),
    ("invalidBase64PaddingInPayload", true),
    ("InvalidCharacterInsertedInHeader", false),
    ("InvalidCharacterInsertedInPayload", false),
];

/// Whether a token is accepted here that the file gives this verdict.
fn expected(group: &Value, test: &Value, token: &str) -> bool {
    let mislabelled = MISLABELLED.iter().find(|(comment, _)| test["comment"] == *comment);
    if let (Some((_, accepted)), true) = (mislabelled, group["comment"] == "base64") {
        return *accepted;
    }
    let ours = Parts::split(token)
        .is_ok_and(|parts| !matches!(Header::read(&parts.header), Err(InvalidToken::UnsupportedAlgorithm)));
    is_valid(test) && ours
}

#[test]
fn jws_and_jwk_vectors_get_their_verdict() {
    let mut wrong = Vec::new();
    for (name, least_accepted) in [
        ("json_web_signature_test.json", 22),
        ("json_web_key_test.json", 4),
        ("json_web_crypto_test.json", 4),
    ] {
        let Some(file) = vectors(name) else { continue };
        let mut accepted = 0;
        for (group, test) in cases(&file) {
            let Some(token) = test.get("jws").filter(|_| group["comment"] != "jws_duplicate_kid") else {
                continue;
            };
            // The JSON serialization stands as text or as an object.
            let token = token.as_str().map_or_else(|| token.to_string(), str::to_owned);
            let verdict = judge(&token, &keys_of(group));
            accepted += usize::from(verdict.is_ok());
            if verdict.is_ok() != expected(group, test, &token) {
                wrong.push(format!(
                    "{name} {} {} {verdict:?} {}",
                    group["comment"], test["comment"], test["flags"]
                ));
            }
        }
        assert!(accepted >= least_accepted, "{name}: only {accepted} accepted");
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_encrypted_token_is_no_token() {
    for name in ["json_web_encryption_test.json", "json_web_crypto_test.json"] {
        let Some(file) = vectors(name) else { continue };
        for (_, test) in cases(&file) {
            let Some(token) = test.get("jwe") else { continue };
            let token = token.as_str().map_or_else(|| token.to_string(), str::to_owned);
            assert!(judge(&token, &[]).is_err(), "{test}");
            assert!(decode_without_verifying(&token).is_err(), "{test}");
        }
    }
}
