//! `gateway.yaml`: from text to checked values, or to every problem it has.
//!
//! Text becomes a tree with positions (`yaml`); the tree is checked against the schema that is derived
//! from the raw types, its references filled in on the way (`check`, `schema`, `value`, `reference`); what is sound is
//! read into the raw types (`de`, `raw`). All problems are found in one go and told in the file's order
//! (`diagnostic`). Not here: rules, keys and everything else that the values stand for (`snapshot`).

pub mod certificates;
mod check;
mod de;
pub mod diagnostic;
mod forms;
pub mod keyring;
mod network;
pub mod preset;
pub mod query;
pub mod raw;
pub mod recipe;
mod reference;
pub mod reload;
mod schema;
pub mod snapshot;
pub mod template;
pub mod value;
pub mod yaml;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

pub use diagnostic::{Diagnostic, Diagnostics, Origin, Position, Problem, Severity};
pub use preset::{Filled, Preset};
pub use raw::{At, Raw};
pub use schema::json_schema;

/// A configuration file's text and where it came from.
#[derive(Clone)]
pub struct Source {
    /// As given with `--config`; messages begin with it.
    pub name: String,
    /// What the file holds.
    pub text: String,
    /// What relative paths are relative to.
    pub folder: PathBuf,
}

/// Without the text, which may hold secrets.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A file without errors.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub raw: Raw,
    /// Every file that a `${file:…}` named, for watching.
    pub files: Vec<PathBuf>,
    /// What somebody should look at.
    pub warnings: Diagnostics,
}

/// What could be read of a file, sound or not.
#[derive(Debug)]
pub struct Reading {
    /// What it says where nothing is wrong; a part with a problem is left out of it, or has its default.
    /// `None` when the text as a whole cannot be read.
    pub raw: Option<Raw>,
    /// Every problem and warning.
    pub diagnostics: Diagnostics,
    /// Every file that a `${file:…}` named, there or not, for watching.
    pub files: Vec<PathBuf>,
    /// Top-level keys that something was left out of: what `raw` holds there is not what the file says.
    pub incomplete: BTreeSet<String>,
    /// What its preset has filled in, where it names one.
    pub filled: Option<Filled>,
}

/// Reads a file as far as it goes. For whoever has more to check and wants to report everything at once.
///
/// `env` is the environment that `${NAME}` is looked up in; files of `${file:…}` are read.
pub fn read(source: &Source, env: &dyn Fn(&str) -> Option<String>) -> Reading {
    let mut tree = match yaml::parse(&source.text) {
        Ok(tree) => tree,
        Err(diagnostic) => {
            return Reading {
                raw: None,
                diagnostics: Diagnostics::new(vec![*diagnostic]),
                files: Vec::new(),
                incomplete: BTreeSet::new(),
                filled: None,
            };
        }
    };
    let mut lookup = reference::Lookup { folder: &source.folder, env, files: Vec::new() };
    // Before the check, which sees one tree: to it, what the preset says is as good as written. A name that
    // is none, or that a reference fails to give, is the check's to report.
    let named = preset::named_in(&tree).map(str::to_owned);
    let named = named.and_then(|named| match lookup.interpolate(&named, reference::Surroundings::Plain) {
        Ok(other) => Some(other.unwrap_or(named)),
        Err(_) => None,
    });
    let filled = named.and_then(|named| preset::fill_in(&mut tree, &named));
    let mut check = check::Check::new(diagnostic::lines(&source.text).collect(), lookup);
    let readable = check.root(&mut tree, schema::root());
    let raw = readable.then(|| Raw::deserialize(&tree)).and_then(|raw| {
        raw.map_err(|misfit| {
            check.found.push(Diagnostic::error(misfit.at, Problem::Internal { what: misfit.what }))
        })
        .ok()
    });
    if let Some(raw) = &raw {
        check.found.extend(raw.contradictions(&check.incomplete));
    }
    Reading {
        raw,
        diagnostics: Diagnostics::new(check.found),
        files: check.lookup.files,
        incomplete: check.incomplete,
        filled,
    }
}

/// Reads a file, or says everything that is wrong with it.
///
/// # Errors
/// Every problem of the file, in its order; the warnings among them.
pub fn load(source: &Source, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
    let Reading { raw, diagnostics, files, .. } = read(source, env);
    match raw {
        Some(raw) if !diagnostics.has_errors() => Ok(Loaded { raw, files, warnings: diagnostics }),
        _ => Err(diagnostics),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "gateway.yaml".into(), text: text.into(), folder: "/nonexistent".into() }
    }

    fn environment(name: &str) -> Option<String> {
        match name {
            "UPSTREAM" => Some("http://cms:3000".into()),
            "GATEWAY_SECRET" => Some("from-the-environment".into()),
            "JWT_SECRET" => Some("a secret of at least thirty-two bytes".into()),
            "MAX" => Some("2048".into()),
            "HUGE" => Some("99999999".into()),
            "NO" => Some("false".into()),
            "DOLLAR" => Some("$token".into()),
            _ => None,
        }
    }

    /// Each diagnostic as `line:column: sentence`.
    fn messages(text: &str) -> Vec<String> {
        read(&source(text), &environment)
            .diagnostics
            .iter()
            .map(|diagnostic| {
                let place = diagnostic.at.map_or("-".into(), |at| format!("{}:{}", at.line, at.column));
                let warning = if diagnostic.severity == Severity::Warning { "warning: " } else { "" };
                format!("{place}: {warning}{}", diagnostic.problem)
            })
            .collect()
    }

    /// A section after a sound head of two lines, so that it begins in line 3.
    fn with_head(section: &str) -> String {
        format!("upstream: http://cms:3000\nroles: [Viewer, Editor]\n{section}")
    }

    fn loaded(text: &str) -> Loaded {
        load(&source(text), &environment)
            .unwrap_or_else(|found| panic!("{}", found.render(&source(text), false)))
    }

    #[test]
    fn the_smallest_file_has_a_default_for_everything_else() {
        let text = "listen: 0.0.0.0:8080\nupstream: http://127.0.0.1:3000\nroles: [Viewer, Editor, SuperAdmin]\nrules:\n  \
                    - { path: /admin/schema/*,  allow: SuperAdmin }\n  - { path: /admin/user/:id,  methods: [GET], allow: Viewer }\n";
        let Loaded { raw, files, warnings } = loaded(text);
        assert!(files.is_empty() && warnings.is_empty());
        assert_eq!(raw.listen.0[0].to_string(), "0.0.0.0:8080");
        let upstream = raw.upstream.expect("the file names one");
        let url = upstream.only().expect("it is one");
        assert_eq!(
            (url.to_string().as_str(), upstream.max_connections.value),
            ("http://127.0.0.1:3000", 1024)
        );
        assert_eq!(url.at, Position::in_file(2, 11));
        assert_eq!(raw.rules[1].allow.at, Position::in_file(6, 54));
        assert_eq!(
            raw.rules[1].methods.as_ref().map(|methods| methods.0[0].as_str().to_owned()),
            Some("GET".into())
        );
        assert_eq!(raw.tokens.ttl.get(), std::time::Duration::from_secs(3600));
        assert_eq!(raw.limits.header_bytes.bytes(), 32 * 1024);
        assert_eq!(raw.login.0.map(|login| login.path.to_string()), Some("/auth/login".into()));
        assert_eq!(raw.identity.headers().map(|name| name.as_str().to_owned()).collect::<Vec<_>>().len(), 3);
    }

    #[test]
    fn every_key_can_be_written_with_its_default() {
        let text = r#"
listen: [0.0.0.0:8080, "[::]:8080"]
admin: false
workers: 4
state: data
trusted_proxies: [10.0.0.0/8, "::1"]
upstream: { url: http://127.0.0.1:3000, connect_timeout: 2s, response_timeout: 60s, idle_timeout: 4s, max_connections: 1024, host: upstream }
roles: [Viewer, Editor, SuperAdmin]
rules:
  - { path: "/", methods: read, query: { rest_route: /wp/v2/*, _method: "*" }, allow: public, mode: report }
expect: [ { request: GET /admin/user/5, as: Viewer, is: allowed }, { request: DELETE /x, as: Editor, is: 403 }, { request: GET /y, as: anonymous, is: 401 } ]
paths: { encoded_slash: strict, scripts: [php] }
identity: { id: X-Auth-Id, user: X-Auth-User, role: X-Auth-Role, email: X-Auth-Email, name: false, secret: { header: X-Gateway-Secret, value: ${GATEWAY_SECRET} }, forward_token: true }
tokens:
  issuer: portcullis
  audience: portcullis
  ttl: 1h
  leeway: 5m
  algorithm: HS256
  keys: { secret: ${JWT_SECRET} }
  trust:
    - { issuer: a, audience: b, jwks: https://id.example.org/jwks, algorithms: [RS256], role_claim: realm_access.roles, role_map: { admin: Editor }, user_claim: email, id_prefix: "a:" }
    - { issuer: c, audience: b, secret: ${JWT_SECRET} }
login: { path: /api/auth/login, username_field: user, password_field: pass, response: { data: { token: $token, text: "id-${user.id}" } }, origins: [https://app.example.org] }
errors: { body: { error: $message, code: $code } }
users: sqlite:portcullis.db
cors_preflight: forward
limits: { header_bytes: 32KiB, target_bytes: 8KiB, headers: 100, header_timeout: 10s, idle_timeout: 75s, body_bytes: off, token_bytes: 8KiB, connections: 10000 }
shutdown: { drain: 5s, timeout: 25s }
log: { format: json, level: debug, access: false }
"#;
        let raw = loaded(text).raw;
        assert_eq!(
            raw.expect.iter().map(|case| case.is.to_string()).collect::<Vec<_>>(),
            ["allowed", "403", "401"]
        );
        assert_eq!(
            raw.identity.secret.0.as_ref().map(|secret| secret.value.expose()),
            Some("from-the-environment")
        );
        assert_eq!(raw.rules[0].query.0[1].0.value, "_method");
        assert_eq!(raw.tokens.trust[1].algorithms(), [raw::Algorithm::HS256]);
        assert_eq!(raw.workers.value, raw::Workers::Count(4));
        assert!(raw.admin.0.is_none());
        assert!(
            !format!("{raw:?}").contains("from-the-environment")
                && !format!("{raw:?}").contains("thirty-two")
        );
    }

    #[test]
    fn every_mistake_has_a_sentence_and_a_place() {
        let mut wrong = Vec::new();
        for (section, expected) in [
            // Keys.
            ("ruels: []", "3:1: unknown key 'ruels', did you mean 'rules'?"),
            ("drain: 5s", "3:1: unknown key 'drain'; it belongs in 'shutdown'"),
            ("log: { formt: json }", "3:8: unknown key 'formt', did you mean 'format'?"),
            ("log: { colour: true }", "3:8: unknown key 'colour'; known here: format, level, access"),
            (
                "rules: [{ path: /a, alow: Viewer, allow: Viewer }]",
                "3:21: unknown key 'alow', did you mean 'allow'?",
            ),
            ("roles: [A]", "3:1: the key 'roles' stands here a second time, first in line 2"),
            (
                "log: { level: info, level: warn }",
                "3:21: the key 'level' stands here a second time, first in line 3",
            ),
            ("rules: [{ path: /a }]", "3:9: the key 'allow' is missing in 'rules'"),
            (
                "xyzzy: { cert: a, key: b }",
                "3:1: unknown key 'xyzzy'; known here: preset, listen, tls, socket_mode, admin, forward_auth, workers, state, trusted_proxies, proxy_protocol, upstream, roles, rules, expect, paths, identity, tokens, login, errors, users, sessions, cors_preflight, limits, shutdown, log",
            ),
            // Load balancers.
            (
                "proxy_protocol: required",
                "3:17: a PROXY protocol header is believed from 'trusted_proxies' alone: list your load balancer there",
            ),
            (
                "proxy_protocol: yes",
                "3:17: 'proxy_protocol' cannot be 'yes'; it must be off, optional or required",
            ),
            ("forward_auth: { headers: nginx }", "3:15: the key 'listen' is missing in 'forward_auth'"),
            (
                "forward_auth: { listen: a:1, headers: ngnix }",
                "3:39: 'forward_auth.headers' cannot be 'ngnix', did you mean 'nginx'?",
            ),
            (
                "forward_auth: { listen: a:1, headers: { method: X-Ask, uri: X_Ask } }",
                "3:61: 'forward_auth.headers.uri': 'X_Ask' is not a header's name that begins with X-: letters, digits and dashes",
            ),
            (
                "forward_auth: { listen: a:1, headers: { method: X-Ask, uri: x-ask } }",
                "3:61: the header 'x-ask' is already that of line 3: method, uri and host need one each",
            ),
            // Kinds.
            ("rules: {}", "3:8: 'rules' must be a list, not a mapping"),
            ("rules:", "3:6: 'rules' must be a list, not nothing; give it a value or leave the key out"),
            (
                "listen: 8080",
                "3:9: 'listen' must be an address such as 0.0.0.0:8080 or unix:/run/portcullis.sock or a list, not a number",
            ),
            ("log: { access: yes }", "3:16: 'log.access' must be true or false, not a text"),
            (
                "tokens: { issuer: 5 }",
                "3:19: 'tokens.issuer' must be a text, not a number; write it in quotes",
            ),
            (
                "tokens: { ttl: 60 }",
                "3:16: 'tokens.ttl' must be a duration such as 30s, not a number; it needs a unit: ms, s, m, h or d",
            ),
            (
                "limits: { token_bytes: 8192 }",
                "3:24: 'limits.token_bytes' must be a size such as 64KiB, not a number; it needs a unit: B, KiB, MiB or GiB",
            ),
            ("limits: { headers: many }", "3:20: 'limits.headers' must be a whole number, not a text"),
            ("limits: { headers: 1.5 }", "3:20: 'limits.headers' must be a whole number, not a number"),
            ("admin: true", "3:8: 'admin' must be an address such as 127.0.0.1:8080 or false, not true"),
            (
                "admin: off",
                "3:8: 'admin' must be an address such as 127.0.0.1:8080 or false, not a text; write false to turn it off",
            ),
            // Words and bounds.
            ("log: { level: inof }", "3:15: 'log.level' cannot be 'inof', did you mean 'info'?"),
            (
                "log: { level: loud }",
                "3:15: 'log.level' cannot be 'loud'; it must be error, warn, info, debug or trace",
            ),
            (
                "tokens: { algorithm: none }",
                "3:22: 'tokens.algorithm' cannot be 'none'; it must be EdDSA, ES256, ES384, RS256, PS256, HS256, HS384 or HS512",
            ),
            (
                "tokens: { algorithm: eddsa }",
                "3:22: 'tokens.algorithm' cannot be 'eddsa', did you mean 'EdDSA'?",
            ),
            ("workers: 0", "3:10: 'workers' must be from 1 to 1024, not 0"),
            ("workers: all", "3:10: 'workers' cannot be 'all'; it must be auto"),
            (
                "expect: [{ request: GET /, as: Viewer, is: 404 }]",
                "3:44: 'expect.is' cannot be '404'; it must be allowed, 401 or 403",
            ),
            ("listen: []", "3:9: 'listen' must not be empty"),
            // Texts that mean something.
            (
                "tokens: { ttl: 5 minutes }",
                "3:16: 'tokens.ttl': '5 minutes' is not a duration: write a whole number and a unit, such as 500ms, 30s, 5m, 1h or 7d",
            ),
            ("tokens: { ttl: 0s }", "3:16: 'tokens.ttl': '0s' is less than 1s, the least allowed here"),
            ("tokens: { leeway: 1h }", "3:19: 'tokens.leeway': '1h' is more than 5m, the most allowed here"),
            (
                "tokens: { ttl: 99999999999999999999d }",
                "3:16: 'tokens.ttl': '99999999999999999999d' is more than 366d, the most allowed here",
            ),
            (
                "limits: { body_bytes: 10MB }",
                "3:23: 'limits.body_bytes': '10MB' is not a size: write a whole number and a unit, such as 512B, 64KiB, 10MiB or 1GiB",
            ),
            (
                "limits: { header_bytes: 1KiB }",
                "3:25: 'limits.header_bytes': '1KiB' is less than 8KiB, the least allowed here",
            ),
            (
                "listen: 'unix:'",
                "3:9: 'listen': 'unix:' names no file: write unix:path, such as unix:/run/portcullis.sock",
            ),
            (
                "listen: 'systemd:'",
                "3:9: 'listen': 'systemd:' names no socket: write systemd, or systemd:name with its FileDescriptorName=",
            ),
            (
                "listen: unix:/x:80/",
                "3:9: 'listen': 'unix:/x:80/' names no file: write unix:path, such as unix:/run/portcullis.sock",
            ),
            (
                "socket_mode: '0100'",
                "3:14: 'socket_mode': '0100' is not a socket's mode: write four octal digits in quotes, '0660' or the like",
            ),
            ("socket_mode: 660", "3:14: 'socket_mode' must be a mode such as '0660', not a number"),
            (
                "tls: { cert: a, key: b, client_auth: required }",
                "3:38: 'client_auth' needs 'client_ca': the file with the CA whose certificates count",
            ),
            (
                "listen: localhost",
                "3:9: 'listen': 'localhost' is not an address: write host:port, such as 0.0.0.0:8080 or [::]:8080, unix:path, or systemd",
            ),
            (
                "listen: 0.0.0.0:80800",
                "3:9: 'listen': '0.0.0.0:80800' is not an address: write host:port, such as 0.0.0.0:8080 or [::]:8080, unix:path, or systemd",
            ),
            (
                "trusted_proxies: [10.0.0.0/33]",
                "3:19: 'trusted_proxies': '10.0.0.0/33' is neither a network such as 10.0.0.0/8 nor an address, nor unix",
            ),
            (
                "identity: { id: X Auth }",
                "3:17: 'identity.id': 'X Auth' is not a header's name: letters, digits and dashes",
            ),
            (
                "identity: { id: X-Forwarded_For }",
                "3:17: 'identity.id': 'X-Forwarded_For' is a header with a meaning of its own and cannot carry identity",
            ),
            (
                "identity: { id: Authorization }",
                "3:17: 'identity.id': 'Authorization' is a header with a meaning of its own and cannot carry identity",
            ),
            (
                "rules: [{ path: /, methods: get, allow: Viewer }]",
                "3:29: 'rules.methods': 'get' must be in upper case, did you mean 'GET'?",
            ),
            (
                "rules: [{ path: /, methods: [READ], allow: Viewer }]",
                "3:30: 'rules.methods': 'READ' must be in lower case",
            ),
            (
                "expect: [{ request: /x, as: Viewer, is: 403 }]",
                "3:21: 'expect.request': '/x' is not a request: write a method and a path, such as GET /admin/user/5",
            ),
            (
                "login: { path: auth }",
                "3:16: 'login.path': 'auth' is not a plain path: a slash, then letters, digits and -._~ between slashes",
            ),
            (
                "login: { path: /.well-known/jwks.json }",
                "3:16: 'login.path': '/.well-known/jwks.json' is where the public keys are",
            ),
            (
                "login: { path: /a/../b }",
                "3:16: 'login.path': '/a/../b' is not a plain path: a slash, then letters, digits and -._~ between slashes",
            ),
            (
                "login: { origins: ['*'] }",
                "3:20: 'login.origins': '*' is not an origin: write scheme, host and perhaps port, such as https://app.example.org",
            ),
            (
                "users: redis://db/users",
                "3:8: 'users': 'redis://db/users' is not a user store: write sqlite:FILE, such as sqlite:portcullis.db, or postgres://… or mysql://… with a 'query', or htpasswd:FILE",
            ),
            (
                "users: postgres://cms:pw@db",
                "3:8: 'users': 'postgres://cms:***@db' is not a database's URL: write postgres://user:password@host:port/database, or mysql://…, with every other character than letters and digits of a password as %XX",
            ),
            (
                "users: mysql://cms:p/w@db/cms",
                "3:8: 'users': 'mysql://cms:***@db/cms' names no database: write it after the host, as in …@host:port/database",
            ),
            (
                "users: { store: 'mysql://db/cms?x=1' }",
                "3:17: 'users.store': 'mysql://db/cms?x=1' has an unknown parameter; known here: ssl-mode, ssl-ca, ssl-cert, ssl-key, charset, collation, socket",
            ),
            (
                "sessions: redis",
                "3:11: 'sessions': 'redis' is not a session store: write sqlite:FILE, such as sqlite:portcullis.db",
            ),
            (
                "login: { path: /auth/Logout }",
                "3:16: '/auth/logout' is the path of two endpoints: 'login.path', 'login.logout' and 'login.rotate' must differ",
            ),
            (
                "tokens: { ttl: 8d }\nlogin: { rotate: /auth/rotate }",
                "3:16: 'tokens.max_session' is shorter than 'tokens.ttl': a rotated token would end before the one it replaces",
            ),
            ("tokens: { keys: { secret: '' } }", "3:27: 'tokens.keys.secret': this secret must not be empty"),
            // Values that contradict one another.
            (
                "identity: { email: X_Auth_User }",
                "3:20: an upstream could take the header 'X_Auth_User' for 'X-Auth-User' of a default; identity headers must differ",
            ),
            (
                "identity: { id: X-A, user: x-a }",
                "3:28: an upstream could take the header 'x-a' for 'X-A' of line 3; identity headers must differ",
            ),
            (
                "tokens: { algorithm: HS256 }",
                "3:22: HS256 signs with a secret: give it as 'keys: { secret: ${JWT_SECRET} }'",
            ),
            (
                "tokens: { keys: { secret: abc } }",
                "3:27: EdDSA signs with a key pair: 'keys' must be a folder, or 'algorithm' one of HS256, HS384 or HS512",
            ),
            (
                "tokens: { trust: [{ issuer: a, audience: b }] }",
                "3:19: one of the keys 'jwks', 'secret' or 'public_key' is missing",
            ),
            (
                "tokens: { trust: [{ issuer: a, audience: b, jwks: j.json, secret: s }] }",
                "3:59: only one of the keys 'jwks', 'secret' or 'public_key' may be given, not 'jwks' and 'secret'",
            ),
            (
                "tokens: { trust: [{ issuer: a, id_prefix: a-, audience: b, jwks: j.json, algorithms: [HS256] }] }",
                "3:87: HS256 cannot be verified with a public key",
            ),
            (
                "tokens: { trust: [{ issuer: portcullis, id_prefix: a-, audience: other, jwks: j.json }] }",
                "3:29: tokens of the issuer 'portcullis' are already those of a default",
            ),
            (
                "tokens: { trust: [{ issuer: a, audience: b, jwks: j.json }] }",
                "3:29: warning: 'a' has no 'id_prefix': to the CMS its user '1' is the local user '1'",
            ),
            (
                "login: { username_field: password }",
                "3:26: user name and password cannot both be in the field 'password'",
            ),
            (
                "login: { page: true }",
                "3:16: the login page needs a cookie to sign a browser in with: write 'cookie: true' beside it",
            ),
            (
                "login: { cookie: { name: __Host-token, secure: false } }",
                "3:48: browsers take a cookie whose name begins with '__Host-' only with 'secure: true'",
            ),
            (
                "login: { cookie: { secure: false, name: __secure-t } }",
                "3:41: browsers take a cookie whose name begins with '__Secure-' only with 'secure: true'",
            ),
            (
                "login: { cookie: { secure: false, same_site: none } }",
                "3:46: browsers take 'same_site: none' only with 'secure: true'",
            ),
            (
                "login: { cookie: { name: 'a.b' } }",
                "3:26: 'login.cookie.name': 'a.b' is not a cookie's name: 1 to 64 letters, digits, '-' and '_'",
            ),
            (
                "login: { cookie: { same_site: Lax } }",
                "3:31: 'login.cookie.same_site' cannot be 'Lax', did you mean 'lax'?",
            ),
            (
                "shutdown: { drain: 30s }",
                "3:20: 'shutdown.drain' reaches past 'shutdown.timeout', and both count from the signal to stop",
            ),
            // Assertions.
            (
                "identity: { assertion: X-A }\ntokens: { algorithm: HS256, keys: { secret: ${JWT_SECRET} } }",
                "4:22: an assertion signed with HS256 could only be checked by whoever can make login tokens: 'tokens.algorithm' must be one with a key pair, such as EdDSA",
            ),
            (
                "identity: { assertion: { header: X-A, audience: portcullis } }",
                "3:49: assertions cannot have the audience of login tokens, 'portcullis': name the upstream by another",
            ),
            (
                "identity: { assertion: X-A }\ntokens: { audience: 'http://cms:3000' }",
                "4:21: assertions cannot have the audience of login tokens, 'http://cms:3000': name the upstream by another",
            ),
            (
                "identity: { assertion: X-Auth-User }",
                "3:24: an upstream could take the header 'X-Auth-User' for 'X-Auth-User' of a default; identity headers must differ",
            ),
            (
                "identity: { assertion: { header: X-A, ttl: 1s } }",
                "3:44: 'identity.assertion.ttl': '1s' is less than 10s, the least allowed here",
            ),
            (
                "identity: { assertion: { ttl: 60s } }",
                "3:24: the key 'header' is missing in 'identity.assertion'",
            ),
            // References.
            ("state: ${GONE}", "3:8: the environment variable 'GONE' is not set"),
            ("state: a-${GONE}", "3:10: the environment variable 'GONE' is not set"),
            (
                "state: ${gone}",
                "3:8: '${gone}' is neither ${NAME} (upper-case) nor ${file:path}; a '${' of its own is written '$${'",
            ),
            (
                "state: ${",
                "3:8: '${' is neither ${NAME} (upper-case) nor ${file:path}; a '${' of its own is written '$${'",
            ),
            ("state: ${file:gone.txt}", "3:8: the file 'gone.txt' is not there"),
            ("workers: ${HUGE}", "3:10: 'workers': the value of '${HUGE}' is not from 1 to 1024"),
            ("workers: ${UPSTREAM}", "3:10: 'workers' cannot be the value of '${UPSTREAM}'; it must be auto"),
            (
                "tokens: { ttl: '${MAX}' }",
                "3:16: 'tokens.ttl': the value of '${MAX}' is not a duration: write a whole number and a unit, such as 500ms, 30s, 5m, 1h or 7d",
            ),
            // Templates.
            (
                "errors: { body: { error: $mesage } }",
                "3:26: warning: '$mesage' is not known here and will be null, did you mean '$message'?",
            ),
            (
                "errors: { body: { error: $user.id } }",
                "3:26: warning: '$user.id' is not known here and will be null; known here: $message, $reason, $status, $code, $request_id",
            ),
            (
                "login: { response: { a: 1, a: 2 } }",
                "3:28: the key 'a' stands here a second time, first in line 3",
            ),
            ("login: { response: { a: '${GONE}' } }", "3:26: the environment variable 'GONE' is not set"),
        ] {
            let found = messages(&with_head(section));
            if found != [expected] {
                wrong.push(format!(
                    "{section}\n  expected {expected}\n  found    {}",
                    found.join("\n           ")
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn an_assertion_says_for_whom_it_is() {
        let file = |assertion: &str| {
            format!(
                "roles: [A]\nforward_auth: 127.0.0.1:1\nidentity: {{ assertion: {assertion} }}\nrules: []\n"
            )
        };
        assert_eq!(
            messages(&file("X-A")),
            [
                "3:24: without 'upstream', an assertion needs an 'audience': write a mapping with 'header' and 'audience'"
            ]
        );
        assert_eq!(messages(&file("{ header: X-A, audience: cms }")), [""; 0]);
        let several = |assertion: &str| {
            file(assertion).replace("forward_auth: 127.0.0.1:1", "upstream: { urls: [http://a, http://b] }")
        };
        assert_eq!(
            messages(&several("X-A")),
            [
                "3:24: with several upstreams, an assertion needs an 'audience': write a mapping with 'header' and 'audience'"
            ]
        );
        assert_eq!(messages(&several("{ header: X-A, audience: cms }")), [""; 0]);
    }

    #[test]
    fn an_upstream_says_what_it_cannot_be() {
        for (url, why) in [
            ("cms:3000", "'cms:3000' is not a URL: it must begin with http://"),
            ("https://cms", "'https://cms' begins with https://; only http:// upstreams are supported"),
            (
                "http://cms/base",
                "'http://cms/base' must not hold a path: a request's own is forwarded as it is",
            ),
            ("http://cms?x", "'http://cms?x' must not hold a query or a fragment"),
            ("http://me:pw@cms", "'http://me:***@cms' must not hold a user name or password"),
            ("http://cms:0", "'http://cms:0' has no valid host and port, such as 127.0.0.1:3000"),
            ("http://", "'http://' has no valid host and port, such as 127.0.0.1:3000"),
            ("http://256.1.1.1", "'http://256.1.1.1' has no valid host and port, such as 127.0.0.1:3000"),
        ] {
            assert_eq!(
                messages(&format!("upstream: '{url}'\nroles: [A]")),
                [format!("1:11: 'upstream': {why}")]
            );
            let full = messages(&format!("upstream: {{ url: '{url}' }}\nroles: [A]"));
            assert_eq!(full, [format!("1:18: 'upstream.url': {why}")]);
            let list = messages(&format!("upstream: {{ urls: [http://a, '{url}'] }}\nroles: [A]"));
            assert_eq!(list, [format!("1:30: 'upstream.urls': {why}")]);
        }
    }

    #[test]
    fn an_upstream_has_one_url_or_several_and_a_path_that_says_how_it_is() {
        for (upstream, problem) in [
            ("url: http://a, health: /healthz?x=1&y", None),
            ("url: http://a, health: /", None),
            ("urls: [http://a], health: false", None),
            ("urls: [http://a, http://b:81]", None),
            ("health: /", Some("1:11: one of the keys 'url' or 'urls' is missing")),
            (
                "url: http://a, urls: [http://b]",
                Some("1:28: only one of the keys 'url' or 'urls' may be given, not 'url' and 'urls'"),
            ),
            ("urls: []", Some("1:19: 'upstream.urls' must not be empty")),
            ("urls: [http://a, http://a]", Some("1:30: 'http://a' is listed a second time, first in line 1")),
            (
                "url: http://a, health: healthz",
                Some(
                    "1:36: 'upstream.health': 'healthz' is not a path: a slash and what follows the host in a URL, such \
                     as /healthz",
                ),
            ),
        ] {
            let found = messages(&format!("upstream: {{ {upstream} }}\nroles: [A]"));
            assert_eq!(found, problem.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{upstream}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
        let text = "listen: 80\nroles: [Viewer, public, Viewer, 7]\nrules:\n  - { path: /a, allow: Viewer, mode: try }\n  \
                    - { path: /b, allow: Viewer, extra: 1 }\n  - { path: /c }\nlog: { level: ${GONE} }\nusers: x\n";
        assert_eq!(
            messages(text),
            [
                "1:1: the key 'upstream' is missing",
                "1:9: 'listen' must be an address such as 0.0.0.0:8080 or unix:/run/portcullis.sock or a list, not a number",
                "2:17: 'roles': 'public' is a reserved word of rules and cannot be a role",
                "2:25: 'Viewer' is listed a second time, first in line 2",
                "2:33: 'roles' must be a role's name, not a number; write it in quotes",
                "4:38: 'rules.mode' cannot be 'try'; it must be enforce or report",
                "5:32: unknown key 'extra'; known here: path, methods, query, allow, mode",
                "6:5: the key 'allow' is missing in 'rules'",
                "7:15: the environment variable 'GONE' is not set",
                "8:8: 'users': 'x' is not a user store: write sqlite:FILE, such as sqlite:portcullis.db, or postgres://… or mysql://… with a 'query', or htpasswd:FILE",
            ]
        );
        let reading = read(&source(text), &environment);
        assert!(load(&source(text), &environment).is_err());
        let raw = reading.raw.expect("what is sound can be read");
        assert_eq!((raw.roles.len(), raw.rules.len()), (1, 2));
        assert_eq!(
            reading.incomplete.iter().map(String::as_str).collect::<Vec<_>>(),
            ["listen", "log", "roles", "rules", "users"]
        );
    }

    #[test]
    fn a_file_that_is_no_mapping_is_refused() {
        for (text, expected) in [
            ("- a", "1:1: the file must be a mapping of keys to values, not a list"),
            ("hello", "1:1: the file must be a mapping of keys to values, not a text"),
            ("7", "1:1: the file must be a mapping of keys to values, not a number"),
        ] {
            assert_eq!(messages(text), [expected], "{text}");
        }
    }

    #[test]
    fn references_are_filled_in_wherever_a_value_stands() {
        let text = "upstream: { url: ${UPSTREAM}, max_connections: ${MAX} }\nroles: [A]\nlog: { access: ${NO} }\nadmin: ${NO}\n\
                    state: a$$b$c\nlogin: { response: { a: '${DOLLAR}', b: $$token, c: $token } }";
        let raw = loaded(text).raw;
        let upstream = raw.upstream.expect("the file names one");
        assert_eq!(
            (upstream.url.unwrap().authority().as_str(), upstream.max_connections.value),
            ("cms:3000", 2048)
        );
        assert!(!raw.log.access && raw.admin.0.is_none());
        assert_eq!(raw.state.as_str(), "a$b$c");
        let response = raw.login.0.expect("login is on").response;
        let filled = response.render(&|_| serde_json::json!(1));
        assert_eq!(filled, serde_json::json!({ "a": "$token", "b": "$token", "c": 1 }));
    }

    #[test]
    fn a_file_is_taken_in_without_its_last_newline_or_refused_with_one_sentence() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put =
            |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).expect("a file");
        put("good", b"from-a-file\r\n");
        put("large", &vec![b'x'; 1024 * 1024 + 1]);
        put("binary", &[0xff, 0xfe]);
        std::fs::create_dir(folder.path().join("folder")).expect("a folder");
        let in_folder = |text: &str| Source { folder: folder.path().into(), ..source(&with_head(text)) };
        let loaded = load(&in_folder("state: ${file:good}"), &environment).expect("a sound file");
        assert_eq!(loaded.raw.state.as_str(), "from-a-file");
        assert_eq!(loaded.files, [folder.path().join("good")]);
        for (name, why) in [
            ("gone", "is not there"),
            ("good/below", "is not there"),
            ("folder", "is a folder"),
            ("large", "is larger than 1024 KiB"),
            ("binary", "is not UTF-8 text"),
            ("/dev/null", "is not a regular file"),
        ] {
            let reading = read(&in_folder(&format!("state: ${{file:{name}}}")), &environment);
            let found: Vec<String> =
                reading.diagnostics.iter().map(|found| found.problem.to_string()).collect();
            assert_eq!(found, [format!("the file '{name}' {why}")]);
            assert_eq!(reading.files.len(), 1, "a missing file is watched too");
        }
    }

    #[test]
    fn what_an_alias_repeats_is_reported_once() {
        let text = with_head(
            "rules:\n  - &rule { path: /a, alow: x, allow: A }\n  - *rule\n  - { <<: *rule, path: /b }",
        );
        assert_eq!(messages(&text), ["4:23: unknown key 'alow', did you mean 'allow'?"]);
    }

    #[test]
    fn a_rendered_diagnostic_shows_its_line_with_a_caret() {
        let text = with_head("log: { level: inof }\n");
        let shown = read(&source(&text), &environment).diagnostics.render(&source(&text), false);
        assert_eq!(
            shown,
            "gateway.yaml:3:15: 'log.level' cannot be 'inof', did you mean 'info'?\n\
             3 | log: { level: inof }\n  |               ^\n"
        );
    }

    #[test]
    fn no_shown_line_and_no_message_holds_a_secret() {
        for section in [
            "tokens: { keys: { secret: hunter2, bad: 1 } }",
            "tokens: { keys: { bad: 1, secret: hunter2 } }",
            "tokens:\n  keys:\n    secret: hunter2\n    secret: hunter2",
            "tokens:\n  keys:\n    secret: |\n      hunter2\n    bad: 1\n  secret: |\n    hunter2",
            "identity: { secret: { header: 'X Y', value: hunter2 } }",
            "identity:\n  secret:\n    header: X-S\n    value: 'hunter2 and hunter2'",
            "identity:\n  secret:\n    header: X-S\n    value:\n      'hunter2 and hunter2'",
            "identity: { secret: hunter2 }",
            "identity: { secret: { header: X-S, value: \"hunter2, }  hunter2\" } }",
            "tokens: { keys: { \"secret\": hunter2, } ] }",
            "tokens: { keys: { secret: \"hunter2 }",
            "tokens: { keys: { secret: ${GONE}hunter2 } }",
            "upstream: http://me:hunter2@cms",
            "login: { origins: [http://me:hunter2@x] }",
            "password: hunter2",
            "tokens: { trust: [{ issuer: a, audience: b, secret: hunter2, secret: hunter2 }] }",
            "tokens: { trust: [{ issuer: a, audience: b, jwks: 'https://me:hunter2@x' }] }",
            "tokens: { keys: { secret: [hunter2] } }",
            "tokens: { keys: { secret: { hunter2: hunter2 } } }",
            "users: redis://me:hunter2@db/x",
            "users: postgres://me:hunter2/@db/x",
            "users: { store: 'postgres://me:hunter2/x@db' }",
            "tokens: { keys: { secret: off hunter2, bad: 1 } }",
            "tokens: { keys: { secret: $abc hunter2, bad: 1 } }",
            "tokens: { keys: { secret: 'false hunter2', bad: 1 } }",
        ] {
            let text = with_head(section);
            let reading = read(&source(&text), &environment);
            let shown = reading.diagnostics.render(&source(&text), true);
            assert!(!shown.is_empty(), "{section}");
            assert!(!shown.contains("hunter2"), "{section}\n{shown}");
        }
        let text = with_head("users: ${GATEWAY_SECRET}");
        let shown = read(&source(&text), &environment).diagnostics.render(&source(&text), false);
        assert!(shown.contains("${GATEWAY_SECRET}") && !shown.contains("from-the-environment"), "{shown}");
    }

    #[test]
    fn a_terminal_cannot_be_written_to_from_a_file() {
        let text = with_head("\"\\e[31mx\": \"\u{202e}y\"");
        let shown = read(&source(&text), &environment).diagnostics.render(&source(&text), false);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown}");
    }

    #[test]
    fn a_hundred_thousand_rules_load_quickly() {
        let mut text = with_head("rules:\n");
        for number in 0..100_000 {
            text.push_str(&format!("  - {{ path: /a/{number}/*, methods: [GET, POST], allow: Viewer }}\n"));
        }
        let start = std::time::Instant::now();
        assert_eq!(loaded(&text).raw.rules.len(), 100_000);
        // Without optimisation and on a busy machine; optimised it is a second or less.
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            let source = source(&text);
            let _ = read(&source, &environment).diagnostics.render(&source, true);
        }

        #[test]
        fn no_text_of_yaml_pieces_makes_it_panic(pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "rules", "roles", "upstream", "secret", "value", "tokens", ": ", ":", "\n", "  ", "- ", "{", "}", "[", "]",
                ", ", "'", "\"", "|", ">", "&a ", "*a", "<<", "$", "${", "${A}", "${file:x}", "$$", "é", "\r", "\t", "#",
                "!!int ", "1", "1e99", "~", "false", "http://", "a:b@c", "---\n", "\u{feff}", "😀",
            ]), 0..40)) {
            let text = pieces.concat();
            let source = source(&text);
            let reading = read(&source, &environment);
            let _ = reading.diagnostics.render(&source, false);
            proptest::prop_assert!(reading.raw.is_some() || reading.diagnostics.has_errors());
        }
    }
}
