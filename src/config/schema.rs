//! The JSON Schema of `gateway.yaml`, and the same as shapes to check a tree against.
//!
//! Derived from the raw types, so that documentation, editors and the gateway cannot disagree. The copy
//! under `deploy/` is for editors; a test keeps it current. Not here: the check itself (`check`).

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::raw::Raw;

/// The JSON Schema (draft 2020-12), with descriptions and defaults, for editors.
///
/// Wherever a fixed word, a number or a switch is wanted, a text with `${…}` is valid too.
pub fn json_schema() -> Value {
    let mut schema = derived();
    allow_references(&mut schema);
    // A preset has roles. The check sees the file with its preset, so to it they are simply needed.
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|key| key != "roles");
        if required.is_empty()
            && let Some(schema) = schema.as_object_mut()
        {
            schema.shift_remove("required");
        }
    }
    schema["anyOf"] = json!([{ "required": ["roles"] }, { "required": ["preset"] }]);
    schema
}

/// As derived, without what schemars says about Rust.
fn derived() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Raw>().to_value();
    tidy(&mut schema);
    schema
}

/// Absent and null are different in the file: `Option` is the former. Integer widths are Rust's affair.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.retain(|key, value| {
                let is_noise = key == "default" && value.is_null() || key == "format" && value.is_string();
                !is_noise
            });
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(branches)) = object.get_mut("anyOf") {
                branches.retain(|branch| branch.get("type") != Some(&json!("null")));
                if let [Value::Object(only)] = branches.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            for (key, value) in object {
                if key != "default" {
                    tidy(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Lets `${NAME}` stand for anything that is not a text already.
fn allow_references(schema: &mut Value) {
    const NARROW: [&str; 6] = ["type", "enum", "const", "oneOf", "minimum", "maximum"];
    match schema {
        Value::Object(object) => {
            let is_narrow = object.contains_key("enum")
                || object.get("const").is_some_and(|value| *value != json!(false))
                || matches!(object.get("type").and_then(Value::as_str), Some("integer" | "boolean"))
                || object
                    .get("oneOf")
                    .and_then(Value::as_array)
                    .is_some_and(|branches| branches.iter().all(|branch| branch.get("const").is_some()));
            if is_narrow {
                let mut narrow = Map::new();
                for key in NARROW {
                    if let Some(value) = object.shift_remove(key) {
                        narrow.insert(key.into(), value);
                    }
                }
                let reference = json!({ "type": "string", "pattern": "\\$\\{" });
                object.insert("anyOf".into(), json!([narrow, reference]));
                return;
            }
            for (key, value) in object {
                if key != "default" {
                    allow_references(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(allow_references),
        _ => {}
    }
}

/// What a value may be: one of these.
#[derive(Debug)]
pub(super) struct Shape(pub(super) Vec<Alternative>);

#[derive(Debug)]
pub(super) enum Alternative {
    /// Any value at all; with the variables it may name when it is a template.
    Anything {
        template: Option<Vec<String>>,
    },
    /// One of these words, numbers or switches.
    One(Vec<Value>),
    Bool,
    Integer {
        minimum: Option<i128>,
        maximum: Option<i128>,
    },
    Text(Option<TextValue>),
    List {
        items: Shape,
        minimum: usize,
        maximum: Option<usize>,
        unique: bool,
    },
    Mapping(Mapping),
}

/// A text that means something: the name of its type in `value`, and its bounds where it has some.
#[derive(Debug)]
pub(super) struct TextValue {
    pub(super) name: String,
    pub(super) least: u64,
    pub(super) most: u64,
}

#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) properties: Vec<(String, Shape)>,
    pub(super) required: Vec<String>,
    /// What any other key holds; `None` when there may be none.
    pub(super) others: Option<Box<Shape>>,
    /// Keys of which exactly one is needed; empty when there is no such demand.
    pub(super) one_of: Vec<String>,
}

/// The shape of the whole file.
pub(super) fn root() -> &'static Shape {
    static ROOT: OnceLock<Shape> = OnceLock::new();
    ROOT.get_or_init(|| {
        let schema = derived();
        let definitions = schema.get("$defs").and_then(Value::as_object).cloned().unwrap_or_default();
        shape(&schema, &definitions)
    })
}

fn shape(schema: &Value, definitions: &Map<String, Value>) -> Shape {
    let mut alternatives = Vec::new();
    collect(schema, definitions, &mut alternatives);
    Shape(alternatives)
}

fn collect(schema: &Value, definitions: &Map<String, Value>, found: &mut Vec<Alternative>) {
    let list = |key: &str| schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let number = |key: &str| schema.get(key).and_then(Value::as_i64);
    let texts = |key: &str| list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let consts: Vec<Value> = list("oneOf").iter().filter_map(|branch| branch.get("const")).cloned().collect();

    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        if let Some(target) = definitions.get(name) {
            collect(target, definitions, found);
        }
    } else if let Some(only) = schema.get("const") {
        found.push(Alternative::One(vec![only.clone()]));
    } else if schema.get("enum").is_some() {
        found.push(Alternative::One(list("enum").to_vec()));
    } else if !consts.is_empty() {
        found.push(Alternative::One(consts));
    } else if schema.get("anyOf").is_some() {
        list("anyOf").iter().for_each(|branch| collect(branch, definitions, found));
    } else {
        let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
        let count = |key: &str| bound(key).and_then(|count| usize::try_from(count).ok());
        match schema.get("type").and_then(Value::as_str) {
            Some("boolean") => found.push(Alternative::Bool),
            Some("integer") => found.push(Alternative::Integer {
                minimum: number("minimum").map(i128::from),
                maximum: number("maximum").map(i128::from),
            }),
            Some("string") => {
                found.push(Alternative::Text(schema.get("x-value").and_then(Value::as_str).map(|name| {
                    TextValue {
                        name: name.to_owned(),
                        least: bound("x-least").unwrap_or(0),
                        most: bound("x-most").unwrap_or(u64::MAX),
                    }
                })))
            }
            Some("array") => found.push(Alternative::List {
                items: shape(schema.get("items").unwrap_or(&Value::Null), definitions),
                minimum: count("minItems").unwrap_or(0),
                maximum: count("maxItems"),
                unique: schema.get("uniqueItems") == Some(&Value::Bool(true)),
            }),
            Some("object") => {
                let properties = schema.get("properties").and_then(Value::as_object);
                let others = schema.get("additionalProperties").filter(|others| others.is_object());
                found.push(Alternative::Mapping(Mapping {
                    properties: properties
                        .into_iter()
                        .flatten()
                        .map(|(name, property)| (name.clone(), shape(property, definitions)))
                        .collect(),
                    required: texts("required"),
                    others: others.map(|others| Box::new(shape(others, definitions))),
                    one_of: list("oneOf")
                        .iter()
                        .filter_map(|branch| branch.get("required")?.get(0)?.as_str().map(str::to_owned))
                        .collect(),
                }));
            }
            _ => {
                let template = schema.get("x-template").map(|_| texts("x-template"));
                found.push(Alternative::Anything { template });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every keyword that `collect` reads or that says nothing about validity.
    const KNOWN: [&str; 24] = [
        "$schema",
        "$defs",
        "$ref",
        "title",
        "description",
        "default",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "minItems",
        "maxItems",
        "uniqueItems",
        "enum",
        "const",
        "oneOf",
        "anyOf",
        "minimum",
        "maximum",
        "x-value",
        "x-least",
        "x-most",
        "x-template",
    ];

    fn keywords(schema: &Value, unknown: &mut Vec<String>) {
        let Value::Object(object) = schema else { return };
        for (key, value) in object {
            match key.as_str() {
                "properties" | "$defs" => {
                    value.as_object().into_iter().flatten().for_each(|(_, value)| keywords(value, unknown));
                }
                "oneOf" | "anyOf" => {
                    value.as_array().into_iter().flatten().for_each(|value| keywords(value, unknown))
                }
                "items" | "additionalProperties" => keywords(value, unknown),
                key if KNOWN.contains(&key) => {}
                key => unknown.push(key.to_owned()),
            }
        }
    }

    #[test]
    fn the_check_understands_every_keyword_that_the_schema_uses() {
        let mut unknown = Vec::new();
        keywords(&derived(), &mut unknown);
        assert_eq!(unknown, Vec::<String>::new());
    }

    #[test]
    fn every_key_is_described_and_every_optional_one_has_its_default() {
        fn walk(schema: &Value, path: &str, missing: &mut Vec<String>) {
            for (name, definition) in schema.get("$defs").and_then(Value::as_object).into_iter().flatten() {
                walk(definition, name, missing);
            }
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten()
            {
                if property.get("description").is_none() {
                    missing.push(format!("{path}.{name}"));
                }
            }
        }
        let mut missing = Vec::new();
        let schema = json_schema();
        walk(&schema, "", &mut missing);
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(schema["properties"]["listen"]["default"], json!("0.0.0.0:8080"));
        assert_eq!(schema["properties"]["upstream"].get("default"), None);
        assert_eq!(schema["$defs"]["Limits"]["properties"]["header_bytes"]["default"], json!("32KiB"));
        assert_eq!(schema["$defs"]["Tokens"]["properties"]["keys"]["default"], json!("keys"));
        assert_eq!(schema.get("required"), None);
        assert_eq!(schema["anyOf"], json!([{ "required": ["roles"] }, { "required": ["preset"] }]));
    }

    #[test]
    fn the_schema_under_deploy_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/gateway.schema.json");
        let current = serde_json::to_string_pretty(&json_schema()).expect("a JSON value has a text") + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"))
                .expect("the folder can be made");
            std::fs::write(path, &current).expect("the schema can be written");
        }
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == current,
            "run `UPDATE_SCHEMA=1 cargo test` and commit deploy/gateway.schema.json"
        );
    }
}
