//! The canonical subset of protobuf that everything signed or sealed uses: one strict reader and one writer.
//!
//! Canonical means: fields in ascending order, each at most once (lists repeat one number in a row), varints minimal,
//! default values absent, nothing unknown, nothing trailing. So one value has one encoding, and the bytes that were signed
//! are the bytes that are read. The key process reads peers' statements with this and links no generated parser; any
//! protobuf implementation can produce and read the same bytes (`proto/openred/wire/v1/wire.proto`).

use crate::error::{Result, WireError};

/// Wire type 0: varint.
const VARINT: u64 = 0;
/// Wire type 2: length-delimited.
const BYTES: u64 = 2;

/// Writes a message field by field, in ascending order.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    last: u32,
}

impl Writer {
    /// An empty message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes an unsigned number; zero is the default and is left out.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.key(field, VARINT);
            push_varint(&mut self.bytes, value);
        }
        self
    }

    /// Writes a flag; false is the default and is left out.
    #[must_use]
    pub fn flag(self, field: u32, value: bool) -> Self {
        self.number(field, u64::from(value))
    }

    /// Writes bytes (or text, or a nested message's bytes); empty is the default and is left out.
    #[must_use]
    pub fn bytes(self, field: u32, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.item(field, value) }
    }

    /// Writes one item of a list; an empty item is written, and callers refuse empty items when reading.
    #[must_use]
    pub fn item(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, BYTES);
        push_varint(&mut self.bytes, value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    /// The encoded message.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        debug_assert!(field >= self.last, "fields are written in ascending order");
        self.last = field;
        push_varint(&mut self.bytes, u64::from(field) << 3 | wire_type);
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads a canonical message; the caller asks for its fields in ascending order and then calls [`Reader::finish`].
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts on `bytes`; `what` names the message in errors.
    #[must_use]
    pub const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// The number in `field`, zero when absent.
    ///
    /// # Errors
    /// Malformed when the field has another type, is not minimal, or holds an explicit default.
    pub fn number(&mut self, field: u32) -> Result<u64> {
        if !self.take_key(field, VARINT)? {
            return Ok(0);
        }
        match self.varint()? {
            0 => Err(self.malformed("an explicit default value")),
            value => Ok(value),
        }
    }

    /// The number in `field`, as a type that it must fit.
    ///
    /// # Errors
    /// As [`Reader::number`], and when it does not fit.
    pub fn small<T: TryFrom<u64>>(&mut self, field: u32) -> Result<T> {
        let value = self.number(field)?;
        T::try_from(value).map_err(|_| self.malformed("a number is out of range"))
    }

    /// The flag in `field`, false when absent.
    ///
    /// # Errors
    /// As [`Reader::number`], and when it is neither 0 nor 1.
    pub fn flag(&mut self, field: u32) -> Result<bool> {
        match self.number(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    /// The bytes in `field`, empty when absent, at most `limit` long.
    ///
    /// # Errors
    /// Too long, or malformed as above.
    pub fn bytes(&mut self, field: u32, limit: usize) -> Result<&'a [u8]> {
        match self.item(field, limit)? {
            Some([]) => Err(self.malformed("an explicit default value")),
            Some(bytes) => Ok(bytes),
            None => Ok(&[]),
        }
    }

    /// Exactly `N` bytes, which must be present.
    ///
    /// # Errors
    /// Malformed when absent or of another length.
    pub fn array<const N: usize>(&mut self, field: u32) -> Result<[u8; N]> {
        let bytes = self.bytes(field, N)?;
        bytes.try_into().map_err(|_| self.malformed("a fixed-size field has another length"))
    }

    /// The text in `field`, empty when absent: UTF-8 without control characters.
    ///
    /// # Errors
    /// Too long, or malformed.
    pub fn text(&mut self, field: u32, limit: usize) -> Result<&'a str> {
        let text = std::str::from_utf8(self.bytes(field, limit)?).map_err(|_| self.malformed("text is not UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(self.malformed("text holds control characters"));
        }
        Ok(text)
    }

    /// The next item of the list in `field`, or none when the list ends.
    ///
    /// # Errors
    /// Too long, or malformed.
    pub fn item(&mut self, field: u32, limit: usize) -> Result<Option<&'a [u8]>> {
        if !self.take_key(field, BYTES)? {
            return Ok(None);
        }
        let length = self.varint()?;
        let length = usize::try_from(length).ok().filter(|length| *length <= limit);
        let length = length.ok_or(WireError::TooLong { what: self.what, limit })?;
        let (item, rest) = self.rest.split_at_checked(length).ok_or(WireError::Incomplete { what: self.what })?;
        self.rest = rest;
        Ok(Some(item))
    }

    /// All items of the list in `field`, at most `count` of them.
    ///
    /// # Errors
    /// Too many or too long, or malformed.
    pub fn items(&mut self, field: u32, count: usize, limit: usize) -> Result<Vec<&'a [u8]>> {
        let mut items = Vec::new();
        while let Some(item) = self.item(field, limit)? {
            if items.len() == count {
                return Err(WireError::TooLong { what: self.what, limit: count });
            }
            items.push(item);
        }
        Ok(items)
    }

    /// Ends the message.
    ///
    /// # Errors
    /// Malformed when anything is left: unknown, repeated, out of order or trailing.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.malformed("unknown, repeated or misordered field, or trailing bytes"))
    }

    /// An error that names this message.
    #[must_use]
    pub const fn malformed(&self, why: &'static str) -> WireError {
        WireError::Malformed { what: self.what, why }
    }

    /// Takes the next key when it is that of `field`; leaves it for a later field or `finish` otherwise.
    fn take_key(&mut self, field: u32, wire_type: u64) -> Result<bool> {
        let mut ahead = self.clone();
        if ahead.rest.is_empty() {
            return Ok(false);
        }
        let key = ahead.varint()?;
        if key >> 3 != u64::from(field) {
            return Ok(false);
        }
        if key & 7 != wire_type {
            return Err(self.malformed("a field has another wire type"));
        }
        self.rest = ahead.rest;
        Ok(true)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for (index, byte) in self.rest.iter().copied().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && byte > 1 {
                return Err(self.malformed("a number is over 64 bits"));
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(self.malformed("a number is not minimal"));
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        if self.rest.len() >= 10 {
            return Err(self.malformed("a number is over 64 bits"));
        }
        Err(WireError::Incomplete { what: self.what })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_not_canonical() {
        let cases: [(&[u8], &str); 7] = [
            (&[0x08, 0x00], "explicit zero"),
            (&[0x08, 0x81, 0x00], "not minimal"),
            (&[0x0a, 0x01, b'x'], "wire type of field 1"),
            (&[0x12, 0x00], "explicit empty"),
            (&[0x08, 0x01, 0x08, 0x01], "repeated"),
            (&[0x12, 0x01, b'x', 0x08, 0x01], "misordered"),
            (&[0x08, 0x01, 0x1a, 0x01, b'x'], "unknown field"),
        ];
        for (bytes, name) in cases {
            let mut reader = Reader::new("test", bytes);
            let read = reader.number(1).and_then(|_| reader.bytes(2, 8)).and_then(|_| reader.finish());
            assert!(matches!(read, Err(WireError::Malformed { .. })), "{name}: {read:?}");
        }
    }

    #[test]
    fn tells_incomplete_from_malformed() {
        assert_eq!(Reader::new("test", &[0x08]).number(1), Err(WireError::Incomplete { what: "test" }));
        assert_eq!(Reader::new("test", &[0x0a, 0x05, 1]).bytes(1, 8), Err(WireError::Incomplete { what: "test" }));
        assert_eq!(Reader::new("test", &[0x0a, 0x09]).bytes(1, 8), Err(WireError::TooLong { what: "test", limit: 8 }));
    }

    proptest! {
        #[test]
        fn round_trip(number: u64, bytes in proptest::collection::vec(any::<u8>(), 0..64), list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 0..4)) {
            let mut writer = Writer::new().number(1, number).bytes(2, &bytes);
            for item in &list {
                writer = writer.item(3, item);
            }
            let encoded = writer.finish();
            let mut reader = Reader::new("test", &encoded);
            prop_assert_eq!(reader.number(1).unwrap(), number);
            prop_assert_eq!(reader.bytes(2, 64).unwrap(), &bytes[..]);
            prop_assert_eq!(reader.items(3, 4, 8).unwrap(), list.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new("test", &bytes);
            let _ = reader.number(1).and_then(|_| reader.items(2, 3, 16)).and_then(|_| reader.text(3, 16)).and_then(|_| reader.finish());
        }
    }
}
