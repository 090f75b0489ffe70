//! What a pattern's `{names}` matched, and its reading into a handler's types by serde: a value, a tuple or a struct.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::error::ModuleError;

/// Values of a pattern's `{names}`, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(&'static str, String)>);

impl Params {
    /// The value of `{name}`; empty if the pattern has none, which no handler of that pattern can meet.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn add(&mut self, name: &'static str, value: &str) {
        self.0.push((name, value.to_owned()));
    }
}

/// Reads them as `T`.
pub(crate) fn from_params<T: DeserializeOwned>(params: &Params) -> Result<T, ModuleError> {
    T::deserialize(Whole(params)).map_err(|Unfit(why)| ModuleError::bad_request("bad-path", why))
}

/// Why they are not of the wanted shape.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unfit(String);

impl de::Error for Unfit {
    fn custom<T: std::fmt::Display>(why: T) -> Self {
        Self(format!("a part of the path is not as expected: {why}"))
    }
}

/// All of them.
struct Whole<'a>(&'a Params);

impl<'a> Whole<'a> {
    fn only(&self) -> Result<Part<'a>, Unfit> {
        match self.0.0.as_slice() {
            [(_, value)] => Ok(Part(value)),
            parts => Err(de::Error::custom(format_args!("one value is wanted, and the pattern has {}", parts.len()))),
        }
    }
}

macro_rules! only {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
            self.only()?.$method(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Whole<'de> {
    type Error = Unfit;

    only! {
        deserialize_any deserialize_bool deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_option
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        let mut parts = SeqDeserializer::new(self.0.0.iter().map(|(_, value)| Part(value)));
        let value = visitor.visit_seq(&mut parts)?;
        parts.end().map(|()| value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_map(MapDeserializer::new(self.0.0.iter().map(|(name, value)| (*name, Part(value)))))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Unfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.only()?.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct identifier ignored_any
    }
}

/// One value: text, or what its text says.
struct Part<'a>(&'a str);

impl Part<'_> {
    fn parse<T: std::str::FromStr>(&self, what: &str) -> Result<T, Unfit> {
        self.0.parse().map_err(|_| de::Error::custom(format_args!("not {what}")))
    }
}

impl<'de> IntoDeserializer<'de, Unfit> for Part<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $what:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
            visitor.$visit(self.parse($what)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Part<'de> {
    type Error = Unfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_borrowed_str(self.0)
    }

    parsed! {
        deserialize_bool visit_bool "true or false";
        deserialize_u8 visit_u64 "a number";
        deserialize_u16 visit_u64 "a number";
        deserialize_u32 visit_u64 "a number";
        deserialize_u64 visit_u64 "a number";
        deserialize_i8 visit_i64 "a number";
        deserialize_i16 visit_i64 "a number";
        deserialize_i32 visit_i64 "a number";
        deserialize_i64 visit_i64 "a number";
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        IntoDeserializer::<Unfit>::into_deserializer(self.0).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn params(parts: &[(&'static str, &str)]) -> Params {
        let mut params = Params::default();
        parts.iter().for_each(|(name, value)| params.add(name, value));
        params
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Place {
        number: i32,
        shelf: String,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Number(u64);

    #[test]
    fn values_tuples_and_structs_are_read_from_the_path() {
        let two = params(&[("shelf", "a"), ("number", "-7")]);
        assert_eq!(from_params::<(String, i8)>(&two).unwrap(), ("a".to_owned(), -7));
        assert_eq!(from_params::<Place>(&two).unwrap(), Place { number: -7, shelf: "a".to_owned() });
        assert_eq!(two.get("number"), "-7");
        let one = params(&[("number", "300")]);
        assert_eq!(from_params::<u16>(&one).unwrap(), 300);
        assert_eq!(from_params::<String>(&one).unwrap(), "300");
        assert_eq!(from_params::<Number>(&one).unwrap(), Number(300));
        assert_eq!(from_params::<(Option<u32>,)>(&one).unwrap(), (Some(300),));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let two = params(&[("shelf", "a"), ("number", "x")]);
        let one = params(&[("number", "300")]);
        assert_eq!(from_params::<Place>(&two).unwrap_err().code, "bad-path");
        assert!(from_params::<(String, u32)>(&two).is_err());
        assert!(from_params::<u32>(&two).is_err() && from_params::<(String,)>(&two).is_err());
        assert!(from_params::<u8>(&one).is_err() && from_params::<(u16, u16)>(&one).is_err());
    }
}
