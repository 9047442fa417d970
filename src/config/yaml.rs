//! YAML text to a tree that keeps every position.
//!
//! Every value and key knows its place, and a key that stands twice is kept twice, so that `check` can
//! report it in the file's order with everything else. Bounds on size, depth and expanded aliases make a
//! hostile or broken file an error rather than an exhausted machine. YAML 1.2: `off` and `no` are text.
//! Not here: what the values mean (`check`, `raw`).

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use serde_yaml::Spanned;

use super::diagnostic::{Diagnostic, Position, Problem};

/// The longest file that is read, in bytes.
pub const LONGEST_FILE: u64 = 64 * 1024 * 1024;

/// The deepest nesting that is read; our own keys need 6, a template a few more. A level costs up to 32 KiB of
/// stack without optimisation, and a thread has 2 MiB.
pub const DEEPEST: usize = 24;

/// A value and its place.
#[derive(Clone)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub kind: Kind,
}

/// What a value can be.
#[derive(Clone)]
pub enum Kind {
    /// `~`, `null`, or nothing after the colon.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(Text),
    /// `[…]` or lines with dashes.
    List(Vec<Node>),
    /// `{…}` or lines with keys, in the file's order, a key perhaps more than once.
    Mapping(Vec<(Key, Node)>),
}

/// A text, and what it was before its `${…}` were filled in.
#[derive(Clone)]
pub struct Text {
    /// What counts.
    pub value: String,
    /// As in the file, when `value` came from somewhere else: `value` must not be shown then.
    pub written: Option<Box<str>>,
}

/// A key and its place. Numbers and booleans as keys are read as text.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it begins.
    pub at: Position,
    /// Its text.
    pub name: String,
}

impl Kind {
    /// The kind, as a message names it.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Null => "nothing",
            Kind::Bool(true) => "true",
            Kind::Bool(false) => "false",
            Kind::Integer(_) | Kind::Float(_) => "a number",
            Kind::Text(_) => "a text",
            Kind::List(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }
}

/// Shape and places only: the values may be secrets.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ", self.at.line, self.at.column)?;
        match &self.kind {
            Kind::List(items) => f.debug_list().entries(items).finish(),
            Kind::Mapping(entries) => {
                f.debug_map().entries(entries.iter().map(|(key, value)| (&key.name, value))).finish()
            }
            other => f.write_str(other.name()),
        }
    }
}

/// Reads a file's text.
///
/// # Errors
/// One diagnostic: the first place where the text stops being one document of YAML within the bounds.
pub fn parse(text: &str) -> Result<Node, Box<Diagnostic>> {
    if text.len() as u64 > LONGEST_FILE {
        let problem = Problem::FileTooLarge { limit: LONGEST_FILE };
        return Err(Box::new(Diagnostic::error(Position::default(), problem)));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let braces = Braces::absent_from(text);
    let protected = braces.map(|braces| braces.protect(text));
    let mut root: Node = serde_yaml::from_str_with_options(protected.as_deref().unwrap_or(text), options())
        .map_err(|error| diagnostic(&error, braces))?;
    if matches!(root.kind, Kind::Null) {
        return Err(Box::new(Diagnostic::error(Position::in_file(1, 1), Problem::Empty)));
    }
    if let Some(braces) = braces {
        braces.restore_in(&mut root);
    }
    Ok(root)
}

fn options() -> serde_yaml::Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            // 100,000 rules with five keys each are 1.2 million values.
            max_nodes: 8_000_000,
            max_events: 16_000_000,
            max_depth: DEEPEST,
            flow_nesting_limit: DEEPEST,
            max_total_scalar_bytes: LONGEST_FILE as usize,
            // One anchor may serve a thousand rules; what aliases expand to is bounded by `alias_limits`.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: 1_000_000 },
        // Ours to report, in the file's order and with the others.
        duplicate_keys: serde_yaml::DuplicateKeyPolicy::PassThrough,
        // `off` is a word of this file, and a role may be called `no`.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: serde_yaml::NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// The parser's error as one of ours.
fn diagnostic(error: &serde_yaml::Error, braces: Option<Braces>) -> Box<Diagnostic> {
    use serde_yaml::Error;
    use serde_yaml::budget::BudgetBreach;
    let place = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let at = error
        .location()
        .map(|location| Position::in_file(place(location.line()), place(location.column())))
        .unwrap_or_default();
    let mut cause = error.without_snippet();
    while let Error::AliasError { error, .. } = cause {
        cause = error.without_snippet();
    }
    let problem = match cause {
        Error::MultipleDocuments { .. } => Problem::ManyDocuments,
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => Problem::TooDeep { limit: DEEPEST },
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => Problem::TooMany,
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            Problem::Syntax { what: "an alias cannot stand inside the value it repeats".into() }
        }
        other => {
            let what = other.to_string();
            // The position is ours to print.
            let what = what.rfind(" at line ").map_or(what.as_str(), |end| &what[..end]);
            let what = braces.map_or(what.to_owned(), |braces| braces.restore(what));
            match what.as_str() {
                what if what.starts_with("tabs disallowed") => Problem::Tab,
                what if what.contains("recursion limit") || what.contains("nesting") => {
                    Problem::TooDeep { limit: DEEPEST }
                }
                _ => Problem::Syntax { what },
            }
        }
    };
    Box::new(Diagnostic::error(at, problem))
}

/// Two characters that stand in for the braces of `${…}` while the text is parsed.
///
/// In `{ secret: ${JWT_SECRET} }` YAML would end the mapping at the first `}`. Operators write it without
/// quotes all the same, so inside a reference the braces are hidden from the parser. One character for one,
/// so that columns stay as they are.
#[derive(Clone, Copy)]
struct Braces {
    open: char,
    close: char,
}

impl Braces {
    /// A pair of private-use characters that the text does not hold; `None` when there is nothing to protect.
    fn absent_from(text: &str) -> Option<Braces> {
        if !text.contains("${") {
            return None;
        }
        let mut absent = ('\u{e000}'..='\u{e0ff}').filter(|candidate| !text.contains(*candidate));
        Some(Braces { open: absent.next()?, close: absent.next()? })
    }

    fn protect(self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 64);
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let inside = &rest[start + 2..];
            let end = inside
                .find(['}', '{', '\n', '\r', '"', '\'', '#'])
                .filter(|end| inside[*end..].starts_with('}'));
            let Some(end) = end else {
                out.push_str(&rest[..start + 2]);
                rest = inside;
                continue;
            };
            out.push_str(&rest[..=start]);
            out.push(self.open);
            out.push_str(&inside[..end]);
            out.push(self.close);
            rest = &inside[end + 1..];
        }
        out + rest
    }

    fn restore(self, text: &str) -> String {
        text.chars()
            .map(|c| match c {
                c if c == self.open => '{',
                c if c == self.close => '}',
                c => c,
            })
            .collect()
    }

    fn restore_in(self, node: &mut Node) {
        match &mut node.kind {
            Kind::Text(text) if text.value.contains(self.open) => text.value = self.restore(&text.value),
            Kind::List(items) => items.iter_mut().for_each(|item| self.restore_in(item)),
            Kind::Mapping(entries) => {
                for (key, value) in entries {
                    if key.name.contains(self.open) {
                        key.name = self.restore(&key.name);
                    }
                    self.restore_in(value);
                }
            }
            _ => {}
        }
    }
}

fn position(location: serde_yaml::Location) -> Position {
    let bounded = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Position::in_file(bounded(location.line()), bounded(location.column()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Kind>::deserialize(deserializer)?;
        Ok(Node { at: position(spanned.defined), kind: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> de::Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
        Ok(Kind::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Kind, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Text(Text { value, written: None }))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Kind::List(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Kind, A::Error> {
        let mut mapping = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<KeyName>, Node>()? {
            mapping.push((Key { at: position(key.defined), name: key.value.0 }, value));
        }
        Ok(Kind::Mapping(mapping))
    }
}

struct KeyName(String);

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl de::Visitor<'_> for KeyVisitor {
    type Value = KeyName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as key")
    }

    fn visit_unit<E>(self) -> Result<KeyName, E> {
        Ok(KeyName("null".into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<KeyName, E> {
        Ok(KeyName(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<KeyName, E> {
        Ok(KeyName(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<KeyName, E> {
        Ok(KeyName(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<KeyName, E> {
        Ok(KeyName(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<KeyName, E> {
        Ok(KeyName(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (Option<Position>, String) {
        let diagnostic = parse(text).expect_err("this text is not readable");
        (diagnostic.at, diagnostic.problem.to_string())
    }

    fn at(line: u32, column: u32) -> Option<Position> {
        Some(Position::in_file(line, column))
    }

    #[test]
    fn text_that_is_no_single_yaml_document_is_refused_at_its_place() {
        let empty = "the file is empty; it needs at least the keys 'upstream' and 'roles'";
        let syntax = "not valid YAML: ";
        for (text, place, message) in [
            ("", at(1, 1), empty.to_owned()),
            ("\u{feff}", at(1, 1), empty.to_owned()),
            ("# nothing yet\n\n", at(1, 1), empty.to_owned()),
            ("---\n", at(1, 1), empty.to_owned()),
            (
                "a: 1\n---\nb: 2",
                at(3, 1),
                "a second YAML document begins here; the file must be a single one".into(),
            ),
            ("a:\n\tb: 1", at(2, 2), "not valid YAML: a tab in the indentation; use spaces".into()),
            ("a: [1,2", at(1, 4), format!("{syntax}unclosed bracket '['")),
            ("a: \"x", at(1, 4), format!("{syntax}unclosed quote")),
            ("a: b: c", at(1, 5), format!("{syntax}mapping values are not allowed in this context")),
            ("a: *b", at(1, 4), format!("{syntax}alias references unknown anchor")),
            ("a: !!thing b", at(1, 12), format!("{syntax}unsupported tag `!!thing`")),
            ("a: &a [*a]", at(1, 8), format!("{syntax}an alias cannot stand inside the value it repeats")),
            ("a: 1\r\nb: @x\r\n", at(2, 4), format!("{syntax}unexpected character: `@'")),
            ("a: {b: ${X}, c: @}", at(1, 17), format!("{syntax}unexpected character: `@'")),
        ] {
            assert_eq!(refused(text), (place, message), "{text:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_and_not_a_full_stack() {
        for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000)] {
            assert_eq!(refused(&text).1, "nested deeper than 24 levels", "{}", &text[..4]);
        }
        let deep: String = (0..200).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert_eq!(refused(&deep).1, "nested deeper than 24 levels");
    }

    #[test]
    fn aliases_that_would_expand_without_end_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "));
        }
        assert_eq!(refused(&bomb).1, "more values than one file may hold, aliases written out");
    }

    #[test]
    fn keys_and_values_know_their_places() {
        for text in ["a: 1\nb: [x, {c: é, d: off}]\n", "\u{feff}a: 1\r\nb: [x, {c: é, d: off}]\r\n"] {
            let root = parse(text).expect("this text is readable");
            let Kind::Mapping(entries) = &root.kind else { panic!("a mapping") };
            assert_eq!((entries[1].0.at.line, entries[1].0.at.column), (2, 1));
            let Kind::List(items) = &entries[1].1.kind else { panic!("a list") };
            let Kind::Mapping(inner) = &items[1].kind else { panic!("a mapping") };
            let places: Vec<u32> =
                inner.iter().flat_map(|(key, value)| [key.at.column, value.at.column]).collect();
            assert_eq!(places, [9, 12, 15, 18]);
            assert!(matches!(&inner[1].1.kind, Kind::Text(text) if text.value == "off"));
        }
    }

    #[test]
    fn a_reference_needs_no_quotes_inside_a_flow_mapping() {
        for text in [
            "{ a: ${NAME} }",
            "{ a: \"${NAME}\" }",
            "a: ${NAME}",
            "{ a: ${NAME}, b: [${file:x/y}] }",
            "a: '${NAME}' # ${ comment {",
        ] {
            let root = parse(text).expect("this text is readable");
            let Kind::Mapping(entries) = &root.kind else { panic!("a mapping") };
            assert!(matches!(&entries[0].1.kind, Kind::Text(text) if text.value == "${NAME}"), "{text}");
        }
    }

    #[test]
    fn a_debug_output_shows_no_value() {
        let root = parse("secret: hunter2\nlist: [hunter2]").expect("this text is readable");
        assert!(!format!("{root:?}").contains("hunter2"));
    }
}
