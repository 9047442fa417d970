//! Project Wycheproof's vectors, run through our own keys and header reading. Tests only.
//!
//! They are read from the folder that `PORTCULLIS_VECTORS` names, else from
//! `../shared/vectors/wycheproof`; where there are none the tests say `SKIPPED` and pass.
//!
//! Left out, with the reason: HMAC tags shorter than the hash (JWS has no truncated tags,
//! RFC 7518 §3.2, so there every vector must be refused, the valid ones too) and HMAC keys shorter
//! than the hash, which are refused as keys. Everything else must get the verdict of its file,
//! "acceptable" counting as invalid.

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
        eprintln!("SKIPPED: no test vectors {name} in {}; set PORTCULLIS_VECTORS", folder.display());
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
            let (from_jwk, skipped) = parse_jwks(&json!({ "keys": [jwk] }).to_string(), &[algorithm]).unwrap();
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

#[test]
fn jws_and_jwk_vectors_get_their_verdict() {
    for name in ["json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json"] {
        let Some(file) = vectors(name) else { continue };
        let mut wrong = Vec::new();
        for (group, test) in cases(&file) {
            let Some(token) = test.get("jws") else { continue };
            // The JSON serialization stands as text or as an object.
            let token = token.as_str().map_or_else(|| token.to_string(), str::to_owned);
            let verdict = judge(&token, &keys_of(group));
            if verdict.is_ok() != is_valid(test) {
                wrong.push(format!("{} {verdict:?} {} {}", group["comment"], test["comment"], test["flags"]));
            }
        }
        assert!(wrong.is_empty(), "{name}: {} wrong\n{}", wrong.len(), wrong.join("\n"));
    }
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
