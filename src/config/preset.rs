//! Presets: what a well-known CMS needs, filled into the file where the file says nothing.
//!
//! A preset is a `gateway.yaml` of its own, compiled in and read by the same reader: its tree is merged
//! under the file's before anything is checked, and every value keeps its place in the preset. Its addresses
//! and its `expect` cases are not taken: the latter hold for the preset as it stands, which a test sees to.
//! Not here: what the values mean.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnostic::{Origin, Position};
use super::yaml::{self, Key, Kind, Node};

/// A CMS that is known.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    JsonSchema,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Preset {
    /// WordPress.
    Wordpress,
    /// Drupal.
    Drupal,
    /// Django with its own admin.
    Django,
    /// Wagtail.
    Wagtail,
    /// Joomla.
    Joomla,
    /// Payload.
    Payload,
    /// Strapi.
    Strapi,
    /// Directus.
    Directus,
    /// NodeForgeCMS.
    Nodeforge,
    /// An admin API with three roles.
    AdminApi,
}

/// The top-level keys that a preset may fill in, in the order in which they are told.
const TAKEN: [&str; 8] = ["roles", "users", "login", "tokens", "identity", "paths", "errors", "rules"];

/// Values of the user's own: a mapping here is one value, not keys to be mixed with the file's.
const WHOLE: [&str; 3] = ["response", "body", "role_map"];

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 10] = [
        Preset::Wordpress,
        Preset::Drupal,
        Preset::Django,
        Preset::Wagtail,
        Preset::Joomla,
        Preset::Payload,
        Preset::Strapi,
        Preset::Directus,
        Preset::Nodeforge,
        Preset::AdminApi,
    ];

    /// As the file names it.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Wordpress => "wordpress",
            Preset::Drupal => "drupal",
            Preset::Django => "django",
            Preset::Wagtail => "wagtail",
            Preset::Joomla => "joomla",
            Preset::Payload => "payload",
            Preset::Strapi => "strapi",
            Preset::Directus => "directus",
            Preset::Nodeforge => "nodeforge",
            Preset::AdminApi => "admin-api",
        }
    }

    /// Its `gateway.yaml`, from a first line that says for what it is and whether it was tried.
    pub fn text(self) -> &'static str {
        match self {
            Preset::Wordpress => include_str!("presets/wordpress.yaml"),
            Preset::Drupal => include_str!("presets/drupal.yaml"),
            Preset::Django => include_str!("presets/django.yaml"),
            Preset::Wagtail => include_str!("presets/wagtail.yaml"),
            Preset::Joomla => include_str!("presets/joomla.yaml"),
            Preset::Payload => include_str!("presets/payload.yaml"),
            Preset::Strapi => include_str!("presets/strapi.yaml"),
            Preset::Directus => include_str!("presets/directus.yaml"),
            // The examples are what the golden tests hold to the letter.
            Preset::Nodeforge => include_str!("../../deploy/examples/nodeforge.yaml"),
            Preset::AdminApi => include_str!("../../deploy/examples/admin-api.yaml"),
        }
    }

    /// What it is for, and with which version it was tried, if any: a phrase.
    pub fn title(self) -> &'static str {
        let first = self.text().lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' ']).trim_end_matches('.')
    }

    fn named(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name)
    }
}

/// What a preset has put into a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filled {
    /// Which one.
    pub preset: Preset,
    /// The keys that it filled in, rules aside: `identity.secret`, in the preset's order.
    pub keys: Vec<String>,
    /// The paths of its rules that the file has rules of its own for.
    pub replaced: Vec<String>,
}

/// The text of the file's key `preset`, before references in it are filled in.
pub(super) fn named_in(file: &Node) -> Option<&str> {
    let Kind::Mapping(entries) = &file.kind else { return None };
    match &entries.iter().find(|(key, _)| key.name == "preset")?.1.kind {
        Kind::Text(text) => Some(&text.value),
        _ => None,
    }
}

/// Puts what the preset called `name` says under what the file says. `None`: there is no such preset.
pub(super) fn fill_in(file: &mut Node, name: &str) -> Option<Filled> {
    let preset = Preset::named(name)?;
    let Kind::Mapping(entries) = &mut file.kind else { return None };
    let mut node = yaml::parse(preset.text()).expect("a preset is valid YAML: a test reads each");
    stamp(&mut node, preset);
    let mut filled = Filled { preset, keys: Vec::new(), replaced: Vec::new() };
    let Kind::Mapping(offered) = node.kind else { return Some(filled) };
    for (key, value) in offered.into_iter().filter(|(key, _)| TAKEN.contains(&key.name.as_str())) {
        let written = entries.iter_mut().find(|(written, _)| written.name == key.name);
        match (key.name.as_str(), written) {
            ("rules", Some((_, written))) => join(written, value, &mut filled.replaced),
            ("users", Some((_, written))) => users(written, value, &mut filled.keys),
            ("users", None) => {}
            (_, Some((_, Node { kind: Kind::Mapping(written), .. }))) => {
                merge(written, value, &key.name, &mut filled.keys);
            }
            (_, Some(_)) => {}
            (name, None) => {
                if name != "rules" {
                    tell(name, &value, &mut filled.keys);
                }
                entries.push((key, value));
            }
        }
    }
    Some(filled)
}

/// Says how users are found in the CMS's database, where that is what the file's `users` is: a mapping with a `store`
/// and no `query` of its own, or the URL of a database server. Otherwise they are the gateway's own.
fn users(written: &mut Node, offered: Node, told: &mut Vec<String>) {
    let is_server = |text: &yaml::Text| {
        ["mysql://", "mariadb://", "postgres://", "postgresql://"].iter().any(|s| text.value.starts_with(s))
    };
    if let Kind::Text(url) = &written.kind
        && is_server(url)
    {
        let key = Key { at: written.at, name: "store".to_owned() };
        let store = Node { at: written.at, kind: Kind::Text(url.clone()) };
        written.kind = Kind::Mapping(vec![(key, store)]);
    }
    let Kind::Mapping(entries) = &mut written.kind else { return };
    let has = |name: &str| entries.iter().any(|(key, _)| key.name == name);
    let is_database = |(key, value): &(Key, Node)| {
        key.name == "store" && text(value).is_some_and(|store| !store.starts_with("htpasswd:"))
    };
    if entries.iter().any(is_database) && !has("query") {
        merge(entries, offered, "users", told);
    }
}

/// Every place in the tree becomes one of the preset.
fn stamp(node: &mut Node, preset: Preset) {
    let of = |at: &mut Position| at.origin = Origin::Preset(preset);
    of(&mut node.at);
    match &mut node.kind {
        Kind::List(items) => items.iter_mut().for_each(|item| stamp(item, preset)),
        Kind::Mapping(entries) => {
            for (key, value) in entries {
                of(&mut key.at);
                stamp(value, preset);
            }
        }
        _ => {}
    }
}

/// Adds to a mapping of the file the keys that it lacks. `path` leads to it.
fn merge(written: &mut Vec<(Key, Node)>, offered: Node, path: &str, told: &mut Vec<String>) {
    let Kind::Mapping(offered) = offered.kind else { return };
    for (key, value) in offered {
        let path = format!("{path}.{}", key.name);
        match written.iter_mut().find(|(written, _)| written.name == key.name) {
            None => {
                tell(&path, &value, told);
                written.push((key, value));
            }
            Some((_, Node { kind: Kind::Mapping(written), .. })) if !WHOLE.contains(&key.name.as_str()) => {
                merge(written, value, &path, told);
            }
            Some(_) => {}
        }
    }
}

/// The keys of a value that was filled in whole, down to the second level.
fn tell(path: &str, value: &Node, told: &mut Vec<String>) {
    match &value.kind {
        Kind::Mapping(entries) if !path.contains('.') => {
            told.extend(entries.iter().map(|(key, _)| format!("{path}.{}", key.name)));
        }
        _ => told.push(path.to_owned()),
    }
}

/// Puts the preset's rules behind the file's. One that the file has a rule of its own for is left out: of the same
/// path and query, for the same methods or for all. A rule on trial takes nobody's place.
fn join(written: &mut Node, offered: Node, replaced: &mut Vec<String>) {
    let (Kind::List(written), Kind::List(offered)) = (&mut written.kind, offered.kind) else { return };
    let own: Vec<RuleKey> = written.iter().filter(|rule| !is_on_trial(rule)).map(RuleKey::of).collect();
    for rule in offered {
        let key = RuleKey::of(&rule);
        if own.iter().any(|own| own.takes_the_place_of(&key)) {
            replaced.extend(key.path);
        } else {
            written.push(rule);
        }
    }
}

/// What tells a rule from others.
#[derive(Debug, Eq, PartialEq)]
struct RuleKey {
    path: Option<String>,
    /// Sorted; `None`: any.
    methods: Option<Vec<String>>,
    /// Sorted.
    query: Vec<(String, Option<String>)>,
}

impl RuleKey {
    fn of(rule: &Node) -> RuleKey {
        let mut methods: Option<Vec<String>> = member(rule, "methods").map(|methods| match &methods.kind {
            Kind::List(items) => items.iter().filter_map(text).collect(),
            _ => text(methods).into_iter().collect(),
        });
        if let Some(methods) = &mut methods {
            methods.sort();
        }
        let mut query: Vec<_> = match member(rule, "query").map(|query| &query.kind) {
            Some(Kind::Mapping(pairs)) => {
                pairs.iter().map(|(key, value)| (key.name.clone(), text(value))).collect()
            }
            _ => Vec::new(),
        };
        query.sort();
        let path = member(rule, "path").and_then(text);
        // A slash at the end makes no difference to a rule.
        let path = path.map(|path| if path == "/" { path } else { path.trim_end_matches('/').to_owned() });
        RuleKey { path, methods, query }
    }

    fn takes_the_place_of(&self, other: &RuleKey) -> bool {
        self.path == other.path
            && self.query == other.query
            && (self.methods.is_none() || self.methods == other.methods)
    }
}

fn is_on_trial(rule: &Node) -> bool {
    member(rule, "mode").and_then(text).as_deref() == Some("report")
}

fn member<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Kind::Mapping(entries) = &node.kind else { return None };
    entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
}

fn text(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Text(text) => Some(text.value.clone()),
        Kind::Integer(number) => Some(number.to_string()),
        Kind::Bool(switch) => Some(switch.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::snapshot::{Built, Snapshot, Surroundings, UserSource, build};
    use crate::config::{Problem, Source, read};
    use crate::policy::{Answer, Caller};

    fn environment(name: &str) -> Option<String> {
        match name {
            "GATEWAY_SECRET" => Some("0123456789abcdef0123456789abcdef".into()),
            "CMS" => Some("wordpress".into()),
            _ => None,
        }
    }

    fn built(text: &str) -> Built {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = Source { name: "gateway.yaml".into(), text: text.into(), folder: folder.path().into() };
        build(read(&source, &environment), &source, &Surroundings::default())
            .unwrap_or_else(|found| panic!("{}", found.render(&source, false)))
    }

    /// What is shown to somebody whose file is refused.
    fn refused(text: &str) -> String {
        let source = Source { name: "gateway.yaml".into(), text: text.into(), folder: "/nonexistent".into() };
        let found = build(read(&source, &environment), &source, &Surroundings::default());
        found.expect_err("the file is wrong").render(&source, false)
    }

    /// The smallest file with a preset, and more.
    fn with(preset: &str, more: &str) -> String {
        format!("preset: {preset}\nupstream: http://127.0.0.1:1\n{more}")
    }

    fn answer(snapshot: &Snapshot, method: &str, path: &str, role: &str) -> Answer {
        let (path, query) = crate::config::snapshot::split_target(path);
        let target = snapshot.policy.target(method, path, query, []).expect("a plain target");
        snapshot.policy.answer_target(&target, Caller::Authenticated(Some(role)))
    }

    #[test]
    fn every_preset_is_a_file_whose_own_cases_hold_and_of_which_no_rule_is_idle() {
        for preset in Preset::ALL {
            let name = preset.name();
            let address =
                if preset.text().contains("\nupstream:") { "" } else { "upstream: http://127.0.0.1:1\n" };
            let Built { snapshot, warnings } = built(&format!("{}\n{address}", preset.text()));
            assert!(snapshot.expectations >= 6, "{name}: {}", snapshot.expectations);
            for warning in warnings.iter() {
                assert!(matches!(warning.problem, Problem::BodyCouldCarry { .. }), "{name}: {warning:?}");
            }
            assert_eq!(Preset::named(name), Some(preset));
            assert!(preset.title().len() > 20, "{name}: {}", preset.title());
        }
    }

    #[test]
    fn a_file_that_names_a_preset_needs_an_upstream_and_nothing_else() {
        for preset in Preset::ALL {
            let Built { snapshot, warnings } = built(&with(preset.name(), ""));
            assert!(warnings.is_empty(), "{preset:?}: {warnings:?}");
            assert!(snapshot.rule_positions.iter().all(|at| at.preset() == Some(preset)));
            let listen: Vec<_> = snapshot.fixed.listen.iter().map(ToString::to_string).collect();
            assert_eq!(listen, ["0.0.0.0:8080"], "{preset:?}: an address is never a preset's");
            let upstream = snapshot.upstream.as_ref().map(|upstream| upstream.servers[0].address.as_str());
            assert_eq!((snapshot.expectations, upstream), (0, Some("127.0.0.1:1")));
            let filled = snapshot.filled.expect("what was filled in is told");
            assert!(filled.keys.contains(&"roles".to_owned()) && filled.replaced.is_empty(), "{filled:?}");
        }
    }

    #[test]
    fn what_the_file_says_wins() {
        let secret = "identity: { user: X-Who, secret: { header: X-S } }\n";
        let snapshot =
            built(&with("wordpress", &format!("{secret}login: {{ page: false, path: /in }}"))).snapshot;
        let names: Vec<&str> = snapshot.identity.header_names().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-auth-id", "x-who", "x-auth-role", "x-s"]);
        assert_eq!(snapshot.identity.secret.as_ref().map(|(_, value)| value.len()), Some(32));
        let login = snapshot.login.as_ref().expect("login is on");
        assert_eq!((login.path.as_str(), login.page.is_none(), login.cookie.is_some()), ("/in", true, true));
        assert_eq!(
            snapshot.filled.map(|filled| filled.keys),
            Some(["roles", "identity.secret.value", "login.cookie"].map(String::from).to_vec())
        );
        // A value of the user's own is not mixed with the preset's.
        let response = "login: { response: { jwt: $token } }";
        let login = built(&with("nodeforge", response)).snapshot.login.expect("login is on");
        let rendered = login.response.render(&|_| serde_json::json!(1));
        assert_eq!(rendered, serde_json::json!({ "jwt": 1 }));
        assert_eq!(login.path, "/api/auth/login", "beside it, the preset counts");
        let users = "users: { store: 'mysql://a:b@127.0.0.1/cms', role_map: { \"10\": Manager } }";
        match built(&with("joomla", users)).snapshot.fixed.users {
            UserSource::Table(table) => {
                assert_eq!(table.roles.map, Some(vec![("10".to_owned(), "Manager".to_owned())]));
            }
            other => panic!("{other:?}"),
        }
        assert!(built(&with("wordpress", "login: false\n")).snapshot.login.is_none());
        assert!(built(&with("wordpress", "identity: { secret: false }")).snapshot.identity.secret.is_none());
    }

    #[test]
    fn rules_of_the_file_join_the_presets_and_take_the_place_of_those_for_the_same_requests() {
        let cron = ("GET", "/wp-cron.php");
        for (rules, (method, path), role, expected, replaced) in [
            ("[]", cron, "administrator", Answer::Forbidden, 0),
            ("[{ path: /wp-cron.php, allow: author }]", cron, "author", Answer::Allowed, 1),
            ("[{ path: /wp-cron.php/, allow: author }]", cron, "author", Answer::Allowed, 1),
            ("[{ path: /wp-cron.php, allow: author, mode: report }]", cron, "author", Answer::Forbidden, 0),
            // For some methods only: more specific, and the rest stays the preset's.
            ("[{ path: /wp-cron.php, methods: [GET], allow: author }]", cron, "author", Answer::Allowed, 0),
            (
                "[{ path: /wp-cron.php, methods: [GET], allow: author }]",
                ("POST", "/wp-cron.php"),
                "author",
                Answer::Forbidden,
                0,
            ),
            // For all methods, where the preset has one each.
            (
                "[{ path: /wp-json/wp/v2/users/*, allow: editor }]",
                ("POST", "/wp-json/wp/v2/users"),
                "editor",
                Answer::Allowed,
                2,
            ),
            (
                "[{ path: /wp-json/wp/v2/users/*, allow: editor }]",
                ("GET", "/wp-json/wp/v2/users"),
                "author",
                Answer::Forbidden,
                2,
            ),
            // A query rule is another rule than that of its path.
            ("[{ path: /*, allow: public }]", ("GET", "/?author=1"), "subscriber", Answer::Forbidden, 1),
            (
                "[{ path: /*, query: { author: '*' }, allow: public }]",
                ("GET", "/?author=1"),
                "subscriber",
                Answer::Allowed,
                1,
            ),
            (
                "[{ path: /shop/*, methods: [POST], allow: public }]",
                ("POST", "/shop/cart"),
                "subscriber",
                Answer::Allowed,
                0,
            ),
        ] {
            let Built { snapshot, .. } = built(&with("wordpress", &format!("rules: {rules}")));
            assert_eq!(answer(&snapshot, method, path, role), expected, "{rules}: {method} {path}");
            assert_eq!(snapshot.filled.map(|filled| filled.replaced.len()), Some(replaced), "{rules}");
        }
    }

    #[test]
    fn a_local_store_is_not_the_cmss_table() {
        for users in [
            "",
            "users: sqlite:portcullis.db",
            "users: { weak_hashes: true }",
            "users: { store: 'htpasswd:users', role: editor }",
        ] {
            let source = Source {
                name: "gateway.yaml".into(),
                text: with("wordpress", users),
                folder: "/nonexistent".into(),
            };
            let keys = read(&source, &environment).filled.expect("it is told").keys;
            assert!(!keys.iter().any(|key| key.starts_with("users")), "{users}: {keys:?}");
        }
    }

    #[test]
    fn the_cmss_table_is_asked_as_the_preset_says_unless_the_file_says_how() {
        let url = "mysql://reader:secret@127.0.0.1/wp";
        let sql = |users: &str| match built(&with("wordpress", users)).snapshot.fixed.users {
            UserSource::Table(table) => table.query.sql,
            other => panic!("{users}: {other:?}"),
        };
        for users in [format!("users: {url}"), format!("users: {{ store: '{url}' }}")] {
            let sql = sql(&users);
            assert!(sql.contains(" wp_users ") && sql.contains("'wp_capabilities'"), "{sql}");
        }
        let prefixed = sql(&format!("users: {{ store: '{url}', table_prefix: site7_ }}"));
        assert!(
            prefixed.contains(" site7_users ") && prefixed.contains("'site7_capabilities'"),
            "{prefixed}"
        );
        let own = "SELECT a AS id, a AS username, a AS password_hash, a AS role FROM t WHERE a = :username";
        assert!(sql(&format!("users: {{ store: '{url}', query: '{own}' }}")).contains("FROM t WHERE"));
        for (users, expected) in [
            (
                format!("{{ store: '{url}', query: '{own}', table_prefix: a_ }}"),
                "'table_prefix' needs '{prefix}' in 'query'",
            ),
            (
                format!("{{ store: '{url}', query: '{}' }}", own.replace("FROM t", "FROM {prefix}t")),
                "'{prefix}' in 'query' needs 'table_prefix' beside it",
            ),
            (format!("{{ store: '{url}', table_prefix: 'a; drop' }}"), "cannot begin a table's name"),
        ] {
            let shown = refused(&with("wordpress", &format!("users: {users}")));
            assert!(shown.contains(expected), "{users}: {shown}");
        }
        for preset in Preset::ALL {
            let has_table = preset.text().contains("\nusers:");
            let users = match has_table {
                true if preset == Preset::Payload => "users: postgres://reader:secret@127.0.0.1/cms",
                true => "users: mysql://reader:secret@127.0.0.1/cms",
                false => continue,
            };
            let keys = built(&with(preset.name(), users)).snapshot.filled.expect("it is told").keys;
            assert!(keys.contains(&"users.query".to_owned()), "{preset:?}: {keys:?}");
        }
    }

    #[test]
    fn a_problem_in_a_preset_names_its_line_there() {
        let shown = refused(&with("wordpress", "roles: [Reader]\n"));
        assert!(
            shown.contains("unknown role 'subscriber'") && shown.starts_with("preset wordpress:"),
            "{shown}"
        );
        assert!(!shown.contains("gateway.yaml:"), "{shown}");
        let text = with(
            "wordpress",
            "rules:\n  - { path: /wp-admin/:page, allow: editor }\n  - { path: /wp-admin/:file, allow: editor }\n",
        );
        let shown = refused(&text);
        assert!(shown.starts_with("gateway.yaml:5:"), "{shown}");
        let text = with("wordpres", "roles: [A]");
        assert!(refused(&text).contains("1:9: 'preset' cannot be 'wordpres', did you mean 'wordpress'?"));
    }

    #[test]
    fn a_missing_secret_is_told_where_the_preset_asks_for_it() {
        let source = Source {
            name: "gateway.yaml".into(),
            text: with("wordpress", ""),
            folder: "/nonexistent".into(),
        };
        let shown = read(&source, &|_| None).diagnostics.render(&source, false);
        assert!(shown.starts_with("preset wordpress:"), "{shown}");
        assert!(shown.contains("the environment variable 'GATEWAY_SECRET' is not set"), "{shown}");
        assert!(
            shown.contains("secret: { header: X-Gateway-Secret, value: \"${GATEWAY_SECRET}\" }"),
            "{shown}"
        );
    }

    #[test]
    fn the_presets_name_may_come_from_the_environment() {
        let snapshot = built(&with("${CMS}", "")).snapshot;
        assert_eq!(snapshot.filled.map(|filled| filled.preset), Some(Preset::Wordpress));
    }
}
