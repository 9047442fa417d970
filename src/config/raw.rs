//! `gateway.yaml` as written: every key, its type, its default, and where its value stands.
//!
//! The only list of keys there is. The JSON Schema is derived from these types (their comments are its
//! descriptions), the check follows the schema, and the values are read into these types. A key is added
//! here when what it does exists. Also here: what two values of one section owe each other. Not here:
//! what needs rules, roles, keys or files (`snapshot`).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use super::de::At;
use super::diagnostic::{Diagnostic, Problem};
pub use super::forms::{OneOrMany, OrFalse, OrOff, Pairs, Switch};
use super::preset::Preset;
use super::recipe::Recipe;
use super::template::{ERROR_VARIABLES, LOGIN_VARIABLES, Template};
use super::value::{
    self, Address, Cidr, CookieName, DescribingHeader, Duration, ExpectedRequest, Extension, FileMode,
    HeaderName, HeaderValue, HealthPath, HttpUrl, JwksSource, ListenAddress, Method, Name, Origin, OwnPath,
    PublicKey, RoleName, Secret, SessionStore, Size, TablePrefix, UpstreamUrl, UserStore, Value,
};
pub use crate::token::Algorithm;
use crate::token::revoked::{MOST_LEEWAY, MOST_TTL};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1024;

/// The configuration of a Portcullis gateway.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "gateway.yaml", extend("required" = ["roles"]))]
pub struct Raw {
    /// A CMS that is known: fills in roles, rules, identity and more where this file says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<At<Preset>>,
    /// Where clients connect: `host:port`, `unix:path`, `systemd` (or `systemd:name`), or a list of such.
    pub listen: OneOrMany<At<ListenAddress>>,
    /// HTTPS and HTTP/2 for clients; false is plain HTTP. Unix sockets stay plain.
    pub tls: OrFalse<Tls>,
    /// Who may connect to the Unix sockets of `listen`: their mode, four octal digits.
    pub socket_mode: At<FileMode>,
    /// Where probes, metrics and reloads are served; false turns it off. Never make it public.
    pub admin: OrFalse<At<Address>>,
    /// Where load balancers ask for a decision: `host:port`, or that with how they describe a request; false turns
    /// it off. Never make it public.
    #[serde(deserialize_with = "forward_auth")]
    #[schemars(with = "OrFalse<ForwardAuthForm>", extend("default" = false))]
    pub forward_auth: OrFalse<ForwardAuth>,
    /// Threads that serve requests; `auto` is one per available core.
    pub workers: At<Workers>,
    /// The folder for what the gateway writes: its SQLite file and its keys. Relative to this file.
    pub state: At<Name>,
    /// Networks whose `X-Forwarded-*` and PROXY protocol headers are believed; `unix` is whoever connects to a Unix
    /// socket.
    pub trusted_proxies: Vec<At<Cidr>>,
    /// Whether connections to `listen` from `trusted_proxies` begin with a PROXY protocol header; with `required`
    /// every connection has to, so nobody else can connect.
    pub proxy_protocol: At<ProxyProtocol>,
    /// The CMS that allowed requests go to: a URL, or its details. Only with `forward_auth` it may be left out.
    #[serde(deserialize_with = "upstream")]
    #[schemars(with = "UpstreamForm", extend("default" = null))]
    pub upstream: Option<Upstream>,
    /// The names of the roles, lowest to highest.
    #[schemars(length(min = 1, max = 200), extend("uniqueItems" = true, "default" = null))]
    pub roles: Vec<At<RoleName>>,
    /// Who may do what; what no rule allows is refused.
    pub rules: Vec<Rule>,
    /// Cases that the rules must satisfy, tried before the file is accepted.
    pub expect: Vec<Expectation>,
    /// How paths are read.
    pub paths: Paths,
    /// The headers that tell the upstream who is asking.
    pub identity: Identity,
    /// The tokens that are issued and believed.
    pub tokens: Tokens,
    /// The login endpoint; false turns it off.
    pub login: OrFalse<Login>,
    /// The gateway's own refusals.
    pub errors: Errors,
    /// Where users are kept: `sqlite:FILE`, in `state`; or the users of the CMS, where those are read.
    #[serde(deserialize_with = "users")]
    #[schemars(with = "UsersForm", extend("default" = "sqlite:portcullis.db"))]
    pub users: UserSettings,
    /// Where logouts and other revocations are kept: `sqlite:FILE`, in `state`; it may be the users' file.
    pub sessions: At<SessionStore>,
    /// What happens to a browser's CORS preflight.
    pub cors_preflight: Preflight,
    /// The most that one client, or all together, may ask for.
    pub limits: Limits,
    /// How the gateway stops, both times from the signal on.
    pub shutdown: Shutdown,
    /// What is logged, and how.
    pub log: Log,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            preset: None,
            listen: OneOrMany(vec![at("0.0.0.0:8080")]),
            tls: OrFalse(None),
            socket_mode: at("0660"),
            admin: OrFalse(Some(at("127.0.0.1:9090"))),
            forward_auth: OrFalse(None),
            workers: At::default(),
            state: at("data"),
            trusted_proxies: Vec::new(),
            proxy_protocol: At::default(),
            upstream: None,
            roles: Vec::new(),
            rules: Vec::new(),
            expect: Vec::new(),
            paths: Paths::default(),
            identity: Identity::default(),
            tokens: Tokens::default(),
            login: OrFalse(Some(Login::default())),
            errors: Errors::default(),
            users: UserSettings::of(portcullis_db()),
            sessions: at("sqlite:portcullis.db"),
            cors_preflight: Preflight::default(),
            limits: Limits::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
        }
    }
}

/// A default that is written as the file would write it.
fn at<V: Value>(text: &str) -> At<V> {
    let value = V::parse(text).unwrap_or_else(|why| unreachable!("a default of ours {why}: {text}"));
    At::nowhere(value)
}

fn after<const MILLISECONDS: u64, const LEAST: u64, const MOST: u64>() -> At<Duration<LEAST, MOST>> {
    At::nowhere(Duration::of::<MILLISECONDS>())
}

/// What clients are served HTTPS with.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, PEM, with the intermediate ones behind it. Clients that ask for no known name get this one.
    pub cert: At<Name>,
    /// Its private key, PEM; not readable by everybody.
    pub key: At<Name>,
    /// Certificates for other names, chosen by the name that a client asks for.
    #[serde(default)]
    pub more: Vec<KeyPair>,
    /// The CA, PEM, whose certificates clients show; no other client gets in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<At<Name>>,
    /// Whether a client without a certificate gets in all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<At<ClientAuth>>,
    /// An address where plain HTTP is redirected to HTTPS, or that with the port to name.
    #[serde(default, deserialize_with = "redirect", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RedirectForm", extend("default" = null))]
    pub redirect: Option<Redirect>,
    /// For how long browsers are told to come by HTTPS alone (Strict-Transport-Security).
    #[serde(default = "no_hsts")]
    pub hsts: At<OrOff<Duration<0, { 730 * DAY }>>>,
}

fn no_hsts() -> At<OrOff<Duration<0, { 730 * DAY }>>> {
    At::nowhere(OrOff(None))
}

/// A certificate and its key.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The certificate, PEM, with the intermediate ones behind it.
    pub cert: At<Name>,
    /// Its private key, PEM; not readable by everybody.
    pub key: At<Name>,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ClientAuth {
    /// None gets in without.
    #[default]
    Required,
    /// One that is shown has to be good.
    Optional,
}

/// Where plain HTTP is redirected to HTTPS.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// Where plain HTTP comes in: `host:port`, or `systemd:name`.
    pub listen: At<ListenAddress>,
    /// The port that clients reach HTTPS at; that of `listen` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<At<u16>>,
}

/// `redirect: ADDRESS` is short for `redirect: { listen: ADDRESS }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum RedirectForm {
    #[serde(rename = "$text")]
    Listen(At<ListenAddress>),
    #[serde(rename = "$mapping")]
    Full(Box<Redirect>),
}

fn redirect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Redirect>, D::Error> {
    Ok(Some(match RedirectForm::deserialize(deserializer)? {
        RedirectForm::Full(redirect) => *redirect,
        RedirectForm::Listen(listen) => Redirect { listen, port: None },
    }))
}

/// How many threads serve requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Workers {
    /// One per available core.
    #[default]
    Auto,
    /// 1 to 1024.
    Count(u16),
}

impl JsonSchema for Workers {
    fn schema_name() -> Cow<'static, str> {
        "Workers".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": 1024 }] })
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Count(count) => serializer.serialize_u16(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WorkersVisitor;

        impl de::Visitor<'_> for WorkersVisitor {
            type Value = Workers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto or a number from 1 to 1024")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Workers, E> {
                let auto = (text == "auto").then_some(Workers::Auto);
                auto.ok_or_else(|| E::custom("expected auto or a number from 1 to 1024"))
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Workers, E> {
                let count = u16::try_from(count).ok().filter(|count| (1..=1024).contains(count));
                count.map(Workers::Count).ok_or_else(|| E::custom("expected auto or a number from 1 to 1024"))
            }
        }

        deserializer.deserialize_any(WorkersVisitor)
    }
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ProxyProtocol {
    /// None does.
    #[default]
    Off,
    /// Some may.
    Optional,
    /// All do.
    Required,
}

/// The CMS behind the gateway. Exactly one of `url` and `urls` is needed.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["url"] }, { "required": ["urls"] }]))]
pub struct Upstream {
    /// `http://host:port`, without a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<At<UpstreamUrl>>,
    /// Several such, each of which serves every request equally well: one goes to that with the fewest under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), extend("uniqueItems" = true, "default" = null))]
    pub urls: Vec<At<UpstreamUrl>>,
    /// The longest wait for a connection.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: At<Duration<10, { 5 * MINUTE }>>,
    /// The longest wait for the response's first byte.
    #[serde(default = "response_timeout")]
    pub response_timeout: At<Duration<100, { DAY }>>,
    /// How long an unused connection is kept; below what the upstream closes at.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: At<Duration<100, { HOUR }>>,
    /// The most connections to each URL at a time.
    #[serde(default = "a_thousand_connections")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_connections: At<u32>,
    /// Whether the upstream sees the client's Host header or its own name.
    #[serde(default)]
    pub host: HostHeader,
    /// A path that is asked for every few seconds: an upstream that does not answer it with 2xx or 3xx gets no
    /// requests. False asks nothing.
    #[serde(default = "no_health")]
    pub health: OrFalse<At<HealthPath>>,
}

impl Upstream {
    /// `url`, or all `urls`.
    pub fn all(&self) -> impl Iterator<Item = &At<UpstreamUrl>> {
        self.url.iter().chain(&self.urls)
    }

    /// The one URL, where there are not several.
    pub fn only(&self) -> Option<&At<UpstreamUrl>> {
        let mut all = self.all();
        all.next().filter(|_| all.next().is_none())
    }
}

fn no_health() -> OrFalse<At<HealthPath>> {
    OrFalse(None)
}

fn connect_timeout() -> At<Duration<10, { 5 * MINUTE }>> {
    after::<2_000, _, _>()
}

fn response_timeout() -> At<Duration<100, { DAY }>> {
    after::<60_000, _, _>()
}

fn idle_timeout() -> At<Duration<100, { HOUR }>> {
    after::<4_000, _, _>()
}

fn a_thousand_connections() -> At<u32> {
    At::nowhere(1024)
}

/// `upstream: URL` is short for `upstream: { url: URL }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum UpstreamForm {
    #[serde(rename = "$text")]
    Url(At<UpstreamUrl>),
    #[serde(rename = "$mapping")]
    Full(Box<Upstream>),
}

fn upstream<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Upstream>, D::Error> {
    Ok(Some(match UpstreamForm::deserialize(deserializer)? {
        UpstreamForm::Full(upstream) => *upstream,
        UpstreamForm::Url(url) => Upstream {
            url: Some(url),
            urls: Vec::new(),
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            idle_timeout: idle_timeout(),
            max_connections: a_thousand_connections(),
            host: HostHeader::default(),
            health: no_health(),
        },
    }))
}

/// Where load balancers ask for a decision, and how they say what about.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuth {
    /// Where load balancers connect: `host:port`.
    pub listen: At<Address>,
    /// Which headers describe the request: `nginx` (`X-Original-Method`, `X-Original-URI`), `traefik`
    /// (`X-Forwarded-Method`, `-Uri`, `-Host`), `envoy` (none: it asks with the request itself), or their names.
    #[serde(default)]
    pub headers: Description,
}

/// How a load balancer describes the request that it asks about.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub enum Description {
    /// As one that is known.
    #[serde(rename = "$text")]
    Known(Asker),
    /// In headers of the operator's own.
    #[serde(rename = "$mapping")]
    Own(Box<OwnDescription>),
}

impl Default for Description {
    fn default() -> Self {
        Description::Known(Asker::default())
    }
}

/// As in the file, without the names that tell the forms apart in reading.
impl Serialize for Description {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Description::Known(asker) => asker.serialize(serializer),
            Description::Own(own) => own.serialize(serializer),
        }
    }
}

/// Load balancers whose way to ask is known.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Asker {
    /// `X-Original-Method`, `X-Original-URI` and Host; it knows the answers 200, 401 and 403 alone.
    #[default]
    Nginx,
    /// `X-Forwarded-Method`, `X-Forwarded-Uri` and `X-Forwarded-Host`, as Caddy does; it hands on any answer.
    Traefik,
    /// The request itself, without its body; it hands on any answer.
    Envoy,
}

/// Headers that describe a request.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OwnDescription {
    /// The header with its method.
    pub method: At<DescribingHeader>,
    /// The header with its path and query, or its whole URL.
    pub uri: At<DescribingHeader>,
    /// The header with its Host. When left out: the Host of the load balancer's own request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<At<DescribingHeader>>,
    /// Whether the load balancer hands any answer on to the client, redirects to the login page included. If not, it
    /// gets 200, 401 and 403 alone.
    #[serde(default)]
    pub pages: bool,
}

/// `forward_auth: ADDRESS` is short for `forward_auth: { listen: ADDRESS }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum ForwardAuthForm {
    #[serde(rename = "$text")]
    Listen(At<Address>),
    #[serde(rename = "$mapping")]
    Full(Box<ForwardAuth>),
}

fn forward_auth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OrFalse<ForwardAuth>, D::Error> {
    Ok(OrFalse(OrFalse::<ForwardAuthForm>::deserialize(deserializer)?.0.map(|form| match form {
        ForwardAuthForm::Full(full) => *full,
        ForwardAuthForm::Listen(listen) => ForwardAuth { listen, headers: Description::default() },
    })))
}

/// Where users are kept, and which of their password hashes are believed beside the sound ones.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UserSettings {
    /// The store: `sqlite:FILE`, in `state`; with a `query` the CMS's own `sqlite:FILE`, `postgres://…` or
    /// `mysql://…`, which is only read, as is `htpasswd:FILE`.
    #[serde(default = "portcullis_db")]
    pub store: At<UserStore>,
    /// Instead of a store, the CMS's own login: its URL, or its details.
    #[serde(default, deserialize_with = "user_login", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "UserLoginForm", extend("default" = null))]
    pub login: Option<UserLogin>,
    /// How a user of the CMS is found: a SELECT with `:username` where the name goes, and the columns id, username,
    /// password_hash, role, and perhaps name, email, disabled and salt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<At<String>>,
    /// What `{prefix}` in `query` stands for: the beginning of the names of the CMS's tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_prefix: Option<At<TablePrefix>>,
    /// The CMS's roles to ours. When given, a role that is not listed counts for nothing; else roles have one name
    /// here and there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_map: Option<Pairs<String>>,
    /// The roles of the users of an htpasswd file, by their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Pairs<String>>,
    /// The role of a user for whom the CMS, or `roles`, names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<At<String>>,
    /// How often users of the CMS who are signed in are looked at again: one who is gone, disabled or has another
    /// role or password by then has to sign in anew.
    #[serde(default = "recheck")]
    pub recheck: At<Duration<1_000, { HOUR }>>,
    /// Whether unstretched digests (plain or salted MD5, SHA-1, {SSHA} and the like) are believed.
    #[serde(default)]
    pub weak_hashes: At<bool>,
    /// How an in-house system makes its digests, such as `md5(password + salt)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_recipe: Option<At<Recipe>>,
}

impl UserSettings {
    fn of(store: At<UserStore>) -> UserSettings {
        UserSettings {
            store,
            login: None,
            query: None,
            table_prefix: None,
            role_map: None,
            roles: None,
            role: None,
            recheck: recheck(),
            weak_hashes: At::default(),
            hash_recipe: None,
        }
    }
}

/// The CMS's own login, which says who somebody is.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UserLogin {
    /// Where name and password are sent, by POST.
    pub url: At<HttpUrl>,
    /// As what they are sent.
    #[serde(default)]
    pub format: BodyFormat,
    /// What it calls the name.
    #[serde(default = "username_name")]
    pub username_field: At<Name>,
    /// What it calls the password.
    #[serde(default = "password_name")]
    pub password_field: At<Name>,
    /// Where its JSON answer has the user's id: keys, with dots between them.
    #[serde(default = "user_id")]
    pub id: At<Name>,
    /// Where it has the user's name to log in with.
    #[serde(default = "user_username")]
    pub username: At<Name>,
    /// Where it has the name for people to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<At<Name>>,
    /// Where it has the e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<At<Name>>,
    /// Where it has the role, or a list of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<At<Name>>,
    /// The statuses that mean a wrong name or password, those of successes too; any other that is not a success is told
    /// as a failure of the CMS.
    #[serde(default = "failures")]
    #[schemars(inner(range(min = 200, max = 499)))]
    pub failures: Vec<At<u16>>,
    /// Whether its cookies are handed on to the client.
    #[serde(default)]
    pub cookies: bool,
    /// The longest wait for its whole answer.
    #[serde(default = "login_timeout")]
    pub timeout: At<Duration<100, { MINUTE }>>,
}

/// How fields are sent.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum BodyFormat {
    /// `application/json`
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`
    Form,
}

fn username_name() -> At<Name> {
    at("username")
}

fn password_name() -> At<Name> {
    at("password")
}

fn user_id() -> At<Name> {
    at("user.id")
}

fn user_username() -> At<Name> {
    at("user.username")
}

fn failures() -> Vec<At<u16>> {
    [400, 401, 403, 422].map(At::nowhere).into()
}

fn login_timeout() -> At<Duration<100, { MINUTE }>> {
    after::<5_000, _, _>()
}

/// `login: URL` is short for `login: { url: URL }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum UserLoginForm {
    #[serde(rename = "$text")]
    Url(At<HttpUrl>),
    #[serde(rename = "$mapping")]
    Full(Box<UserLogin>),
}

fn user_login<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UserLogin>, D::Error> {
    Ok(Some(match UserLoginForm::deserialize(deserializer)? {
        UserLoginForm::Full(login) => *login,
        UserLoginForm::Url(url) => UserLogin {
            url,
            format: BodyFormat::default(),
            username_field: username_name(),
            password_field: password_name(),
            id: user_id(),
            username: user_username(),
            name: None,
            email: None,
            role: None,
            failures: failures(),
            cookies: false,
            timeout: login_timeout(),
        },
    }))
}

fn recheck() -> At<Duration<1_000, { HOUR }>> {
    after::<60_000, _, _>()
}

fn portcullis_db() -> At<UserStore> {
    at("sqlite:portcullis.db")
}

/// `users: STORE` is short for `users: { store: STORE }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum UsersForm {
    #[serde(rename = "$text")]
    Store(At<UserStore>),
    #[serde(rename = "$mapping")]
    Full(Box<UserSettings>),
}

fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserSettings, D::Error> {
    Ok(match UsersForm::deserialize(deserializer)? {
        UsersForm::Full(users) => *users,
        UsersForm::Store(store) => UserSettings::of(store),
    })
}

/// Which Host header the upstream sees.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum HostHeader {
    /// The client's.
    #[default]
    Preserve,
    /// The upstream's own.
    Upstream,
}

/// One rule: which requests, and who may make them.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Literal segments, `:name` for exactly one segment, a final `/*` for everything below.
    pub path: At<String>,
    /// The methods it is for: GET, POST …, `read` (GET, HEAD, OPTIONS) or `write` (the rest). Any when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<OneOrMany<At<Method>>>,
    /// Query parameters it is for: name to value, `*`, or a prefix that ends in `/*`. Such a rule can only ask for more.
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub query: Pairs<String>,
    /// `public`, `authenticated`, a role (that one or a higher one), or `deny`.
    pub allow: At<String>,
    /// `report` only logs and counts what the rule would have answered.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a rule decides.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Mode {
    /// The rule counts.
    #[default]
    Enforce,
    /// The rule is only tried out.
    Report,
}

/// A case that the rules must satisfy.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// A method and a path, such as `GET /admin/user/5`.
    pub request: At<ExpectedRequest>,
    /// Who asks: `anonymous`, `authenticated` (a role that is not configured), or a role.
    #[serde(rename = "as")]
    pub role: At<String>,
    /// What the answer must be.
    pub is: At<Outcome>,
}

/// What a request is answered with, as far as the rules decide it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It goes to the upstream.
    Allowed,
    /// 401: somebody has to log in first.
    Unauthorized,
    /// 403: this somebody may not.
    Forbidden,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Allowed => "allowed",
            Outcome::Unauthorized => "401",
            Outcome::Forbidden => "403",
        })
    }
}

impl JsonSchema for Outcome {
    fn schema_name() -> Cow<'static, str> {
        "Outcome".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": ["allowed", 401, 403] })
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Outcome::Allowed => serializer.serialize_str("allowed"),
            Outcome::Unauthorized => serializer.serialize_u16(401),
            Outcome::Forbidden => serializer.serialize_u16(403),
        }
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        enum Form {
            #[serde(rename = "$text")]
            Word(String),
            #[serde(rename = "$integer")]
            Status(u64),
        }
        match Form::deserialize(deserializer)? {
            Form::Word(word) if word == "allowed" => Ok(Outcome::Allowed),
            Form::Status(401) => Ok(Outcome::Unauthorized),
            Form::Status(403) => Ok(Outcome::Forbidden),
            _ => Err(de::Error::custom("expected allowed, 401 or 403")),
        }
    }
}

/// How paths are read.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// A slash written as `%2F`: refused, or taken in its strictest reading.
    pub encoded_slash: EncodedSlash,
    /// Extensions of scripts that a path may go on after: with `php`, `/users.php/x` is also read as `/users.php`,
    /// and `/index.php/x` as `/x`.
    pub scripts: Vec<At<Extension>>,
}

impl Default for Paths {
    fn default() -> Self {
        Paths { encoded_slash: EncodedSlash::default(), scripts: vec![at("php")] }
    }
}

/// What becomes of a slash written as `%2F`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EncodedSlash {
    /// The request is refused.
    #[default]
    Reject,
    /// The strictest reading of it counts.
    Strict,
}

/// Names of the headers that the upstream reads; false leaves one out.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// The user's id: the token's subject.
    pub id: OrFalse<At<HeaderName>>,
    /// The user's name to log in with.
    pub user: OrFalse<At<HeaderName>>,
    /// The user's role.
    pub role: OrFalse<At<HeaderName>>,
    /// The user's address.
    pub email: OrFalse<At<HeaderName>>,
    /// The user's full name.
    pub name: OrFalse<At<HeaderName>>,
    /// A short-lived JWT for the upstream that says who is asking: a header, or its details.
    #[serde(deserialize_with = "assertion")]
    #[schemars(with = "OrFalse<AssertionForm>")]
    pub assertion: OrFalse<Assertion>,
    /// A header that lets the upstream tell the gateway from a stranger.
    pub secret: OrFalse<HeaderSecret>,
    /// Whether the client's own token goes on to the upstream.
    pub forward_token: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            id: OrFalse(Some(at("X-Auth-Id"))),
            user: OrFalse(Some(at("X-Auth-User"))),
            role: OrFalse(Some(at("X-Auth-Role"))),
            email: OrFalse(None),
            name: OrFalse(None),
            assertion: OrFalse(None),
            secret: OrFalse(None),
            forward_token: false,
        }
    }
}

/// A short-lived JWT, signed for the upstream with the key that signs tokens.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Assertion {
    /// The header's name.
    pub header: At<HeaderName>,
    /// The claim `aud`; when left out, the upstream's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<At<Name>>,
    /// How long one is valid; it is sent for half as long.
    #[serde(default = "a_minute")]
    pub ttl: At<Duration<{ 10 * SECOND }, { 10 * MINUTE }>>,
}

fn a_minute() -> At<Duration<{ 10 * SECOND }, { 10 * MINUTE }>> {
    after::<60_000, _, _>()
}

/// `assertion: HEADER` is short for `assertion: { header: HEADER }`.
#[derive(Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
enum AssertionForm {
    #[serde(rename = "$text")]
    Header(At<HeaderName>),
    #[serde(rename = "$mapping")]
    Full(Box<Assertion>),
}

fn assertion<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OrFalse<Assertion>, D::Error> {
    Ok(OrFalse(OrFalse::<AssertionForm>::deserialize(deserializer)?.0.map(|form| match form {
        AssertionForm::Full(assertion) => *assertion,
        AssertionForm::Header(header) => Assertion { header, audience: None, ttl: a_minute() },
    })))
}

/// A header with a shared secret.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderSecret {
    /// The header's name.
    pub header: At<HeaderName>,
    /// The secret, best as `${NAME}` or `${file:path}`.
    pub value: At<HeaderValue>,
}

/// The tokens that are issued and believed.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// The claim `iss`.
    pub issuer: At<Name>,
    /// The claim `aud`.
    pub audience: At<Name>,
    /// How long a token is valid.
    pub ttl: At<Duration<{ SECOND }, { MOST_TTL * SECOND }>>,
    /// How long after a login its token can be rotated or, in a cookie, renewed.
    pub max_session: At<Duration<{ SECOND }, { 3660 * DAY }>>,
    /// How long past its expiry a token is still believed, for clocks that differ.
    pub leeway: At<Duration<0, { MOST_LEEWAY * SECOND }>>,
    /// What new tokens are signed with.
    pub algorithm: At<Algorithm>,
    /// The folder of the keys, in `state`; or a secret, for HS256, HS384 and HS512.
    pub keys: Keys,
    /// How old the signing key gets before the gateway makes the next one; `off` leaves that to you. A new
    /// key signs once it has been published for 60 s, the old one verifies until its last token expires.
    pub rotate_keys_every: At<OrOff<Duration<{ HOUR }, { 366 * DAY }>>>,
    /// Other issuers whose tokens are believed.
    pub trust: Vec<Trust>,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens {
            issuer: at("portcullis"),
            audience: at("portcullis"),
            ttl: after::<3_600_000, _, _>(),
            max_session: after::<{ 7 * DAY }, _, _>(),
            leeway: after::<0, _, _>(),
            algorithm: At::nowhere(Algorithm::EdDSA),
            keys: Keys::Folder(at("keys")),
            rotate_keys_every: At::nowhere(OrOff(None)),
            trust: Vec::new(),
        }
    }
}

/// Where the signing keys are.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(untagged, inline)]
pub enum Keys {
    /// A folder of PKCS#8 files.
    #[serde(rename = "$text")]
    Folder(At<Name>),
    /// One secret.
    #[serde(rename = "$mapping")]
    Secret(KeySecret),
}

/// As in the file, without the names that tell the forms apart in reading.
impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Keys::Folder(folder) => folder.serialize(serializer),
            Keys::Secret(secret) => secret.serialize(serializer),
        }
    }
}

/// A secret to sign with.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeySecret {
    /// The secret, best as `${NAME}` or `${file:path}`.
    pub secret: At<Secret>,
}

/// Another issuer whose tokens are believed. Exactly one of `jwks`, `secret` and `public_key` is needed.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["jwks"] }, { "required": ["secret"] }, { "required": ["public_key"] }
]))]
pub struct Trust {
    /// What its claim `iss` is.
    pub issuer: At<Name>,
    /// What its claim `aud` has to hold.
    pub audience: At<Name>,
    /// Its public keys: a URL or a file, beside this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<At<JwksSource>>,
    /// The secret it shares with this gateway, for HS256, HS384 and HS512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<At<Secret>>,
    /// Its public key: PEM text or a file, beside this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<At<PublicKey>>,
    /// What it signs with. When left out: HS256 with a secret, else every algorithm with a key pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub algorithms: Option<Vec<At<Algorithm>>>,
    /// The claim that holds the role or a list of roles; dots lead into nested objects.
    #[serde(default = "role_claim")]
    pub role_claim: At<Name>,
    /// Its roles to ours. When given, a role that is not listed counts for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_map: Option<Pairs<String>>,
    /// The claim that holds the user's name.
    #[serde(default = "user_claim")]
    pub user_claim: At<Name>,
    /// What its subjects are prefixed with, so that they cannot be mistaken for local ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_prefix: Option<At<Name>>,
}

fn role_claim() -> At<Name> {
    at("role")
}

fn user_claim() -> At<Name> {
    at("sub")
}

impl Trust {
    /// The algorithms that count: those listed, or all that the kind of key can be used with.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        match &self.algorithms {
            Some(listed) => listed.iter().map(|algorithm| algorithm.value).collect(),
            None if self.secret.is_some() => vec![Algorithm::HS256],
            None => {
                vec![Algorithm::EdDSA, Algorithm::ES256, Algorithm::ES384, Algorithm::RS256, Algorithm::PS256]
            }
        }
    }
}

/// The login endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// Its path.
    pub path: At<OwnPath>,
    /// The path of the logout, which ends the token it is called with; false turns it off.
    pub logout: OrFalse<At<OwnPath>>,
    /// A path that gives a fresh token for a live one, which ends by that; false turns it off.
    pub rotate: OrFalse<At<OwnPath>>,
    /// How long after a rotation the old token gets the same new one again; later its whole session ends.
    pub rotate_grace: At<Duration<0, { 5 * MINUTE }>>,
    /// The field of the body that holds the user's name.
    pub username_field: At<Name>,
    /// The field of the body that holds the password.
    pub password_field: At<Name>,
    /// The answer: any shape, with `$token`, `$expires_in`, `$user.id`, `.username`, `.name`, `.email`, `.role`.
    #[schemars(with = "Anything", extend("x-template" = LOGIN_VARIABLES))]
    pub response: At<Template>,
    /// The cookie that carries the token for browsers: a mapping, true for its defaults, false for none.
    pub cookie: Switch<Cookie>,
    /// A login page for browsers, which needs `cookie`: true, or a mapping with the site's name.
    pub page: At<Switch<Page>>,
    /// Other sites whose pages may log in, log out and rotate (CORS).
    pub origins: Vec<At<Origin>>,
    /// Failed logins of one account from one address before each further one makes it wait twice as long.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_failures: At<u32>,
    /// The same for all accounts from one address together.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_failures_per_address: At<u32>,
}

impl Default for Login {
    fn default() -> Self {
        let user = serde_json::json!({
            "id": "$user.id", "name": "$user.name", "email": "$user.email", "role": "$user.role",
        });
        Login {
            path: at("/auth/login"),
            logout: OrFalse(Some(at("/auth/logout"))),
            rotate: OrFalse(None),
            rotate_grace: after::<10_000, _, _>(),
            username_field: at("username"),
            password_field: at("password"),
            response: At::nowhere(Template::new(serde_json::json!({ "token": "$token", "user": user }))),
            cookie: Switch(None),
            page: At::nowhere(Switch(None)),
            origins: Vec::new(),
            max_failures: At::nowhere(5),
            max_failures_per_address: At::nowhere(50),
        }
    }
}

/// The cookie that carries the token for browsers.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cookie {
    /// Its name. When left out: `__Host-portcullis_token` if it is secure, else `portcullis_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<At<CookieName>>,
    /// Whether browsers send it over HTTPS only.
    pub secure: At<bool>,
    /// Which requests of other sites' pages it goes along with.
    pub same_site: At<SameSite>,
    /// Whether a browser that is in use gets a fresh token before the old one expires.
    pub renew: bool,
}

impl Default for Cookie {
    fn default() -> Self {
        Cookie { name: None, secure: At::nowhere(true), same_site: At::default(), renew: true }
    }
}

/// The cookie's attribute `SameSite` (RFC 6265bis §5.2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SameSite {
    /// Links only.
    #[default]
    Lax,
    /// None.
    Strict,
    /// All.
    None,
}

/// The login page.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// The site's name, as people know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<At<Name>>,
}

/// The gateway's own refusals.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Errors {
    /// Their body: any shape, with `$message`, `$reason`, `$status`, `$code`, `$request_id`.
    #[schemars(with = "Anything", extend("x-template" = ERROR_VARIABLES))]
    pub body: At<Template>,
}

impl Default for Errors {
    fn default() -> Self {
        Errors { body: At::nowhere(Template::new(serde_json::json!({ "error": "$message" }))) }
    }
}

/// Any YAML value.
struct Anything;

impl JsonSchema for Anything {
    fn schema_name() -> Cow<'static, str> {
        "Anything".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

/// What happens to a CORS preflight.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Preflight {
    /// OPTIONS is judged by the rules like any other method.
    #[default]
    Reject,
    /// A true preflight goes on to the upstream, anonymous.
    Forward,
}

/// The most that is accepted.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A request's head.
    pub header_bytes: At<Size<{ 8 * KIB }, { 1024 * KIB }>>,
    /// A request's path and query.
    pub target_bytes: At<Size<64, { 64 * KIB }>>,
    /// A request's header lines.
    #[schemars(range(min = 8, max = 1000))]
    pub headers: At<u32>,
    /// How long a request's head may take.
    pub header_timeout: At<Duration<100, { 5 * MINUTE }>>,
    /// How long a connection may be idle between requests, or a body stand still.
    pub idle_timeout: At<Duration<100, { DAY }>>,
    /// A request's body; `off` is no limit.
    pub body_bytes: At<OrOff<Size<1, { 1 << 50 }>>>,
    /// A token.
    pub token_bytes: At<Size<256, { 64 * KIB }>>,
    /// Client connections at a time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: At<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_bytes: At::nowhere(Size::of::<{ 32 * KIB }>()),
            target_bytes: At::nowhere(Size::of::<{ 8 * KIB }>()),
            headers: At::nowhere(100),
            header_timeout: after::<10_000, _, _>(),
            idle_timeout: after::<75_000, _, _>(),
            body_bytes: At::nowhere(OrOff(None)),
            token_bytes: At::nowhere(Size::of::<{ 8 * KIB }>()),
            connections: At::nowhere(10_000),
        }
    }
}

/// How the gateway stops.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long it goes on serving, so that a load balancer notices.
    pub drain: At<Duration<0, { HOUR }>>,
    /// When it is gone at the latest.
    pub timeout: At<Duration<0, { HOUR }>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { drain: after::<5_000, _, _>(), timeout: after::<25_000, _, _>() }
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `auto` is text on a terminal and JSON otherwise.
    pub format: LogFormat,
    /// What is worth a line.
    pub level: LogLevel,
    /// Whether every request has a line.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: LogFormat::default(), level: LogLevel::default(), access: true }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The least that is worth a line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something may fail.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// Why it happens.
    Debug,
    /// Everything.
    Trace,
}

impl Raw {
    /// What two values of one section owe each other. A section that something was left out of is not judged.
    pub(super) fn contradictions(&self, incomplete: &BTreeSet<String>) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let whole = |section: &str| !incomplete.contains(section);
        if self.upstream.is_none()
            && self.forward_auth.0.is_none()
            && whole("upstream")
            && whole("forward_auth")
        {
            let missing = Problem::MissingKey { key: "upstream".into(), within: String::new() };
            found.push(Diagnostic::error(super::Position::in_file(1, 1), missing));
        }
        if self.proxy_protocol.value != ProxyProtocol::Off
            && self.trusted_proxies.is_empty()
            && whole("trusted_proxies")
        {
            found.push(Diagnostic::error(self.proxy_protocol.at, Problem::NobodyToBelieve));
        }
        if whole("forward_auth")
            && let OrFalse(Some(ForwardAuth { headers: Description::Own(own), .. })) = &self.forward_auth
        {
            own.contradictions(&mut found);
        }
        if whole("identity") {
            self.identity.contradictions(&mut found);
        }
        if whole("tokens") {
            self.tokens.contradictions(self.login.0.is_some(), &mut found);
        }
        if whole("login")
            && let OrFalse(Some(login)) = &self.login
        {
            login.contradictions(&mut found);
            if whole("tokens")
                && login.rotate.0.is_some()
                && self.tokens.max_session.get() < self.tokens.ttl.get()
            {
                let place = self.tokens.max_session.at.max(self.tokens.ttl.at);
                found.push(Diagnostic::error(place, Problem::SessionShorterThanToken));
            }
        }
        if whole("identity")
            && whole("tokens")
            && let OrFalse(Some(assertion)) = &self.identity.assertion
        {
            self.assertion_contradictions(assertion, &mut found);
        }
        if whole("tls")
            && let OrFalse(Some(tls)) = &self.tls
            && let (Some(client_auth), None) = (&tls.client_auth, &tls.client_ca)
        {
            found.push(Diagnostic::error(client_auth.at, Problem::ClientAuthWithoutCa));
        }
        if whole("shutdown") && self.shutdown.drain.get() > self.shutdown.timeout.get() {
            let place = self.shutdown.drain.at.max(self.shutdown.timeout.at);
            found.push(Diagnostic::error(place, Problem::DrainPastTimeout));
        }
        if whole("users") {
            let users = &self.users;
            if users.weak_hashes.value {
                let key = "weak_hashes";
                found.push(Diagnostic::warning(users.weak_hashes.at, Problem::WeakHashes { key }));
            }
            if let Some(recipe) = &users.hash_recipe {
                found.push(Diagnostic::warning(recipe.at, Problem::WeakHashes { key: "hash_recipe" }));
            }
        }
        found
    }

    /// An assertion must not be mistaken for a login token, nor help to make one.
    fn assertion_contradictions(&self, assertion: &Assertion, found: &mut Vec<Diagnostic>) {
        let tokens = &self.tokens;
        if tokens.algorithm.is_symmetric() {
            let algorithm = format!("{:?}", tokens.algorithm.value);
            let place = assertion.header.at.max(tokens.algorithm.at);
            found.push(Diagnostic::error(place, Problem::AssertionNeedsKeys { algorithm }));
        }
        let url = self.upstream.as_ref().and_then(Upstream::only).map(|url| url.to_string());
        let audience = assertion.audience.as_ref().map(|audience| audience.as_str()).or(url.as_deref());
        if audience.is_none() && (self.forward_auth.0.is_some() || self.upstream.is_some()) {
            let several = self.upstream.is_some();
            found.push(Diagnostic::error(assertion.header.at, Problem::AssertionForWhom { several }));
        }
        if audience == Some(tokens.audience.as_str()) {
            let at = assertion.audience.as_ref().map_or(assertion.header.at, |audience| audience.at);
            let audience = tokens.audience.as_str().to_owned();
            found
                .push(Diagnostic::error(at.max(tokens.audience.at), Problem::AssertionAudience { audience }));
        }
    }
}

impl Identity {
    /// Every header that is written, for whoever has to remove the client's copies.
    pub fn headers(&self) -> impl Iterator<Item = &At<HeaderName>> {
        let names = [&self.id, &self.user, &self.role, &self.email, &self.name];
        let secret = self.secret.0.as_ref().map(|secret| &secret.header);
        let assertion = self.assertion.0.as_ref().map(|assertion| &assertion.header);
        names.into_iter().filter_map(|name| name.0.as_ref()).chain(assertion).chain(secret)
    }

    fn contradictions(&self, found: &mut Vec<Diagnostic>) {
        let mut headers: Vec<_> = self.headers().collect();
        headers.sort_by_key(|header| header.at);
        for (index, header) in headers.iter().enumerate() {
            let folded = value::fold_header(header.as_str());
            if let Some(first) =
                headers[..index].iter().find(|first| value::fold_header(first.as_str()) == folded)
            {
                let (name, other) = (header.as_str().to_owned(), first.as_str().to_owned());
                found
                    .push(Diagnostic::error(header.at, Problem::SameHeader { name, other, first: first.at }));
            }
        }
    }
}

impl OwnDescription {
    fn contradictions(&self, found: &mut Vec<Diagnostic>) {
        let mut headers: Vec<_> =
            [Some(&self.method), Some(&self.uri), self.host.as_ref()].into_iter().flatten().collect();
        headers.sort_by_key(|header| header.at);
        for (index, header) in headers.iter().enumerate() {
            let folded = value::fold_header(header.as_str());
            let same = |other: &&&At<DescribingHeader>| value::fold_header(other.as_str()) == folded;
            if let Some(first) = headers[..index].iter().find(same) {
                let (name, first) = (header.as_str().to_owned(), first.at);
                found.push(Diagnostic::error(header.at, Problem::DescribedTwice { name, first }));
            }
        }
    }
}

impl Login {
    /// The paths of the endpoints that are on.
    pub fn paths(&self) -> impl Iterator<Item = &At<OwnPath>> {
        [Some(&self.path), self.logout.0.as_ref(), self.rotate.0.as_ref()].into_iter().flatten()
    }

    fn contradictions(&self, found: &mut Vec<Diagnostic>) {
        if self.username_field == self.password_field {
            let place = self.password_field.at.max(self.username_field.at);
            let name = self.username_field.as_str().into();
            found.push(Diagnostic::error(place, Problem::SameField { name }));
        }
        let paths: Vec<_> = self.paths().collect();
        for (index, path) in paths.iter().enumerate() {
            // Letter case is one of the readings, so it tells no two endpoints apart.
            let same = |other: &&&At<OwnPath>| other.as_str().eq_ignore_ascii_case(path.as_str());
            if let Some(first) = paths[..index].iter().find(same) {
                let problem = Problem::SamePath { path: path.as_str().into() };
                found.push(Diagnostic::error(path.at.max(first.at), problem));
            }
        }
        let Switch(Some(cookie)) = &self.cookie else {
            if self.page.0.is_some() {
                found.push(Diagnostic::error(self.page.at, Problem::PageWithoutCookie));
            }
            return;
        };
        if cookie.secure.value {
            return;
        }
        // Browsers drop such cookies without a word, and every login would seem to fail.
        if let Some(name) = &cookie.name
            && let Some(prefix) = SECURE_PREFIXES.iter().find(|prefix| {
                name.as_str().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            })
        {
            let what = format!("a cookie whose name begins with '{prefix}'");
            found.push(Diagnostic::error(name.at.max(cookie.secure.at), Problem::CookieNeedsSecure { what }));
        }
        if cookie.same_site.value == SameSite::None {
            let what = "'same_site: none'".to_owned();
            let place = cookie.same_site.at.max(cookie.secure.at);
            found.push(Diagnostic::error(place, Problem::CookieNeedsSecure { what }));
        }
    }
}

/// Names that browsers take from secure cookies only (RFC 6265bis §4.1.3).
const SECURE_PREFIXES: [&str; 2] = ["__Host-", "__Secure-"];

impl Tokens {
    /// `logs_in`: whether the gateway has users of its own, whom another issuer's could be taken for.
    fn contradictions(&self, logs_in: bool, found: &mut Vec<Diagnostic>) {
        let algorithm = format!("{:?}", self.algorithm.value);
        match (&self.keys, self.algorithm.is_symmetric()) {
            (Keys::Folder(folder), true) => {
                let place = self.algorithm.at.max(folder.at);
                found.push(Diagnostic::error(place, Problem::AlgorithmNeedsSecret { algorithm }));
            }
            (Keys::Secret(secret), false) => {
                let place = self.algorithm.at.max(secret.secret.at);
                found.push(Diagnostic::error(place, Problem::AlgorithmNeedsKeys { algorithm }));
            }
            _ => {}
        }
        for (index, trust) in self.trust.iter().enumerate() {
            // A token's `iss` alone says whose it is.
            let same = |other: &&Trust| other.issuer == trust.issuer;
            let own = self.issuer == trust.issuer;
            let first = self.trust[..index].iter().find(same).map(|first| first.issuer.at);
            if let Some(first) = first.or_else(|| own.then_some(self.issuer.at)) {
                let issuer = trust.issuer.as_str().to_owned();
                found.push(Diagnostic::error(trust.issuer.at, Problem::SameIssuer { issuer, first }));
            }
            if logs_in && trust.id_prefix.is_none() {
                let issuer = trust.issuer.as_str().to_owned();
                found.push(Diagnostic::warning(trust.issuer.at, Problem::NoIdPrefix { issuer }));
            }
            let source = if trust.secret.is_some() { "a secret" } else { "a public key" };
            for algorithm in trust.algorithms.iter().flatten() {
                if algorithm.is_symmetric() != trust.secret.is_some() {
                    let algorithm_name = format!("{:?}", algorithm.value);
                    let problem = Problem::AlgorithmAndSource { algorithm: algorithm_name, source };
                    found.push(Diagnostic::error(algorithm.at, problem));
                }
            }
        }
    }
}
