//! Conditions on the query string, read as PHP would read it and then some.
//!
//! A query rule guards what a CMS routes by parameter (`/?rest_route=/wp/v2/users`). It only ever
//! raises a requirement, so every doubt is resolved towards "it matches": names in every spelling
//! that PHP folds together, letter case ignored, every occurrence, `&` and `;` as separators,
//! values decoded until nothing changes. Request bodies are not read.

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::path::decode_valid;
use super::pattern::fold;

/// How often a name or value is decoded again before the rest is taken as it is.
const MAX_DECODINGS: usize = 4;

/// One parameter that a rule's `query` names; all of a rule's conditions must hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueryCondition {
    /// As it stands in the file.
    pub name: String,
    /// As it stands in the file.
    pub wanted: String,
    value: QueryValue,
    folded_name: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum QueryValue {
    Any,
    Exactly(String),
    /// The prefix itself and everything below it, as `/*` means in a path.
    Below(String),
}

impl QueryCondition {
    /// `wanted` is `*`, a prefix ending in `/*`, or the exact value.
    pub fn new(name: &str, wanted: &str) -> Self {
        let folded = canonical_value(wanted);
        let value = match wanted.strip_suffix("/*") {
            _ if wanted == "*" => QueryValue::Any,
            Some(prefix) => QueryValue::Below(canonical_value(prefix)),
            None => QueryValue::Exactly(folded),
        };
        Self { name: name.to_owned(), wanted: wanted.to_owned(), value, folded_name: canonical_name(name) }
    }

    /// Whether any parameter of `query` satisfies the condition.
    pub(super) fn holds(&self, query: &Query) -> bool {
        query.values(&self.folded_name).any(|value| self.value.accepts(value))
    }
}

impl QueryValue {
    fn accepts(&self, given: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(value) => value == given,
            Self::Below(prefix) => given
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

/// Conditions by parameter and value, so that a thousand cost no more than one to look through.
#[derive(Debug)]
pub(super) struct ByParameter<T> {
    by_name: HashMap<String, ByValue<T>, RandomState>,
}

/// What the conditions on one parameter stand for.
#[derive(Debug)]
struct ByValue<T> {
    any: Vec<T>,
    exactly: HashMap<String, Vec<T>, RandomState>,
    below: HashMap<String, Vec<T>, RandomState>,
    /// Length of the longest prefix in `below`: of a long value, no more is looked up.
    longest: usize,
}

impl<T> Default for ByParameter<T> {
    fn default() -> Self {
        Self { by_name: HashMap::default() }
    }
}

impl<T> Default for ByValue<T> {
    fn default() -> Self {
        Self { any: Vec::new(), exactly: HashMap::default(), below: HashMap::default(), longest: 0 }
    }
}

impl<T: Copy> ByParameter<T> {
    /// Keeps `what` for the queries that satisfy `condition`.
    pub(super) fn insert(&mut self, condition: &QueryCondition, what: T) {
        let by_value = self.by_name.entry(condition.folded_name.clone()).or_default();
        match &condition.value {
            QueryValue::Any => &mut by_value.any,
            QueryValue::Exactly(value) => by_value.exactly.entry(value.clone()).or_default(),
            QueryValue::Below(prefix) => {
                by_value.longest = by_value.longest.max(prefix.len());
                by_value.below.entry(prefix.clone()).or_default()
            }
        }
        .push(what);
    }

    /// Calls `each` for every condition that a parameter of `query` satisfies.
    pub(super) fn each(&self, query: &Query, mut each: impl FnMut(T)) {
        if self.by_name.is_empty() {
            return;
        }
        for (name, value) in &query.parameters {
            let Some(by_value) = self.by_name.get(name) else { continue };
            by_value.any.iter().for_each(|what| each(*what));
            by_value.exactly.get(value).into_iter().flatten().for_each(|what| each(*what));
            if by_value.below.is_empty() {
                continue;
            }
            let ends = value.match_indices('/').map(|(end, _)| end).chain([value.len()]);
            for end in ends.take_while(|end| *end <= by_value.longest) {
                by_value.below.get(&value[..end]).into_iter().flatten().for_each(|what| each(*what));
            }
        }
    }
}

/// A query string taken apart: every occurrence of every parameter, names and values canonical.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Sorted: a query may hold thousands, and one condition of a rule is looked for at each that
    /// satisfies another.
    parameters: Vec<(String, String)>,
}

impl Query {
    /// Takes `raw`, the part of the request target behind `?`, apart.
    pub fn parse(raw: &str) -> Self {
        let mut parameters = Vec::new();
        let mut read = |separators: &[char]| {
            for pair in raw.split(separators).filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                for (name, value) in decodings(name).zip_longest(decodings(value)) {
                    let names = [Some(canonical_name(&name)), unclosed_name(&name)];
                    for value in values(&value) {
                        parameters.extend(names.iter().flatten().map(|name| (name.clone(), value.clone())));
                    }
                }
            }
        };
        read(&['&']);
        if raw.contains(';') {
            read(&['&', ';']);
        }
        parameters.sort_unstable();
        parameters.dedup();
        Self { parameters }
    }

    /// Every value of the parameter of that canonical name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let first = self.parameters.partition_point(|(given, _)| given.as_str() < name);
        self.parameters[first..]
            .iter()
            .take_while(move |(given, _)| given == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Every stage of decoding one text, the single decoding first.
struct Decodings(Vec<String>);

fn decodings(raw: &str) -> Decodings {
    let plus = raw.replace('+', " ");
    let mut stages = vec![decode_valid(&plus).into_owned()];
    while stages.len() < MAX_DECODINGS {
        let last = stages.last().expect("starts with one stage");
        match decode_valid(last) {
            Cow::Borrowed(_) => break,
            Cow::Owned(next) => stages.push(next),
        }
    }
    Decodings(stages)
}

impl Decodings {
    /// Pairs stage with stage; the shorter list repeats its last stage.
    fn zip_longest(self, other: Self) -> impl Iterator<Item = (String, String)> {
        let count = self.0.len().max(other.0.len());
        let pick = |list: &[String], index: usize| list[index.min(list.len() - 1)].clone();
        (0..count)
            .map(move |index| (pick(&self.0, index), pick(&other.0, index)))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

/// A name as PHP would store it, letter case folded: leading blanks cut, `.` and blanks as `_`,
/// cut at `[` and at NUL. A `?` before it is more of the delimiter: PHP's own server and WHATWG's
/// `URLSearchParams` drop it.
fn canonical_name(name: &str) -> String {
    let name = name.trim_start_matches([' ', '?']);
    let end = name.find(['[', '\0']).unwrap_or(name.len());
    fold(&name[..end]).replace(['.', ' '], "_")
}

/// The other thing that PHP makes of a name with a `[`: where no `]` follows, the bracket is no index but
/// one more `_`, so that `rest[route` is `rest_route`.
fn unclosed_name(name: &str) -> Option<String> {
    name.contains('[').then(|| canonical_name(&name.replace('[', "_")))
}

/// What a CMS may make of a value: what it says; that with `\` for `/`, which WordPress cuts from the end as well;
/// and the word that is left when Joomla's filter for names (`CMD`) has dropped all that no name has.
fn values(value: &str) -> impl Iterator<Item = String> {
    let slashed = value.contains('\\').then(|| canonical_value(&value.replace('\\', "/")));
    let in_a_word = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_word = value.chars().all(|c| in_a_word(&c)) && !value.starts_with('.');
    let word = (!is_word).then(|| {
        let word: String = value.chars().filter(in_a_word).collect();
        fold(word.trim_start_matches('.'))
    });
    [Some(canonical_value(value)), slashed, word].into_iter().flatten()
}

/// A value without regard to letter case; one that looks like a path loses doubled and trailing
/// slashes, because the CMS that routes by it does not care either.
fn canonical_value(value: &str) -> String {
    let folded = fold(value.trim_matches(|c: char| c.is_whitespace() || c == '\0'));
    if !folded.starts_with('/') {
        return folded;
    }
    let mut path = String::with_capacity(folded.len());
    for segment in folded.split('/').filter(|segment| !segment.is_empty()) {
        path.push('/');
        path.push_str(segment);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_in_every_spelling_that_the_upstream_would_accept() {
        for (name, value, raw, holds) in [
            ("rest_route", "/wp/v2/users", "rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest_route=%2Fwp%2Fv2%2Fusers", true),
            ("rest_route", "/wp/v2/users", "rest_route=%252Fwp%252Fv2%252Fusers", true),
            ("rest_route", "/wp/v2/users", "REST_ROUTE=/WP/V2/Users", true),
            ("rest_route", "/wp/v2/users", "rest.route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest+route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest%5froute=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "%20rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest_route[]=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "?rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "??rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest[route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest%5broute=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "a=b&rest_route=x&rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "a=b;rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users", "rest_route=//wp/v2//users/", true),
            ("rest_route", "/wp/v2/users", "rest_route=/wp/v2/users/1", false),
            ("rest_route", "/wp/v2/users/*", "rest_route=/wp/v2/users/1", true),
            ("rest_route", "/wp/v2/users/*", "rest_route=/wp/v2/users", true),
            ("rest_route", "/wp/v2/users/*", "rest_route=/wp/v2/userses", false),
            ("rest_route", "/wp/v2/users", "rest_route=/wp/v2/users%5c", true),
            ("rest_route", "/wp/v2/users", "rest_route=/wp/v2/users%5c/%5c", true),
            ("rest_route", "/wp/v2/users", "rest_route=/wp%5cv2%5cusers", true),
            ("rest_route", "/wp/v2/users/*", "rest_route=%5cwp/v2/users%5c1", true),
            ("option", "*", "option", true),
            ("option", "com_users", "option=com_users!", true),
            ("option", "com_users", "option=.com_users", true),
            ("option", "com_users", "option=c%20om_/us%00ers", true),
            ("option", "com_users", "option=com_users2", false),
            ("option", "com_users", "option=com-users", false),
            ("option", "*", "options=1", false),
            ("option", "com_users", "option=com_users%00", true),
            ("option", "com_users", "option=%zz", false),
        ] {
            assert_eq!(
                QueryCondition::new(name, value).holds(&Query::parse(raw)),
                holds,
                "{name}={value} in {raw}"
            );
        }
    }
}
