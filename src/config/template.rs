//! The shapes of the gateway's own JSON answers: `login.response` and `errors.body`.
//!
//! A template is any JSON value. A text in it that is exactly `$name` (or `${name}`) becomes the
//! variable's value with its type; inside a longer text `${name}` becomes the value's text; `$$` is a `$`.
//! What is unknown is null, and its key stays. Not here: which variables there are at run time.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The variables of `login.response`.
pub const LOGIN_VARIABLES: &[&str] =
    &["token", "expires_in", "user.id", "user.username", "user.name", "user.email", "user.role"];

/// The variables of `errors.body`.
pub const ERROR_VARIABLES: &[&str] = &["message", "reason", "status", "code", "request_id"];

/// A compiled template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    source: Value,
    shape: Shape,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    /// Holds no variable anywhere.
    Constant(Value),
    /// Exactly one variable: keeps its type.
    Variable(String),
    /// A text with variables in it.
    Text(Vec<Piece>),
    List(Vec<Shape>),
    Object(Vec<(String, Shape)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Literal(String),
    Variable(String),
}

impl Template {
    /// Compiles any JSON value; there is none that is not a template.
    pub fn new(source: Value) -> Self {
        let shape = compile(&source);
        Template { source, shape }
    }

    /// The value with every variable filled in. `variable` is asked by name, without the `$`, and answers
    /// `Value::Null` for what it does not know.
    pub fn render(&self, variable: &dyn Fn(&str) -> Value) -> Value {
        render(&self.shape, variable)
    }

    /// The names of all variables, in order, each as often as it stands there.
    pub fn variables(&self) -> Vec<&str> {
        let mut names = Vec::new();
        collect(&self.shape, &mut names);
        names
    }
}

/// The variables that one text of a template names.
pub fn variables_in(text: &str) -> Vec<String> {
    let pieces = pieces(text);
    pieces
        .into_iter()
        .filter_map(|piece| if let Piece::Variable(name) = piece { Some(name) } else { None })
        .collect()
}

fn compile(source: &Value) -> Shape {
    match source {
        Value::String(text) => match pieces(text).as_mut_slice() {
            [Piece::Variable(name)] => Shape::Variable(std::mem::take(name)),
            [] => Shape::Constant(Value::String(String::new())),
            [Piece::Literal(literal)] => Shape::Constant(Value::String(std::mem::take(literal))),
            pieces => Shape::Text(pieces.to_vec()),
        },
        Value::Array(items) => Shape::List(items.iter().map(compile).collect()),
        Value::Object(entries) => {
            Shape::Object(entries.iter().map(|(key, value)| (key.clone(), compile(value))).collect())
        }
        constant => Shape::Constant(constant.clone()),
    }
}

/// Splits a text. `$name` counts only where it is the whole text; `costs 5$` and `a$b` are literal.
fn pieces(text: &str) -> Vec<Piece> {
    if let Some(name) = text.strip_prefix('$').filter(|name| is_name(name)) {
        return vec![Piece::Variable(name.to_owned())];
    }
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some(dollar) = rest.find('$') {
        literal.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let braced = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        match braced.filter(|(name, _)| is_name(name)) {
            Some((name, behind)) => {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Variable(name.to_owned()));
                rest = behind;
            }
            None => {
                literal.push('$');
                rest = after.strip_prefix('$').unwrap_or(after);
            }
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    pieces
}

/// A dotted name in lower case: `token`, `user.id`, `expires_in`.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|part| {
            part.starts_with(|c: char| c.is_ascii_lowercase())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
}

fn collect<'a>(shape: &'a Shape, names: &mut Vec<&'a str>) {
    match shape {
        Shape::Constant(_) => {}
        Shape::Variable(name) => names.push(name),
        Shape::Text(pieces) => names.extend(pieces.iter().filter_map(|piece| match piece {
            Piece::Variable(name) => Some(name.as_str()),
            Piece::Literal(_) => None,
        })),
        Shape::List(items) => items.iter().for_each(|item| collect(item, names)),
        Shape::Object(entries) => entries.iter().for_each(|(_, value)| collect(value, names)),
    }
}

fn render(shape: &Shape, variable: &dyn Fn(&str) -> Value) -> Value {
    match shape {
        Shape::Constant(value) => value.clone(),
        Shape::Variable(name) => variable(name),
        Shape::Text(pieces) => {
            let mut text = String::new();
            for piece in pieces {
                match piece {
                    Piece::Literal(literal) => text.push_str(literal),
                    Piece::Variable(name) => match variable(name) {
                        // Inside a text, "unknown" is nothing rather than the word null.
                        Value::Null => {}
                        Value::String(value) => text.push_str(&value),
                        other => text.push_str(&other.to_string()),
                    },
                }
            }
            Value::String(text)
        }
        Shape::List(items) => Value::Array(items.iter().map(|item| render(item, variable)).collect()),
        Shape::Object(entries) => Value::Object(
            entries.iter().map(|(key, value)| (key.clone(), render(value, variable))).collect::<Map<_, _>>(),
        ),
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Template::new)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.source.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variable(name: &str) -> Value {
        match name {
            "token" => json!("abc"),
            "user.id" => json!(7),
            "status" => json!(401),
            "quoted" => json!("a\"b$token"),
            _ => Value::Null,
        }
    }

    #[test]
    fn a_template_is_filled_in_with_types_kept_where_a_variable_stands_alone() {
        for (template, rendered) in [
            (json!("$user.id"), json!(7)),
            (json!("${user.id}"), json!(7)),
            (json!("id-${user.id}-${token}"), json!("id-7-abc")),
            (json!("$token and more"), json!("$token and more")),
            (json!("$nothing"), json!(null)),
            (json!("<${nothing}>"), json!("<>")),
            (json!("$$token"), json!("$token")),
            (json!("$${token}"), json!("${token}")),
            (json!("5$"), json!("5$")),
            (json!("$$"), json!("$")),
            (json!(""), json!("")),
            (json!("${Token}"), json!("${Token}")),
            (json!("${token"), json!("${token")),
            (json!("$quoted"), json!("a\"b$token")),
            (json!(["$token", 1, true, null]), json!(["abc", 1, true, null])),
            (json!({"a": {"$token": "$token"}, "b": "$gone"}), json!({"a": {"$token": "abc"}, "b": null})),
        ] {
            assert_eq!(Template::new(template.clone()).render(&variable), rendered, "{template}");
        }
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_the_template() {
        let template = Template::new(json!({"z": "$token", "a": 1, "m": {"y": 1, "b": 2}}));
        assert_eq!(template.render(&variable).to_string(), r#"{"z":"abc","a":1,"m":{"y":1,"b":2}}"#);
    }

    #[test]
    fn a_template_names_its_variables() {
        let template = Template::new(json!({"a": "$token", "b": ["x${user.id}y${status}", "$$no"]}));
        assert_eq!(template.variables(), ["token", "user.id", "status"]);
    }
}
