//! What the values on the pickle machine's stack can be. Text and bytes stay in the pickle; the rest lies in an arena.

use super::globals::Global;
use crate::Dtype;

/// A value; cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'p> {
    None,
    Bool(bool),
    Int(i64),
    /// A float, bytes, or a number of more than 64 bits: nothing that describes a tensor.
    Other(&'static str),
    Text(&'p str),
    Global(Global),
    /// Its place in the arena.
    Node(usize),
}

/// What lies in the arena: everything that has an identity or a length.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'p> {
    Tuple(Vec<Value<'p>>),
    List(Vec<Value<'p>>),
    Set,
    /// In the order in which keys came.
    Dict(Vec<(Value<'p>, Value<'p>)>),
    Storage(Storage<'p>),
    Tensor(Tensor<'p>),
}

/// A run of values in the file that tensors look into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'p> {
    /// Its name in the container.
    pub(super) key: &'p str,
    /// The type of its values; none for plain bytes.
    pub(super) dtype: Option<Dtype>,
    /// Values (bytes where there is no type).
    pub(super) len: usize,
    /// First value and number of values of the part that is meant, where very old files say so.
    pub(super) part: Option<(usize, usize)>,
}

impl Storage<'_> {
    /// Bytes of one value.
    pub(super) fn value_bytes(&self) -> usize {
        self.dtype.map_or(1, |dtype| dtype.block().1)
    }
}

/// A tensor: a storage seen through a shape and strides.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor<'p> {
    pub(super) storage: Storage<'p>,
    pub(super) dtype: Dtype,
    /// First value, counted in the tensor's type from the storage's begin.
    pub(super) offset: usize,
    /// Outermost axis first.
    pub(super) shape: Vec<usize>,
    /// Values from one index of an axis to the next, as many as axes.
    pub(super) strides: Vec<usize>,
}

impl Value<'_> {
    /// For messages.
    pub(super) fn kind(self, nodes: &[Node]) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "a whole number",
            Value::Other(kind) => kind,
            Value::Text(_) => "text",
            Value::Global(_) => "a name of PyTorch",
            Value::Node(at) => match &nodes[at] {
                Node::Tuple(_) => "a tuple",
                Node::List(_) => "a list",
                Node::Set => "a set",
                Node::Dict(_) => "a dictionary",
                Node::Storage(_) => "a storage",
                Node::Tensor(_) => "a tensor",
            },
        }
    }
}
