//! From the checked tree to the raw types, by serde, with positions kept.
//!
//! Two conventions between this deserializer and `raw`: [`At`] asks for a value's place along with the
//! value, and an enum whose variants are named `$text`, `$mapping`, `$list`, `$bool`, `$integer` or
//! `$else` is chosen by the value's kind (serde's own untagged enums would lose the places). The tree has
//! been checked against the schema of the same types before, so an error here is a fault of ours.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::diagnostic::{Origin, Position};
use super::preset::Preset;
use super::yaml::{Key, Kind, Node};

/// A value and where it stands, so that whoever finds fault with it later can say so.
#[derive(Clone, Debug, Default)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place; 0:0 for a default.
    pub at: Position,
}

impl<T> At<T> {
    /// A value that is not in the file.
    pub fn nowhere(value: T) -> Self {
        At { value, at: Position::default() }
    }
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The value counts, not its place.
impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// An origin as the number that goes with a place through serde.
fn encode(origin: Origin) -> u32 {
    match origin {
        Origin::Nowhere => 0,
        Origin::File => 1,
        Origin::Preset(preset) => {
            2 + Preset::ALL.iter().zip(0..).find_map(|(one, n)| (*one == preset).then_some(n)).unwrap_or(0)
        }
    }
}

fn decode(number: u32) -> Origin {
    let preset = |number: u32| Preset::ALL.get(usize::try_from(number).unwrap_or(usize::MAX)).copied();
    match number {
        0 => Origin::Nowhere,
        1 => Origin::File,
        _ => preset(number - 2).map_or(Origin::Nowhere, Origin::Preset),
    }
}

/// The name under which [`At`] asks for a place; no type of anybody's is called so.
const AT: &str = "$at";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value with its place")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let missing = || de::Error::custom("no place");
                let origin: u32 = parts.next_element()?.ok_or_else(missing)?;
                let line = parts.next_element()?.ok_or_else(missing)?;
                let column = parts.next_element()?.ok_or_else(missing)?;
                let value = parts.next_element()?.ok_or_else(missing)?;
                Ok(At { value, at: Position { origin: decode(origin), line, column } })
            }
        }

        deserializer.deserialize_newtype_struct(AT, AtVisitor(std::marker::PhantomData))
    }
}

/// Why a tree did not fit. Holds no value of the file.
#[derive(Debug)]
pub struct Misfit {
    /// Where, as near as is known.
    pub at: Position,
    /// What serde said, in our words.
    pub what: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Misfit { at: Position::default(), what: what.to_string() }
    }

    // Serde's own words for these would quote the value, which may be a secret.
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Misfit::custom(format_args!("expected {expected}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Misfit::custom(format_args!("expected {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Misfit::custom(format_args!("expected one of {}", expected.join(", ")))
    }
}

impl Misfit {
    /// The innermost place that is known stays.
    fn or_at(mut self, at: Position) -> Self {
        if self.at.known().is_none() {
            self.at = at;
        }
        self
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let result = match &self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_str(&text.value),
            Kind::List(items) => visitor.visit_seq(Items(items.iter())),
            Kind::Mapping(entries) => visitor.visit_map(Entries { rest: entries.iter(), value: None }),
        };
        result.map_err(|misfit| misfit.or_at(self.at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match name {
            AT => visitor.visit_seq(Placed { at: self.at, value: self, part: 0 }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let kind = match &self.kind {
            Kind::Null => "$null",
            Kind::Bool(_) => "$bool",
            Kind::Integer(_) => "$integer",
            Kind::Float(_) => "$float",
            Kind::Text(_) => "$text",
            Kind::List(_) => "$list",
            Kind::Mapping(_) => "$mapping",
        };
        if let Some(variant) = [kind, "$else"].into_iter().find(|variant| variants.contains(variant)) {
            return visitor.visit_enum(ByKind { variant, node: self });
        }
        match &self.kind {
            Kind::Text(text) => {
                let name: StrDeserializer<'_, Misfit> = text.value.as_str().into_deserializer();
                visitor.visit_enum(name).map_err(|misfit| misfit.or_at(self.at))
            }
            _ => Err(Misfit { at: self.at, what: format!("expected one of {}", variants.join(", ")) }),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(KeyDeserializer(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let value = self.value.take().ok_or_else(|| de::Error::custom("a value before its key"))?;
        seed.deserialize(value)
    }
}

/// A key: a text that knows its place.
struct KeyDeserializer<'a>(&'a Key);

impl<'de> Deserializer<'de> for KeyDeserializer<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_str(&self.0.name).map_err(|misfit: Misfit| misfit.or_at(self.0.at))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match name {
            AT => visitor.visit_seq(Placed { at: self.0.at, value: self, part: 0 }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// What [`At`] reads: line, column, value.
struct Placed<D> {
    at: Position,
    value: D,
    part: u8,
}

impl<'de, D: Deserializer<'de, Error = Misfit> + Copy> de::SeqAccess<'de> for Placed<D> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.part += 1;
        match self.part {
            1 => seed.deserialize(encode(self.at.origin).into_deserializer()).map(Some),
            2 => seed.deserialize(self.at.line.into_deserializer()).map(Some),
            3 => seed.deserialize(self.at.column.into_deserializer()).map(Some),
            4 => seed.deserialize(self.value).map(Some),
            _ => Ok(None),
        }
    }
}

impl Clone for KeyDeserializer<'_> {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for KeyDeserializer<'_> {}

/// A variant that the value's kind chose, with the value itself as its content.
struct ByKind<'a> {
    variant: &'static str,
    node: &'a Node,
}

impl<'de, 'a> de::EnumAccess<'de> for ByKind<'a> {
    type Error = Misfit;
    type Variant = &'a Node;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, &'a Node), Misfit> {
        let name: StrDeserializer<'_, Misfit> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, self.node))
    }
}

impl<'de> de::VariantAccess<'de> for &Node {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Misfit> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_any(visitor)
    }
}
