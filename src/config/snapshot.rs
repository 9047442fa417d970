//! From what the file says to what requests are served with: validated, immutable, whole.
//!
//! [`build`] compiles rules, keys and everything else that a request needs, so that serving one looks
//! nothing up and parses nothing; it tries the `expect` cases and reports every problem at once.
//! A snapshot is never changed. Not here: when it is made and swapped in (`reload`).

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::certificates::{Pair, PairError, Tls, read_certificates};
use super::diagnostic::nearest;
use super::keyring::NewKey;
use super::network::{DatabaseUrl, JwksSource};
use super::query::{Dialect, UserQuery};
use super::raw::{self, Pairs, Raw};
use super::recipe::HashPolicy;
use super::template::Template;
use super::value::{ListenAddress, Name, PublicKey, SessionStore, UpstreamUrl, UserStore};
use super::{At, Diagnostic, Diagnostics, Filled, Position, Problem, Reading, Source, keyring, raw::Keys};
use crate::policy::method::Methods;
use crate::policy::path::EncodedSlash;
use crate::policy::query::QueryCondition;
use crate::policy::role::{Roles, RolesError};
use crate::policy::{
    Answer, Caller, Endpoint, Mode, PathOptions, Pattern, Policy, Requirement, Route, Rule, RuleId,
    RuleProblem,
};
use crate::token::{
    Algorithm, Asserter, ClaimPath, Claims, Issuer, IssuerKind, Ring, RingKey, Signer, SigningKey, Trusted,
    Verifier, VerifyingKey, jwks, parse_jwks,
};

/// Where the public keys are published.
pub const JWKS_PATH: &str = "/.well-known/jwks.json";

/// The name of the one key that is a secret.
const SECRET_KID: &str = "shared";

/// The largest JWKS or public key file, in bytes.
const MAX_KEY_FILE: u64 = 1024 * 1024;

/// Everything that a request is served with.
#[derive(Debug)]
pub struct Snapshot {
    /// The decision.
    pub policy: Policy,
    /// Each rule in a few words, as metrics and logs name it.
    pub rule_labels: Vec<String>,
    /// Where each rule stands in the file.
    pub rule_positions: Vec<Position>,
    /// What the preset has filled in, where the file names one.
    pub filled: Option<Filled>,
    /// `expect` cases, all of which hold.
    pub expectations: usize,
    /// Checks tokens, ours and those of trusted issuers.
    pub verifier: Verifier,
    /// Our own keys.
    pub keys: OwnKeys,
    /// The public keys, as they are published.
    pub jwks: Bytes,
    /// How long past its expiry a token counts.
    pub leeway: Duration,
    /// How long a new token counts.
    pub ttl: Duration,
    /// How long after a login its tokens can be rotated, in whole seconds.
    pub max_session: Duration,
    /// Headers that tell the upstream who is asking.
    pub identity: Identity,
    /// What clients are served HTTPS with; `None`: plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Networks whose word about others is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections from there begin with a PROXY protocol header.
    pub proxy_protocol: raw::ProxyProtocol,
    /// Where requests go; `None`: load balancers forward them, and ask for a decision alone.
    pub upstream: Option<UpstreamSettings>,
    /// How load balancers ask for a decision; `None`: nobody does.
    pub forward_auth: Option<ForwardAuth>,
    /// From the request's last byte to the response's first.
    pub response_timeout: Duration,
    /// The login endpoint; `None`: off.
    pub login: Option<LoginSettings>,
    /// The body of refusals.
    pub errors: Template,
    /// Whether a true preflight goes on anonymous.
    pub forward_preflights: bool,
    /// The most that a client may ask for.
    pub limits: Limits,
    /// What is logged.
    pub log: raw::Log,
    /// How the gateway stops.
    pub shutdown: Shutdown,
    /// How often users of another system who are signed in are looked at again.
    pub recheck: Duration,
    /// What needs a restart to change.
    pub fixed: Fixed,
    /// The folder of what the gateway writes.
    pub state: PathBuf,
    /// Issuers whose keys are behind a URL.
    pub remote_keys: Vec<RemoteKeys>,
    /// Files whose change is a change of the configuration.
    pub watched: Vec<PathBuf>,
    /// The file's SHA-256, to tell which one is in force.
    pub hash: String,
}

impl Snapshot {
    /// When a session that begins or goes on at `now` is over at the latest, in Unix seconds.
    pub fn sessions_end(&self, now: u64) -> u64 {
        now.saturating_add(self.max_session.max(self.ttl).as_secs()).saturating_add(self.leeway.as_secs())
    }

    /// The gateway's own cookie, where it has one.
    pub fn cookie(&self) -> Option<&Cookie> {
        self.login.as_ref()?.cookie.as_ref()
    }

    /// The login, where it has a page.
    pub fn login_page(&self) -> Option<&LoginSettings> {
        self.login.as_ref().filter(|login| login.page.is_some())
    }
}

/// The keys that our own tokens are signed with, and what becomes of them.
#[derive(Clone, Debug)]
pub struct OwnKeys {
    /// All of them.
    pub ring: Ring,
    /// The folder that they are in; `None`: there is one, a secret of the file's own.
    pub folder: Option<PathBuf>,
    /// What new ones are for.
    pub algorithm: Algorithm,
    /// How old the last gets before the gateway makes another.
    pub rotate_every: Option<Duration>,
    /// How long the longest-lived token counts, leeway included: so long an old key is needed.
    pub longest_token: Duration,
    /// What signs with each key, in the ring's order.
    signers: Vec<Signer>,
    /// What signs assertions with each key, in the ring's order; nothing where they are off.
    asserters: Vec<Asserter>,
}

impl OwnKeys {
    /// What signs at `now` (Unix seconds). `None` only where the first key is still to be made.
    pub fn signer(&self, now: u64) -> Option<&Signer> {
        self.ring.signing(now).map(|place| &self.signers[place])
    }

    /// What signs assertions at `now` (Unix seconds). `None` where they are off.
    pub fn asserter(&self, now: u64) -> Option<&Asserter> {
        self.ring.signing(now).and_then(|place| self.asserters.get(place))
    }
}

/// `identity`, ready to be written.
#[derive(Clone, Debug)]
pub struct Identity {
    id: Option<HeaderName>,
    user: Option<HeaderName>,
    role: Option<HeaderName>,
    email: Option<HeaderName>,
    name: Option<HeaderName>,
    /// What the signed assertion goes in.
    pub assertion: Option<HeaderName>,
    /// Lets the upstream tell the gateway from a stranger.
    pub secret: Option<(HeaderName, HeaderValue)>,
    /// Whether the client's own token goes on.
    pub forward_token: bool,
}

impl Identity {
    /// Every name that the gateway alone may use.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = [&self.id, &self.user, &self.role, &self.email, &self.name].into_iter().flatten();
        claims.chain(&self.assertion).chain(self.secret.as_ref().map(|(name, _)| name))
    }

    /// What the claims of a caller put into which header.
    pub fn claims<'a>(&'a self, claims: &'a Claims) -> impl Iterator<Item = (&'a HeaderName, &'a str)> {
        [
            (&self.id, Some(claims.subject.as_str())),
            (&self.user, claims.username.as_deref()),
            (&self.role, claims.role.as_deref()),
            (&self.email, claims.email.as_deref()),
            (&self.name, claims.name.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| name.as_ref().zip(value))
    }
}

/// Where the upstream is and what may be asked of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamSettings {
    /// At least one, all alike.
    pub servers: Vec<UpstreamServer>,
    /// For one connection to be made, name resolution included.
    pub connect_timeout: Duration,
    /// How long an idle connection is used again.
    pub idle_timeout: Duration,
    /// Connections of all threads together, to each server.
    pub max_connections: usize,
    /// Whether the upstream sees its own name as Host, instead of the client's.
    pub own_host: bool,
    /// The path that tells whether a server is well, where one is asked for.
    pub health: Option<String>,
}

/// One of the servers that requests go to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamServer {
    /// As metrics and logs name it: its URL.
    pub url: String,
    /// `host:port` to connect to.
    pub address: String,
    /// Its name as a Host header has it.
    pub authority: HeaderValue,
}

/// How a load balancer says which request it asks about, and what it can do with the answer.
#[derive(Clone, Debug)]
pub struct ForwardAuth {
    /// The headers that describe the request; `None`: it asks with the request itself.
    pub headers: Option<DescribingHeaders>,
    /// Whether it hands any answer on to the client; if not, it knows 200, 401 and 403 alone.
    pub pages: bool,
}

/// The headers in which a load balancer describes a request.
#[derive(Clone, Debug)]
pub struct DescribingHeaders {
    /// Its method.
    pub method: HeaderName,
    /// Its target.
    pub uri: HeaderName,
    /// Its Host; `None`: that of the load balancer's own request.
    pub host: Option<HeaderName>,
}

/// `login`, ready to be used.
#[derive(Clone, Debug)]
pub struct LoginSettings {
    /// The field with the user's name.
    pub username_field: String,
    /// The field with the password.
    pub password_field: String,
    /// The answer.
    pub response: Template,
    /// Where the login is.
    pub path: String,
    /// Where the logout is; `None`: nowhere.
    pub logout: Option<String>,
    /// The cookie for browsers; `None`: the token is in the answer alone.
    pub cookie: Option<Cookie>,
    /// The page for browsers; `None`: there is none.
    pub page: Option<Page>,
    /// Sites whose pages may log in, log out and rotate.
    pub origins: Vec<String>,
    /// How long after a rotation the old token gets the same successor again.
    pub rotate_grace: Duration,
    /// Failures of an account from one address, after which each further one locks.
    pub max_failures: u32,
    /// The same of all accounts from one address.
    pub max_failures_per_address: u32,
}

/// `login.cookie`, ready to be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cookie {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// What follows its value and `Max-Age` in a `Set-Cookie`.
    pub attributes: &'static str,
    /// Whether browsers keep it only where they came by HTTPS.
    pub secure: bool,
    /// Whether a browser in use gets a fresh one.
    pub renew: bool,
}

/// `login.page`, ready to be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// The site's name.
    pub title: Option<String>,
}

/// `limits`; sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a head.
    pub header_bytes: usize,
    /// Of a target.
    pub target_bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// For a head, from its first byte to its last.
    pub header_timeout: Duration,
    /// Between requests, and for anything that stands still.
    pub idle_timeout: Duration,
    /// Of a request body; `None`: any.
    pub body_bytes: Option<u64>,
    /// Of all clients together.
    pub connections: usize,
}

/// `shutdown`, both from the signal on.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// How long serving goes on.
    pub drain: Duration,
    /// When the process is gone at the latest.
    pub timeout: Duration,
}

/// What a reload does not change: a difference is a warning.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fixed {
    /// Where clients connect; the paths are ready to be bound.
    pub listen: Vec<ListenAddress>,
    /// Whether TCP listeners speak TLS.
    pub tls: bool,
    /// Where plain HTTP is redirected to HTTPS.
    pub redirect: Option<ListenAddress>,
    /// Of the Unix sockets among them.
    pub socket_mode: u32,
    /// `host:port`.
    pub admin: Option<String>,
    /// `host:port`.
    pub forward_auth: Option<String>,
    /// `None`: one per core.
    pub workers: Option<usize>,
    /// Where users are.
    pub users: UserSource,
    /// Which weak password hashes of it are believed.
    pub hashes: HashPolicy,
    /// The SQLite file of the session store, perhaps the same.
    pub sessions: PathBuf,
    /// Of log lines.
    pub log_format: raw::LogFormat,
}

/// `users`: whose they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UserSource {
    /// The gateway's own SQLite file.
    Local(PathBuf),
    /// A table of the CMS.
    Table(UserTable),
    /// An htpasswd file.
    Htpasswd {
        /// Where it is.
        file: PathBuf,
        /// The roles of its users, by name.
        roles: Vec<(String, String)>,
        /// The role of all others.
        default: Option<String>,
    },
    /// The CMS's own login.
    Endpoint(Box<UserEndpoint>),
}

/// A login of the CMS's own, and how its answer is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserEndpoint {
    /// Where name and password are sent.
    pub url: String,
    /// As JSON, else as a form.
    pub json: bool,
    /// What the name is called there.
    pub username_field: String,
    /// What the password is called there.
    pub password_field: String,
    /// Where the answer has the user's id.
    pub id: ClaimPath,
    /// Where it has their name to log in with.
    pub username: ClaimPath,
    /// Where it has their name for people to read.
    pub name: Option<ClaimPath>,
    /// Where it has their e-mail address.
    pub email: Option<ClaimPath>,
    /// Where it has their role, or a list of them.
    pub role: Option<ClaimPath>,
    /// What their roles are here.
    pub roles: RoleSource,
    /// The statuses of wrong names and passwords.
    pub failures: Vec<u16>,
    /// Whether its cookies are handed on.
    pub cookies: bool,
    /// For its whole answer.
    pub timeout: Duration,
}

impl UserEndpoint {
    /// The URL without its query, which may hold a key.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.url.split(['?', '#']).next().unwrap_or_default()
    }
}

impl UserSource {
    /// The gateway's own file, where it has one.
    pub fn local(&self) -> Option<&Path> {
        match self {
            UserSource::Local(file) => Some(file),
            UserSource::Table(_) | UserSource::Htpasswd { .. } | UserSource::Endpoint(_) => None,
        }
    }
}

impl fmt::Display for UserSource {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserSource::Local(file) => file.display().fmt(f),
            UserSource::Endpoint(endpoint) => f.write_str(endpoint.shown()),
            UserSource::Htpasswd { file, .. } => write!(f, "htpasswd:{}", file.display()),
            UserSource::Table(table) => match &table.database {
                UserDatabase::Sqlite(file) => write!(f, "sqlite:{}", file.display()),
                UserDatabase::Postgres(url) | UserDatabase::MySql(url) => url.fmt(f),
            },
        }
    }
}

/// Users whom a query finds in another system's database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserTable {
    /// Where.
    pub database: UserDatabase,
    /// By what.
    pub query: UserQuery,
    /// What they may be here.
    pub roles: RoleSource,
}

/// Another system's database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UserDatabase {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(DatabaseUrl),
    /// A server, MariaDB or MySQL.
    MySql(DatabaseUrl),
}

/// What another system's roles are here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoleSource {
    /// Ours, lowest first.
    pub ranked: Vec<String>,
    /// Theirs to ours; `None`: the same names here and there.
    pub map: Option<Vec<(String, String)>>,
    /// Of a user who has none there.
    pub default: Option<String>,
}

/// An issuer whose keys are fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteKeys {
    /// The issuer's name.
    pub issuer: String,
    /// Where its keys are.
    pub url: String,
}

/// What a snapshot is made of besides the file.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The last good answer of each JWKS URL.
    pub fetched: HashMap<String, String>,
    /// What happens where no key signs.
    pub missing_key: MissingKey,
    /// Unix seconds; a new key is named by it.
    pub now: u64,
}

/// What happens where no key in the folder is for the configured algorithm.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MissingKey {
    /// It will be made at the first start: for a check.
    #[default]
    Later,
    /// It is made: at start.
    Make,
    /// The configuration is refused: a running gateway keeps the keys it has, or a folder that is empty
    /// for a moment would end every session.
    Refuse,
}

/// A snapshot and what somebody should look at.
#[derive(Debug)]
pub struct Built {
    /// Ready to serve.
    pub snapshot: Snapshot,
    /// Without errors among them.
    pub warnings: Diagnostics,
}

/// Makes a snapshot of a file that has been read.
///
/// # Errors
/// Every problem, those of reading and those found here, in the file's order.
pub fn build(reading: Reading, source: &Source, surroundings: &Surroundings) -> Result<Built, Diagnostics> {
    let Reading { raw, mut diagnostics, files, incomplete, filled } = reading;
    let Some(raw) = raw else { return Err(diagnostics) };
    let mut builder = Builder {
        raw: &raw,
        folder: &source.folder,
        found: Vec::new(),
        watched: files,
        skip_roles: incomplete.contains("roles"),
    };
    let roles = builder.roles();
    let policy = builder.policy(roles, incomplete.contains("rules"));
    let readable = !diagnostics.has_errors();
    if readable {
        builder.expectations(&policy);
    }
    // A file that cannot be read as a whole gets no key made for it.
    let keys = readable.then(|| builder.keys(surroundings)).flatten();
    let trusted = builder.trusted(surroundings);
    let users = if incomplete.contains("users") { None } else { builder.users() };
    let tls = builder.tls(surroundings.now);
    let Builder { found, watched, .. } = builder;
    diagnostics.extend(found);
    let (Some(keys), Some(users)) = (keys, users) else { return Err(diagnostics) };
    if diagnostics.has_errors() {
        return Err(diagnostics);
    }
    let snapshot = assemble(&raw, source, Compiled { policy, keys, trusted, tls, users, watched, filled });
    Ok(Built { snapshot, warnings: diagnostics })
}

/// The issuers of `trust` and those whose keys are fetched.
struct TrustedIssuers {
    issuers: Vec<Issuer>,
    remote: Vec<RemoteKeys>,
}

/// What was made of the file's sections.
struct Compiled {
    policy: Policy,
    keys: (Ring, Option<PathBuf>),
    trusted: TrustedIssuers,
    tls: Option<Tls>,
    users: UserSource,
    watched: Vec<PathBuf>,
    filled: Option<Filled>,
}

struct Builder<'a> {
    raw: &'a Raw,
    folder: &'a Path,
    found: Vec<Diagnostic>,
    watched: Vec<PathBuf>,
    skip_roles: bool,
}

impl Builder<'_> {
    fn error(&mut self, at: Position, problem: Problem) {
        self.found.push(Diagnostic::error(at, problem));
    }

    fn warn(&mut self, at: Position, problem: Problem) {
        self.found.push(Diagnostic::warning(at, problem));
    }

    fn roles(&mut self) -> Roles {
        let names = self.raw.roles.iter().map(|role| role.as_str().to_owned()).collect();
        Roles::new(names).unwrap_or_else(|error| {
            // The schema has said the same already, with positions.
            debug_assert!(matches!(
                error,
                RolesError::TooMany | RolesError::Duplicate(_) | RolesError::Reserved(_)
            ));
            Roles::default()
        })
    }

    fn requirement(&mut self, allow: &At<String>, roles: &Roles) -> Requirement {
        match allow.as_str() {
            "public" => Requirement::Public,
            "authenticated" => Requirement::Authenticated,
            "deny" => Requirement::Deny,
            name => roles.find(name).map_or(Requirement::Deny, Requirement::AtLeast),
        }
    }

    /// `words` are what may stand here besides a role.
    fn check_role(&mut self, name: &At<String>, roles: &Roles, words: &[&str]) {
        if self.skip_roles || words.contains(&name.as_str()) || roles.find(name).is_some() {
            return;
        }
        let known = roles.names().iter().map(String::as_str).chain(words.iter().copied());
        let nearest = nearest(name, known);
        self.error(name.at, Problem::UnknownRole { name: name.value.clone(), nearest });
    }

    fn policy(&mut self, roles: Roles, incomplete: bool) -> Policy {
        let raw = self.raw;
        let mut list = Vec::with_capacity(raw.rules.len());
        let mut positions = Vec::with_capacity(raw.rules.len());
        for rule in &raw.rules {
            self.check_role(&rule.allow, &roles, &crate::policy::role::RESERVED);
            let allow = self.requirement(&rule.allow, &roles);
            let pattern = Pattern::parse(&rule.path).map_err(|why| {
                self.error(rule.path.at, Problem::Pattern { path: rule.path.value.clone(), why })
            });
            let methods = match &rule.methods {
                None => Ok(Methods::any()),
                Some(listed) => {
                    for method in &listed.0 {
                        if let Some(nearest) = mistyped(method.as_str()) {
                            let name = method.as_str().to_owned();
                            self.warn(method.at, Problem::UnknownMethod { name, nearest });
                        }
                    }
                    Methods::parse(listed.0.iter().map(|method| method.as_str())).map_err(|why| {
                        let at = listed.0.first().map_or(rule.path.at, |method| method.at);
                        self.error(at, Problem::Methods { why });
                    })
                }
            };
            let query = rule.query.0.iter().map(|(name, value)| QueryCondition::new(name, value)).collect();
            let mode = match rule.mode {
                raw::Mode::Enforce => Mode::Enforce,
                raw::Mode::Report => Mode::Report,
            };
            if let (Ok(pattern), Ok(methods)) = (pattern, methods) {
                list.push(Rule { pattern, methods, query, allow, mode });
                positions.push(rule.path.at);
            }
        }
        if list.is_empty() && !incomplete && self.found.is_empty() {
            self.warn(Position::in_file(1, 1), Problem::NoRules);
        }
        let options = PathOptions {
            encoded_slash: match raw.paths.encoded_slash {
                raw::EncodedSlash::Reject => EncodedSlash::Reject,
                raw::EncodedSlash::Strict => EncodedSlash::Strict,
            },
            scripts: raw.paths.scripts.iter().map(|script| script.as_str().to_ascii_lowercase()).collect(),
        };
        let mut own = vec![(own_pattern(JWKS_PATH), Endpoint::Jwks)];
        if let Some(login) = &raw.login.0 {
            own.push((own_pattern(login.path.as_str()), Endpoint::Login));
            for (path, endpoint) in [(&login.logout, Endpoint::Logout), (&login.rotate, Endpoint::Rotate)] {
                own.extend(path.0.as_ref().map(|path| (own_pattern(path.as_str()), endpoint)));
            }
        }
        let (policy, problems) = Policy::new(roles, list, &own, options);
        let at = |rule: RuleId| positions[rule.index()];
        for problem in problems {
            match problem {
                RuleProblem::Tie { rule, other, method } => {
                    self.error(at(rule), Problem::RulesTie { other: at(other), method });
                }
                RuleProblem::CoversEndpoint { rule, .. } => {
                    let path = policy.rules()[rule.index()].pattern.as_str().to_owned();
                    self.error(at(rule), Problem::CoversEndpoint { path });
                }
                // A preset's rule makes way for the file's without a word, and what the preset's rules do to one
                // another is known: its page tells.
                RuleProblem::NeverWins { rule } | RuleProblem::RaisesNothing { rule }
                    if at(rule).preset().is_some() => {}
                RuleProblem::BodyCouldCarry { rule, laxer }
                    if at(rule).preset().is_some() && at(laxer).preset().is_some() => {}
                RuleProblem::NeverWins { rule } => self.warn(at(rule), Problem::RuleNeverWins),
                RuleProblem::RaisesNothing { rule } => self.warn(at(rule), Problem::QueryRaisesNothing),
                RuleProblem::BodyCouldCarry { rule, laxer } => {
                    self.warn(at(rule), Problem::BodyCouldCarry { laxer: at(laxer) });
                }
            }
        }
        policy
    }

    fn expectations(&mut self, policy: &Policy) {
        if self.found.iter().any(|found| found.severity == super::Severity::Error) {
            return;
        }
        for case in &self.raw.expect {
            self.check_role(&case.role, policy.roles(), &["anonymous", "authenticated"]);
            let caller = match case.role.as_str() {
                "anonymous" => Caller::Anonymous,
                "authenticated" => Caller::Authenticated(None),
                role => Caller::Authenticated(Some(role)),
            };
            let request = &case.request.value;
            let (path, query) = split_target(&request.target);
            let target = policy.target(&request.method, path, query, []);
            let found =
                target.as_ref().map_or(Answer::BadRequest, |target| policy.answer_target(target, caller));
            let expected = match case.is.value {
                raw::Outcome::Allowed => Answer::Allowed,
                raw::Outcome::Unauthorized => Answer::Unauthorized,
                raw::Outcome::Forbidden => Answer::Forbidden,
            };
            if found == expected {
                continue;
            }
            let rule = target.ok().and_then(|target| match policy.judge(&target).route {
                Route::Upstream { rule, .. } => rule,
                Route::Own(_) => None,
            });
            let rule = rule.map(|rule| self.raw.rules[rule.index()].path.at);
            let problem =
                Problem::ExpectationFailed { expected: expected.to_string(), found: found.to_string(), rule };
            self.error(case.request.at, problem);
        }
    }

    fn keys(&mut self, surroundings: &Surroundings) -> Option<(Ring, Option<PathBuf>)> {
        let tokens = &self.raw.tokens;
        let algorithm = tokens.algorithm.value;
        match &tokens.keys {
            Keys::Secret(keys) => {
                let key = SigningKey::from_secret(SECRET_KID, keys.secret.expose().as_bytes(), algorithm);
                let rotated = tokens.rotate_keys_every.0.is_some();
                if rotated {
                    let what = "a secret is not rotated by the gateway: 'rotate_keys_every' is for a folder of \
                                keys";
                    self.error(tokens.rotate_keys_every.at, Problem::Keys { what: what.to_owned() });
                }
                match key {
                    Ok(key) => {
                        let one = RingKey { key, made: None, signs_from: 0, began: 0, own: false };
                        (!rotated).then(|| (Ring::new(vec![one], algorithm), None))
                    }
                    Err(error) => {
                        self.error(keys.secret.at, Problem::Keys { what: error.to_string() });
                        None
                    }
                }
            }
            Keys::Folder(name) => {
                let folder = self.folder.join(self.raw.state.as_str()).join(name.as_str());
                self.watched.push(folder.clone());
                let at = if name.at.known().is_some() { name.at } else { self.raw.state.at };
                let now = surroundings.now;
                let ring = keyring::read(&folder, algorithm).and_then(|ring| {
                    match surroundings.missing_key {
                        MissingKey::Make if ring.signing(now).is_none() => {
                            // Nobody waits for tokens of another key, so this one need not wait either.
                            let new =
                                NewKey { kid: ring.next_kid(now), algorithm, made: now, signs_from: now };
                            let mut keys = ring.keys().to_vec();
                            keys.push(keyring::create(&folder, &new)?);
                            Ok(Ring::new(keys, algorithm))
                        }
                        MissingKey::Refuse if ring.signing(now).is_none() => {
                            Err(keyring::missing(&folder, algorithm))
                        }
                        _ => Ok(ring),
                    }
                });
                let ring = ring.map_err(|error| self.error(at, Problem::Keys { what: error.to_string() }));
                Some((ring.ok()?, Some(folder)))
            }
        }
    }

    /// `None`: what is wrong has been said.
    fn users(&mut self) -> Option<UserSource> {
        let raw = self.raw;
        let users = &raw.users;
        let a_query = "'query', which finds a user in the CMS's own table";
        let first = |map: &Option<Pairs<String>>| map.as_ref()?.0.first().map(|(name, _)| name.at);
        let recheck = users.recheck.at.known().map(|_| users.recheck.at);
        let role = users.role.as_ref().map(|role| role.at);
        let is_login = users.login.is_some();
        let is_table = users.query.is_some() && !is_login;
        let is_file = matches!(users.store.value, UserStore::Htpasswd(_)) && !is_login;
        let a_store = "a 'store', and 'login' stands in the place of one";
        let is_set = |given: bool, at: Position| (given && is_login).then_some(at);
        let is_weak = is_set(users.weak_hashes.value, users.weak_hashes.at);
        let recipe = users.hash_recipe.as_ref().and_then(|recipe| is_set(true, recipe.at));
        let store = users.store.at.known().and(is_set(true, users.store.at));
        for (at, key, fits, needs) in [
            (first(&users.role_map), "'role_map'", is_table || is_login, a_query),
            (first(&users.roles), "'roles'", is_file, "'store: htpasswd:FILE'"),
            (role, "'role'", is_table || is_file || is_login, a_query),
            (users.table_prefix.as_ref().map(|prefix| prefix.at), "'table_prefix'", is_table, a_query),
            (recheck, "'recheck'", is_table || is_file, a_query),
            (
                users.query.as_ref().map(|query| query.at),
                "'query'",
                !is_file && !is_login,
                "a database as its 'store'",
            ),
            (store, "'store'", false, "no 'login' beside it"),
            (is_weak, "'weak_hashes'", false, a_store),
            (recipe, "'hash_recipe'", false, a_store),
        ] {
            if let (Some(at), false) = (at, fits) {
                self.error(at, Problem::UsersNeed { key, needs });
            }
        }
        if let Some(login) = &users.login {
            return self.endpoint(login);
        }
        let (dialect, database) = match &users.store.value {
            UserStore::Sqlite(file) if !is_table => {
                return Some(UserSource::Local(self.folder.join(raw.state.as_str()).join(file)));
            }
            UserStore::Sqlite(file) => (Dialect::Sqlite, UserDatabase::Sqlite(self.folder.join(file))),
            UserStore::Postgres(url) => (Dialect::Postgres, UserDatabase::Postgres(url.clone())),
            UserStore::MySql(url) => (Dialect::MySql, UserDatabase::MySql(url.clone())),
            UserStore::Htpasswd(file) => {
                let file = self.folder.join(file);
                let RoleSource { default, .. } = self.role_source();
                let roles = self.checked_roles(users.roles.as_ref()).unwrap_or_default();
                if roles.is_empty() && default.is_none() {
                    let needs = "'role' or 'roles': the file says nothing about who may do what";
                    self.error(users.store.at, Problem::UsersNeed { key: "an htpasswd file", needs });
                }
                return Some(UserSource::Htpasswd { file, roles, default });
            }
        };
        let Some(query) = &users.query else {
            let key = "a database of the CMS";
            self.error(users.store.at, Problem::UsersNeed { key, needs: a_query });
            return None;
        };
        if users.store.at.known().is_none() {
            self.error(query.at, Problem::UsersNeed { key: "'query'", needs: "'store', the CMS's database" });
        }
        const PREFIX: &str = "{prefix}";
        let text = match &users.table_prefix {
            Some(prefix) if query.contains(PREFIX) => query.replace(PREFIX, prefix.as_str()),
            Some(prefix) => {
                let needs = "'{prefix}' in 'query', which it stands for";
                self.error(prefix.at, Problem::UsersNeed { key: "'table_prefix'", needs });
                return None;
            }
            None if query.contains(PREFIX) => {
                let needs = "'table_prefix' beside it";
                self.error(query.at, Problem::UsersNeed { key: "'{prefix}' in 'query'", needs });
                return None;
            }
            None => query.value.clone(),
        };
        let compiled = UserQuery::compile(&text, dialect)
            .map_err(|why| self.error(query.at, Problem::UserQuery { why }));
        let roles = self.role_source();
        Some(UserSource::Table(UserTable { database, query: compiled.ok()?, roles }))
    }

    fn endpoint(&mut self, login: &raw::UserLogin) -> Option<UserSource> {
        let raw = self.raw;
        let roles = self.role_source();
        if login.role.is_none() && roles.default.is_none() {
            let needs = "'role' in it, or beside it a 'role' for everybody";
            self.error(login.url.at, Problem::UsersNeed { key: "'login'", needs });
        }
        if let Some(rotate) = raw.login.0.as_ref().and_then(|login| login.rotate.0.as_ref()) {
            let (key, needs) =
                ("'login.rotate'", "a store of users, which are read afresh; 'users.login' has none");
            self.error(rotate.at, Problem::UsersNeed { key, needs });
        }
        let path = |name: &Option<At<Name>>| name.as_ref().map(|name| ClaimPath::new(name.as_str()));
        Some(UserSource::Endpoint(Box::new(UserEndpoint {
            url: login.url.as_str().to_owned(),
            json: login.format == raw::BodyFormat::Json,
            username_field: login.username_field.as_str().to_owned(),
            password_field: login.password_field.as_str().to_owned(),
            id: ClaimPath::new(login.id.as_str()),
            username: ClaimPath::new(login.username.as_str()),
            name: path(&login.name),
            email: path(&login.email),
            role: path(&login.role),
            roles,
            failures: login.failures.iter().map(|status| status.value).collect(),
            cookies: login.cookies,
            timeout: login.timeout.value.get(),
        })))
    }

    /// Names to roles of ours.
    fn checked_roles(&mut self, map: Option<&Pairs<String>>) -> Option<Vec<(String, String)>> {
        let names = self.raw.roles.iter().map(|role| role.as_str().to_owned()).collect();
        let roles = Roles::new(names).unwrap_or_default();
        let pairs = &map?.0;
        pairs.iter().for_each(|(_, role)| self.check_role(role, &roles, &[]));
        Some(pairs.iter().map(|(name, role)| (name.value.clone(), role.value.clone())).collect())
    }

    /// What roles of the CMS are here.
    fn role_source(&mut self) -> RoleSource {
        let raw = self.raw;
        let ranked: Vec<String> = raw.roles.iter().map(|role| role.as_str().to_owned()).collect();
        let roles = Roles::new(ranked.clone()).unwrap_or_default();
        let map = self.checked_roles(raw.users.role_map.as_ref());
        if let Some(role) = &raw.users.role {
            self.check_role(role, &roles, &[]);
        }
        RoleSource { ranked, map, default: raw.users.role.as_ref().map(|role| role.value.clone()) }
    }

    fn trusted(&mut self, surroundings: &Surroundings) -> TrustedIssuers {
        let raw = self.raw;
        let (mut issuers, mut remote) = (Vec::new(), Vec::new());
        for trust in &raw.tokens.trust {
            let allowed = trust.algorithms();
            let keys = if let Some(secret) = &trust.secret {
                let keys = allowed
                    .iter()
                    .map(|algorithm| VerifyingKey::from_secret(None, secret.expose().as_bytes(), *algorithm));
                keys.collect::<Result<Vec<_>, _>>().map_err(|error| (secret.at, error.to_string()))
            } else if let Some(key) = &trust.public_key {
                let pem = match &key.value {
                    PublicKey::Pem(pem) => Ok(pem.clone()),
                    PublicKey::File(path) => self.read_file(path),
                };
                pem.and_then(|pem| {
                    VerifyingKey::from_public_key_pem(None, &pem, &allowed).map_err(|error| error.to_string())
                })
                .map_err(|what| (key.at, what))
            } else if let Some(jwks) = &trust.jwks {
                let text = match &jwks.value {
                    JwksSource::File(path) => self.read_file(path).map(Some),
                    JwksSource::Url(url) => {
                        remote.push(RemoteKeys { issuer: trust.issuer.to_string(), url: url.clone() });
                        Ok(surroundings.fetched.get(url).cloned())
                    }
                };
                text.and_then(|text| self.read_jwks(jwks.at, text.as_deref(), &allowed))
                    .map_err(|what| (jwks.at, what))
            } else {
                // The check of the file has said that one is missing.
                Ok(Vec::new())
            };
            let role_map = trust.role_map.as_ref().map(|map| {
                for (_, role) in &map.0 {
                    let roles: Vec<String> = raw.roles.iter().map(|role| role.as_str().to_owned()).collect();
                    self.check_role(role, &Roles::new(roles).unwrap_or_default(), &[]);
                }
                map.0.iter().map(|(theirs, ours)| (theirs.value.clone(), ours.value.clone())).collect()
            });
            match keys {
                Ok(keys) => issuers.push(Issuer {
                    issuer: Arc::from(trust.issuer.as_str()),
                    audience: trust.audience.as_str().to_owned(),
                    keys,
                    kind: IssuerKind::Trusted(Trusted {
                        role_claim: Some(ClaimPath::new(trust.role_claim.as_str())),
                        role_map,
                        user_claim: ClaimPath::new(trust.user_claim.as_str()),
                        id_prefix: trust
                            .id_prefix
                            .as_ref()
                            .map_or(String::new(), |prefix| prefix.as_str().to_owned()),
                    }),
                }),
                Err((at, what)) => self.error(at, Problem::TrustedKeys { what }),
            }
        }
        TrustedIssuers { issuers, remote }
    }

    /// `None` where there is to be none, and where a problem has been found.
    fn tls(&mut self, now: u64) -> Option<Tls> {
        let settings = self.raw.tls.0.as_ref()?;
        let first = raw::KeyPair { cert: settings.cert.clone(), key: settings.key.clone() };
        let mut pairs = Vec::new();
        for pair in std::iter::once(&first).chain(&settings.more) {
            self.watched.extend([&pair.cert, &pair.key].map(|file| self.folder.join(file.as_str())));
            match Pair::read(self.folder, pair) {
                Ok(read) => {
                    // Without a clock, as in a test, nothing is said of dates.
                    if now > 0
                        && let Some(what) = read.warning(now)
                    {
                        self.warn(pair.cert.at, Problem::Certificate { what });
                    }
                    pairs.push(read);
                }
                Err(PairError::Certificate(what)) => self.error(pair.cert.at, Problem::Certificate { what }),
                Err(PairError::Key(what)) => self.error(pair.key.at, Problem::Certificate { what }),
            }
        }
        let mut client_ca = None;
        if let Some(file) = &settings.client_ca {
            let path = self.folder.join(file.as_str());
            client_ca = read_certificates(&path)
                .map_err(|what| self.error(file.at, Problem::Certificate { what }))
                .ok();
            self.watched.push(path);
        }
        let whole =
            pairs.len() == 1 + settings.more.len() && client_ca.is_some() == settings.client_ca.is_some();
        let at = settings.client_ca.as_ref().map_or(settings.cert.at, |file| file.at);
        let made = whole.then(|| Tls::new(pairs, settings, client_ca))?;
        made.map_err(|what| self.error(at, Problem::Certificate { what })).ok()
    }

    fn read_jwks(
        &mut self,
        at: Position,
        text: Option<&str>,
        allowed: &[Algorithm],
    ) -> Result<Vec<VerifyingKey>, String> {
        // Not fetched yet: its tokens are refused until it is.
        let Some(text) = text else { return Ok(Vec::new()) };
        let (keys, skipped) = parse_jwks(text, allowed).map_err(|error| error.to_string())?;
        for key in skipped {
            let name = key.kid.map_or("a key without a name".to_owned(), |kid| format!("the key '{kid}'"));
            self.warn(at, Problem::TrustedKeys { what: format!("{name} is not used: {}", key.reason) });
        }
        if keys.is_empty() {
            self.warn(at, Problem::TrustedKeys { what: "no key in it can be used".to_owned() });
        }
        Ok(keys)
    }

    fn read_file(&mut self, path: &Path) -> Result<String, String> {
        let path = self.folder.join(path);
        self.watched.push(path.clone());
        let shown = path.display();
        let metadata = fs::metadata(&path).map_err(|_| format!("the file '{shown}' is not there"))?;
        if !metadata.is_file() || metadata.len() > MAX_KEY_FILE {
            return Err(format!("'{shown}' is not a file of at most 1 MiB"));
        }
        fs::read_to_string(&path).map_err(|_| format!("the file '{shown}' cannot be read as text"))
    }
}

fn upstream_server(url: &UpstreamUrl) -> UpstreamServer {
    UpstreamServer {
        url: url.to_string(),
        address: format!("{}:{}", bracketed(&url.host), url.port),
        authority: HeaderValue::try_from(url.authority()).expect("a checked host and port are visible ASCII"),
    }
}

fn assemble(raw: &Raw, source: &Source, compiled: Compiled) -> Snapshot {
    let Compiled { policy, keys: (ring, key_folder), trusted, tls, users, watched, filled } = compiled;
    let tokens = &raw.tokens;
    let own = Issuer {
        issuer: Arc::from(tokens.issuer.as_str()),
        audience: tokens.audience.as_str().to_owned(),
        keys: ring.keys().iter().map(|one| one.key.verifying_key()).collect(),
        kind: IssuerKind::Own,
    };
    let issuers = std::iter::once(own).chain(trusted.issuers).collect();
    let leeway = tokens.leeway.value.get();
    let token_bytes = usize::try_from(raw.limits.token_bytes.value.bytes()).unwrap_or(usize::MAX);
    let ttl = tokens.ttl.value.get();
    let signer =
        |one: &RingKey| Signer::new(one.key.clone(), tokens.issuer.as_str(), tokens.audience.as_str());
    let jwks = jwks(ring.keys().iter().map(|one| &one.key));
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let limits = &raw.limits;
    let SessionStore::Sqlite(sessions) = &raw.sessions.value;
    let state = source.folder.join(raw.state.as_str());
    let upstream = raw.upstream.as_ref();
    Snapshot {
        rule_labels: policy.rules().iter().map(label).collect(),
        rule_positions: raw.rules.iter().map(|rule| rule.path.at).collect(),
        filled,
        expectations: raw.expect.len(),
        verifier: Verifier::new(issuers, leeway.as_secs(), token_bytes, policy.roles().names().to_vec()),
        keys: OwnKeys {
            signers: ring.keys().iter().map(signer).collect(),
            asserters: raw.identity.assertion.0.as_ref().map_or_else(Vec::new, |assertion| {
                let named = assertion.audience.as_ref().map(|audience| audience.as_str().to_owned());
                // Where there is neither, the file has been refused.
                let audience = named.or_else(|| Some(upstream?.only()?.to_string()));
                let audience = audience.unwrap_or_default();
                let key = |one: &RingKey| {
                    Asserter::new(one.key.clone(), tokens.issuer.as_str(), &*audience, assertion.ttl.get())
                };
                ring.keys().iter().map(key).collect()
            }),
            ring,
            folder: key_folder,
            algorithm: tokens.algorithm.value,
            rotate_every: tokens.rotate_keys_every.0.as_ref().map(|every| every.get()),
            longest_token: ttl + leeway,
        },
        jwks: Bytes::from(jwks.to_string()),
        leeway,
        ttl,
        max_session: tokens.max_session.value.get(),
        identity: identity(&raw.identity),
        tls: tls.map(Arc::new),
        trusted_proxies: raw.trusted_proxies.iter().map(|cidr| cidr.value.0).collect(),
        proxy_protocol: raw.proxy_protocol.value,
        upstream: upstream.map(|upstream| UpstreamSettings {
            servers: upstream.all().map(|url| upstream_server(url)).collect(),
            connect_timeout: upstream.connect_timeout.value.get(),
            idle_timeout: upstream.idle_timeout.value.get(),
            max_connections: upstream.max_connections.value as usize,
            own_host: upstream.host == raw::HostHeader::Upstream,
            health: upstream.health.0.as_ref().map(|path| path.as_str().to_owned()),
        }),
        response_timeout: upstream.map(|upstream| upstream.response_timeout.value.get()).unwrap_or_default(),
        forward_auth: raw.forward_auth.0.as_ref().map(|asked| forward_auth(&asked.headers)),
        login: raw.login.0.as_ref().map(|login| LoginSettings {
            username_field: login.username_field.as_str().to_owned(),
            password_field: login.password_field.as_str().to_owned(),
            response: login.response.value.clone(),
            path: login.path.as_str().to_owned(),
            logout: login.logout.0.as_ref().map(|path| path.as_str().to_owned()),
            cookie: login.cookie.0.as_ref().map(|raw| cookie(raw, !matches!(users, UserSource::Endpoint(_)))),
            page: login
                .page
                .0
                .as_ref()
                .map(|page| Page { title: page.title.as_ref().map(|title| title.as_str().to_owned()) }),
            origins: login.origins.iter().map(|origin| origin.as_str().to_owned()).collect(),
            rotate_grace: login.rotate_grace.value.get(),
            max_failures: login.max_failures.value,
            max_failures_per_address: login.max_failures_per_address.value,
        }),
        errors: raw.errors.body.value.clone(),
        forward_preflights: raw.cors_preflight == raw::Preflight::Forward,
        limits: Limits {
            header_bytes: size(limits.header_bytes.value.bytes()),
            target_bytes: size(limits.target_bytes.value.bytes()),
            headers: limits.headers.value as usize,
            header_timeout: limits.header_timeout.value.get(),
            idle_timeout: limits.idle_timeout.value.get(),
            body_bytes: limits.body_bytes.value.0.map(|size| size.bytes()),
            connections: limits.connections.value as usize,
        },
        log: raw.log,
        shutdown: Shutdown {
            drain: raw.shutdown.drain.value.get(),
            timeout: raw.shutdown.timeout.value.get(),
        },
        recheck: raw.users.recheck.value.get(),
        fixed: Fixed {
            listen: raw
                .listen
                .0
                .iter()
                .map(|address| listen_address(&address.value, &source.folder))
                .collect(),
            tls: raw.tls.0.is_some(),
            redirect: raw
                .tls
                .0
                .as_ref()
                .and_then(|tls| Some(listen_address(&tls.redirect.as_ref()?.listen.value, &source.folder))),
            socket_mode: raw.socket_mode.value.0,
            admin: raw.admin.0.as_ref().map(|address| address.value.to_string()),
            forward_auth: raw.forward_auth.0.as_ref().map(|asked| asked.listen.value.to_string()),
            workers: match raw.workers.value {
                raw::Workers::Auto => None,
                raw::Workers::Count(count) => Some(usize::from(count)),
            },
            users,
            hashes: HashPolicy {
                weak: raw.users.weak_hashes.value,
                recipe: raw.users.hash_recipe.as_ref().map(|recipe| recipe.value.clone()),
            },
            sessions: state.join(sessions),
            log_format: raw.log.format,
        },
        state,
        remote_keys: trusted.remote,
        watched,
        hash: sha256(source.text.as_bytes()),
        policy,
    }
}

/// As hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same address, with a path as it can be bound.
fn listen_address(address: &ListenAddress, folder: &Path) -> ListenAddress {
    match address {
        ListenAddress::Unix(path) => ListenAddress::Unix(folder.join(path)),
        other => other.clone(),
    }
}

fn identity(raw: &raw::Identity) -> Identity {
    let name = |name: &raw::OrFalse<At<super::value::HeaderName>>| {
        name.0.as_ref().map(|name| header_name(name.as_str()))
    };
    Identity {
        id: name(&raw.id),
        user: name(&raw.user),
        role: name(&raw.role),
        email: name(&raw.email),
        name: name(&raw.name),
        assertion: raw.assertion.0.as_ref().map(|assertion| header_name(assertion.header.as_str())),
        secret: raw.secret.0.as_ref().map(|secret| {
            let mut value = HeaderValue::from_str(secret.value.expose())
                .expect("a checked header value is a header value");
            value.set_sensitive(true);
            (header_name(secret.header.as_str()), value)
        }),
        forward_token: raw.forward_token,
    }
}

fn forward_auth(description: &raw::Description) -> ForwardAuth {
    let fixed = |method, uri, host: Option<&'static str>| DescribingHeaders {
        method: HeaderName::from_static(method),
        uri: HeaderName::from_static(uri),
        host: host.map(HeaderName::from_static),
    };
    let (headers, pages) = match description {
        raw::Description::Known(raw::Asker::Nginx) => {
            (Some(fixed("x-original-method", "x-original-uri", None)), false)
        }
        raw::Description::Known(raw::Asker::Traefik) => {
            (Some(fixed("x-forwarded-method", "x-forwarded-uri", Some("x-forwarded-host"))), true)
        }
        raw::Description::Known(raw::Asker::Envoy) => (None, true),
        raw::Description::Own(own) => {
            let headers = DescribingHeaders {
                method: header_name(own.method.as_str()),
                uri: header_name(own.uri.as_str()),
                host: own.host.as_ref().map(|host| header_name(host.as_str())),
            };
            (Some(headers), own.pages)
        }
    };
    ForwardAuth { headers, pages }
}

/// Without a name of its own, a secure cookie has one that no other host and no plain connection can set
/// (RFC 6265bis §4.1.3.2).
fn cookie(raw: &raw::Cookie, can_renew: bool) -> Cookie {
    let default = if raw.secure.value { "__Host-portcullis_token" } else { "portcullis_token" };
    Cookie {
        name: raw.name.as_ref().map_or(default, |name| name.as_str()).to_owned(),
        attributes: match (raw.same_site.value, raw.secure.value) {
            (raw::SameSite::Lax, true) => "; Path=/; HttpOnly; Secure; SameSite=Lax",
            (raw::SameSite::Lax, false) => "; Path=/; HttpOnly; SameSite=Lax",
            (raw::SameSite::Strict, true) => "; Path=/; HttpOnly; Secure; SameSite=Strict",
            (raw::SameSite::Strict, false) => "; Path=/; HttpOnly; SameSite=Strict",
            (raw::SameSite::None, _) => "; Path=/; HttpOnly; Secure; SameSite=None",
        },
        secure: raw.secure.value,
        // Whoever cannot be looked at again has to sign in again.
        renew: raw.renew && can_renew,
    }
}

fn header_name(name: &str) -> HeaderName {
    HeaderName::from_bytes(name.as_bytes()).expect("a checked header name is a header name")
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn own_pattern(path: &str) -> Pattern {
    Pattern::parse(path).expect("a path of the gateway's own is plain")
}

/// `read /admin/*`, or the path alone for a rule for every method; with the query, in full, that the rule is
/// for: two rules may differ in that alone.
fn label(rule: &Rule) -> String {
    let mut label = if rule.methods.is_any() { String::new() } else { format!("{} ", rule.methods) };
    label.push_str(rule.pattern.as_str());
    for (index, condition) in rule.query.iter().enumerate() {
        label.push(if index == 0 { '?' } else { '&' });
        label.push_str(&condition.name);
        label.push('=');
        label.push_str(&condition.wanted);
    }
    label
}

/// Path and query of a target in origin-form.
pub fn split_target(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

/// What a method that nobody has registered was probably meant to be. A rule for `DELET` leaves DELETE to whichever
/// other rule covers it.
fn mistyped(method: &str) -> Option<String> {
    const COMMON: [&str; 9] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "read", "write"];
    // Registered, or in use for long, and close to one of the common ones.
    const OTHERS: [&str; 12] = [
        "ACL", "BIND", "COPY", "LINK", "LIST", "LOCK", "MOVE", "MERGE", "PURGE", "REPORT", "UPDATE", "UNLINK",
    ];
    let known = COMMON.contains(&method) || OTHERS.contains(&method);
    if known { None } else { nearest(method, COMMON) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_method_is_told_from_one_that_is_only_rare() {
        for (method, meant) in [
            ("DELET", Some("DELETE")),
            ("GETT", Some("GET")),
            ("PSOT", Some("POST")),
            ("GET", None),
            ("write", None),
            ("PURGE", None),
            ("LINK", None),
            ("PROPFIND", None),
        ] {
            assert_eq!(mistyped(method).as_deref(), meant, "{method}");
        }
    }
}
