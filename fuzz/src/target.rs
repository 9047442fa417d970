//! A request target against upstreams that read it in their own way: whatever one of them would serve
//! needs no more than the decision asked for.
//!
//! Input: two bytes that choose the upstream, a line `METHOD target`, lines with the values of override
//! headers. An upstream decodes the path once and then takes up to seven steps in an order of its own;
//! what it ends up with is looked up in a table that is written by hand.

use std::sync::LazyLock;

use portcullis::policy::method::{Methods, is_method};
use portcullis::policy::path::EncodedSlash;
use portcullis::policy::{Endpoint, Mode, PathOptions, Pattern, Policy, Requirement, Rule};
use unicode_normalization::UnicodeNormalization;

use crate::{judge, needed, requirement, roles};

/// The rules, and [`table`] says the same by hand. What is open is wide, so that every slip shows.
const RULES: [(&str, &str, &str); 9] = [
    ("*", "/*", "public"),
    ("*", "/admin/*", "SuperAdmin"),
    ("*", "/admin/open/*", "public"),
    ("GET", "/user/:id", "Viewer"),
    ("*", "/user/*", "Editor"),
    ("*", "/users.php", "Editor"),
    ("write", "/files/*", "Editor"),
    ("*", "/api/v1/*", "authenticated"),
    ("*", "/api/v1/keys", "deny"),
];

fn policy(encoded_slash: EncodedSlash) -> Policy {
    let rule = |(methods, path, allow): (&str, &str, &str)| Rule {
        pattern: Pattern::parse(path).expect("a plain pattern"),
        methods: if methods == "*" { Methods::any() } else { Methods::parse([methods]).expect("methods") },
        query: Vec::new(),
        allow: requirement(allow).expect("a role"),
        mode: Mode::Enforce,
    };
    let own = [(Pattern::parse("/auth/login").expect("a plain pattern"), Endpoint::Login)];
    let options = PathOptions { encoded_slash, scripts: vec!["php".to_owned()] };
    let (policy, problems) = Policy::new(roles(), RULES.map(rule).to_vec(), &own, options);
    assert!(!problems.iter().any(portcullis::policy::RuleProblem::is_error));
    policy
}

static POLICIES: LazyLock<[Policy; 2]> =
    LazyLock::new(|| [policy(EncodedSlash::Reject), policy(EncodedSlash::Strict)]);

/// What the rules ask of a request whose path has these segments, empty ones and all.
fn table(method: &str, segments: &[&str]) -> Requirement {
    let reads = matches!(method, "GET" | "HEAD" | "OPTIONS");
    let word = match segments {
        ["auth", "login"] => "deny",
        ["admin", "open", ..] => "public",
        ["admin", ..] => "SuperAdmin",
        ["user", _] if matches!(method, "GET" | "HEAD") => "Viewer",
        ["user", ..] | ["users.php"] => "Editor",
        ["files", ..] if !reads => "Editor",
        ["api", "v1", "keys"] => "deny",
        ["api", "v1", ..] => "authenticated",
        _ => "public",
    };
    requirement(word).expect("a role")
}

/// Something that an upstream does to a path once it is decoded.
const STEPS: [fn(&str) -> String; 16] = [
    str::to_owned,
    |path| decoded(path).unwrap_or_else(|| path.to_owned()),
    |path| {
        path.split('/').map(|segment| segment.split(';').next().unwrap_or("")).collect::<Vec<_>>().join("/")
    },
    str::to_ascii_lowercase,
    merged,
    |path| each(path, |segment| segment.trim_end_matches('.')),
    |path| each(path, |segment| segment.trim_matches(' ')),
    |path| path.split('?').next().unwrap_or("").to_owned(),
    |path| path.split('#').next().unwrap_or("").to_owned(),
    cut_script,
    |path| path.chars().map(|c| ascii_form(c).unwrap_or_else(|| c.to_string())).collect(),
    |path| path.replace('\\', "/"),
    resolved,
    |path| path.split('\0').next().unwrap_or("").to_owned(),
    |path| path.to_lowercase(),
    |path| each(path, |segment| segment.trim_end_matches([' ', '.'])),
];

fn each(path: &str, change: impl Fn(&str) -> &str) -> String {
    // A dot segment is one, not a segment with trailing dots.
    let change = |segment| if matches!(segment, "." | "..") { segment } else { change(segment) };
    path.split('/').map(change).collect::<Vec<_>>().join("/")
}

fn merged(path: &str) -> String {
    let mut merged = path.to_owned();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    merged
}

/// `None` where an escape is malformed or what it stands for is no text.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = rest else { return None };
        let digit = |byte: &u8| (*byte as char).to_digit(16);
        bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn cut_script(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/') {
        kept.push(segment);
        if segment.to_ascii_lowercase().ends_with(".php") {
            break;
        }
    }
    kept.join("/")
}

/// What stands for an ASCII character and is none (`ａ`, `／`, `％`).
fn ascii_form(c: char) -> Option<String> {
    let form: String = std::iter::once(c).nfkc().collect();
    (!c.is_ascii() && form.is_ascii()).then_some(form)
}

/// RFC 3986 §5.2.4, for absolute paths.
fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// See the module.
pub fn check(data: &[u8]) {
    let [first, second, third, rest @ ..] = data else { return };
    let choice = u32::from_be_bytes([0, *first, *second, *third]);
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let mut lines = text.split('\n');
    let Some((method, target)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    if !is_method(method) {
        return;
    }
    let overrides: Vec<&str> = lines.collect();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let [plain, strict] = &*POLICIES;
    let policy = if choice & 1 == 0 { plain } else { strict };
    let Ok(judgement) = judge(policy, method, path, query, &overrides) else { return };

    // Asked again, the same; and no reading that `explain` shows asks for more than what counts.
    let again = policy.target(method, path, query, overrides.iter().copied()).expect("it was read before");
    assert_eq!(policy.judge(&again), judgement);
    let strictest = policy.explain(&again).into_iter().map(|reading| reading.requirement).max();
    let Some(needed) = needed(judgement) else {
        assert_eq!(
            decoded(path).map(|path| path.trim_end_matches('/').to_owned()).as_deref(),
            Some("/auth/login")
        );
        return;
    };
    assert_eq!(strictest, Some(needed), "explain shows what counts");

    // What was let through has one first reading, and it is a clean one.
    let mut read = decoded(path).expect("what passes can be decoded");
    assert!(read.starts_with('/') && !read.contains('\\') && !read.chars().any(char::is_control), "{read:?}");
    let dotted = |path: &str| path.split('/').any(|segment| matches!(segment, "." | ".."));
    assert!(!dotted(&read), "{read:?}");

    // The upstream's method: the one sent, or one that the request names otherwise.
    let mut methods = vec![method.to_owned()];
    methods.extend(overrides.iter().map(|value| value.trim().to_ascii_uppercase()));
    let named =
        query.into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.strip_prefix("_method="));
    methods.extend(named.filter_map(decoded).map(|value| value.trim().to_ascii_uppercase()));
    let acted_on = methods.iter().rev().find(|method| is_method(method)).expect("the one sent");
    let mut taken = vec![read.clone()];
    for step in 0..5 {
        let step = (choice >> (1 + 4 * step)) & 15;
        read = STEPS[step as usize](&read);
        taken.push(read.clone());
    }
    for method in [method, acted_on] {
        for path in [&read, &resolved(&read)] {
            let mut segments: Vec<&str> = path.split('/').skip(1).collect();
            while segments.last() == Some(&"") {
                segments.pop();
            }
            let asked = table(method, &segments);
            assert!(
                needed >= asked,
                "{method} {target:?} was let through to {needed:?}; as {taken:?} it is {segments:?} and needs {asked:?}"
            );
        }
    }
}
