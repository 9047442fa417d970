use super::*;
use method::Methods;
use proptest::prelude::*;
use query::QueryCondition;

const ROLES: [&str; 3] = ["Viewer", "Editor", "SuperAdmin"];

fn roles() -> Roles {
    Roles::new(ROLES.map(str::to_owned).to_vec()).unwrap()
}

fn requirement(word: &str) -> Requirement {
    match word {
        "public" => Requirement::Public,
        "authenticated" => Requirement::Authenticated,
        "deny" => Requirement::Deny,
        role => Requirement::AtLeast(roles().find(role).unwrap()),
    }
}

/// `METHODS PATH[?name=value&…] ALLOW`, methods separated by commas or `*`; a leading `?` puts the rule on trial.
fn rule(line: &str) -> Rule {
    let (line, mode) = line.strip_prefix('?').map_or((line, Mode::Enforce), |line| (line, Mode::Report));
    let [methods, path, allow] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Rule {
        pattern: Pattern::parse(path).unwrap(),
        methods: if methods == "*" { Methods::any() } else { Methods::parse(methods.split(',')).unwrap() },
        query: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| QueryCondition::new(name, value))
            .collect(),
        allow: requirement(allow),
        mode,
    }
}

fn own() -> Vec<(Pattern, Endpoint)> {
    vec![(Pattern::parse("/auth/login").unwrap(), Endpoint::Login)]
}

fn build(lines: &[&str]) -> (Policy, Vec<RuleProblem>) {
    let options = PathOptions { scripts: vec!["php".into()], ..PathOptions::default() };
    Policy::new(roles(), lines.iter().map(|line| rule(line)).collect(), &own(), options)
}

fn policy(lines: &[&str]) -> Policy {
    let (policy, problems) = build(lines);
    assert!(!problems.iter().any(RuleProblem::is_error), "{problems:?}");
    policy
}

fn needs(policy: &Policy, method: &str, target: &str) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    match policy.target(method, path, query, []).map(|target| policy.judge(&target).route) {
        Ok(Route::Own(endpoint)) => format!("{endpoint:?}"),
        Ok(Route::Upstream { requirement, .. }) => policy.wording(requirement).to_owned(),
        Err(why) => why.code().to_owned(),
    }
}

#[test]
fn the_most_specific_rule_that_covers_the_method_decides() {
    let policy = policy(&[
        "* /admin/* SuperAdmin",
        "GET /admin/user/:id Viewer",
        "* /admin/user/* SuperAdmin",
        "* /admin/user/me Editor",
        "read /admin/users/* Viewer",
        "* /public/* public",
        "POST /public/form authenticated",
        "* /:lang/news public",
        "MKCOL,write /dav/* Editor",
        "MKCOL /dav/x deny",
    ]);
    for (method, path, expected) in [
        ("GET", "/admin/user/7", "Viewer"),
        ("HEAD", "/admin/user/7", "Viewer"),
        ("POST", "/admin/user/7", "SuperAdmin"),
        ("GET", "/admin/user/me", "Editor"),
        ("DELETE", "/admin/user/me", "Editor"),
        ("GET", "/admin/user", "SuperAdmin"),
        ("GET", "/admin/user/7/x", "SuperAdmin"),
        ("GET", "/admin", "SuperAdmin"),
        ("GET", "/administrator", "deny"),
        ("GET", "/admin/users", "Viewer"),
        ("GET", "/admin/users/a/b", "Viewer"),
        ("PUT", "/admin/users/a/b", "SuperAdmin"),
        ("GET", "/public", "public"),
        ("GET", "/public/form", "public"),
        ("POST", "/public/form", "authenticated"),
        ("GET", "/de/news", "public"),
        ("GET", "/admin/news", "SuperAdmin"),
        ("GET", "/", "deny"),
        ("PROPFIND", "/dav/a", "Editor"),
        ("MKCOL", "/dav/a", "Editor"),
        ("MKCOL", "/dav/x", "deny"),
        ("PROPFIND", "/dav/x", "Editor"),
        ("GET", "/dav/x", "deny"),
        ("GET", "/auth/login", "Login"),
        ("DELETE", "/auth/login/", "Login"),
    ] {
        assert_eq!(needs(&policy, method, path), expected, "{method} {path}");
    }
}

#[test]
fn the_strictest_reading_decides() {
    let policy = policy(&["* /* public", "* /admin/* Editor", "* /users.php SuperAdmin", "DELETE /* Editor"]);
    for (method, target, expected) in [
        ("GET", "/x", "public"),
        ("GET", "/ADMIN/x", "Editor"),
        ("GET", "//admin/x", "Editor"),
        ("GET", "/x//..", "path_dot_segment"),
        ("GET", "/%2561dmin/x", "Editor"),
        ("GET", "/admin;a=b/x", "Editor"),
        ("GET", "/;/admin", "Editor"),
        ("GET", "/x;/admin", "public"),
        ("GET", "/x/..;/admin", "path_dot_segment"),
        ("GET", "/%EF%BC%A1dmin", "Editor"),
        ("GET", "/users.php/x", "SuperAdmin"),
        ("GET", "/USERS.PHP/x", "SuperAdmin"),
        ("GET", "/users.php.", "SuperAdmin"),
        ("GET", "/users.php%20", "SuperAdmin"),
        ("GET", "/users.php%3Fx", "SuperAdmin"),
        ("GET", "/administrator", "public"),
        ("POST", "/x?_method=DELETE", "Editor"),
        ("POST", "/x?%5fMethod=delete", "Editor"),
        ("POST", "/x?method=delete", "public"),
        ("POST", "/AUTH/login", "deny"),
        ("POST", "/auth//login", "deny"),
        ("POST", "/auth/%6Cogin", "Login"),
    ] {
        assert_eq!(needs(&policy, method, target), expected, "{method} {target}");
    }
}

#[test]
fn rules_that_differ_in_case_alone_are_both_asked() {
    let policy = policy(&["* /Admin Viewer", "* /admin SuperAdmin", "* /* public"]);
    for path in ["/Admin", "/admin", "/ADMIN"] {
        assert_eq!(needs(&policy, "GET", path), "SuperAdmin", "{path}");
    }
}

#[test]
fn a_query_rule_only_raises() {
    let policy = policy(&[
        "* /* public",
        "* /wp-admin/* Editor",
        "* /?rest_route=/wp/v2/users/* SuperAdmin",
        "* /*?page=secret Viewer",
        "* /*?a=1&b=2 Editor",
    ]);
    for (target, expected) in [
        ("/", "public"),
        ("/?rest_route=/wp/v2/posts", "public"),
        ("/?rest_route=/wp/v2/users", "SuperAdmin"),
        ("/?rest%5Froute=%2Fwp%2Fv2%2FUsers%2F1", "SuperAdmin"),
        ("/x?rest_route=/wp/v2/users", "public"),
        ("/x?page=secret", "Viewer"),
        ("/wp-admin/?page=secret", "Editor"),
        ("/x?a=1", "public"),
        ("/x?b=2&a=1", "Editor"),
    ] {
        assert_eq!(needs(&policy, "GET", target), expected, "{target}");
    }
}

#[test]
fn a_method_override_can_only_tighten_and_is_known_to_matter() {
    let policy = policy(&["GET /x public", "POST /x Viewer", "DELETE /x SuperAdmin"]);
    for (method, header, expected, matters) in [
        ("GET", "DELETE", "SuperAdmin", true),
        ("POST", "DELETE", "SuperAdmin", true),
        ("POST", "GET", "Viewer", false),
        ("DELETE", "GET", "SuperAdmin", false),
        ("GET", "BREW", "deny", true),
        ("GET", "get", "public", false),
    ] {
        let target = policy.target(method, "/x", None, [header]).unwrap();
        let judgement = policy.judge(&target);
        let Route::Upstream { requirement, .. } = judgement.route else { panic!() };
        assert_eq!(policy.wording(requirement), expected, "{method} {header}");
        assert_eq!(judgement.override_matters, matters, "{method} {header}");
    }
}

#[test]
fn a_decision_needs_the_role_or_a_higher_one() {
    let policy = policy(&[]);
    for (needed, caller, expected) in [
        ("public", Caller::Anonymous, Ok(())),
        ("public", Caller::Authenticated(None), Ok(())),
        ("authenticated", Caller::Anonymous, Err(Denied::Anonymous)),
        ("authenticated", Caller::Authenticated(None), Ok(())),
        ("Editor", Caller::Anonymous, Err(Denied::Anonymous)),
        ("Editor", Caller::Authenticated(None), Err(Denied::Role)),
        ("Editor", Caller::Authenticated(Some("Stranger")), Err(Denied::Role)),
        ("Editor", Caller::Authenticated(Some("editor")), Err(Denied::Role)),
        ("Editor", Caller::Authenticated(Some("Viewer")), Err(Denied::Role)),
        ("Editor", Caller::Authenticated(Some("Editor")), Ok(())),
        ("Editor", Caller::Authenticated(Some("SuperAdmin")), Ok(())),
        ("deny", Caller::Anonymous, Err(Denied::Anonymous)),
        ("deny", Caller::Authenticated(Some("SuperAdmin")), Err(Denied::Role)),
    ] {
        let decision = policy.decide(requirement(needed), caller).map(|_| ());
        assert_eq!(decision, expected, "{needed} {caller:?}");
    }
}

#[test]
fn ties_and_dead_rules_are_found() {
    type Case<'a> = (&'a [&'a str], Vec<RuleProblem>);
    let tie = |rule: u32, other: u32, method: Option<&str>| RuleProblem::Tie {
        rule: RuleId(rule),
        other: RuleId(other),
        method: method.map(str::to_owned),
    };
    let cases: [Case<'_>; 11] = [
        (&["* /a Viewer", "* /a Editor"], vec![tie(1, 0, None)]),
        (&["* /a/:x Viewer", "* /a/:y Editor"], vec![tie(1, 0, None)]),
        (&["GET /a Viewer", "read /a Editor"], vec![tie(1, 0, Some("GET"))]),
        (&["GET /a Viewer", "HEAD /a Editor", "* /a deny"], vec![]),
        (&["* /a Viewer", "* /a/ Editor"], vec![tie(1, 0, None)]),
        (
            &["read /a Viewer", "write /a Editor", "* /a deny"],
            vec![RuleProblem::NeverWins { rule: RuleId(2) }],
        ),
        (
            &["* /a/* Viewer", "* /a Editor", "* /a/:x/* deny"],
            vec![RuleProblem::NeverWins { rule: RuleId(0) }],
        ),
        (&["* /a/* Viewer", "GET /a Editor", "* /a/:x/* deny"], vec![]),
        (
            &["* /auth/login public"],
            vec![RuleProblem::CoversEndpoint { rule: RuleId(0), endpoint: Endpoint::Login }],
        ),
        (&["* /a Viewer", "?* /a Editor"], vec![]),
        (
            &["* /* public", "* /?p=x Editor", "* /?p=y public"],
            vec![
                RuleProblem::BodyCouldCarry { rule: RuleId(1), laxer: RuleId(0) },
                RuleProblem::RaisesNothing { rule: RuleId(2) },
            ],
        ),
    ];
    for (lines, expected) in cases {
        assert_eq!(build(lines).1, expected, "{lines:?}");
    }
}

#[test]
fn a_rule_on_trial_decides_nothing_and_says_what_it_would_have_asked() {
    let policy = policy(&["* /a/* public", "?* /a/b Editor", "?* /a/* public"]);
    for (path, expected) in [("/a/b", Some((requirement("Editor"), RuleId(1)))), ("/a/c", None)] {
        let target = policy.target("GET", path, None, []).unwrap();
        let judgement = policy.judge(&target);
        assert_eq!(
            judgement.route,
            Route::Upstream { requirement: Requirement::Public, rule: Some(RuleId(0)) },
            "{path}"
        );
        assert_eq!(judgement.on_trial, expected, "{path}");
    }
}

#[test]
fn a_reload_can_say_which_answers_change() {
    let old = policy(&["* /a/* Viewer", "* /b public"]);
    let new = policy(&["* /a/* Viewer", "GET /a/x Editor"]);
    let (found, count) = diff::differences(&old, &new, 100);
    let told: Vec<_> = found
        .iter()
        .map(|d| format!("{} {} {}: {} -> {}", d.method, d.path, d.caller, d.before, d.after))
        .collect();
    assert!(told.contains(&"GET /a/x Viewer: allowed -> 403".to_owned()), "{told:?}");
    assert!(told.contains(&"GET /b anonymous: allowed -> 401".to_owned()), "{told:?}");
    assert!(!told.iter().any(|line| line.starts_with("POST /a/x")), "{told:?}");
    assert_eq!(count, found.len());
    assert_eq!(diff::differences(&old, &new, 3).0.len(), 3);
}

/// The winner by the contract's words alone: filter, then compare all candidates pairwise.
fn naive(rules: &[Rule], method: &str, text: &str) -> Option<usize> {
    use pattern::Segment;
    let explicit_head = |path: &Pattern| {
        rules.iter().any(|r| r.pattern.same_paths(path) && !r.methods.is_any() && r.methods.lists("HEAD"))
    };
    let covers = |rule: &Rule| {
        rule.methods.lists(method)
            || method == "HEAD" && rule.methods.lists("GET") && !explicit_head(&rule.pattern)
    };
    let specificity = |rule: &Rule| {
        let (segments, open) = rule.pattern.parts();
        let mut key: Vec<u8> =
            segments.iter().map(|segment| if matches!(segment, Segment::Any) { 1 } else { 2 }).collect();
        // The end of a closed pattern is a literal match; `/*` comes after everything.
        key.push(if open { 0 } else { 3 });
        (key, !rule.methods.is_any())
    };
    let candidates =
        (0..rules.len()).filter(|i| rules[*i].pattern.matches(text, false) && covers(&rules[*i]));
    candidates.max_by_key(|i| specificity(&rules[*i]))
}

#[test]
fn one_reading_never_hides_another() {
    let policy = policy(&[
        "* /* public",
        "* /admin/* deny",
        "* /admin/x.php public",
        "* /:site/secret Editor",
        "* /:site/secret?rest_route=/users SuperAdmin",
    ]);
    for (target, expected) in [
        // With slashes merged and not cut behind the script.
        ("//admin/x.php/y", "deny"),
        ("/admin//x.php/y", "deny"),
        ("/admin/x.php", "public"),
        // Cut at the one delimiter and not at the other that stands before it.
        ("/a%23b/secret%3Fc", "Editor"),
        ("/a%3Fb/secret%23c", "Editor"),
        // PHP reads a bracket that is never closed as an underscore.
        ("/a/secret?rest[route=/users", "SuperAdmin"),
        ("/a/secret?rest[route]=/users", "Editor"),
    ] {
        assert_eq!(needs(&policy, "GET", target), expected, "{target}");
    }
}

proptest! {
    #[test]
    fn the_trie_equals_a_naive_matcher(
        lines in prop::collection::vec(("(\\*|GET|HEAD|POST|read|write|GET,POST|MKCOL)", "(/(a|b|:x)){0,3}(/\\*)?"), 1..12),
        method in "(GET|HEAD|POST|OPTIONS|MKCOL|BREW)",
        path in "(/(a|b|c)){1,4}",
    ) {
        let mut kept: Vec<Rule> = Vec::new();
        for (methods, path) in &lines {
            let path = if path.is_empty() { "/" } else { path };
            let candidate = rule(&format!("{methods} {path} public"));
            let mut next = kept.clone();
            next.push(candidate);
            if !rules::problems(&next, &[]).iter().any(RuleProblem::is_error) {
                kept = next;
            }
        }
        // `write` lists MKCOL among all others, and a rule that names it comes first: left to the table above.
        prop_assume!(method != "MKCOL" || !kept.iter().any(|r| !r.methods.is_any() && r.methods.lists("BREW")));
        let compiled = rules::Rules::new(&kept, &[], |_| true);
        let found = compiled.find(&method, &path).map(|hit| match hit {
            Hit::Rule(id) => id.index(),
            Hit::Own(_) => unreachable!(),
        });
        prop_assert_eq!(found, naive(&kept, &method, &path));
    }

    #[test]
    fn the_query_rules_found_equal_those_that_a_look_at_each_finds(
        lines in prop::collection::vec(
            ("(\\*|GET|POST)", "(/(a|B|:x)){0,2}(/\\*)?", "(p|Q)", "(\\*|/\\*|v|/v|/v/\\*|/v/w|v/\\*)", "(&q=v)?"),
            1..12,
        ),
        method in "(GET|POST)",
        path in "(/(a|b|c)){1,3}",
        query in "((p|q|r)=(v|w|/v|/v/w|/v/w/x|v/w|/|)&){0,3}",
    ) {
        let rules: Vec<Rule> = lines.iter().map(|(methods, path, name, value, more)| {
            let path = if path.is_empty() { "/" } else { path };
            rule(&format!("{methods} {path}?{name}={value}{more} Editor"))
        }).collect();
        let compiled = rules::Rules::new(&rules, &[], |_| true);
        let query = query::Query::parse(&query);
        let mut found = Vec::new();
        compiled.each_by_query(&rules, &path, &query, |id| found.push(id.index()));
        found.retain(|index| rules[*index].methods.covers(&method));
        found.sort_unstable();
        found.dedup();
        let each = rules.iter().enumerate().filter(|(_, rule)| {
            rule.methods.covers(&method)
                && rule.pattern.matches(&path, true)
                && rule.query.iter().all(|condition| condition.holds(&query))
        });
        prop_assert_eq!(found, each.map(|(index, _)| index).collect::<Vec<_>>());
    }

    #[test]
    fn no_reading_gives_a_laxer_answer_than_the_decision(
        lines in prop::collection::vec(
            ("(\\*|GET|POST|read|write)", "(/(admin|users\\.php|x|:x)){0,3}(/\\*)?", "(public|authenticated|Viewer|SuperAdmin|deny)"),
            1..10,
        ),
        method in "(GET|POST|DELETE)",
        overrides in prop::collection::vec("(GET|DELETE|put)", 0..3),
        raw in "/(admin|ADMIN|x|/|;|\\.|\\+|%2561|%20|%3f|users\\.php|index\\.php/|%EF%BD%81|%C3%A1|%C2%AD|%25|2e){0,8}",
    ) {
        let mut kept: Vec<Rule> = Vec::new();
        for (methods, path, allow) in &lines {
            let path = if path.is_empty() { "/" } else { path };
            kept.push(rule(&format!("{methods} {path} {allow}")));
            if rules::problems(&kept, &[]).iter().any(RuleProblem::is_error) {
                kept.pop();
            }
        }
        let options = PathOptions { scripts: vec!["php".into()], ..PathOptions::default() };
        let (policy, _) = Policy::new(roles(), kept.clone(), &[], options);
        if let Ok(target) = policy.target(&method, &raw, None, overrides.iter().map(String::as_str)) {
            let Route::Upstream { requirement, .. } = policy.judge(&target).route else { panic!() };
            let needed = |method: &str, text: &str| {
                naive(&kept, method, text).map_or(Requirement::Deny, |index| kept[index].allow)
            };
            let mut strictest = None;
            for text in target.texts().chain(target.unaccented_texts()) {
                for method in target.methods() {
                    // Every literal above is as folding leaves it.
                    strictest = strictest.max(Some(needed(method, text))).max(Some(needed(method, &pattern::fold(text))));
                }
            }
            prop_assert_eq!(Some(requirement), strictest);
            prop_assert_eq!(strictest, policy.explain(&target).iter().map(|reading| reading.requirement).max());
        }
    }

    #[test]
    fn a_path_in_disguise_needs_no_less_than_the_path_itself(
        segments in prop::collection::vec("(admin|users\\.php|x|item|open)", 1..4),
        disguises in prop::collection::vec((0_usize..4, 0_usize..14), 0..5),
        before in "(|/|//host|/index\\.php|/INDEX%2Ephp;a|/;a|/\\+|/%C2%AD)",
        behind in "(|/|//|%20|\\+|;x|%3Fx|%23x|%253fx|\\.)",
    ) {
        let policy = policy(&[
            "* /* public", "* /admin/* Editor", "* /admin/open/* public", "* /users.php SuperAdmin", "* /item/:id Viewer",
            "* /item/* deny", "* /x/admin/* authenticated",
        ]);
        let plain = format!("/{}", segments.join("/"));
        let mut spelled = segments.clone();
        for (index, disguise) in disguises {
            let index = index % spelled.len();
            let segment = &spelled[index];
            let escaped = |c: &str| c.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let (first, rest) = segment.split_at(1);
            spelled[index] = match disguise {
                // Whatever is escaped or folded already is left alone.
                _ if !segment.is_ascii() || segment.contains(['%', ';', '+']) => segment.replace('%', "%25"),
                0 => escaped(first) + rest,
                1 => format!("%25{:02x}{rest}", first.as_bytes()[0]),
                2 => segment.to_ascii_uppercase(),
                3 => format!("{segment};v=1"),
                4 => format!("{segment}%20"),
                5 => format!("+{segment}"),
                6 => format!("/{segment}"),
                7 => format!("{segment}."),
                8 => format!("{first}%E2%80%8B{rest}"),
                9 => format!("{first}%CC%81{rest}"),
                10 => char::from_u32(first.chars().map(u32::from).sum::<u32>() + 0xFEE0)
                    .map_or_else(|| segment.clone(), |wide| escaped(&wide.to_string()) + rest),
                11 => segment.replace('i', "%C4%B1"),
                12 => segment.replace('s', "%C5%BF"),
                _ => segment.replace('e', "%C3%A9"),
            };
        }
        let disguised = format!("{before}/{}{behind}", spelled.join("/"));
        let needed = |path: &str| policy.target("GET", path, None, []).map(|target| match policy.judge(&target).route {
            Route::Upstream { requirement, .. } => requirement,
            Route::Own(_) => panic!("{path}"),
        });
        if let Ok(requirement) = needed(&disguised) {
            prop_assert!(requirement >= needed(&plain).unwrap(), "{} for {}", disguised, plain);
        }
    }
}

#[test]
fn letters_that_an_upstream_may_hold_for_others_are_read_as_those() {
    let policy = policy(&["* /* public", "* /admin/* Editor", "* /café/* SuperAdmin", "* /straße/* Viewer"]);
    for (path, expected) in [
        ("/%C3%A1dmin", "Editor"),
        ("/a%CC%81dmin", "Editor"),
        ("/adm%C4%B1n/x", "Editor"),
        ("/ADM%C4%B0N/x", "Editor"),
        ("/%EF%BC%A1DMIN", "Editor"),
        ("/ad%C2%ADmin", "Editor"),
        ("/caf%C3%A9/x", "SuperAdmin"),
        ("/cafe/x", "SuperAdmin"),
        ("/CAFE%CC%81", "SuperAdmin"),
        ("/STRASSE/1", "Viewer"),
        ("/stra%C3%9Fe/1", "Viewer"),
        ("/stra%E1%BA%9Ee/1", "Viewer"),
        ("/strase", "public"),
        ("/adm%25%CC%8169n", "Editor"),
        ("/administrator", "public"),
    ] {
        assert_eq!(needs(&policy, "GET", path), expected, "{path}");
    }
}

#[test]
fn a_front_controller_and_a_path_taken_for_a_url_lead_to_no_laxer_rule() {
    let policy = policy(&[
        "* /* public",
        "* /admin/* Editor",
        "* /blog/admin/* SuperAdmin",
        "GET /index.php/x Viewer",
    ]);
    for (path, expected) in [
        ("/index.php/admin/x", "Editor"),
        ("/INDEX.php//admin", "Editor"),
        ("/blog/index.php/admin", "SuperAdmin"),
        ("/index.php/x", "Viewer"),
        ("/index.php", "public"),
        ("/index.php/", "public"),
        ("/index.phpx/admin", "public"),
        ("//host/admin", "Editor"),
        ("///host:8080/admin/x", "Editor"),
        ("//host/index.php/admin", "Editor"),
        ("//admin", "Editor"),
        ("/x//host/admin", "public"),
        ("/admin+", "Editor"),
        ("/admin+x", "public"),
        ("/...", "path_dot_segment"),
    ] {
        assert_eq!(needs(&policy, "GET", path), expected, "{path}");
    }
}
