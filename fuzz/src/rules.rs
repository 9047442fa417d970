//! The compiled rules against a naive matcher that looks at every rule and compares.
//!
//! Input: rules as lines `METHODS PATH ALLOW`, an empty line, requests as lines `METHOD PATH`.

use std::cmp::Ordering;

use portcullis::policy::method::{Methods, is_method};
use portcullis::policy::{Mode, PathOptions, Pattern, Policy, Requirement, Rule, RuleProblem};

use crate::{judge, needed, requirement, roles};

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (rules, requests) = text.split_once("\n\n").unwrap_or((text, ""));
    let rules: Vec<Rule> = rules.lines().take(24).filter_map(rule).collect();
    let cased = rules.iter().any(|rule| rule.pattern.as_str().chars().any(char::is_uppercase));
    let (policy, problems) = Policy::new(roles(), rules, &[], PathOptions::default());
    if problems.iter().any(RuleProblem::is_error) {
        return;
    }
    for (method, path) in requests.lines().take(24).filter_map(|line| line.split_once(' ')) {
        if !is_method(method) || !path.starts_with('/') {
            continue;
        }
        let plain = path.len() < 500
            && path.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_'))
            && !path.contains("//");
        let Ok(judgement) = judge(&policy, method, path, None, &[]) else {
            assert!(!plain, "{method} {path} is refused");
            continue;
        };
        let needed = needed(judgement).expect("there are no paths of the gateway's own here");
        let first = naive(policy.rules(), method, path);
        assert!(!plain || cased || needed == first, "{method} {path}: {needed:?} and not {first:?}");
        if plain {
            assert!(needed >= first, "{method} {path}: {needed:?} is laxer than {first:?}");
        }
    }
}

fn rule(line: &str) -> Option<Rule> {
    let [methods, path, allow] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    Some(Rule {
        pattern: Pattern::parse(path).ok()?,
        methods: if methods == "*" { Methods::any() } else { Methods::parse(methods.split(',')).ok()? },
        query: Vec::new(),
        allow: requirement(allow)?,
        mode: Mode::Enforce,
    })
}

fn segments(path: &str) -> Vec<&str> {
    path.trim_end_matches('/').split('/').skip(1).collect()
}

fn covers(pattern: &str, path: &[&str]) -> bool {
    let pattern = segments(pattern);
    let (fixed, below) = match pattern.split_last() {
        Some((&"*", before)) => (before, true),
        _ => (&pattern[..], false),
    };
    (path.len() == fixed.len() || below && path.len() > fixed.len())
        && fixed
            .iter()
            .zip(path)
            .all(|(wanted, given)| wanted.starts_with(':') && !given.is_empty() || wanted == given)
}

/// Two patterns that cover the same paths.
fn same_path(one: &str, other: &str) -> bool {
    let shape = |path: &str| -> Vec<String> {
        segments(path)
            .iter()
            .map(|s| if s.starts_with(':') { ":".to_owned() } else { (*s).to_owned() })
            .collect()
    };
    shape(one) == shape(other)
}

/// Less is more specific.
fn specificity(one: &str, other: &str) -> Ordering {
    let rank = |segment: &&str| match *segment {
        "*" => 2,
        named if named.starts_with(':') => 1,
        _ => 0,
    };
    let (one, other) = (segments(one), segments(other));
    for (a, b) in one.iter().zip(&other) {
        match rank(a).cmp(&rank(b)) {
            Ordering::Equal => {}
            decided => return decided,
        }
    }
    // Both cover the path, so the longer one goes on with `/*` where the other has ended.
    one.len().cmp(&other.len())
}

/// Contract, section 4, to the letter.
fn naive(rules: &[Rule], method: &str, path: &str) -> Requirement {
    let path = segments(path);
    let head_is_listed = |pattern: &str| {
        rules.iter().any(|rule| {
            same_path(rule.pattern.as_str(), pattern) && !rule.methods.is_any() && rule.methods.lists("HEAD")
        })
    };
    let lists = |rule: &Rule| {
        !rule.methods.is_any()
            && (rule.methods.lists(method)
                || method == "HEAD" && rule.methods.lists("GET") && !head_is_listed(rule.pattern.as_str()))
    };
    // A method that is named comes before a `write` that covers it among all others.
    let by_name = |rule: &Rule| rule.methods.to_string().split(", ").any(|word| word == method);
    let covering = rules
        .iter()
        .filter(|rule| covers(rule.pattern.as_str(), &path))
        .filter(|rule| rule.methods.is_any() || lists(rule));
    let best = covering.min_by(|one, other| {
        specificity(one.pattern.as_str(), other.pattern.as_str())
            .then_with(|| lists(other).cmp(&lists(one)))
            .then_with(|| by_name(other).cmp(&by_name(one)))
    });
    best.map_or(Requirement::Deny, |rule| rule.allow)
}
