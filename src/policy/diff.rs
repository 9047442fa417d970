//! What differs between two policies: the part of a reload's log line that says which answers change.

use std::collections::BTreeSet;

use super::method::Methods;
use super::{Answer, Caller, Policy};

/// One answer that differs.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Difference {
    /// A path that a rule of either policy matches; `-` stands for any segment.
    pub path: String,
    /// The method; `PROPFIND` stands for every unusual one.
    pub method: String,
    /// A role's name, or `anonymous`.
    pub caller: String,
    /// The answer of the old policy.
    pub before: String,
    /// The answer of the new one.
    pub after: String,
}

/// The answers that differ between `old` and `new`, tried on a sample of each rule's paths, every
/// kind of method and every role of either. At most `limit` are returned; the number is of all.
pub fn differences(old: &Policy, new: &Policy, limit: usize) -> (Vec<Difference>, usize) {
    let paths: BTreeSet<String> =
        old.rules().iter().chain(new.rules()).flat_map(|rule| rule.pattern.samples()).collect();
    let mut callers: Vec<Option<&str>> = vec![None];
    for name in old.roles().names().iter().chain(new.roles().names()) {
        if !callers.contains(&Some(name.as_str())) {
            callers.push(Some(name));
        }
    }
    let (mut found, mut count) = (Vec::new(), 0);
    for path in &paths {
        // A sample is decoded text; what is not plain ASCII has to be encoded to be asked about.
        let raw = encode(path);
        for method in Methods::samples() {
            for caller in &callers {
                let who = caller.map_or(Caller::Anonymous, |role| Caller::Authenticated(Some(role)));
                let ask = |policy: &Policy| policy.answer(method, &raw, None, who);
                let (before, after) = (ask(old), ask(new));
                if before == after || before == Answer::BadRequest && after == Answer::BadRequest {
                    continue;
                }
                count += 1;
                if found.len() < limit {
                    found.push(Difference {
                        path: path.clone(),
                        method: method.to_owned(),
                        caller: caller.unwrap_or("anonymous").to_owned(),
                        before: before.to_string(),
                        after: after.to_string(),
                    });
                }
            }
        }
    }
    (found, count)
}

fn encode(path: &str) -> String {
    let mut raw = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => raw.push(byte as char),
            _ if byte.is_ascii_alphanumeric() => raw.push(byte as char),
            _ => raw.push_str(&format!("%{byte:02X}")),
        }
    }
    raw
}
