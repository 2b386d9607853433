//! Metadata values of a GGUF file: every type of the format, kept as it was.

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(GgufArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array; all its elements have one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<GgufArray>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl GgufValue {
    /// The number of this type in a file (`enum gguf_type`).
    pub fn type_id(&self) -> u32 {
        match self {
            GgufValue::U8(_) => 0,
            GgufValue::I8(_) => 1,
            GgufValue::U16(_) => 2,
            GgufValue::I16(_) => 3,
            GgufValue::U32(_) => 4,
            GgufValue::I32(_) => 5,
            GgufValue::F32(_) => 6,
            GgufValue::Bool(_) => 7,
            GgufValue::String(_) => 8,
            GgufValue::Array(_) => 9,
            GgufValue::U64(_) => 10,
            GgufValue::I64(_) => 11,
            GgufValue::F64(_) => 12,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            GgufValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number of any width that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            GgufValue::U8(value) => Some(value.into()),
            GgufValue::U16(value) => Some(value.into()),
            GgufValue::U32(value) => Some(value.into()),
            GgufValue::U64(value) => Some(value),
            _ => self.as_i64().and_then(|value| value.try_into().ok()),
        }
    }

    /// A whole number of any width that fits an i64.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            GgufValue::U8(value) => Some(value.into()),
            GgufValue::I8(value) => Some(value.into()),
            GgufValue::U16(value) => Some(value.into()),
            GgufValue::I16(value) => Some(value.into()),
            GgufValue::U32(value) => Some(value.into()),
            GgufValue::I32(value) => Some(value.into()),
            GgufValue::U64(value) => value.try_into().ok(),
            GgufValue::I64(value) => Some(value),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            GgufValue::F32(value) => Some(value.into()),
            GgufValue::F64(value) => Some(value),
            GgufValue::U64(value) => Some(value as f64),
            _ => self.as_i64().map(|value| value as f64),
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            GgufValue::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// An array of text.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            GgufValue::Array(GgufArray::String(texts)) => Some(texts),
            _ => None,
        }
    }

    /// An array of numbers of any type, as f64.
    pub fn as_numbers(&self) -> Option<Vec<f64>> {
        let GgufValue::Array(array) = self else { return None };
        Some(match array {
            GgufArray::U8(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::I8(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::U16(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::I16(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::U32(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::I32(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::F32(values) => values.iter().map(|&value| value.into()).collect(),
            GgufArray::U64(values) => values.iter().map(|&value| value as f64).collect(),
            GgufArray::I64(values) => values.iter().map(|&value| value as f64).collect(),
            GgufArray::F64(values) => values.clone(),
            GgufArray::Bool(_) | GgufArray::String(_) | GgufArray::Array(_) => return None,
        })
    }
}

impl GgufArray {
    /// The number of the elements' type in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            GgufArray::U8(_) => 0,
            GgufArray::I8(_) => 1,
            GgufArray::U16(_) => 2,
            GgufArray::I16(_) => 3,
            GgufArray::U32(_) => 4,
            GgufArray::I32(_) => 5,
            GgufArray::F32(_) => 6,
            GgufArray::Bool(_) => 7,
            GgufArray::String(_) => 8,
            GgufArray::Array(_) => 9,
            GgufArray::U64(_) => 10,
            GgufArray::I64(_) => 11,
            GgufArray::F64(_) => 12,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            GgufArray::U8(values) => values.len(),
            GgufArray::I8(values) => values.len(),
            GgufArray::U16(values) => values.len(),
            GgufArray::I16(values) => values.len(),
            GgufArray::U32(values) => values.len(),
            GgufArray::I32(values) => values.len(),
            GgufArray::F32(values) => values.len(),
            GgufArray::Bool(values) => values.len(),
            GgufArray::String(values) => values.len(),
            GgufArray::Array(values) => values.len(),
            GgufArray::U64(values) => values.len(),
            GgufArray::I64(values) => values.len(),
            GgufArray::F64(values) => values.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
