//! The login body: a content type and bytes in, [`Credentials`] out.
//!
//! JSON (RFC 8259) or `application/x-www-form-urlencoded` (WHATWG URL §5.1), both UTF-8. A body that
//! two parsers could read as two users, with a field named twice, is refused. Nothing else is taken,
//! `text/plain` above all: a foreign page could send that without a preflight. Pure: who reads the
//! bytes stops at [`MAX_BODY_BYTES`].

use super::password::Password;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, error::Category};
use std::{error::Error, fmt};

/// The longest login body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The longest user name at login, in bytes; longer than any that is stored, so that a name in
/// another normal form still fits.
pub const MAX_USERNAME_BYTES: usize = 256;

/// What the two fields are called: `login.username_field` and `login.password_field`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldNames {
    /// The field with the user's name.
    pub username: String,
    /// The field with the password. Another name than `username`.
    pub password: String,
}

/// A user name and a password, as sent: not trimmed, not normalised, not empty.
pub struct Credentials {
    /// 1 to [`MAX_USERNAME_BYTES`] bytes, which may be control characters: for a log only, escaped.
    pub username: String,
    /// Of any length but 0.
    pub password: Password,
}

impl Credentials {
    /// The name to ask the user store for. `None` for a name with control characters, which no user
    /// has: it is treated as any unknown one, so that the answer gives nothing away.
    #[must_use]
    pub fn name_to_look_up(&self) -> Option<&str> {
        (!self.username.chars().any(char::is_control)).then_some(self.username.as_str())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What is wrong with a login body. The text is for the client and quotes nothing that was sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BodyError {
    /// 415: neither JSON nor a form, or not in UTF-8.
    UnsupportedMediaType,
    /// 413: more than [`MAX_BODY_BYTES`].
    TooLarge,
    /// 400: not what its content type says, or not what a login may be.
    Malformed {
        /// What is wrong, as a sentence without its full stop.
        what: String,
    },
    /// 400: a field is absent, null or empty.
    Missing {
        /// The configured name of the field.
        field: String,
    },
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::UnsupportedMediaType => {
                f.write_str("A login is application/json or application/x-www-form-urlencoded, in UTF-8")
            }
            BodyError::TooLarge => write!(f, "A login body has at most {} KiB", MAX_BODY_BYTES / 1024),
            BodyError::Malformed { what } => f.write_str(what),
            BodyError::Missing { field } => write!(f, "The field `{field}` is missing"),
        }
    }
}

impl Error for BodyError {}

fn malformed(what: impl Into<String>) -> BodyError {
    BodyError::Malformed { what: what.into() }
}

/// Reads a login body.
///
/// `content_type` is the header's value. Fields other than the two are ignored.
///
/// # Errors
/// See [`BodyError`]: the content type first, then the size, the syntax and the two fields.
pub fn parse(content_type: Option<&[u8]>, body: &[u8], names: &FieldNames) -> Result<Credentials, BodyError> {
    let format = content_type.and_then(format_of).ok_or(BodyError::UnsupportedMediaType)?;
    if body.len() > MAX_BODY_BYTES {
        return Err(BodyError::TooLarge);
    }
    let wanted = [names.username.as_str(), names.password.as_str()];
    let mut fields = match format {
        Format::Json => json_fields(body, &wanted)?,
        Format::Form => form_fields(body, &wanted)?,
    };
    let username = fields.take(&names.username)?;
    let password = Password::new(fields.take(&names.password)?.into_bytes());
    if username.len() > MAX_USERNAME_BYTES {
        return Err(malformed(format!("The user name has more than {MAX_USERNAME_BYTES} bytes")));
    }
    Ok(Credentials { username, password })
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Json,
    Form,
}

/// `None` for another media type or charset. Other parameters are ignored (RFC 9110 §8.3.1).
fn format_of(content_type: &[u8]) -> Option<Format> {
    let text = std::str::from_utf8(content_type).ok()?;
    let mut parts = text.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" => Format::Json,
        "application/x-www-form-urlencoded" => Format::Form,
        _ => return None,
    };
    let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        let value = value.trim().trim_matches('"');
        !name.trim().eq_ignore_ascii_case("charset")
            || value.eq_ignore_ascii_case("utf-8")
            || value.eq_ignore_ascii_case("utf8")
    });
    utf8.then_some(format)
}

/// The wanted fields, in the order of the body, each as often as it came.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn take(&mut self, name: &str) -> Result<String, BodyError> {
        let mut found = self.0.iter().enumerate().filter(|(_, (key, _))| key == name);
        let first = found.next().map(|(at, _)| at);
        if found.next().is_some() {
            return Err(malformed(format!("The field `{name}` is there more than once")));
        }
        match first.map(|at| self.0.swap_remove(at).1) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(BodyError::Missing { field: name.to_owned() }),
        }
    }
}

fn json_fields(body: &[u8], wanted: &[&str]) -> Result<Fields, BodyError> {
    let members = json_members(body, Some(wanted)).map_err(|error| match error {
        NotAnObject::Syntax { column: _ } => malformed("The body is not valid JSON"),
        NotAnObject::Other => malformed("The body is JSON, but not an object"),
    })?;
    let texts = members.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Null => Ok((name, String::new())),
        _ => Err(malformed(format!("The field `{name}` is not a string"))),
    });
    Ok(Fields(texts.collect::<Result<_, _>>()?))
}

/// Why bytes are no JSON object. No text of the parser's: it may quote a value, which may be a secret.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum NotAnObject {
    /// Not JSON, nested too deeply, or not UTF-8.
    Syntax {
        /// Where it goes wrong in its line, in bytes, from 1.
        column: usize,
    },
    /// Another value.
    Other,
}

/// The members of a JSON object, in order and with duplicates, which `serde_json`'s own map would hide.
/// With `wanted`, only those of that name; the others are checked and not kept.
pub(crate) fn json_members(
    json: &[u8],
    wanted: Option<&[&str]>,
) -> Result<Vec<(String, Value)>, NotAnObject> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Members { wanted }
        .deserialize(&mut deserializer)
        .and_then(|members| deserializer.end().map(|()| members))
        .map_err(|error| match error.classify() {
            Category::Data => NotAnObject::Other,
            Category::Syntax | Category::Eof | Category::Io => NotAnObject::Syntax { column: error.column() },
        })
}

struct Members<'a> {
    wanted: Option<&'a [&'a str]>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = Vec<(String, Value)>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if self.wanted.is_none_or(|wanted| wanted.contains(&name.as_str())) {
                members.push((name, map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(members)
    }
}

fn form_fields(body: &[u8], wanted: &[&str]) -> Result<Fields, BodyError> {
    let mut fields = Vec::new();
    for pair in body.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|&byte| byte == b'=');
        let (name, value) = at.map_or((pair, &b""[..]), |at| (&pair[..at], &pair[at + 1..]));
        let name = form_text(name)?;
        if wanted.contains(&name.as_str()) {
            fields.push((name, form_text(value)?));
        }
    }
    Ok(Fields(fields))
}

/// Decodes `+` and `%XX`. A `%` without two hexadecimal digits is refused where browsers' own parser
/// would keep it: the sender forgot to encode it, and would otherwise be told that a right password
/// is wrong.
fn form_text(raw: &[u8]) -> Result<String, BodyError> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(&byte) = rest.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|&digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => {
                        return Err(malformed(
                            "The form has a `%` that does not begin an escape (write %25)",
                        ));
                    }
                }
            }
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| malformed("The form is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JSON: Option<&[u8]> = Some(b"application/json");
    const FORM: Option<&[u8]> = Some(b"application/x-www-form-urlencoded");

    fn names() -> FieldNames {
        FieldNames { username: "username".into(), password: "password".into() }
    }

    fn read(content_type: Option<&[u8]>, body: &[u8]) -> Result<(String, String), BodyError> {
        parse(content_type, body, &names()).map(|credentials| {
            let password = String::from_utf8(credentials.password.as_bytes().to_vec()).unwrap();
            (credentials.username, password)
        })
    }

    fn missing(field: &str) -> BodyError {
        BodyError::Missing { field: field.into() }
    }

    #[test]
    fn a_login_is_read_as_sent() {
        for (content_type, body, username, password) in [
            (JSON, r#"{"username":"vera","password":"secret"}"#, "vera", "secret"),
            (JSON, r#" {"password":" s ","x":[{"username":1}],"username":" V "} "#, " V ", " s "),
            (JSON, r#"{"username":"\u00fc\ud83d\ude00","password":"\"\\\u0000"}"#, "ü😀", "\"\\\0"),
            (FORM, "username=vera&password=secret", "vera", "secret"),
            // Fields that nobody asked for need not even be well-formed.
            (FORM, "a=%&&password=a%26b%3Dc+d%2B==&username=v%C3%bcra&", "vüra", "a&b=c d+=="),
        ] {
            let read = read(content_type, body.as_bytes());
            assert_eq!(read, Ok((username.into(), password.into())), "{body}");
        }
    }

    #[test]
    fn the_fields_are_called_as_configured() {
        let names = FieldNames { username: "e-mail".into(), password: "pass word".into() };
        for (content_type, body) in [
            (JSON, r#"{"e-mail":"vera","pass word":"secret","username":"x","password":"y"}"#),
            (FORM, "e-mail=vera&pass+word=secret&username=x&password=y"),
        ] {
            let credentials = parse(content_type, body.as_bytes(), &names).unwrap();
            assert_eq!(credentials.username, "vera", "{body}");
            assert_eq!(credentials.password.as_bytes(), b"secret", "{body}");
        }
    }

    #[test]
    fn only_json_and_forms_in_utf8_are_taken() {
        for (content_type, is) in [
            ("application/json", Some(Format::Json)),
            ("Application/JSON;charset=UTF-8", Some(Format::Json)),
            ("application/json ; charset=\"utf-8\"; v=1", Some(Format::Json)),
            ("application/x-www-form-urlencoded; charset=utf8", Some(Format::Form)),
            ("application/json; charset=iso-8859-1", None),
            ("application/json; charset=utf-8; Charset=utf-16", None),
            ("application/json, text/plain", None),
            ("application/jsonp", None),
            ("multipart/form-data; boundary=x", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(format_of(content_type.as_bytes()), is, "{content_type}");
        }
        assert_eq!(read(None, b"{}"), Err(BodyError::UnsupportedMediaType));
        assert_eq!(read(Some(b"\xff"), b"{}"), Err(BodyError::UnsupportedMediaType));
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_doubtful_is_refused() {
        let wrong = |what: &str| BodyError::Malformed { what: what.into() };
        for (content_type, body, is) in [
            (JSON, r#"{"username":"vera"}"#, missing("password")),
            (JSON, r#"{"username":"","password":"x"}"#, missing("username")),
            (JSON, r#"{"username":"vera","password":null}"#, missing("password")),
            (JSON, "{}", missing("username")),
            (JSON, r#"{"Username":"vera","password":"x"}"#, missing("username")),
            (JSON, r#"{"username":1,"password":"x"}"#, wrong("The field `username` is not a string")),
            (JSON, r#"{"username":"v","password":["x"]}"#, wrong("The field `password` is not a string")),
            (
                JSON,
                r#"{"username":"v","password":"x","username":"w"}"#,
                wrong("The field `username` is there more than once"),
            ),
            (
                JSON,
                r#"{"username":"v","password":"x","\u0075sername":"w"}"#,
                wrong("The field `username` is there more than once"),
            ),
            (JSON, "", wrong("The body is not valid JSON")),
            (JSON, r#"{"username":"v","password":"x"} x"#, wrong("The body is not valid JSON")),
            (JSON, "{\"username\":\"\u{1}\",\"password\":\"x\"}", wrong("The body is not valid JSON")),
            (JSON, "\u{feff}{}", wrong("The body is not valid JSON")),
            (JSON, r#"{"username":"\ud800","password":"x"}"#, wrong("The body is not valid JSON")),
            (JSON, r#"["vera","x"]"#, wrong("The body is JSON, but not an object")),
            (JSON, r#""vera""#, wrong("The body is JSON, but not an object")),
            (FORM, "", missing("username")),
            (FORM, "username=vera&password", missing("password")),
            (FORM, "username=v&username=v&password=x", wrong("The field `username` is there more than once")),
            (
                FORM,
                "username=v&%75sername=w&password=x",
                wrong("The field `username` is there more than once"),
            ),
            (
                FORM,
                "username=v&password=100%",
                wrong("The form has a `%` that does not begin an escape (write %25)"),
            ),
            (
                FORM,
                "username=v&password=%+1",
                wrong("The form has a `%` that does not begin an escape (write %25)"),
            ),
            (FORM, "username=%ff&password=x", wrong("The form is not valid UTF-8")),
        ] {
            assert_eq!(read(content_type, body.as_bytes()), Err(is), "{body}");
        }
        assert_eq!(
            read(JSON, b"{\"username\":\"\xff\",\"password\":\"x\"}"),
            Err(wrong("The body is not valid JSON"))
        );
        let deep = format!("{{\"x\":{}", "[".repeat(60_000));
        assert_eq!(read(JSON, deep.as_bytes()), Err(wrong("The body is not valid JSON")));
    }

    #[test]
    fn the_limits_hold_to_the_byte() {
        let form = |username: usize, padding: usize| {
            format!("username={}&password=x&p={}", "v".repeat(username), "p".repeat(padding)).into_bytes()
        };
        assert!(read(FORM, &form(256, 0)).is_ok());
        assert!(matches!(read(FORM, &form(257, 0)), Err(BodyError::Malformed { .. })));
        let overhead = form(1, 0).len();
        assert!(read(FORM, &form(1, MAX_BODY_BYTES - overhead)).is_ok());
        assert_eq!(read(FORM, &form(1, MAX_BODY_BYTES - overhead + 1)), Err(BodyError::TooLarge));
    }

    #[test]
    fn a_name_with_control_characters_is_an_unknown_user_not_an_error() {
        for (username, is) in
            [("vera", true), ("ve\\u0000ra", false), ("ve\\nra", false), ("v\\u0085", false)]
        {
            let body = format!(r#"{{"username":"{username}","password":"x"}}"#);
            let credentials = parse(JSON, body.as_bytes(), &names()).unwrap();
            assert_eq!(credentials.name_to_look_up().is_some(), is, "{username}");
        }
    }

    #[test]
    fn nothing_that_was_sent_is_in_an_error_or_in_debug_output() {
        let credentials = parse(FORM, b"username=vera&password=hunter2hunter2", &names()).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
        for body in [
            r#"{"username":"v","password":["hunter2"]}"#,
            r#"{"username":"v","password":"hunter2""#,
            r#"{"username":"v","password":"hunter2","password":"hunter2"}"#,
            r#""hunter2""#,
        ] {
            let error = read(JSON, body.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_credentials_come_through_json_and_forms_unchanged(username in "\\PC{1,40}", password in any::<String>()) {
            prop_assume!(!password.is_empty());
            let json = serde_json::json!({ "username": username, "password": password }).to_string();
            let encode = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
            let form = format!("username={}&password={}", encode(&username), encode(&password));
            prop_assert_eq!(read(JSON, json.as_bytes()), Ok((username.clone(), password.clone())));
            prop_assert_eq!(read(FORM, form.as_bytes()), Ok((username, password)));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200), header in "\\PC{0,40}") {
            let _ = read(JSON, &body);
            let _ = read(FORM, &body);
            let _ = read(Some(header.as_bytes()), &body);
        }
    }
}
