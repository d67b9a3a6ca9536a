//! JSON of images, registries and credential files, read as Go's decoder reads it: Go programs
//! write these files.
//!
//! `null` is the zero value of the expected type, at every depth: an empty list, object or text, 0,
//! false. So is an absent field, in a struct with `#[serde(default)]`. An `Option` tells null from
//! a value; a [`Field`] also tells null from an absent field. Any other type mismatch is an error,
//! as it is in Go.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// Parses a whole document.
pub(super) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(Zeroed(&mut json))?;
    json.end()?;
    Ok(value)
}

/// A field whose presence matters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.map_or(Self::Null, Self::Value))
    }
}

/// A deserializer, or a seed, that takes nulls for zero values.
struct Zeroed<T>(T);

/// The type that is expected in place of a null.
#[derive(Clone, Copy)]
enum Expected {
    Bool,
    Number,
    Text,
    List,
    Object,
}

macro_rules! expect {
    ($($method:ident: $expected:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.deserialize_option(Nullable { visitor, expected: Expected::$expected })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Zeroed<D> {
    type Error = D::Error;

    expect! {
        deserialize_bool: Bool
        deserialize_u8: Number
        deserialize_u16: Number
        deserialize_u32: Number
        deserialize_u64: Number
        deserialize_i8: Number
        deserialize_i16: Number
        deserialize_i32: Number
        deserialize_i64: Number
        deserialize_f32: Number
        deserialize_f64: Number
        deserialize_str: Text
        deserialize_string: Text
        deserialize_seq: List
        deserialize_map: Object
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // Not the inner one's: serde_json takes lists for structs, too.
        self.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Inside(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Inside(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_identifier(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Zeroed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Zeroed(from))
    }
}

/// Visits a value of a known type, or a null.
struct Nullable<V> {
    visitor: V,
    expected: Expected,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Nullable<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        match self.expected {
            Expected::Bool => self.visitor.visit_bool(false),
            Expected::Number => self.visitor.visit_u64(0),
            Expected::Text => self.visitor.visit_str(""),
            Expected::List => self.visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<&str>())),
            Expected::Object => {
                self.visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, &str)>()))
            }
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        let inside = Inside(self.visitor);
        match self.expected {
            Expected::Bool => value.deserialize_bool(inside),
            Expected::Number => value.deserialize_u64(inside),
            Expected::Text => value.deserialize_str(inside),
            Expected::List => value.deserialize_seq(inside),
            Expected::Object => value.deserialize_map(inside),
        }
    }
}

/// Visits a value, and takes the nulls in it for zero values.
struct Inside<V>(V);

macro_rules! pass {
    ($($method:ident($type:ty))*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Inside<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    pass! {
        visit_bool(bool)
        visit_u64(u64)
        visit_i64(i64)
        visit_f64(f64)
        visit_str(&str)
        visit_borrowed_str(&'de str)
        visit_string(String)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Zeroed(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Zeroed(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Zeroed(object))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Zeroed<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Zeroed(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Zeroed<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Zeroed(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// A list of words, or a single one without the list, as old docker wrote it.
pub(super) fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Words;

    impl<'de> Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of words")
        }

        fn visit_unit<E: Error>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }

        fn visit_str<E: Error>(self, word: &str) -> Result<Vec<String>, E> {
            Ok(vec![word.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = list.next_element()? {
                words.push(word);
            }
            Ok(words)
        }
    }

    from.deserialize_any(Words)
}

/// The keys of an object, whatever their values are: how Go writes a set.
pub(super) fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map: std::collections::BTreeMap<String, IgnoredAny> = Deserialize::deserialize(from)?;
    Ok(map.into_keys().collect())
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
