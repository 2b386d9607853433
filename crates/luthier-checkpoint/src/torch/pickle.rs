//! The pickle machine: a stack, a memo, and the operations of protocols 2 to 5 that build plain values.
//!
//! Every operation takes at least one byte of the file and puts at most one value on the stack, so that memory is bounded by
//! the pickle's length, and that by [`MAX_VALUES`].

use std::collections::HashMap;

use super::globals;
use super::rebuild;
use super::value::{Node, Storage, Value};

/// Values that one pickle may make; a model of 100,000 tensors makes some three million.
const MAX_VALUES: usize = 8_000_000;

/// What one pickle holds.
pub(super) struct Unpickled<'p> {
    /// The value itself.
    pub(super) value: Value<'p>,
    /// What it and its parts refer to.
    pub(super) nodes: Vec<Node<'p>>,
    /// Bytes of the pickle.
    pub(super) len: usize,
}

/// Reads one pickle from the begin of `bytes`; what follows it is left alone.
pub(super) fn unpickle(bytes: &[u8]) -> Result<Unpickled<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        nodes: Vec::new(),
        n_values: 0,
    };
    let value = machine.run().map_err(|what| format!("pickle, byte {}: {what}", machine.at))?;
    Ok(Unpickled { value, nodes: machine.nodes, len: machine.at })
}

struct Machine<'p> {
    bytes: &'p [u8],
    at: usize,
    stack: Vec<Value<'p>>,
    /// Heights of the stack at which a run of values began.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'p>>,
    nodes: Vec<Node<'p>>,
    n_values: usize,
}

type Step<T = ()> = Result<T, String>;

impl<'p> Machine<'p> {
    fn run(&mut self) -> Step<Value<'p>> {
        match (self.byte()?, self.byte()?) {
            (0x80, 2..=5) => {}
            (0x80, version) => {
                return Err(format!("wanted a pickle of protocol 2 to 5, came {version}"));
            }
            _ => return Err("wanted a pickle of protocol 2 to 5, which begins with byte 128".to_string()),
        }
        loop {
            let operation = self.byte()?;
            if operation == b'.' {
                return self.pop();
            }
            self.step(operation)?;
        }
    }

    fn step(&mut self, operation: u8) -> Step {
        match operation {
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.number(operation),
            b'G' => self.other(8, "a float"),
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(operation),
            b'C' | b'B' | 0x8e | 0x96 => self.blob(operation),
            b')' | 0x85 | 0x86 | 0x87 | b't' => self.tuple(operation),
            b']' => self.make(Node::List(Vec::new())),
            b'}' => self.make(Node::Dict(Vec::new())),
            0x8f => self.make(Node::Set),
            b'(' => {
                self.marks.push(self.stack.len());
                self.count()
            }
            b'l' | b'd' | 0x91 => self.collection(operation),
            b'a' | b'e' | 0x90 | b's' | b'u' => self.fill(operation),
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'2' => {
                let top = self.pop()?;
                self.push(top)?;
                self.push(top)
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(operation),
            b'c' | 0x93 => self.global(operation),
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = rebuild::call(function, arguments, &mut self.nodes)?;
                self.push(made)
            }
            b'b' => self.build(),
            b'Q' => {
                let identity = self.pop()?;
                let storage = persistent(identity, &self.nodes)?;
                self.make(Node::Storage(storage))
            }
            0x95 => self.take(8).map(drop),
            other => Err(refused_operation(other)),
        }
    }

    fn number(&mut self, operation: u8) -> Step {
        let value = match operation {
            b'K' => i64::from(self.byte()?),
            b'M' => i64::from(u16::from_le_bytes(self.array()?)),
            b'J' => i64::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let len = if operation == 0x8a { self.byte()?.into() } else { self.length(4)? };
                let digits = self.take(len)?;
                if digits.len() > 8 {
                    return self.push(Value::Other("a number of more than 64 bits"));
                }
                let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut word = if negative { [0xff; 8] } else { [0; 8] };
                word[..digits.len()].copy_from_slice(digits);
                i64::from_le_bytes(word)
            }
        };
        self.push(Value::Int(value))
    }

    fn text(&mut self, operation: u8) -> Step {
        let len = match operation {
            0x8c | b'U' => self.byte()?.into(),
            b'X' | b'T' => self.length(4)?,
            _ => self.length(8)?,
        };
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "text that is not UTF-8".to_string())?;
        self.push(Value::Text(text))
    }

    fn blob(&mut self, operation: u8) -> Step {
        let len = match operation {
            b'C' => self.byte()?.into(),
            b'B' => self.length(4)?,
            _ => self.length(8)?,
        };
        self.other(len, "bytes")
    }

    fn other(&mut self, len: usize, kind: &'static str) -> Step {
        self.take(len)?;
        self.push(Value::Other(kind))
    }

    fn tuple(&mut self, operation: u8) -> Step {
        let items = match operation {
            b't' => self.marked()?,
            b')' => Vec::new(),
            _ => {
                let len = usize::from(operation - 0x84);
                let floor = self.floor();
                let start = self.stack.len().checked_sub(len).filter(|start| *start >= floor);
                self.stack.split_off(start.ok_or_else(underflow)?)
            }
        };
        self.make(Node::Tuple(items))
    }

    /// A list, a dictionary or a frozen set of what came since the last mark.
    fn collection(&mut self, operation: u8) -> Step {
        let items = self.marked()?;
        match operation {
            b'l' => self.make(Node::List(items)),
            b'd' => {
                let pairs = pairs(&items)?;
                self.make(Node::Dict(pairs))
            }
            _ => self.make(Node::Set),
        }
    }

    /// Adds to the collection below.
    fn fill(&mut self, operation: u8) -> Step {
        let items = match operation {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.marked()?,
        };
        let target = self.top()?;
        let Value::Node(at) = target else {
            return Err(format!("{} takes no items", target.kind(&self.nodes)));
        };
        match (operation, &mut self.nodes[at]) {
            (b'a' | b'e', Node::List(list)) => list.extend(items),
            (b's' | b'u', Node::Dict(dict)) => dict.extend(pairs(&items)?),
            (0x90, Node::Set) => {}
            _ => return Err(format!("{} takes no such items", target.kind(&self.nodes))),
        }
        Ok(())
    }

    fn remember(&mut self, operation: u8) -> Step {
        let number = match operation {
            b'q' | b'h' => u32::from(self.byte()?),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).map_err(|_| "too many values are remembered".to_string())?,
        };
        if matches!(operation, b'h' | b'j') {
            let known = self.memo.get(&number).copied();
            return self
                .push(known.ok_or_else(|| format!("value {number} is asked for before it is there"))?);
        }
        let top = self.top()?;
        self.memo.insert(number, top);
        self.count()
    }

    fn global(&mut self, operation: u8) -> Step {
        let (module, name) = if operation == b'c' {
            (self.line()?, self.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => (module, name),
                _ => return Err("a name is not text".to_string()),
            }
        };
        let global = globals::find(module, name)?;
        self.push(Value::Global(global))
    }

    /// Attributes of a dictionary (PyTorch keeps its modules' versions there); no tensors, so they are left alone.
    fn build(&mut self) -> Step {
        self.pop()?;
        let target = self.top()?;
        match target {
            Value::Node(at) if matches!(self.nodes[at], Node::Dict(_)) => Ok(()),
            _ => Err(format!("{} is given attributes, which could run code", target.kind(&self.nodes))),
        }
    }

    fn make(&mut self, node: Node<'p>) -> Step {
        self.nodes.push(node);
        self.push(Value::Node(self.nodes.len() - 1))
    }

    fn push(&mut self, value: Value<'p>) -> Step {
        self.stack.push(value);
        self.count()
    }

    fn count(&mut self) -> Step {
        self.n_values += 1;
        if self.n_values > MAX_VALUES {
            return Err(format!("makes more than {MAX_VALUES} values; no model does"));
        }
        Ok(())
    }

    /// The lowest place of the stack that may be popped: nothing below a mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Value<'p>> {
        if self.stack.len() <= self.floor() {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn top(&self) -> Step<Value<'p>> {
        if self.stack.len() <= self.floor() {
            return Err(underflow());
        }
        self.stack.last().copied().ok_or_else(underflow)
    }

    /// What came since the last mark.
    fn marked(&mut self) -> Step<Vec<Value<'p>>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    /// A length of `width` bytes; it need not fit the file yet.
    fn length(&mut self, width: usize) -> Step<usize> {
        let mut word = [0; 8];
        word[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(word)).map_err(|_| cut_off())
    }

    fn take(&mut self, len: usize) -> Step<&'p [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or_else(cut_off)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn line(&mut self) -> Step<&'p str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or_else(cut_off)?;
        let line = std::str::from_utf8(&rest[..len]).map_err(|_| "a name that is not UTF-8".to_string())?;
        self.at += len + 1;
        Ok(line)
    }
}

fn cut_off() -> String {
    "it is cut off; download or save the file again".to_string()
}

fn underflow() -> String {
    "a value is taken that is not there; the file is damaged".to_string()
}

fn pairs<'p>(items: &[Value<'p>]) -> Step<Vec<(Value<'p>, Value<'p>)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without a value".to_string());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// A storage: `("storage", class, key, place, length)`, and in old files a sixth value, the part that is meant.
fn persistent<'p>(identity: Value<'p>, nodes: &[Node<'p>]) -> Step<Storage<'p>> {
    let wrong = || "wanted a storage as PyTorch describes it, came something else".to_string();
    let Value::Node(at) = identity else { return Err(wrong()) };
    let Node::Tuple(items) = &nodes[at] else { return Err(wrong()) };
    let (kind, class, key, len, part) = match items[..] {
        [kind, class, key, _, len] => (kind, class, key, len, Value::None),
        [kind, class, key, _, len, part] => (kind, class, key, len, part),
        _ => return Err(wrong()),
    };
    let dtype = match class {
        Value::Global(globals::Global::Storage(dtype)) => Some(dtype),
        Value::Global(globals::Global::UntypedStorage) => None,
        _ => return Err(wrong()),
    };
    let (Value::Text("storage"), Value::Text(key), Value::Int(len)) = (kind, key, len) else {
        return Err(wrong());
    };
    let len = usize::try_from(len).map_err(|_| format!("storage {key} has {len} values"))?;
    let part = match part {
        Value::None => None,
        Value::Node(at) => match &nodes[at] {
            Node::Tuple(items) => match items[..] {
                [_, Value::Int(offset), Value::Int(len)] => Some((
                    usize::try_from(offset).map_err(|_| wrong())?,
                    usize::try_from(len).map_err(|_| wrong())?,
                )),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        },
        _ => return Err(wrong()),
    };
    Ok(Storage { key, dtype, len, part })
}

fn refused_operation(operation: u8) -> String {
    let name = match operation {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        0x82..=0x84 => "EXT",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' => "an operation of protocol 0",
        _ => return format!("byte {operation:#04x} is no operation; the file is damaged"),
    };
    format!("operation {name} ({operation:#04x}) is not among those that describe tensors")
}
