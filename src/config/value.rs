//! The texts of `gateway.yaml` that mean something in particular: durations, sizes, addresses, URLs, header names.
//!
//! Each is parsed once, here, into a type that cannot be wrong. The schema carries each type's name, so
//! that `check` can report a bad one together with everything else that is wrong with a file. Not here:
//! filling in `${…}` (`reference`), what needs other parts of the file (`raw`), or the rules' own language
//! (`policy`).

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::recipe::Recipe;

pub use super::network::{
    Address, Cidr, DatabaseUrl, FileMode, HttpUrl, JwksSource, ListenAddress, Origin, UNIX_PEER, UpstreamUrl,
};

/// Why a text is not what it should be. `Display` is the predicate of a sentence whose subject is the value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ValueError {
    /// The form is wrong; the rest of the sentence.
    Form(&'static str),
    /// Below the bound.
    TooSmall { least: String },
    /// Above the bound.
    TooLarge { most: String },
    /// A whole number that is not inside its bounds, and that must not be shown.
    Bounds { minimum: Option<i128>, maximum: Option<i128> },
    /// A word that means something else in rules.
    Reserved,
    /// A header that the gateway or HTTP itself needs for something else.
    TakenHeader,
    /// Right but for its letters' case.
    UpperCase { meant: String },
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueError::Form(predicate) => f.write_str(predicate),
            ValueError::TooSmall { least } => write!(f, "is less than {least}, the least allowed here"),
            ValueError::TooLarge { most } => write!(f, "is more than {most}, the most allowed here"),
            ValueError::Bounds { minimum, maximum } => match (minimum, maximum) {
                (Some(minimum), Some(maximum)) => write!(f, "is not from {minimum} to {maximum}"),
                (Some(minimum), None) => write!(f, "is less than {minimum}"),
                (_, maximum) => write!(f, "is more than {}", maximum.unwrap_or(i128::MAX)),
            },
            ValueError::Reserved => f.write_str("is a reserved word of rules and cannot be a role"),
            ValueError::TakenHeader => {
                f.write_str("is a header with a meaning of its own and cannot carry identity")
            }
            ValueError::UpperCase { meant } => write!(f, "must be in upper case, did you mean '{meant}'?"),
        }
    }
}

/// A text with a meaning: a name for the schema, and the one way to read it.
pub trait Value: Sized {
    /// The name under `x-value` in the schema.
    const NAME: &'static str;
    /// What it is, for "must be …".
    const WHAT: &'static str;

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, without the text itself, which may be secret.
    fn parse(text: &str) -> Result<Self, ValueError>;

    /// What the schema says beside the type, the name and the pattern.
    fn limits() -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}

/// Checks a text against the value type that the schema names; `Ok` for a name that is none of ours.
pub fn check(name: &str, text: &str, least: u64, most: u64) -> Result<(), ValueError> {
    fn parses<V: Value>(text: &str) -> Result<(), ValueError> {
        V::parse(text).map(drop)
    }
    match name {
        "duration" => duration_within(text, least, most).map(drop),
        "size" => size_within(text, least, most).map(drop),
        Address::NAME => parses::<Address>(text),
        ListenAddress::NAME => parses::<ListenAddress>(text),
        FileMode::NAME => parses::<FileMode>(text),
        Cidr::NAME => parses::<Cidr>(text),
        UpstreamUrl::NAME => parses::<UpstreamUrl>(text),
        Origin::NAME => parses::<Origin>(text),
        RoleName::NAME => parses::<RoleName>(text),
        TablePrefix::NAME => parses::<TablePrefix>(text),
        HeaderName::NAME => parses::<HeaderName>(text),
        Method::NAME => parses::<Method>(text),
        ExpectedRequest::NAME => parses::<ExpectedRequest>(text),
        OwnPath::NAME => parses::<OwnPath>(text),
        HealthPath::NAME => parses::<HealthPath>(text),
        UserStore::NAME => parses::<UserStore>(text),
        HttpUrl::NAME => parses::<HttpUrl>(text),
        SessionStore::NAME => parses::<SessionStore>(text),
        JwksSource::NAME => parses::<JwksSource>(text),
        Secret::NAME => parses::<Secret>(text),
        HeaderValue::NAME => parses::<HeaderValue>(text),
        PublicKey::NAME => parses::<PublicKey>(text),
        Name::NAME => parses::<Name>(text),
        Extension::NAME => parses::<Extension>(text),
        Recipe::NAME => parses::<Recipe>(text),
        CookieName::NAME => parses::<CookieName>(text),
        DescribingHeader::NAME => parses::<DescribingHeader>(text),
        _ => Ok(()),
    }
}

/// Whether texts of this value type are never shown.
pub fn is_secret(name: &str) -> bool {
    [Secret::NAME, HeaderValue::NAME, PublicKey::NAME, Recipe::NAME].contains(&name)
}

/// What a value type is called in "must be …".
pub fn what(name: &str) -> &'static str {
    match name {
        "duration" => "a duration such as 30s",
        "size" => "a size such as 64KiB",
        Address::NAME => Address::WHAT,
        ListenAddress::NAME => ListenAddress::WHAT,
        FileMode::NAME => FileMode::WHAT,
        Cidr::NAME => Cidr::WHAT,
        UpstreamUrl::NAME => UpstreamUrl::WHAT,
        Origin::NAME => Origin::WHAT,
        RoleName::NAME => RoleName::WHAT,
        TablePrefix::NAME => TablePrefix::WHAT,
        HeaderName::NAME => HeaderName::WHAT,
        Method::NAME => Method::WHAT,
        ExpectedRequest::NAME => ExpectedRequest::WHAT,
        OwnPath::NAME => OwnPath::WHAT,
        HealthPath::NAME => HealthPath::WHAT,
        UserStore::NAME => UserStore::WHAT,
        HttpUrl::NAME => HttpUrl::WHAT,
        SessionStore::NAME => SessionStore::WHAT,
        JwksSource::NAME => JwksSource::WHAT,
        PublicKey::NAME => PublicKey::WHAT,
        Extension::NAME => Extension::WHAT,
        Recipe::NAME => Recipe::WHAT,
        CookieName::NAME => CookieName::WHAT,
        DescribingHeader::NAME => DescribingHeader::WHAT,
        _ => "a text",
    }
}

/// Reads from text alone, describes itself to the schema, and writes itself as text.
macro_rules! text_value {
    ($type:ty $(, $bound:ident)*) => {
        impl<'de $(, const $bound: u64)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                <Self as Value>::parse(&text).map_err(|why| de::Error::custom(format!("a text here {why}")))
            }
        }

        impl<$(const $bound: u64),*> JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                <Self as Value>::NAME.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!({ "type": "string", "x-value": <Self as Value>::NAME });
                for (key, value) in <Self as Value>::limits() {
                    schema.insert(key, value);
                }
                schema
            }
        }

        impl<$(const $bound: u64),*> Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

pub(super) use text_value;

/// A number and its unit: `30s` is 30 and `s`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..end].parse().ok()?;
    Some((number, &text[end..]))
}

/// A duration between `LEAST` and `MOST` milliseconds, both included. Written `500ms`, `30s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Duration<const LEAST: u64, const MOST: u64>(std::time::Duration);

impl<const LEAST: u64, const MOST: u64> Duration<LEAST, MOST> {
    /// One that the program itself names, in milliseconds; held to its bounds.
    pub const fn of<const MILLISECONDS: u64>() -> Self {
        const { assert!(LEAST <= MILLISECONDS && MILLISECONDS <= MOST) };
        Duration(std::time::Duration::from_millis(MILLISECONDS))
    }

    /// As the standard library has it.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// An amount in the largest unit that leaves no rest.
fn with_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let (unit, factor) = units
        .iter()
        .find(|(_, factor)| amount > 0 && amount.is_multiple_of(*factor))
        .unwrap_or(&units[if units[0].0 == "d" { 3 } else { units.len() - 1 }]);
    format!("{}{unit}", amount / factor)
}

fn duration_within(text: &str, least: u64, most: u64) -> Result<u64, ValueError> {
    const FORM: ValueError = ValueError::Form(
        "is not a duration: write a whole number and a unit, such as 500ms, 30s, 5m, 1h or 7d",
    );
    within(text, least, most, &DURATION_UNITS, FORM)
}

fn size_within(text: &str, least: u64, most: u64) -> Result<u64, ValueError> {
    const FORM: ValueError = ValueError::Form(
        "is not a size: write a whole number and a unit, such as 512B, 64KiB, 10MiB or 1GiB",
    );
    within(text, least, most, &SIZE_UNITS, FORM)
}

fn within(
    text: &str,
    least: u64,
    most: u64,
    units: &[(&str, u64)],
    form: ValueError,
) -> Result<u64, ValueError> {
    if text.is_empty() || text.len() > 40 {
        return Err(form);
    }
    // Digits beyond 64 bits are a size all the same, only an absurd one.
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor = units.iter().find(|(unit, _)| *unit == &text[digits..]).filter(|_| digits > 0);
    let Some((_, factor)) = factor else { return Err(form) };
    let too_large = || ValueError::TooLarge { most: with_unit(most, units) };
    let amount =
        number_and_unit(text).and_then(|(number, _)| number.checked_mul(*factor)).ok_or_else(too_large)?;
    if amount < least {
        return Err(ValueError::TooSmall { least: with_unit(least, units) });
    }
    if amount > most {
        return Err(too_large());
    }
    Ok(amount)
}

impl<const LEAST: u64, const MOST: u64> Value for Duration<LEAST, MOST> {
    const NAME: &'static str = "duration";
    const WHAT: &'static str = "a duration such as 30s";

    fn parse(text: &str) -> Result<Self, ValueError> {
        duration_within(text, LEAST, MOST)
            .map(|milliseconds| Duration(std::time::Duration::from_millis(milliseconds)))
    }

    fn limits() -> serde_json::Map<String, serde_json::Value> {
        bounds(LEAST, MOST)
    }
}

impl<const LEAST: u64, const MOST: u64> fmt::Display for Duration<LEAST, MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_unit(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS))
    }
}

text_value!(Duration<LEAST, MOST>, LEAST, MOST);

fn bounds(least: u64, most: u64) -> serde_json::Map<String, serde_json::Value> {
    [("x-least".to_owned(), least.into()), ("x-most".to_owned(), most.into())].into_iter().collect()
}

/// A number of bytes between `LEAST` and `MOST`, both included. Written `512B`, `64KiB`, `10MiB`, `1GiB`, `1TiB`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Size<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Size<LEAST, MOST> {
    /// One that the program itself names, in bytes; held to its bounds.
    pub const fn of<const BYTES: u64>() -> Self {
        const { assert!(LEAST <= BYTES && BYTES <= MOST) };
        Size(BYTES)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl<const LEAST: u64, const MOST: u64> Value for Size<LEAST, MOST> {
    const NAME: &'static str = "size";
    const WHAT: &'static str = "a size such as 64KiB";

    fn parse(text: &str) -> Result<Self, ValueError> {
        size_within(text, LEAST, MOST).map(Size)
    }

    fn limits() -> serde_json::Map<String, serde_json::Value> {
        bounds(LEAST, MOST)
    }
}

impl<const LEAST: u64, const MOST: u64> fmt::Display for Size<LEAST, MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_unit(self.0, &SIZE_UNITS))
    }
}

text_value!(Size<LEAST, MOST>, LEAST, MOST);

/// Wraps a checked text.
macro_rules! checked_text {
    ($(#[$meta:meta])* $name:ident, $schema:literal, $what:literal, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(String);

        impl $name {
            /// As in the file.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Value for $name {
            const NAME: &'static str = $schema;
            const WHAT: &'static str = $what;

            fn parse(text: &str) -> Result<Self, ValueError> {
                let check: fn(&str) -> Result<(), ValueError> = $check;
                check(text).map(|()| $name(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        text_value!($name);
    };
}

fn printable(text: &str) -> bool {
    text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

checked_text!(
    /// The name of a role. It goes into a header as it is, so printable ASCII without blanks at its ends.
    RoleName, "role-name", "a role's name", |text| {
        if ["public", "authenticated", "deny", "anonymous"].contains(&text) {
            return Err(ValueError::Reserved);
        }
        if text.is_empty() || text.len() > 128 || text.trim() != text || !printable(text) {
            return Err(ValueError::Form(
                "is not a role's name: 1 to 128 printable ASCII characters, no blank at either end",
            ));
        }
        Ok(())
    }
);

checked_text!(
    /// What the names of a CMS's tables begin with. It becomes a part of a query, so letters, digits and `_` alone.
    TablePrefix, "table-prefix", "the beginning of table names", |text| {
        if text.len() > 64 || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(ValueError::Form("cannot begin a table's name: at most 64 letters, digits and '_'"));
        }
        Ok(())
    }
);

checked_text!(
    /// A header's name that may carry identity: valid (RFC 9110 §5.1) and with no meaning of its own.
    HeaderName, "header-name", "a header's name", |text| {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > 128 || !text.bytes().all(token) {
            return Err(ValueError::Form("is not a header's name: letters, digits and dashes"));
        }
        let folded = fold_header(text);
        let taken = [
            "accept", "accept-encoding", "authorization", "connection", "content-encoding", "content-length",
            "content-type", "cookie", "date", "expect", "forwarded", "host", "http2-settings", "keep-alive", "origin",
            "proxy", "proxy-authenticate", "proxy-authorization", "proxy-connection", "range", "referer", "set-cookie",
            "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent", "via",
            "x-http-method", "x-http-method-override", "x-method-override", "x-middleware-subrequest",
            "x-original-method", "x-original-uri", "x-original-url", "x-override-url", "x-real-ip", "x-request-id",
            "x-rewrite-uri", "x-rewrite-url",
        ];
        let families = ["x-forwarded-", "sec-", "if-"];
        if taken.contains(&folded.as_str()) || families.iter().any(|family| folded.starts_with(family)) {
            return Err(ValueError::TakenHeader);
        }
        if !folded.bytes().any(|b| b.is_ascii_alphanumeric()) {
            return Err(ValueError::Form("is not a header's name: letters, digits and dashes"));
        }
        Ok(())
    }
);

checked_text!(
    /// The name of a header in which a load balancer describes a request: one that has no meaning in HTTP itself and
    /// is not of those by which a proxy, or a client, says something else.
    DescribingHeader, "describing-header", "a header's name that begins with X-", |text| {
        let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let folded = fold_header(text);
        if !(3..=128).contains(&text.len()) || !text.bytes().all(token) || !folded.starts_with("x-") {
            return Err(ValueError::Form("is not a header's name that begins with X-: letters, digits and dashes"));
        }
        let taken = [
            "x-http-method", "x-http-method-override", "x-method-override", "x-real-ip", "x-request-id",
            "x-middleware-subrequest", "x-forwarded-for", "x-forwarded-proto",
        ];
        if taken.contains(&folded.as_str()) { Err(ValueError::TakenHeader) } else { Ok(()) }
    }
);

/// A header's name as the sloppiest upstream reads it: lower case, every byte that is no letter or digit a dash.
pub fn fold_header(name: &str) -> String {
    name.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() as char } else { '-' })
        .collect()
}

checked_text!(
    /// What a rule's `methods` may list: an upper-case method (RFC 9110 §9.1), or `read` or `write`.
    Method, "method", "a method such as GET, or read or write", |text| {
        if ["read", "write"].contains(&text) {
            return Ok(());
        }
        method(text)
    }
);

fn method(text: &str) -> Result<(), ValueError> {
    if ["CONNECT", "TRACE"].contains(&text) {
        return Err(ValueError::Form("is refused before any rule is asked"));
    }
    if text.is_empty()
        || text.len() > 32
        || !text.bytes().all(|b| b.is_ascii_alphabetic() || b"-_".contains(&b))
    {
        return Err(ValueError::Form(
            "is not a method: write it as GET, POST, PUT, PATCH, DELETE, or read or write",
        ));
    }
    if ["read", "write"].iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return Err(ValueError::Form("must be in lower case"));
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(ValueError::UpperCase { meant: text.to_ascii_uppercase() });
    }
    Ok(())
}

/// The `request` of an expectation: a method and a path, perhaps with a query, one blank between them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpectedRequest {
    /// Upper-case.
    pub method: String,
    /// From its first slash on; whether it is a valid path is for the rules to say.
    pub target: String,
}

impl Value for ExpectedRequest {
    const NAME: &'static str = "request";
    const WHAT: &'static str = "a method and a path, such as GET /admin/user/5";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError =
            ValueError::Form("is not a request: write a method and a path, such as GET /admin/user/5");
        let (method, target) = text.split_once(' ').ok_or(FORM)?;
        let target = target.trim_start_matches(' ');
        self::method(method).map_err(|_| FORM)?;
        if !target.starts_with('/') || target.contains(char::is_whitespace) {
            return Err(FORM);
        }
        Ok(ExpectedRequest { method: method.to_owned(), target: target.to_owned() })
    }
}

impl fmt::Display for ExpectedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)
    }
}

text_value!(ExpectedRequest);

checked_text!(
    /// A path that belongs to the gateway: plain, so that it has one reading.
    OwnPath, "own-path", "a path such as /auth/login", |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_~".contains(&b);
        let segment = |segment: &str| {
            segment.bytes().all(|b| plain(b) || b == b'.') && segment.bytes().any(plain) && !segment.ends_with('.')
        };
        if text.eq_ignore_ascii_case(super::snapshot::JWKS_PATH) {
            return Err(ValueError::Form("is where the public keys are"));
        }
        match text.strip_prefix('/') {
            Some(rest) if text.len() <= 1024 && rest.split('/').all(segment) => Ok(()),
            _ => Err(ValueError::Form("is not a plain path: a slash, then letters, digits and -._~ between slashes")),
        }
    }
);

checked_text!(
    /// The path and query that an upstream is asked for to see whether it is well.
    HealthPath, "health-path", "a path such as /healthz", |text| {
        let whole = text.starts_with('/') && text.len() <= 1024;
        match whole && text.bytes().all(|b| b.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&b)) {
            true => Ok(()),
            false => Err(ValueError::Form("is not a path: a slash and what follows the host in a URL, such as /healthz")),
        }
    }
);

/// Where users are kept. A relative file of the gateway's own is in `state`, one that it only reads beside the
/// configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UserStore {
    /// An SQLite file: the gateway's own, or, with a query, another system's.
    Sqlite(PathBuf),
    /// Another system's PostgreSQL database.
    Postgres(DatabaseUrl),
    /// Another system's MySQL or MariaDB database.
    MySql(DatabaseUrl),
    /// An htpasswd file.
    Htpasswd(PathBuf),
}

impl Value for UserStore {
    const NAME: &'static str = "user-store";
    const WHAT: &'static str = "a store such as sqlite:portcullis.db";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: &str = "is not a user store: write sqlite:FILE, such as sqlite:portcullis.db, or \
                            postgres://… or mysql://… with a 'query', or htpasswd:FILE";
        if let Some(file) = text.strip_prefix("htpasswd:") {
            let is_name = !file.is_empty() && !file.contains('\0');
            return is_name.then(|| UserStore::Htpasswd(PathBuf::from(file))).ok_or(ValueError::Form(FORM));
        }
        match text.split_once("://").map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => DatabaseUrl::parse(text).map(UserStore::Postgres),
            Some("mysql" | "mariadb") => DatabaseUrl::parse(text).map(UserStore::MySql),
            _ => sqlite_file(text, FORM).map(UserStore::Sqlite),
        }
    }
}

impl fmt::Display for UserStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserStore::Sqlite(file) => write!(f, "sqlite:{}", file.display()),
            UserStore::Htpasswd(file) => write!(f, "htpasswd:{}", file.display()),
            UserStore::Postgres(url) | UserStore::MySql(url) => url.fmt(f),
        }
    }
}

text_value!(UserStore);

/// The file of `sqlite:FILE`; `form` says what else it should have been.
fn sqlite_file(text: &str, form: &'static str) -> Result<PathBuf, ValueError> {
    match text.strip_prefix("sqlite:") {
        Some(file) if file.contains('?') => Err(ValueError::Form("must not hold parameters after a '?'")),
        Some(file) if !file.is_empty() && !file.starts_with("//") && !file.contains('\0') => {
            Ok(PathBuf::from(file))
        }
        _ => Err(ValueError::Form(form)),
    }
}

/// Where revocations are kept: `sqlite:FILE`, a relative file being in `state`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SessionStore {
    /// An SQLite file; it may be that of the users.
    Sqlite(PathBuf),
}

impl Value for SessionStore {
    const NAME: &'static str = "session-store";
    const WHAT: &'static str = "a store such as sqlite:portcullis.db";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: &str = "is not a session store: write sqlite:FILE, such as sqlite:portcullis.db";
        sqlite_file(text, FORM).map(SessionStore::Sqlite)
    }
}

impl fmt::Display for SessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionStore::Sqlite(file) = self;
        write!(f, "sqlite:{}", file.display())
    }
}

text_value!(SessionStore);

checked_text!(
    /// A name that must not be empty and goes into a token, a header or a form: no control characters.
    Name, "name", "a text", |text| {
        if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
            return Err(ValueError::Form("must be 1 to 1024 bytes without control characters"));
        }
        Ok(())
    }
);

checked_text!(
    /// A cookie's name (RFC 6265 §4.1.1), of bytes that no upstream reads as others.
    CookieName, "cookie-name", "a cookie's name", |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(ValueError::Form("is not a cookie's name: 1 to 64 letters, digits, '-' and '_'"));
        }
        Ok(())
    }
);

checked_text!(
    /// A file name's extension, without its dot.
    Extension, "extension", "a file name's extension", |text| {
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(ValueError::Form("is not a file name's extension: letters and digits, without the dot"));
        }
        Ok(())
    }
);

/// A public key: PEM text, or a file beside the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    /// The text from `-----BEGIN PUBLIC KEY-----` on (RFC 7468 §13).
    Pem(String),
    /// As written.
    File(PathBuf),
}

impl Value for PublicKey {
    const NAME: &'static str = "public-key";
    const WHAT: &'static str = "a public key in PEM form or a file";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(ValueError::Form("holds a private key; give the public one"));
        }
        if text.contains("-----BEGIN ") {
            return Ok(PublicKey::Pem(text.to_owned()));
        }
        if text.is_empty() || text.contains(['\0', '\n']) {
            return Err(ValueError::Form("is neither a public key in PEM form nor a file's name"));
        }
        Ok(PublicKey::File(PathBuf::from(text)))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublicKey::Pem(pem) => f.write_str(pem),
            PublicKey::File(file) => write!(f, "{}", file.display()),
        }
    }
}

text_value!(PublicKey);

/// A secret that is sent as a header's value: visible ASCII, so that no server reads it differently.
#[derive(Clone, Eq, PartialEq)]
pub struct HeaderValue(String);

impl HeaderValue {
    /// The secret itself, for the code that has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Value for HeaderValue {
    const NAME: &'static str = "header-secret";
    const WHAT: &'static str = "a text";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::Form("must not be empty"));
        }
        if text.len() > 4096 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ValueError::Form(
                "must be at most 4096 characters of ASCII without blanks to be sent as a header",
            ));
        }
        Ok(HeaderValue(text.to_owned()))
    }
}

text_value!(HeaderValue);

/// A secret: never shown, not by `Debug` either.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for the code that has to use it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Value for Secret {
    const NAME: &'static str = "secret";
    const WHAT: &'static str = "a text";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::Form("must not be empty"));
        }
        Ok(Secret(text.to_owned()))
    }
}

text_value!(Secret);
