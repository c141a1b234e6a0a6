//! Values of GGUF keys: their types, and views that decode them from the file's bytes.

use std::fmt;
use std::ops::Range;

/// GGUF's value types with the numbers they have in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::Str,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of a value; `None` for strings and arrays.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::Str | ValueType::Array => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::Str => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

/// Where a value lies: the range holds exactly the value, or the elements of an array without their
/// type and count. Strings in it are valid UTF-8, bools are 0 or 1.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The type of the value or of the array's elements; never `Array`.
    pub(super) ty: ValueType,
    /// The number of elements; `None` for a scalar.
    pub(super) count: Option<usize>,
    pub(super) range: Range<usize>,
}

impl Entry {
    pub(super) fn value<'a>(&self, file: &'a [u8]) -> Value<'a> {
        Value { ty: self.ty, count: self.count, bytes: &file[self.range.clone()] }
    }
}

/// A value in the file's bytes; the conversions give `None` where the value is not of that kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    ty: ValueType,
    count: Option<usize>,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    /// An integer of any width.
    fn as_integer(self) -> Option<i128> {
        let bytes = self.scalar()?;
        Some(match self.ty {
            ValueType::U8 => u8::from_le_bytes(fixed(bytes)).into(),
            ValueType::I8 => i8::from_le_bytes(fixed(bytes)).into(),
            ValueType::U16 => u16::from_le_bytes(fixed(bytes)).into(),
            ValueType::I16 => i16::from_le_bytes(fixed(bytes)).into(),
            ValueType::U32 => u32::from_le_bytes(fixed(bytes)).into(),
            ValueType::I32 => i32::from_le_bytes(fixed(bytes)).into(),
            ValueType::U64 => u64::from_le_bytes(fixed(bytes)).into(),
            ValueType::I64 => i64::from_le_bytes(fixed(bytes)).into(),
            _ => return None,
        })
    }

    pub(super) fn as_u32(self) -> Option<u32> {
        u32::try_from(self.as_integer()?).ok()
    }

    pub(super) fn as_f32(self) -> Option<f32> {
        let bytes = self.scalar()?;
        match self.ty {
            ValueType::F32 => Some(f32::from_le_bytes(fixed(bytes))),
            ValueType::F64 => Some(f64::from_le_bytes(fixed(bytes)) as f32),
            _ => None,
        }
    }

    pub(super) fn as_bool(self) -> Option<bool> {
        let bytes = self.scalar()?;
        (self.ty == ValueType::Bool).then(|| bytes[0] == 1)
    }

    pub(super) fn as_str(self) -> Option<&'a str> {
        let bytes = self.scalar()?;
        (self.ty == ValueType::Str).then(|| {
            let text = &bytes[8..];
            std::str::from_utf8(text).expect("strings are checked when the file is opened")
        })
    }

    /// All elements of an array, if every one can be read so.
    pub(super) fn elements<T>(self, read: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        self.iter()?.map(read).collect()
    }

    fn scalar(self) -> Option<&'a [u8]> {
        self.count.is_none().then_some(self.bytes)
    }

    /// The elements of an array as scalars.
    fn iter(self) -> Option<impl Iterator<Item = Value<'a>>> {
        let mut rest = self.bytes;
        Some((0..self.count?).map(move |_| {
            let len = self
                .ty
                .size()
                .unwrap_or_else(|| 8 + u64::from_le_bytes(fixed(&rest[..8])) as usize);
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            Value { ty: self.ty, count: None, bytes }
        }))
    }
}

/// The bytes of a value whose size was checked when the file was opened.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("entries have the size of their type")
}

/// `u32 7`, `string "abc"`, `array of 3 i32`.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        let name = self.ty.name();
        if let Some(count) = self.count {
            write!(f, "array of {count} {name}")
        } else if let Some(text) = self.as_str() {
            let shown: String = text.chars().take(SHOWN).collect();
            let dots = if shown.len() < text.len() { "…" } else { "" };
            write!(f, "{name} {shown:?}{dots}")
        } else if let Some(integer) = self.as_integer() {
            write!(f, "{name} {integer}")
        } else if let Some(float) = self.as_f32() {
            write!(f, "{name} {float}")
        } else {
            write!(f, "{name} {}", self.bytes[0] == 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_numbers_are_those_of_the_format() {
        for (id, ty) in ValueType::ALL.into_iter().enumerate() {
            assert_eq!(ty as usize, id);
            assert_eq!(ValueType::from_id(id as u32), Some(ty));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn conversions_take_what_fits() {
        fn value(ty: ValueType, bytes: &[u8]) -> Value<'_> {
            Value { ty, count: None, bytes }
        }
        assert_eq!(value(ValueType::U8, &[200]).as_u32(), Some(200));
        assert_eq!(value(ValueType::I8, &[200]).as_u32(), None);
        assert_eq!(value(ValueType::U64, &[0, 0, 0, 0, 1, 0, 0, 0]).as_u32(), None);
        assert_eq!(value(ValueType::U64, &[7, 0, 0, 0, 0, 0, 0, 0]).as_u32(), Some(7));
        assert_eq!(value(ValueType::F32, &1.5f32.to_le_bytes()).as_u32(), None);
        assert_eq!(value(ValueType::F64, &1.5f64.to_le_bytes()).as_f32(), Some(1.5));
        assert_eq!(value(ValueType::U32, &[1, 0, 0, 0]).as_f32(), None);
        assert_eq!(value(ValueType::I8, &[0xfb]).to_string(), "i8 -5");
        assert_eq!(value(ValueType::Bool, &[1]).to_string(), "bool true");
    }
}
