//! The protobuf wire format, as far as a message of one level needs it (protobuf.dev/programming-guides/encoding).

/// One field of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) value: Value,
}

/// A field's value by its wire type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Varint.
    Number(u64),
    /// Fixed 64 bits.
    Eight([u8; 8]),
    /// A string, bytes or a message.
    Bytes(Vec<u8>),
    /// Fixed 32 bits.
    Four([u8; 4]),
}

/// Reads a message field by field; ends after the first error.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<Field> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Eight(self.take(8)?.try_into().ok()?),
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?.to_vec())
            }
            5 => Value::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        (key >> 3 != 0).then_some(Field { number: key >> 3, value })
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Field, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let left = self.rest.len();
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or_else(|| format!("cut short or not protobuf, {left} bytes before its end")))
    }
}

/// Appends one field.
pub(super) fn write(out: &mut Vec<u8>, number: u64, value: &Value) {
    let kind = match value {
        Value::Number(_) => 0,
        Value::Eight(_) => 1,
        Value::Bytes(_) => 2,
        Value::Four(_) => 5,
    };
    write_varint(out, number << 3 | kind);
    match value {
        Value::Number(number) => write_varint(out, *number),
        Value::Eight(bytes) => out.extend_from_slice(bytes),
        Value::Bytes(bytes) => {
            write_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        Value::Four(bytes) => out.extend_from_slice(bytes),
    }
}

fn write_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
