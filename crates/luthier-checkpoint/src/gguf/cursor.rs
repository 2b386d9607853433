//! Reads numbers, strings and metadata values off a slice; every count is checked against what is left before memory is
//! asked for.

use super::value::{GgufArray, GgufValue};

/// Arrays in arrays deeper than this are refused; no known file nests at all.
const MAX_ARRAY_DEPTH: usize = 4;

/// A place in the file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! array_of {
    ($cursor:ident, $count:ident, $variant:ident, $number:ty) => {{
        const SIZE: usize = size_of::<$number>();
        let bytes = $cursor.take_counted($count, SIZE)?;
        let read = |bytes: &[u8]| <$number>::from_le_bytes(bytes.try_into().expect("chunks of SIZE bytes"));
        GgufArray::$variant(bytes.chunks_exact(SIZE).map(read).collect())
    }};
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], String> {
        if n_bytes > self.remaining() {
            return Err(format!(
                "wanted {n_bytes} bytes at byte {}, the file has {} left; it is cut off or a count lies",
                self.at,
                self.remaining()
            ));
        }
        let taken = &self.bytes[self.at..self.at + n_bytes];
        self.at += n_bytes;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least_bytes` each.
    pub(super) fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        self.check_count(count, what, least_bytes)
    }

    fn check_count(&self, count: u64, what: &str, least_bytes: usize) -> Result<usize, String> {
        let possible = self.remaining() / least_bytes;
        if count > possible as u64 {
            return Err(format!(
                "says {count} {what}, the {} bytes left hold {possible} at most; it is cut off or lies",
                self.remaining()
            ));
        }
        Ok(count as usize)
    }

    fn take_counted(&mut self, count: u64, size: usize) -> Result<&'a [u8], String> {
        let count = self.check_count(count, "array elements", size)?;
        self.take(count * size)
    }

    pub(super) fn string(&mut self) -> Result<String, String> {
        let length = self.count("bytes of text", 1)?;
        let at = self.at;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| format!("the text at byte {at} is not UTF-8"))?;
        Ok(text.to_string())
    }

    fn bool(&mut self) -> Result<bool, String> {
        truth(self.array::<1>()?[0])
    }

    pub(super) fn value(&mut self) -> Result<GgufValue, String> {
        Ok(match self.u32()? {
            0 => GgufValue::U8(u8::from_le_bytes(self.array()?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.array()?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array()?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array()?)),
            4 => GgufValue::U32(u32::from_le_bytes(self.array()?)),
            5 => GgufValue::I32(i32::from_le_bytes(self.array()?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.bool()?),
            8 => GgufValue::String(self.string()?),
            9 => GgufValue::Array(self.array_value(1)?),
            10 => GgufValue::U64(u64::from_le_bytes(self.array()?)),
            11 => GgufValue::I64(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other} does not exist; wanted 0 to 12")),
        })
    }

    fn array_value(&mut self, depth: usize) -> Result<GgufArray, String> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(format!("arrays in arrays go deeper than {MAX_ARRAY_DEPTH}"));
        }
        let element_type = self.u32()?;
        let count = self.u64()?;
        Ok(match element_type {
            0 => array_of!(self, count, U8, u8),
            1 => array_of!(self, count, I8, i8),
            2 => array_of!(self, count, U16, u16),
            3 => array_of!(self, count, I16, i16),
            4 => array_of!(self, count, U32, u32),
            5 => array_of!(self, count, I32, i32),
            6 => array_of!(self, count, F32, f32),
            7 => {
                let bytes = self.take_counted(count, 1)?;
                GgufArray::Bool(bytes.iter().map(|&byte| truth(byte)).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.check_count(count, "texts", 8)?;
                GgufArray::String((0..count).map(|_| self.string()).collect::<Result<_, _>>()?)
            }
            9 => {
                let count = self.check_count(count, "arrays", 12)?;
                GgufArray::Array((0..count).map(|_| self.array_value(depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => array_of!(self, count, U64, u64),
            11 => array_of!(self, count, I64, i64),
            12 => array_of!(self, count, F64, f64),
            other => return Err(format!("array element type {other} does not exist; wanted 0 to 12")),
        })
    }
}

fn truth(byte: u8) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("a truth value is {other}; wanted 0 or 1")),
    }
}
