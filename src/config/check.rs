//! The whole tree against the schema: every problem at once, and a tree without the parts that have one.
//!
//! References are filled in on the way, since what a `${NAME}` must be is known only where it stands. A
//! part with a problem is cut out of the tree (a key, an item of a list), so that what is left can still
//! be read and checked further: one bad rule does not hide what is wrong with the others.
//! Not here: what the values mean together (`raw`, `snapshot`).

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::diagnostic::{Diagnostic, Position, Problem, Shown, nearest};
use super::reference::{Lookup, Surroundings};
use super::schema::{Alternative, Mapping, Shape, TextValue};
use super::template;
use super::value;
use super::yaml::{Key, Kind, Node, Text};

/// One check of one file.
pub(super) struct Check<'a> {
    /// The file's lines, to find the place of a reference inside its value.
    pub(super) lines: Vec<&'a str>,
    /// Where references are looked up.
    pub(super) lookup: Lookup<'a>,
    /// What was found, in no particular order.
    pub(super) found: Vec<Diagnostic>,
    /// Top-level keys that something was cut out of.
    pub(super) incomplete: BTreeSet<String>,
    /// The keys that lead to the node at hand.
    path: Vec<String>,
}

impl<'a> Check<'a> {
    pub(super) fn new(lines: Vec<&'a str>, lookup: Lookup<'a>) -> Self {
        Check { lines, lookup, found: Vec::new(), incomplete: BTreeSet::new(), path: Vec::new() }
    }

    /// Checks the file's tree and cuts out what is wrong. False when there is nothing left to read.
    pub(super) fn root(&mut self, node: &mut Node, shape: &Shape) -> bool {
        let found = node.kind.name();
        match (&mut node.kind, shape.0.as_slice()) {
            (Kind::Mapping(entries), [Alternative::Mapping(mapping)]) => {
                self.mapping(node.at, entries, mapping);
                true
            }
            _ => {
                self.error(node.at, Problem::NotAMapping { found });
                false
            }
        }
    }

    /// Whether the node can stay.
    fn node(&mut self, node: &mut Node, shape: &Shape) -> bool {
        if let [Alternative::Anything { template }] = shape.0.as_slice() {
            return self.anything(node, template.as_deref());
        }
        let stays = match &mut node.kind {
            Kind::Text(_) => return self.text(node, shape),
            Kind::Mapping(entries) => {
                let wanted = shape.0.iter().find_map(|alternative| match alternative {
                    Alternative::Mapping(mapping) => Some(mapping),
                    _ => None,
                });
                wanted.map(|mapping| self.mapping(node.at, entries, mapping))
            }
            Kind::List(items) => shape.0.iter().find_map(|alternative| match alternative {
                Alternative::List { items: wanted, minimum, maximum, unique } => {
                    Some(self.list(node.at, items, wanted, *minimum, *maximum, *unique))
                }
                _ => None,
            }),
            Kind::Integer(number) => self.integer(node.at, *number, shape),
            Kind::Bool(switch) => {
                let wanted = shape.0.iter().any(|alternative| match alternative {
                    Alternative::Bool => true,
                    Alternative::One(words) => words.contains(&Value::Bool(*switch)),
                    _ => false,
                });
                wanted.then_some(true)
            }
            Kind::Float(_) | Kind::Null => None,
        };
        stays.unwrap_or_else(|| self.wrong_type(node, shape))
    }

    fn integer(&mut self, at: Position, number: i128, shape: &Shape) -> Option<bool> {
        let mut bounds = None;
        for alternative in &shape.0 {
            match alternative {
                Alternative::One(words)
                    if words.iter().any(|word| word.as_i64().map(i128::from) == Some(number)) =>
                {
                    return Some(true);
                }
                Alternative::One(words) if words.iter().any(Value::is_number) => {
                    let value = Shown::Text(number.to_string());
                    let known = words.iter().map(plain).collect();
                    self.error(at, Problem::UnknownValue { key: self.key(), value, nearest: None, known });
                    return Some(false);
                }
                Alternative::Integer { minimum, maximum } => bounds = Some((*minimum, *maximum)),
                _ => {}
            }
        }
        let (minimum, maximum) = bounds?;
        let inside = minimum.is_none_or(|least| number >= least) && maximum.is_none_or(|most| number <= most);
        if !inside {
            self.error(at, Problem::OutOfBounds { key: self.key(), value: number, minimum, maximum });
        }
        Some(inside)
    }

    fn text(&mut self, node: &mut Node, shape: &Shape) -> bool {
        let Kind::Text(text) = &mut node.kind else { return false };
        if !self.fill_in(node.at, text, Surroundings::Plain) {
            return false;
        }
        let mut failed = None;
        let mut words = Vec::new();
        for alternative in &shape.0 {
            match alternative {
                Alternative::One(known) if known.iter().any(|word| word.as_str() == Some(&text.value)) => {
                    return true;
                }
                Alternative::One(known) => words.extend(known.iter().map(plain)),
                Alternative::Text(None) => return true,
                Alternative::Text(Some(wanted)) => {
                    match value::check(&wanted.name, &text.value, wanted.least, wanted.most) {
                        Ok(()) => return true,
                        Err(why) => failed = Some((why, value::is_secret(&wanted.name))),
                    }
                }
                _ => {}
            }
        }
        // What a reference stands for is always text; where something else is wanted it is read as that.
        if text.written.is_some()
            && let Some(kind) = reread(&text.value, shape)
        {
            let number = kind.clone();
            let (at, shown) = (node.at, shown(text, false));
            node.kind = kind;
            return match number {
                Kind::Integer(number) if self.integer(at, number, shape) == Some(false) => {
                    // The number came from outside: its place must not show it.
                    self.hide_last(shown);
                    false
                }
                _ => true,
            };
        }
        let switch_meant = words.iter().any(|word| word == "false")
            && matches!(text.value.as_str(), "off" | "no" | "none" | "disabled" | "False" | "FALSE");
        let (key, at) = (self.key(), node.at);
        match failed {
            Some((why, is_secret)) if !switch_meant => {
                self.error(at, Problem::Value { key, value: shown(text, is_secret), why });
            }
            None if words.iter().any(|word| word != "false") => {
                let nearest =
                    nearest(&text.value, words.iter().map(String::as_str)).filter(|_| text.written.is_none());
                self.error(
                    at,
                    Problem::UnknownValue { key, value: shown(text, false), nearest, known: words },
                );
            }
            _ => {
                let hint = switch_meant.then_some("write false to turn it off");
                self.error(at, Problem::WrongType { key, wanted: wanted(shape), found: "a text", hint });
            }
        }
        false
    }

    /// Fills in a text's references; false when one of them cannot be.
    fn fill_in(&mut self, at: Position, text: &mut Text, surroundings: Surroundings) -> bool {
        match self.lookup.interpolate(&text.value, surroundings) {
            Ok(None) => true,
            Ok(Some(filled)) => {
                text.written = Some(std::mem::replace(&mut text.value, filled).into_boxed_str());
                true
            }
            Err(problems) => {
                for (reference, problem) in problems {
                    let place = self.place_of(&reference, at);
                    self.error(place, problem);
                }
                false
            }
        }
    }

    /// Where in its value's first line a reference stands.
    fn place_of(&self, reference: &str, at: Position) -> Position {
        let index = (at.line as usize).checked_sub(1);
        let line = match at.preset() {
            None => index.and_then(|index| self.lines.get(index).copied()),
            Some(preset) => index.and_then(|index| preset.text().lines().nth(index)),
        };
        let before = at.column.saturating_sub(1) as usize;
        let column = line.and_then(|line| {
            let rest: usize = line.chars().take(before).map(char::len_utf8).sum();
            let offset = line.get(rest..)?.find(reference)?;
            u32::try_from(line[..rest + offset].chars().count() + 1).ok()
        });
        Position { column: column.unwrap_or(at.column), ..at }
    }

    fn list(
        &mut self,
        at: Position,
        items: &mut Vec<Node>,
        wanted: &Shape,
        minimum: usize,
        maximum: Option<usize>,
        unique: bool,
    ) -> bool {
        let length = items.len();
        if length < minimum || maximum.is_some_and(|most| length > most) {
            self.error(at, Problem::ListLength { key: self.key(), length, minimum, maximum });
            return false;
        }
        let mut seen: HashMap<String, Position> = HashMap::new();
        items.retain_mut(|item| {
            if !self.node(item, wanted) {
                return false;
            }
            let Kind::Text(text) = &item.kind else { return true };
            if !unique {
                return true;
            }
            if let Some(first) = seen.get(&text.value) {
                let problem = Problem::DuplicateItem { value: shown(text, false), first: *first };
                self.error(item.at, problem);
                return false;
            }
            seen.insert(text.value.clone(), item.at);
            true
        });
        items.len() >= minimum
    }

    fn mapping(&mut self, at: Position, entries: &mut Vec<(Key, Node)>, wanted: &Mapping) -> bool {
        let mut seen: HashMap<String, Position> = HashMap::with_capacity(entries.len());
        let mut whole = true;
        entries.retain_mut(|(key, value)| {
            if let Some(first) = seen.get(&key.name) {
                let problem = Problem::DuplicateKey { key: key.name.clone(), first: *first };
                self.error(key.at, problem);
                return false;
            }
            seen.insert(key.name.clone(), key.at);
            let property =
                wanted.properties.iter().find(|(name, _)| *name == key.name).map(|(_, shape)| shape);
            let Some(shape) = property.or(wanted.others.as_deref()) else {
                self.unknown_key(key, wanted);
                return false;
            };
            self.path.push(key.name.clone());
            let stays = self.node(value, shape);
            self.path.pop();
            whole &= stays || !wanted.required.contains(&key.name);
            stays
        });
        for missing in wanted.required.iter().filter(|name| !seen.contains_key(*name)) {
            self.error(at, Problem::MissingKey { key: missing.clone(), within: self.path.join(".") });
            whole = false;
        }
        let mut given: Vec<_> = wanted
            .one_of
            .iter()
            .filter_map(|name| seen.get(name).map(|place| (*place, name.clone())))
            .collect();
        given.sort();
        if !wanted.one_of.is_empty() && given.len() != 1 {
            let place = given.get(1).map_or(at, |(place, _)| *place);
            let found = given.into_iter().map(|(_, name)| name).collect();
            self.error(place, Problem::NotExactlyOne { of: wanted.one_of.clone(), found });
            whole = false;
        }
        whole
    }

    fn unknown_key(&mut self, key: &Key, wanted: &Mapping) {
        let known: Vec<String> = wanted.properties.iter().map(|(name, _)| name.clone()).collect();
        let nearest = nearest(&key.name, known.iter().map(String::as_str));
        let belongs = belongs(&key.name).filter(|place| *place != self.path.join("."));
        self.error(key.at, Problem::UnknownKey { key: key.name.clone(), nearest, known, belongs });
    }

    /// A value of the user's own: nothing to check but its references, its variables and keys that stand twice.
    fn anything(&mut self, node: &mut Node, template: Option<&[String]>) -> bool {
        let at = node.at;
        match &mut node.kind {
            Kind::Text(text) => {
                let Some(known) = template else { return self.fill_in(at, text, Surroundings::Plain) };
                for name in template::variables_in(&text.value) {
                    if !known.contains(&name) {
                        let nearest = nearest(&name, known.iter().map(String::as_str));
                        let known = known.iter().map(|name| format!("${name}")).collect();
                        let problem = Problem::UnknownTemplateVariable { name, nearest, known };
                        self.found.push(Diagnostic::warning(at, problem));
                    }
                }
                self.fill_in(at, text, Surroundings::Template)
            }
            Kind::List(items) => {
                let mut whole = true;
                items.iter_mut().for_each(|item| whole &= self.anything(item, template));
                whole
            }
            Kind::Mapping(entries) => {
                let mut seen: HashMap<String, Position> = HashMap::new();
                let mut whole = true;
                for (key, value) in entries {
                    if let Some(first) = seen.get(&key.name) {
                        let problem = Problem::DuplicateKey { key: key.name.clone(), first: *first };
                        self.error(key.at, problem);
                        whole = false;
                    }
                    seen.entry(key.name.clone()).or_insert(key.at);
                    whole &= self.anything(value, template);
                }
                whole
            }
            _ => true,
        }
    }

    fn wrong_type(&mut self, node: &Node, shape: &Shape) -> bool {
        let texts = || {
            shape.0.iter().filter_map(|alternative| match alternative {
                Alternative::Text(text) => Some(text.as_ref()),
                _ => None,
            })
        };
        let hint = match &node.kind {
            Kind::Integer(_) | Kind::Float(_) if texts().flatten().any(|text| text.name == "duration") => {
                Some("it needs a unit: ms, s, m, h or d")
            }
            Kind::Integer(_) | Kind::Float(_) if texts().flatten().any(|text| text.name == "size") => {
                Some("it needs a unit: B, KiB, MiB or GiB")
            }
            Kind::Integer(_) | Kind::Float(_) | Kind::Bool(_) if texts().any(is_free) => {
                Some("write it in quotes")
            }
            Kind::Null => Some("give it a value or leave the key out"),
            _ => None,
        };
        let problem =
            Problem::WrongType { key: self.key(), wanted: wanted(shape), found: node.kind.name(), hint };
        self.error(node.at, problem);
        false
    }

    /// The keys that lead here, `limits.headers`.
    fn key(&self) -> String {
        self.path.join(".")
    }

    fn error(&mut self, at: Position, problem: Problem) {
        if let Some(top) = self.path.first() {
            self.incomplete.insert(top.clone());
        }
        self.found.push(Diagnostic::error(at, problem));
    }

    /// Turns the last problem, which names a number, into one that names where it came from.
    fn hide_last(&mut self, value: Shown) {
        let Some(last) = self.found.last_mut() else { return };
        if let Problem::OutOfBounds { key, minimum, maximum, .. } = &last.problem {
            let why = value::ValueError::Bounds { minimum: *minimum, maximum: *maximum };
            last.problem = Problem::Value { key: key.clone(), value, why };
        }
    }
}

/// Whether a text may be anything, or a name: then a number was probably meant as one.
fn is_free(text: Option<&TextValue>) -> bool {
    text.is_none_or(|text| ["name", "role-name", "secret", "header-secret"].contains(&text.name.as_str()))
}

/// A value as a message may show it.
fn shown(text: &Text, is_secret: bool) -> Shown {
    match &text.written {
        Some(written) => Shown::Reference(written.to_string()),
        None if is_secret => Shown::Hidden,
        None => Shown::Text(text.value.clone()),
    }
}

/// A number or a switch, where one is wanted, from text that a reference stands for.
fn reread(text: &str, shape: &Shape) -> Option<Kind> {
    shape.0.iter().find_map(|alternative| match alternative {
        Alternative::Integer { .. } => text.parse().ok().map(Kind::Integer),
        Alternative::Bool => text.parse().ok().map(Kind::Bool),
        Alternative::One(words) => {
            words.iter().find(|word| !word.is_string() && plain(word) == text).and_then(|word| {
                word.as_bool()
                    .map(Kind::Bool)
                    .or_else(|| word.as_i64().map(|number| Kind::Integer(number.into())))
            })
        }
        _ => None,
    })
}

/// A word of the schema as the file would write it.
fn plain(word: &Value) -> String {
    word.as_str().map_or_else(|| word.to_string(), str::to_owned)
}

/// What a shape wants, for "must be …".
fn wanted(shape: &Shape) -> String {
    let mut names: Vec<String> = Vec::new();
    for alternative in &shape.0 {
        match alternative {
            Alternative::Anything { .. } => names.push("a value".into()),
            Alternative::One(words) => names.extend(words.iter().map(plain)),
            Alternative::Bool => names.extend(["true".into(), "false".into()]),
            Alternative::Integer { .. } => names.push("a whole number".into()),
            Alternative::Text(text) => {
                names.push(text.as_ref().map_or("a text", |text| value::what(&text.name)).into())
            }
            Alternative::List { .. } => names.push("a list".into()),
            Alternative::Mapping(_) => names.push("a mapping".into()),
        }
    }
    super::diagnostic::either(&names)
}

/// The one section that a key exists in, for a key that stands in the wrong place.
fn belongs(key: &str) -> Option<String> {
    fn search(shape: &Shape, key: &str, path: &mut Vec<String>, found: &mut Vec<String>) {
        for alternative in &shape.0 {
            match alternative {
                Alternative::Mapping(mapping) => {
                    for (name, inner) in &mapping.properties {
                        if name == key {
                            found.push(path.join("."));
                        }
                        path.push(name.clone());
                        search(inner, key, path, found);
                        path.pop();
                    }
                }
                Alternative::List { items, .. } => search(items, key, path, found),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    search(super::schema::root(), key, &mut Vec::new(), &mut found);
    found.dedup();
    match found.as_slice() {
        [only] if !only.is_empty() => Some(only.clone()),
        _ => None,
    }
}
