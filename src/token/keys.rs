//! Keys: a name (`kid`), one algorithm, and the material; PEM and JWKS in, JWKS out.
//!
//! A key has exactly one algorithm from the moment it is read, so a token can never talk a
//! verifier into using an RSA key's public text as an HMAC secret (RFC 8725 §2.1, §3.1). Weak keys
//! are refused where they come in. Not here: files, folders, rotation and fetching.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::jwk::EllipticCurve;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::compact::{self, Object};

/// The signature algorithms of gateway.yaml, by their JOSE names (RFC 7518 §3.1, RFC 8037 §3.1;
/// EdDSA means Ed25519).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum Algorithm {
    EdDSA,
    ES256,
    ES384,
    RS256,
    PS256,
    HS256,
    HS384,
    HS512,
}

impl Algorithm {
    pub const ALL: [Self; 8] = [
        Self::EdDSA,
        Self::ES256,
        Self::ES384,
        Self::RS256,
        Self::PS256,
        Self::HS256,
        Self::HS384,
        Self::HS512,
    ];

    /// Those with a public key: all that a JWKS or a public key file can be for.
    pub const ASYMMETRIC: [Self; 5] = [Self::EdDSA, Self::ES256, Self::ES384, Self::RS256, Self::PS256];

    /// The name as it stands in `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EdDSA => "EdDSA",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::RS256 => "RS256",
            Self::PS256 => "PS256",
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
        }
    }

    /// The algorithm with exactly this name; letter case counts (RFC 7515 §4.1.1).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Whether both sides hold the same secret (HMAC).
    pub fn is_symmetric(self) -> bool {
        self.least_secret_bytes().is_some()
    }

    /// The shortest secret that the algorithm's strength deserves: its hash's length
    /// (RFC 7518 §3.2). `None` unless symmetric.
    pub fn least_secret_bytes(self) -> Option<usize> {
        match self {
            Self::HS256 => Some(32),
            Self::HS384 => Some(48),
            Self::HS512 => Some(64),
            Self::EdDSA | Self::ES256 | Self::ES384 | Self::RS256 | Self::PS256 => None,
        }
    }

    fn is_rsa(self) -> bool {
        matches!(self, Self::RS256 | Self::PS256)
    }

    fn jose(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::EdDSA => jsonwebtoken::Algorithm::EdDSA,
            Self::ES256 => jsonwebtoken::Algorithm::ES256,
            Self::ES384 => jsonwebtoken::Algorithm::ES384,
            Self::RS256 => jsonwebtoken::Algorithm::RS256,
            Self::PS256 => jsonwebtoken::Algorithm::PS256,
            Self::HS256 => jsonwebtoken::Algorithm::HS256,
            Self::HS384 => jsonwebtoken::Algorithm::HS384,
            Self::HS512 => jsonwebtoken::Algorithm::HS512,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        Self::from_name(name).ok_or(KeyError::UnknownAlgorithm)
    }
}

/// Why a key cannot be used, as a sentence for the operator. Never holds key material.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyError {
    /// No PEM section with the wanted label; `found` is the first label there is.
    NoPem {
        wanted: &'static str,
        found: Option<String>,
    },
    /// A PEM section with the right label whose content is damaged or of a kind not known here.
    Unreadable {
        wanted: &'static str,
    },
    /// An HMAC secret that could be guessed.
    WeakSecret {
        algorithm: Algorithm,
        bytes: usize,
        least: usize,
    },
    /// An RSA modulus out of bounds; `bits` where it is known.
    RsaSize {
        bits: Option<usize>,
    },
    /// An RSA modulus that Infineon's faulty chips made (CVE-2017-15361, "ROCA"): it can be factored.
    Roca,
    /// An RSA public exponent that is even, below 3 or above 33 bits.
    RsaExponent,
    /// Numbers that are no public key: a point off its curve, a wrong length.
    NotAPublicKey,
    /// A secret for a public-key algorithm, or the other way round.
    Unfit {
        algorithm: Algorithm,
    },
    /// None of the algorithms that the issuer may use goes with this key.
    NotAllowed {
        kind: &'static str,
    },
    /// A `kid` must be non-empty and printable.
    BadKid,
    UnknownAlgorithm,
    /// The JWKS is not one JSON object, or names a member twice.
    JwksSyntax,
    /// The JWKS has no array `keys`.
    JwksShape,
    /// The cryptographic library failed to make or use a key.
    Library,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPem { wanted, found: None } => {
                write!(f, "no PEM section `BEGIN {wanted}` found in the key")
            }
            Self::NoPem { wanted: "PRIVATE KEY", found: Some(found) } => write!(
                f,
                "the key is a `{found}`, not an unencrypted PKCS#8 `PRIVATE KEY`; for a private key, `openssl \
                 pkcs8 -topk8 -nocrypt -in OLD -out NEW` converts it"
            ),
            Self::NoPem { wanted, found: Some(found) } => write!(
                f,
                "the key is a `{found}`, not a `{wanted}`; `openssl pkey -in PRIVATE -pubout` or `openssl x509 \
                 -in CERTIFICATE -noout -pubkey` writes one"
            ),
            Self::Unreadable { wanted } => write!(
                f,
                "the `{wanted}` is damaged or of a kind not supported (Ed25519, P-256, P-384 and RSA are)"
            ),
            Self::WeakSecret { algorithm, bytes, least } => write!(
                f,
                "the secret has {bytes} bytes, {algorithm} needs at least {least} random ones; `openssl rand \
                 -base64 {least}` makes some"
            ),
            Self::RsaSize { bits: Some(bits) } => {
                write!(f, "the RSA key has {bits} bits, 2048 to 8192 are accepted")
            }
            Self::RsaSize { bits: None } => {
                f.write_str("the RSA key is too small or too large, 2048 to 8192 bits are accepted")
            }
            Self::Roca => f.write_str("the RSA key can be factored (CVE-2017-15361, ROCA); replace it"),
            Self::RsaExponent => {
                f.write_str("the RSA key's public exponent is not an odd number from 3 to 2^33")
            }
            Self::NotAPublicKey => {
                f.write_str("the numbers given are not a public key of the kind that they claim to be")
            }
            Self::Unfit { algorithm } if algorithm.is_symmetric() => {
                write!(f, "{algorithm} takes a secret, not a key pair")
            }
            Self::Unfit { algorithm } => write!(f, "{algorithm} takes a key pair, not a secret"),
            Self::NotAllowed { kind } => {
                write!(f, "the key is {kind}, which goes with none of the algorithms allowed")
            }
            Self::BadKid => f.write_str("the key's name (`kid`) is empty or has control characters"),
            Self::UnknownAlgorithm => {
                f.write_str("not an algorithm: EdDSA, ES256, ES384, RS256, PS256, HS256, HS384 and HS512 are")
            }
            Self::JwksSyntax => {
                f.write_str("the JWKS is not a JSON object, or a member in it is named twice")
            }
            Self::JwksShape => f.write_str("the JWKS has no array `keys`"),
            Self::Library => f.write_str("the cryptographic library could not make or use the key"),
        }
    }
}

impl std::error::Error for KeyError {}

/// A key that signs. Cheap to clone; shows its name and algorithm only.
#[derive(Clone)]
pub struct SigningKey {
    key: Arc<EncodingKey>,
    verifying: VerifyingKey,
    public: PublicNumbers,
}

/// What a JWK says of a public key.
#[derive(Clone)]
enum PublicNumbers {
    Okp { x: Vec<u8> },
    Ec { crv: &'static str, x: Vec<u8>, y: Vec<u8> },
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Secret,
}

impl SigningKey {
    /// Reads the first PEM section `PRIVATE KEY` (PKCS#8, RFC 5958). The key itself says which
    /// algorithm it is for; an RSA key takes `configured` if that is RS256 or PS256, else RS256.
    ///
    /// # Errors
    /// `NoPem`, `Unreadable`, `RsaSize`, `RsaExponent`, `Roca`, `BadKid`.
    pub fn from_pkcs8_pem(kid: &str, pem: &str, configured: Algorithm) -> Result<Self, KeyError> {
        const WANTED: &str = "PRIVATE KEY";
        let section =
            PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| pem_error(pem, WANTED))?;
        let der = section.secret_pkcs8_der();
        let utils = &DEFAULT_PROVIDER.key_utils;

        if Ed25519KeyPair::from_pkcs8(der).is_ok() {
            let x = (utils.ed_pub_components_from_private_key)(der, &EllipticCurve::Ed25519)
                .map_err(|_| KeyError::Library)?;
            let public = PublicNumbers::Okp { x };
            return Self::assemble(kid, EncodingKey::from_ed_der(der), public, Algorithm::EdDSA);
        }
        for (algorithm, signing, crv) in [
            (Algorithm::ES256, &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            (Algorithm::ES384, &ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        ] {
            if EcdsaKeyPair::from_pkcs8(signing, der).is_ok() {
                let (_, x, y) = (utils.ec_pub_components_from_private_key)(der, algorithm.jose())
                    .map_err(|_| KeyError::Library)?;
                let public = PublicNumbers::Ec { crv, x, y };
                return Self::assemble(kid, EncodingKey::from_ec_der(der), public, algorithm);
            }
        }
        if rsa_key_is_readable(der)? {
            // jsonwebtoken signs with the PKCS#1 key that PKCS#8 wraps, and unwraps it itself.
            let key = EncodingKey::from_rsa_pem(pem_text(WANTED, der).as_bytes())
                .map_err(|_| KeyError::Unreadable { wanted: WANTED })?;
            let (n, e) = (utils.rsa_pub_components_from_private_key)(key.as_bytes())
                .map_err(|_| KeyError::Unreadable { wanted: WANTED })?;
            let algorithm = if configured.is_rsa() { configured } else { Algorithm::RS256 };
            return Self::assemble(kid, key, PublicNumbers::Rsa { n, e }, algorithm);
        }
        Err(KeyError::Unreadable { wanted: WANTED })
    }

    /// A shared secret for HS256, HS384 or HS512, taken byte for byte.
    ///
    /// # Errors
    /// `WeakSecret` below the hash's own length, `Unfit` for another algorithm, `BadKid`.
    pub fn from_secret(kid: &str, secret: &[u8], algorithm: Algorithm) -> Result<Self, KeyError> {
        check_kid(kid)?;
        let verifying = VerifyingKey::from_secret(Some(kid), secret, algorithm)?;
        let key = Arc::new(EncodingKey::from_secret(secret));
        Ok(Self { key, verifying, public: PublicNumbers::Secret })
    }

    fn assemble(
        kid: &str,
        key: EncodingKey,
        public: PublicNumbers,
        algorithm: Algorithm,
    ) -> Result<Self, KeyError> {
        check_kid(kid)?;
        let decoding = match &public {
            PublicNumbers::Okp { x } => ed25519_key(x)?,
            PublicNumbers::Ec { x, y, .. } => ec_key(algorithm, x, y)?,
            PublicNumbers::Rsa { n, e } => rsa_key(n, e)?,
            PublicNumbers::Secret => return Err(KeyError::Unfit { algorithm }),
        };
        let verifying = VerifyingKey::new(Some(kid), algorithm, decoding);
        Ok(Self { key: Arc::new(key), verifying, public })
    }

    pub fn kid(&self) -> &str {
        self.verifying.kid().unwrap_or_default()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.verifying.algorithm
    }

    /// The other half, or for a secret the secret itself: verifies what this key signs.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying.clone()
    }

    /// The public key as a JWK (RFC 7517 §4) with `kid`, `alg` and `use`; `None` for a secret.
    pub fn public_jwk(&self) -> Option<Value> {
        let mut jwk = match &self.public {
            PublicNumbers::Okp { x } => json!({ "kty": "OKP", "crv": "Ed25519", "x": compact::encode(x) }),
            PublicNumbers::Ec { crv, x, y } => {
                json!({ "kty": "EC", "crv": crv, "x": compact::encode(x), "y": compact::encode(y) })
            }
            PublicNumbers::Rsa { n, e } => {
                json!({ "kty": "RSA", "n": compact::encode(n), "e": compact::encode(e) })
            }
            PublicNumbers::Secret => return None,
        };
        jwk["kid"] = self.kid().into();
        jwk["alg"] = self.algorithm().name().into();
        jwk["use"] = "sig".into();
        Some(jwk)
    }

    /// The JWS signature of `signed`: for ECDSA r and s at fixed length (RFC 7518 §3.4).
    pub(super) fn sign(&self, signed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signer = (DEFAULT_PROVIDER.signer_factory)(&self.algorithm().jose(), &self.key)
            .map_err(|_| KeyError::Library)?;
        signer.try_sign(signed).map_err(|_| KeyError::Library)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid())
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

/// A key that checks signatures of one algorithm. Cheap to clone; shows its name and algorithm only.
#[derive(Clone)]
pub struct VerifyingKey {
    kid: Option<Arc<str>>,
    algorithm: Algorithm,
    key: Arc<DecodingKey>,
}

impl VerifyingKey {
    /// A shared secret for HS256, HS384 or HS512. Without a `kid` it answers to every token's.
    ///
    /// # Errors
    /// `WeakSecret`, `Unfit` for another algorithm.
    pub fn from_secret(kid: Option<&str>, secret: &[u8], algorithm: Algorithm) -> Result<Self, KeyError> {
        let least = algorithm.least_secret_bytes().ok_or(KeyError::Unfit { algorithm })?;
        if secret.len() < least {
            return Err(KeyError::WeakSecret { algorithm, bytes: secret.len(), least });
        }
        Ok(Self::new(kid, algorithm, DecodingKey::from_secret(secret)))
    }

    /// Reads the first PEM section `PUBLIC KEY` (SubjectPublicKeyInfo, RFC 5280 §4.1). One key for
    /// each of the `allowed` algorithms that it can be for: two only for RSA with RS256 and PS256.
    ///
    /// # Errors
    /// `NoPem`, `Unreadable`, `RsaSize`, `RsaExponent`, `Roca`; `NotAllowed` if nothing is left.
    pub fn from_public_key_pem(
        kid: Option<&str>,
        pem: &str,
        allowed: &[Algorithm],
    ) -> Result<Vec<Self>, KeyError> {
        const WANTED: &str = "PUBLIC KEY";
        let section =
            SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| pem_error(pem, WANTED))?;
        let der = section.as_ref();
        let (kind, key, algorithms) = if ParsedPublicKey::new(&ED25519, der).is_ok() {
            ("an Ed25519 key", DecodingKey::from_ed_der(der), &[Algorithm::EdDSA][..])
        } else if ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, der).is_ok() {
            ("a P-256 key", DecodingKey::from_ec_der(der), &[Algorithm::ES256][..])
        } else if ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, der).is_ok() {
            ("a P-384 key", DecodingKey::from_ec_der(der), &[Algorithm::ES384][..])
        } else {
            let (n, e) = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der)
                .map_err(|_| KeyError::Unreadable { wanted: WANTED })?;
            ("an RSA key", rsa_key(&n, &e)?, &[Algorithm::RS256, Algorithm::PS256][..])
        };
        let keys: Vec<_> = algorithms
            .iter()
            .filter(|algorithm| allowed.contains(algorithm))
            .map(|algorithm| Self::new(kid, *algorithm, key.clone()))
            .collect();
        if keys.is_empty() { Err(KeyError::NotAllowed { kind }) } else { Ok(keys) }
    }

    fn new(kid: Option<&str>, algorithm: Algorithm, key: DecodingKey) -> Self {
        Self { kid: kid.map(Arc::from), algorithm, key: Arc::new(key) }
    }

    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` is this key's over `signed`, both raw bytes. A `&Vec` because that is what
    /// jsonwebtoken's verifiers take; a slice would have to be copied.
    pub(super) fn verifies(&self, signed: &[u8], signature: &Vec<u8>) -> bool {
        // Made anew each time because the trait object is neither `Send` nor `Sync`, and a key is
        // shared by all threads. It copies the key's bytes, which the signature check dwarfs.
        (DEFAULT_PROVIDER.verifier_factory)(&self.algorithm.jose(), &self.key)
            .is_ok_and(|verifier| verifier.verify(signed, signature).is_ok())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Makes a fresh private key as a PKCS#8 PEM section: Ed25519, P-256, P-384 or RSA with 2048 bits.
///
/// # Errors
/// `Unfit` for HS*, whose secrets are the operator's own; `Library`.
pub fn generate_pkcs8_pem(algorithm: Algorithm) -> Result<String, KeyError> {
    let random = SystemRandom::new();
    let der = match algorithm {
        Algorithm::EdDSA => {
            // Version 1, which every other tool reads too.
            Ed25519KeyPair::generate_pkcs8v1(&random).map_err(|_| KeyError::Library)?.as_ref().to_vec()
        }
        Algorithm::ES256 | Algorithm::ES384 => {
            let signing = if algorithm == Algorithm::ES256 {
                &ECDSA_P256_SHA256_FIXED_SIGNING
            } else {
                &ECDSA_P384_SHA384_FIXED_SIGNING
            };
            EcdsaKeyPair::generate_pkcs8(signing, &random).map_err(|_| KeyError::Library)?.as_ref().to_vec()
        }
        Algorithm::RS256 | Algorithm::PS256 => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Library)?;
            pair.as_der().map_err(|_| KeyError::Library)?.as_ref().to_vec()
        }
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => return Err(KeyError::Unfit { algorithm }),
    };
    Ok(pem_text("PRIVATE KEY", &der))
}

/// The JWKS to publish (RFC 7517 §5): the public part of every key that has one.
pub fn jwks<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Value {
    json!({ "keys": keys.into_iter().filter_map(SigningKey::public_jwk).collect::<Vec<_>>() })
}

/// A key of a JWKS that was left out, and why; the others are used (RFC 7517 §5).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SkippedKey {
    pub kid: Option<String>,
    pub reason: SkipReason,
}

/// Why a key of a JWKS is left out. Never holds key material.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SkipReason {
    /// A member is missing, has the wrong type or is not canonical base64url.
    Malformed(&'static str),
    /// `kty` or `crv` of no algorithm here.
    UnknownType,
    /// `use` or `key_ops` says that it is not for checking signatures.
    OtherUse,
    /// Private or symmetric: whoever can read the set could sign with it.
    Secret,
    /// `alg` is none of those that go with the key.
    AlgorithmUnfit,
    /// The issuer's `algorithms` do not include it.
    AlgorithmNotAllowed,
    /// An earlier key has the same `kid` and algorithm.
    DuplicateKid,
    /// A weak key, or no key at all.
    Refused(KeyError),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(member) => write!(f, "`{member}` is missing or malformed"),
            Self::UnknownType => f.write_str("its `kty` or `crv` is not supported"),
            Self::OtherUse => f.write_str("it is not for checking signatures"),
            Self::Secret => f.write_str("it holds a private or symmetric key, which must not be published"),
            Self::AlgorithmUnfit => f.write_str("its `alg` is not supported or does not go with the key"),
            Self::AlgorithmNotAllowed => {
                f.write_str("its algorithm is not among those allowed for the issuer")
            }
            Self::DuplicateKid => f.write_str("an earlier key has the same `kid` and algorithm"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

/// Reads an issuer's JWKS (RFC 7517 §5). A key without `alg` takes the algorithm that its `kty` and
/// `crv` imply; an RSA key takes each of RS256 and PS256 that is `allowed`, as two keys. What
/// cannot be used is left out with its reason: a set may hold keys for others.
///
/// # Errors
/// `JwksSyntax` and `JwksShape`, for the set as a whole. A set without usable keys is no error.
pub fn parse_jwks(
    json: &str,
    allowed: &[Algorithm],
) -> Result<(Vec<VerifyingKey>, Vec<SkippedKey>), KeyError> {
    let set = compact::object(json.as_bytes()).map_err(|_| KeyError::JwksSyntax)?;
    let Some(Value::Array(entries)) = set.get("keys") else { return Err(KeyError::JwksShape) };
    let mut keys: Vec<VerifyingKey> = Vec::with_capacity(entries.len());
    let mut skipped = Vec::new();
    for entry in entries {
        let kid = entry.get("kid").and_then(Value::as_str);
        match read_jwk(entry, allowed) {
            Ok((algorithms, key)) => {
                for algorithm in algorithms {
                    let taken = |other: &VerifyingKey| {
                        kid.is_some() && other.kid() == kid && other.algorithm == algorithm
                    };
                    if keys.iter().any(taken) {
                        let reason = SkipReason::DuplicateKid;
                        skipped.push(SkippedKey { kid: kid.map(str::to_owned), reason });
                    } else {
                        keys.push(VerifyingKey::new(kid, algorithm, key.clone()));
                    }
                }
            }
            Err(reason) => skipped.push(SkippedKey { kid: kid.map(str::to_owned), reason }),
        }
    }
    Ok((keys, skipped))
}

fn read_jwk(entry: &Value, allowed: &[Algorithm]) -> Result<(Vec<Algorithm>, DecodingKey), SkipReason> {
    let members = entry.as_object().ok_or(SkipReason::Malformed("keys"))?;
    if members.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Err(SkipReason::Malformed("kid"));
    }
    if members.get("use").is_some_and(|usage| usage != "sig") {
        return Err(SkipReason::OtherUse);
    }
    if let Some(operations) = members.get("key_ops") {
        let operations = operations.as_array().ok_or(SkipReason::Malformed("key_ops"))?;
        if !operations.iter().any(|operation| operation == "verify") {
            return Err(SkipReason::OtherUse);
        }
    }
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|secret| members.contains_key(*secret)) {
        return Err(SkipReason::Secret);
    }
    let kty = members.get("kty").and_then(Value::as_str).ok_or(SkipReason::Malformed("kty"))?;
    let crv = members.get("crv").and_then(Value::as_str);
    let possible: &[Algorithm] = match (kty, crv) {
        ("OKP", Some("Ed25519")) => &[Algorithm::EdDSA],
        ("EC", Some("P-256")) => &[Algorithm::ES256],
        ("EC", Some("P-384")) => &[Algorithm::ES384],
        ("RSA", _) => &[Algorithm::RS256, Algorithm::PS256],
        ("oct", _) => return Err(SkipReason::Secret),
        _ => return Err(SkipReason::UnknownType),
    };
    let fitting: Vec<Algorithm> = match members.get("alg") {
        None => possible.to_vec(),
        Some(Value::String(alg)) => possible.iter().copied().filter(|one| one.name() == alg).collect(),
        Some(_) => return Err(SkipReason::Malformed("alg")),
    };
    if fitting.is_empty() {
        return Err(SkipReason::AlgorithmUnfit);
    }
    let algorithms: Vec<Algorithm> = fitting.into_iter().filter(|one| allowed.contains(one)).collect();
    let [first, ..] = algorithms[..] else { return Err(SkipReason::AlgorithmNotAllowed) };
    let key = match first {
        Algorithm::EdDSA => ed25519_key(&number(members, "x")?),
        Algorithm::ES256 | Algorithm::ES384 => ec_key(first, &number(members, "x")?, &number(members, "y")?),
        _ => rsa_key(&number(members, "n")?, &number(members, "e")?),
    };
    Ok((algorithms, key.map_err(SkipReason::Refused)?))
}

/// A JWK member that holds bytes (RFC 7518 §2, Base64urlUInt and its like).
fn number(members: &Object, name: &'static str) -> Result<Vec<u8>, SkipReason> {
    let text = members.get(name).and_then(Value::as_str).ok_or(SkipReason::Malformed(name))?;
    compact::decode(text).map_err(|_| SkipReason::Malformed(name))
}

fn ed25519_key(x: &[u8]) -> Result<DecodingKey, KeyError> {
    if x.len() != 32 || ParsedPublicKey::new(&ED25519, x).is_err() {
        return Err(KeyError::NotAPublicKey);
    }
    Ok(DecodingKey::from_ed_der(x))
}

/// The uncompressed point (SEC 1 §2.3.3), checked to be on its curve. Coordinates have their full
/// length, leading zeros included (RFC 7518 §6.2.1.2).
fn ec_key(algorithm: Algorithm, x: &[u8], y: &[u8]) -> Result<DecodingKey, KeyError> {
    let (length, curve) = match algorithm {
        Algorithm::ES384 => (48, &ECDSA_P384_SHA384_FIXED),
        _ => (32, &ECDSA_P256_SHA256_FIXED),
    };
    if x.len() != length || y.len() != length {
        return Err(KeyError::NotAPublicKey);
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(curve, &point).map_err(|_| KeyError::NotAPublicKey)?;
    Ok(DecodingKey::from_ec_der(&point))
}

/// Leading zeros, which some issuers write although RFC 7518 §6.3.1.1 forbids it, are dropped.
fn rsa_key(n: &[u8], e: &[u8]) -> Result<DecodingKey, KeyError> {
    let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
    let bits = bit_length(n);
    if !(2048..=8192).contains(&bits) {
        return Err(KeyError::RsaSize { bits: Some(bits) });
    }
    let odd = e.last().is_some_and(|last| last % 2 == 1);
    if !odd || e == [1] || bit_length(e) > 33 {
        return Err(KeyError::RsaExponent);
    }
    if is_roca(n) {
        return Err(KeyError::Roca);
    }
    let components = RsaPublicKeyComponents { n, e };
    components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| KeyError::NotAPublicKey)?;
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

/// Whether the modulus is, modulo every one of these primes, a power of 65537: so it is for each key
/// of the faulty chips, and for another by a chance of less than one in 2^100 (Nemec et al.,
/// "The Return of Coppersmith's Attack", 2017, §2.2).
fn is_roca(n: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101,
        103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.into_iter().all(|prime| {
        let residue = n.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let powers = std::iter::successors(Some(1), |power| Some(power * (65537 % prime) % prime));
        powers.take(prime as usize).any(|power| power == residue)
    })
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// Of a big-endian number without leading zeros.
fn bit_length(bytes: &[u8]) -> usize {
    bytes.first().map_or(0, |first| bytes.len() * 8 - first.leading_zeros() as usize)
}

/// Whether PKCS#8 holds an RSA key; one of a size not accepted is an error of its own.
fn rsa_key_is_readable(der: &[u8]) -> Result<bool, KeyError> {
    match RsaKeyPair::from_pkcs8(der).map_err(|rejected| rejected.to_string()) {
        Ok(_) => Ok(true),
        // The library tells its reasons apart by these words only; a change costs the better sentence.
        Err(reason) if reason == "TooSmall" || reason == "TooLarge" => Err(KeyError::RsaSize { bits: None }),
        Err(_) => Ok(false),
    }
}

fn check_kid(kid: &str) -> Result<(), KeyError> {
    if super::fits_identity(kid) { Ok(()) } else { Err(KeyError::BadKid) }
}

/// Says which of two things is wrong: the label, or what stands under it.
fn pem_error(pem: &str, wanted: &'static str) -> KeyError {
    let label = pem.lines().find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    // Repeated in the message only if it is plainly a label.
    let plain = |label: &&str| {
        label.len() <= 40 && label.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b' ')
    };
    match label {
        Some(label) if label == wanted => KeyError::Unreadable { wanted },
        _ => KeyError::NoPem { wanted, found: label.filter(plain).map(str::to_owned) },
    }
}

fn pem_text(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base64(bytes: &[u8]) -> String {
        compact::encode(bytes)
    }

    fn public_pem(key: &SigningKey) -> String {
        let der = match &key.public {
            PublicNumbers::Rsa { n, e } => {
                RsaPublicKeyComponents { n: n.clone(), e: e.clone() }.as_der().unwrap().as_ref().to_vec()
            }
            PublicNumbers::Okp { x } => {
                ParsedPublicKey::new(&ED25519, x).unwrap().as_der().unwrap().as_ref().to_vec()
            }
            PublicNumbers::Ec { crv, x, y } => {
                let curve = if *crv == "P-256" { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P384_SHA384_FIXED };
                let point = [&[4], &x[..], &y[..]].concat();
                ParsedPublicKey::new(curve, point).unwrap().as_der().unwrap().as_ref().to_vec()
            }
            PublicNumbers::Secret => unreachable!("tests ask for key pairs only"),
        };
        pem_text("PUBLIC KEY", &der)
    }

    #[test]
    fn a_generated_key_signs_and_its_pem_and_its_jwk_verify() {
        for algorithm in Algorithm::ASYMMETRIC {
            let pem = generate_pkcs8_pem(algorithm).unwrap();
            let key = SigningKey::from_pkcs8_pem("k1", &pem, algorithm).unwrap();
            assert_eq!((key.kid(), key.algorithm()), ("k1", algorithm));
            let signature = key.sign(b"text").unwrap();

            let (from_jwks, skipped) =
                parse_jwks(&jwks(std::slice::from_ref(&key)).to_string(), &Algorithm::ASYMMETRIC).unwrap();
            assert_eq!(skipped, []);
            let from_pem = VerifyingKey::from_public_key_pem(None, &public_pem(&key), &[algorithm]).unwrap();
            for other in [&key.verifying_key(), &from_jwks[0], &from_pem[0]] {
                assert_eq!(other.algorithm(), algorithm);
                assert!(other.verifies(b"text", &signature), "{algorithm}");
                assert!(!other.verifies(b"texT", &signature), "{algorithm}");
                assert!(!other.verifies(b"text", &signature[1..].to_vec()), "{algorithm}");
                assert!(!other.verifies(b"text", &Vec::new()), "{algorithm}");
            }
        }
    }

    #[test]
    fn an_rsa_key_takes_the_configured_algorithm_if_it_can() {
        let pem = generate_pkcs8_pem(Algorithm::RS256).unwrap();
        for (configured, taken) in [
            (Algorithm::PS256, Algorithm::PS256),
            (Algorithm::RS256, Algorithm::RS256),
            (Algorithm::EdDSA, Algorithm::RS256),
        ] {
            assert_eq!(SigningKey::from_pkcs8_pem("k", &pem, configured).unwrap().algorithm(), taken);
        }
        // RS256 and PS256 signatures of one key are not each other's.
        let rs = SigningKey::from_pkcs8_pem("k", &pem, Algorithm::RS256).unwrap();
        let ps = SigningKey::from_pkcs8_pem("k", &pem, Algorithm::PS256).unwrap();
        assert!(!ps.verifying_key().verifies(b"text", &rs.sign(b"text").unwrap()));
        let both = VerifyingKey::from_public_key_pem(None, &public_pem(&rs), &Algorithm::ASYMMETRIC).unwrap();
        assert_eq!(
            both.iter().map(VerifyingKey::algorithm).collect::<Vec<_>>(),
            [rs.algorithm(), ps.algorithm()]
        );
    }

    #[test]
    fn a_published_jwks_has_no_private_member_and_no_secret() {
        let keys: Vec<_> = Algorithm::ASYMMETRIC
            .into_iter()
            .map(|one| SigningKey::from_pkcs8_pem("k", &generate_pkcs8_pem(one).unwrap(), one).unwrap())
            .chain([SigningKey::from_secret("s", &[7; 64], Algorithm::HS512).unwrap()])
            .collect();
        let published = jwks(&keys);
        let entries = published["keys"].as_array().unwrap();
        assert_eq!(entries.len(), 5, "the secret is left out");
        for entry in entries {
            let members = entry.as_object().unwrap();
            for name in members.keys() {
                assert!(
                    ["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use"].contains(&name.as_str()),
                    "{name}"
                );
            }
            assert!(["kid", "alg", "use"].iter().all(|name| members.contains_key(*name)));
        }
    }

    #[test]
    fn a_weak_or_unfit_secret_is_refused() {
        for (algorithm, bytes, ok) in [
            (Algorithm::HS256, 0, false),
            (Algorithm::HS256, 31, false),
            (Algorithm::HS256, 32, true),
            (Algorithm::HS384, 47, false),
            (Algorithm::HS384, 48, true),
            (Algorithm::HS512, 63, false),
            (Algorithm::HS512, 64, true),
            (Algorithm::HS512, 1000, true),
            (Algorithm::RS256, 64, false),
            (Algorithm::EdDSA, 64, false),
        ] {
            let secret = vec![1; bytes];
            assert_eq!(
                VerifyingKey::from_secret(None, &secret, algorithm).is_ok(),
                ok,
                "{algorithm} {bytes}"
            );
            assert_eq!(SigningKey::from_secret("k", &secret, algorithm).is_ok(), ok, "{algorithm} {bytes}");
        }
        assert!(generate_pkcs8_pem(Algorithm::HS256).is_err());
    }

    #[test]
    fn a_pem_that_cannot_be_used_is_refused_with_a_sentence_that_helps() {
        let good = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
        for (pem, says) in [
            (String::new(), "no PEM section `BEGIN PRIVATE KEY`"),
            ("not a key".into(), "no PEM section"),
            (good.replace("PRIVATE KEY", "EC PRIVATE KEY"), "openssl pkcs8"),
            (good.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "`ENCRYPTED PRIVATE KEY`"),
            (good.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY"), "`OPENSSH PRIVATE KEY`"),
            (good.replace("PRIVATE KEY", "PUBLIC KEY"), "`PUBLIC KEY`"),
            (good.replace("PRIVATE KEY", "secret\u{7}x"), "no PEM section"),
            (pem_text("PRIVATE KEY", b"junk"), "damaged"),
            (pem_text("PRIVATE KEY", b""), "damaged"),
            ("-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n".into(), "damaged"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n".into(), "damaged"),
        ] {
            let error = SigningKey::from_pkcs8_pem("k", &pem, Algorithm::EdDSA).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains(&good[40..60]), "no key material in an error");
        }
        assert_eq!(SigningKey::from_pkcs8_pem("", &good, Algorithm::EdDSA).err(), Some(KeyError::BadKid));
        assert_eq!(SigningKey::from_pkcs8_pem("a\nb", &good, Algorithm::EdDSA).err(), Some(KeyError::BadKid));
        let as_public = VerifyingKey::from_public_key_pem(None, &good, &Algorithm::ASYMMETRIC).unwrap_err();
        assert!(as_public.to_string().contains("-pubout"), "{as_public}");
    }

    #[test]
    fn a_public_key_for_none_of_the_allowed_algorithms_is_refused() {
        let key =
            SigningKey::from_pkcs8_pem("k", &generate_pkcs8_pem(Algorithm::ES256).unwrap(), Algorithm::ES256);
        let pem = public_pem(&key.unwrap());
        for allowed in
            [&[][..], &[Algorithm::ES384], &[Algorithm::HS256], &[Algorithm::RS256, Algorithm::EdDSA]]
        {
            let error = VerifyingKey::from_public_key_pem(None, &pem, allowed).unwrap_err();
            assert_eq!(error, KeyError::NotAllowed { kind: "a P-256 key" });
        }
    }

    #[test]
    fn an_unusable_key_of_a_jwks_is_skipped_with_its_reason() {
        let pair = |algorithm| {
            let pem = generate_pkcs8_pem(algorithm).unwrap();
            SigningKey::from_pkcs8_pem("k", &pem, algorithm).unwrap().public_jwk().unwrap()
        };
        let with = |jwk: &Value, name: &str, value: Value| {
            let mut jwk = jwk.clone();
            jwk[name] = value;
            jwk
        };
        let without = |jwk: &Value, name: &str| {
            let mut jwk = jwk.clone();
            jwk.as_object_mut().unwrap().remove(name);
            jwk
        };
        let (ec, ed, rsa) = (pair(Algorithm::ES256), pair(Algorithm::EdDSA), pair(Algorithm::RS256));
        let small = base64(&[0xff; 128]);
        let size = |bits| SkipReason::Refused(KeyError::RsaSize { bits: Some(bits) });
        for (jwk, reason) in [
            (json!(1), SkipReason::Malformed("keys")),
            (json!({}), SkipReason::Malformed("kty")),
            (with(&ec, "kid", json!(1)), SkipReason::Malformed("kid")),
            (with(&ec, "kty", json!("XYZ")), SkipReason::UnknownType),
            (with(&ec, "crv", json!("secp256k1")), SkipReason::UnknownType),
            (with(&ec, "crv", json!("P-521")), SkipReason::UnknownType),
            (with(&ed, "crv", json!("Ed448")), SkipReason::UnknownType),
            (with(&ed, "crv", json!("X25519")), SkipReason::UnknownType),
            (without(&ec, "crv"), SkipReason::UnknownType),
            (with(&ec, "use", json!("enc")), SkipReason::OtherUse),
            (with(&ec, "use", json!(["sig"])), SkipReason::OtherUse),
            (with(&ec, "key_ops", json!(["sign"])), SkipReason::OtherUse),
            (with(&ec, "key_ops", json!("verify")), SkipReason::Malformed("key_ops")),
            (with(&ec, "d", json!("AA")), SkipReason::Secret),
            (with(&rsa, "p", json!("AA")), SkipReason::Secret),
            (json!({ "kty": "oct", "k": base64(&[1; 64]), "kid": "k" }), SkipReason::Secret),
            (json!({ "kty": "oct", "kid": "k" }), SkipReason::Secret),
            (with(&ec, "alg", json!("HS256")), SkipReason::AlgorithmUnfit),
            (with(&ec, "alg", json!("ES384")), SkipReason::AlgorithmUnfit),
            (with(&rsa, "alg", json!("RS512")), SkipReason::AlgorithmUnfit),
            (with(&rsa, "alg", json!("RSA-OAEP")), SkipReason::AlgorithmUnfit),
            (with(&ec, "alg", json!(1)), SkipReason::Malformed("alg")),
            (with(&rsa, "alg", json!("PS256")), SkipReason::AlgorithmNotAllowed),
            (without(&ec, "y"), SkipReason::Malformed("y")),
            (with(&ec, "x", json!("=")), SkipReason::Malformed("x")),
            (with(&ec, "x", ec["y"].clone()), SkipReason::Refused(KeyError::NotAPublicKey)),
            (with(&ec, "x", json!(base64(&[0; 32]))), SkipReason::Refused(KeyError::NotAPublicKey)),
            (with(&ec, "x", json!("AA")), SkipReason::Refused(KeyError::NotAPublicKey)),
            (with(&ed, "x", json!("AA")), SkipReason::Refused(KeyError::NotAPublicKey)),
            (with(&rsa, "n", json!(small)), size(1024)),
            (with(&rsa, "n", json!("")), size(0)),
            (with(&rsa, "n", json!(base64(&[0; 300]))), size(0)),
            (with(&rsa, "n", json!(base64(&[0xff; 1025]))), size(8200)),
            (with(&rsa, "e", json!("AQ")), SkipReason::Refused(KeyError::RsaExponent)),
            (with(&rsa, "e", json!("Ag")), SkipReason::Refused(KeyError::RsaExponent)),
            (with(&rsa, "e", json!("")), SkipReason::Refused(KeyError::RsaExponent)),
            (with(&rsa, "e", json!(base64(&[1; 6]))), SkipReason::Refused(KeyError::RsaExponent)),
        ] {
            let set = json!({ "keys": [jwk, ed] }).to_string();
            let allowed = [Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256];
            let (keys, skipped) = parse_jwks(&set, &allowed).unwrap();
            assert_eq!(skipped.iter().map(|one| &one.reason).collect::<Vec<_>>(), [&reason], "{jwk}");
            assert_eq!(keys.len(), 1, "the good one is used");
        }
    }

    #[test]
    fn a_jwks_key_without_alg_takes_what_its_type_implies_and_the_issuer_allows() {
        let pem = generate_pkcs8_pem(Algorithm::RS256).unwrap();
        let mut jwk = SigningKey::from_pkcs8_pem("k", &pem, Algorithm::RS256).unwrap().public_jwk().unwrap();
        jwk.as_object_mut().unwrap().remove("alg");
        // A leading zero, as some issuers write it.
        let n = compact::decode(jwk["n"].as_str().unwrap()).unwrap();
        jwk["n"] = base64(&[&[0], &n[..]].concat()).into();
        let set = json!({ "keys": [jwk, jwk] }).to_string();
        for (allowed, taken) in [
            (&Algorithm::ASYMMETRIC[..], &[Algorithm::RS256, Algorithm::PS256][..]),
            (&[Algorithm::PS256], &[Algorithm::PS256]),
            (&[], &[]),
        ] {
            let (keys, skipped) = parse_jwks(&set, allowed).unwrap();
            assert_eq!(keys.iter().map(VerifyingKey::algorithm).collect::<Vec<_>>(), taken);
            let reason =
                if allowed.is_empty() { SkipReason::AlgorithmNotAllowed } else { SkipReason::DuplicateKid };
            assert!(!skipped.is_empty() && skipped.iter().all(|one| one.reason == reason));
        }
    }

    #[test]
    fn a_jwks_that_is_none_is_an_error_as_a_whole() {
        for (json, error) in [
            ("", KeyError::JwksSyntax),
            ("<html>", KeyError::JwksSyntax),
            ("[]", KeyError::JwksSyntax),
            (r#"{"keys":[],"keys":[]}"#, KeyError::JwksSyntax),
            (r#"{"keys":[{"kty":"EC","kty":"oct"}]}"#, KeyError::JwksSyntax),
            ("{}", KeyError::JwksShape),
            (r#"{"keys":{}}"#, KeyError::JwksShape),
            (r#"{"kty":"EC"}"#, KeyError::JwksShape),
        ] {
            assert_eq!(parse_jwks(json, &Algorithm::ASYMMETRIC).err(), Some(error), "{json}");
        }
        assert!(parse_jwks(r#"{"keys":[]}"#, &[]).unwrap().0.is_empty());
    }

    #[test]
    fn debug_output_shows_no_key_material() {
        let secret = "a secret that is long enough for HS256";
        let key = SigningKey::from_secret("k", secret.as_bytes(), Algorithm::HS256).unwrap();
        for shown in [format!("{key:?}"), format!("{:?}", key.verifying_key())] {
            assert!(shown.contains("HS256") && !shown.contains("secret") && !shown.contains("97"), "{shown}");
        }
    }

    #[test]
    fn keys_can_be_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<SigningKey>();
        shared::<VerifyingKey>();
    }
}
