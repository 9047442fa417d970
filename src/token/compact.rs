//! The compact serialization: text of a token -> header, payload and signature bytes.
//!
//! Two readers of one token must never see two different tokens, so there is one spelling of each
//! part (RFC 7515 §2: base64url without padding, whitespace or spare bits) and one value of each
//! member (RFC 7515 §4, RFC 7519 §4: duplicates are refused, at every depth). Not here: whether
//! anything in it is true (`verify`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::InvalidToken;
use super::keys::Algorithm;

/// A JSON object whose members, and those of every object in it, have different names.
pub(super) type Object = Map<String, Value>;

/// Header members that would let a token choose its own key, or change what is signed or how it is
/// read (RFC 7515 §4.1, RFC 7797 §3, RFC 7516 §4.1). `crit` is refused whatever it lists: no
/// extension is understood here.
const FORBIDDEN: [&str; 8] = ["crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc"];

/// The three parts of a token, decoded but not yet believed.
pub(super) struct Parts<'a> {
    /// What the signature covers: header and payload as sent, with the dot between them.
    pub signed: &'a str,
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Takes a token apart. `NotCompact` unless there are exactly three parts and none is empty.
    pub fn split(token: &'a str) -> Result<Self, InvalidToken> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken::NotCompact);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(InvalidToken::NotCompact);
        }
        Ok(Self {
            signed: &token[..header.len() + 1 + payload.len()],
            header: decode(header)?,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }
}

/// The header members that verification goes by.
#[derive(Debug)]
pub(super) struct Header {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
}

impl Header {
    pub fn read(bytes: &[u8]) -> Result<Self, InvalidToken> {
        let mut members = object(bytes)?;
        if FORBIDDEN.iter().any(|name| members.contains_key(*name)) {
            return Err(InvalidToken::ForbiddenHeader);
        }
        match members.get("typ") {
            None => {}
            Some(Value::String(typ)) if is_jwt(typ) => {}
            Some(Value::String(_)) => return Err(InvalidToken::WrongType),
            Some(_) => return Err(InvalidToken::BadHeader),
        }
        let kid = match members.remove("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid),
            Some(_) => return Err(InvalidToken::BadHeader),
        };
        match members.get("alg") {
            Some(Value::String(name)) => {
                let algorithm = Algorithm::from_name(name).ok_or(InvalidToken::UnsupportedAlgorithm)?;
                Ok(Self { algorithm, kid })
            }
            _ => Err(InvalidToken::BadHeader),
        }
    }
}

/// `typ` is a media type, compared without regard to case and with `application/` optional
/// (RFC 7515 §4.1.9); `at+jwt` is an access token's (RFC 9068 §2.1).
fn is_jwt(typ: &str) -> bool {
    ["JWT", "at+jwt", "application/jwt", "application/at+jwt"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(typ))
}

/// A token that has been decoded and nothing else: anybody may have written it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unverified {
    pub header: Value,
    pub claims: Value,
}

/// Decodes a token for a person to look at, and checks **nothing**: no signature, issuer or expiry.
///
/// # Errors
/// The reason that the text is not a decodable token. What a header or claim says is no reason.
pub fn decode_without_verifying(token: &str) -> Result<Unverified, InvalidToken> {
    let parts = Parts::split(token)?;
    Ok(Unverified {
        header: Value::Object(object(&parts.header)?),
        claims: Value::Object(object(&parts.payload)?),
    })
}

/// Unpadded base64url in its canonical spelling: the engine refuses padding, foreign characters
/// and a last character with spare bits.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, InvalidToken> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidToken::NotBase64Url)
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a JSON object: `NotJson`, or `DuplicateMember`.
pub(super) fn object(bytes: &[u8]) -> Result<Object, InvalidToken> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    match value {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(InvalidToken::NotJson),
        // The only data error that `Strict` makes of its own; everything else is syntax.
        Err(error) if error.is_data() => Err(InvalidToken::DuplicateMember),
        Err(_) => Err(InvalidToken::NotJson),
    }
}

/// `serde_json::Value`, except that a repeated member is an error: by itself it keeps the last.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value without repeated members")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Object::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom("repeated member"));
            }
            let value = members.next_value_seed(Strict)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_non_empty_canonical_parts_are_a_token() {
        for (token, why) in [
            ("", InvalidToken::NotCompact),
            ("e30", InvalidToken::NotCompact),
            ("e30.e30", InvalidToken::NotCompact),
            ("e30.e30.", InvalidToken::NotCompact),
            (".e30.e30", InvalidToken::NotCompact),
            ("e30..e30", InvalidToken::NotCompact),
            ("..", InvalidToken::NotCompact),
            ("e30.e30.AA.", InvalidToken::NotCompact),
            ("e30.e30.AA.AA.AA", InvalidToken::NotCompact),
            ("e30=.e30.AA", InvalidToken::NotBase64Url),
            ("e30.e30.AA==", InvalidToken::NotBase64Url),
            ("e30.e30.AB", InvalidToken::NotBase64Url), // spare bits: decodes to the same byte as AA
            ("e30.e30.A", InvalidToken::NotBase64Url),
            ("e30.e30.+/+/", InvalidToken::NotBase64Url),
            ("e30.e30.AA\n", InvalidToken::NotBase64Url),
            (" e30.e30.AA", InvalidToken::NotBase64Url),
            ("e30.e 30.AA", InvalidToken::NotBase64Url),
            ("e30.e30.ÄÄ", InvalidToken::NotBase64Url),
        ] {
            assert_eq!(Parts::split(token).err(), Some(why), "{token:?}");
        }
        assert!(Parts::split("e30.e30.AA").is_ok());
    }

    #[test]
    fn a_json_object_has_each_member_once_at_every_depth() {
        for (json, why) in [
            (r#"{"a":1,"a":1}"#, InvalidToken::DuplicateMember),
            (r#"{"a":1,"\u0061":2}"#, InvalidToken::DuplicateMember),
            (r#"{"x":{"a":1,"a":2}}"#, InvalidToken::DuplicateMember),
            (r#"{"x":[[{"a":1,"b":1,"a":2}]]}"#, InvalidToken::DuplicateMember),
            ("", InvalidToken::NotJson),
            ("[]", InvalidToken::NotJson),
            ("null", InvalidToken::NotJson),
            (r#""text""#, InvalidToken::NotJson),
            ("{", InvalidToken::NotJson),
            ("{} {}", InvalidToken::NotJson),
            ("{}x", InvalidToken::NotJson),
            ("\u{feff}{}", InvalidToken::NotJson),
            (r#"{"a":1,}"#, InvalidToken::NotJson),
            (r#"{"a":1e999}"#, InvalidToken::NotJson),
            (r#"{"a":"\ud800"}"#, InvalidToken::NotJson),
            (r#"{a:1}"#, InvalidToken::NotJson),
        ] {
            assert_eq!(object(json.as_bytes()), Err(why), "{json}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(InvalidToken::NotJson));
        assert_eq!(object("[".repeat(100_000).as_bytes()), Err(InvalidToken::NotJson));
        assert!(object(br#" {"a":{"a":1},"b":[{"a":1},{"a":1}]} "#).is_ok());
    }

    #[test]
    fn a_header_that_could_choose_its_own_key_or_meaning_is_refused() {
        for (json, why) in [
            (r#"{}"#, InvalidToken::BadHeader),
            (r#"{"alg":1}"#, InvalidToken::BadHeader),
            (r#"{"alg":null}"#, InvalidToken::BadHeader),
            (r#"{"alg":["HS256"]}"#, InvalidToken::BadHeader),
            (r#"{"alg":"HS256","kid":1}"#, InvalidToken::BadHeader),
            (r#"{"alg":"HS256","kid":null}"#, InvalidToken::BadHeader),
            (r#"{"alg":"HS256","typ":1}"#, InvalidToken::BadHeader),
            (r#"{"alg":"HS256","typ":"JWE"}"#, InvalidToken::WrongType),
            (r#"{"alg":"HS256","typ":"logout+jwt"}"#, InvalidToken::WrongType),
            (r#"{"alg":"HS256","typ":""}"#, InvalidToken::WrongType),
            (r#"{"alg":"none"}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":"None"}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":""}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":"hs256"}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":"RS512"}"#, InvalidToken::UnsupportedAlgorithm),
            (r#"{"alg":"RSA-OAEP","enc":"A128GCM"}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"HS256","crit":[]}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"ES256","jwk":{}}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"ES256","jku":"https://x"}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"ES256","x5u":"https://x"}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"ES256","x5c":[]}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"HS256","b64":true}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"HS256","zip":"DEF"}"#, InvalidToken::ForbiddenHeader),
            (r#"{"alg":"HS256","alg":"HS256"}"#, InvalidToken::DuplicateMember),
            (r#"["HS256"]"#, InvalidToken::NotJson),
        ] {
            assert_eq!(Header::read(json.as_bytes()).err(), Some(why), "{json}");
        }
        for json in [
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"jwt","kid":""}"#,
            r#"{"alg":"HS256","typ":"AT+JWT"}"#,
            r#"{"alg":"HS256","typ":"application/at+jwt","cty":"x","x5t":"AA"}"#,
        ] {
            assert!(Header::read(json.as_bytes()).is_ok(), "{json}");
        }
    }

    #[test]
    fn decoding_without_verifying_shows_a_forgery_as_readily_as_a_token() {
        let forged = format!("{}.{}.AA", encode(br#"{"alg":"none"}"#), encode(br#"{"sub":"1"}"#));
        let seen = decode_without_verifying(&forged).unwrap();
        assert_eq!(seen.header["alg"], "none");
        assert_eq!(seen.claims["sub"], "1");
        assert_eq!(decode_without_verifying("a.b"), Err(InvalidToken::NotCompact));
        assert_eq!(decode_without_verifying("e30.AAAA.AA"), Err(InvalidToken::NotJson));
    }
}
