//! What the known names make of their arguments.

use super::globals::Global;
use super::value::{Node, Storage, Tensor, Value};
use crate::Dtype;

type Made<T> = Result<T, String>;

/// The value that `function(*arguments)` describes.
pub(super) fn call<'p>(
    function: Value<'p>,
    arguments: Value<'p>,
    nodes: &mut Vec<Node<'p>>,
) -> Made<Value<'p>> {
    let Value::Global(global) = function else {
        return Err(format!("{} is called, which could run code", function.kind(nodes)));
    };
    let items = tuple(arguments, nodes, "arguments")?.to_vec();
    let node = match (global, &items[..]) {
        (Global::RebuildTensor, [storage, offset, size, stride]) => {
            tensor([*storage, *offset, *size, *stride], None, nodes)?
        }
        (Global::RebuildTensorV2, [storage, offset, size, stride, _, _, rest @ ..]) if rest.len() < 2 => {
            refuse_flags(rest, nodes)?;
            tensor([*storage, *offset, *size, *stride], None, nodes)?
        }
        (Global::RebuildTensorV3, [storage, offset, size, stride, _, _, dtype, rest @ ..])
            if rest.len() < 2 =>
        {
            let Value::Global(Global::Dtype(dtype)) = *dtype else {
                return Err(format!("a tensor's type is {}", dtype.kind(nodes)));
            };
            refuse_flags(rest, nodes)?;
            tensor([*storage, *offset, *size, *stride], Some(dtype), nodes)?
        }
        (Global::RebuildParameter, [data, _, _]) | (Global::RebuildParameterWithState, [data, _, _, _]) => {
            return match *data {
                Value::Node(at) if matches!(nodes[at], Node::Tensor(_)) => Ok(*data),
                other => Err(format!("a parameter's values are {}", other.kind(nodes))),
            };
        }
        (Global::OrderedDict, []) => Node::Dict(Vec::new()),
        (Global::OrderedDict, [Value::Node(at)]) => Node::Dict(dict_of_pairs(*at, nodes)?),
        (Global::Set, [] | [_]) => Node::Set,
        (Global::Size, [sizes]) => {
            tuple(*sizes, nodes, "a size")?;
            return Ok(*sizes);
        }
        (Global::Device, [_] | [_, _]) => return Ok(Value::Other("the name of a device")),
        (Global::Encode, [Value::Text(_), Value::Text("latin1" | "latin-1")]) => {
            return Ok(Value::Other("bytes"));
        }
        _ => return Err(format!("{global:?} is called with {} arguments of the wrong kind", items.len())),
    };
    nodes.push(node);
    Ok(Value::Node(nodes.len() - 1))
}

fn tuple<'n, 'p>(value: Value<'p>, nodes: &'n [Node<'p>], what: &str) -> Made<&'n [Value<'p>]> {
    if let Value::Node(at) = value
        && let Node::Tuple(items) = &nodes[at]
    {
        return Ok(items);
    }
    Err(format!("wanted a tuple as {what}, came {}", value.kind(nodes)))
}

/// `OrderedDict([(key, value), ...])`, as Python 2 spells it.
fn dict_of_pairs<'p>(at: usize, nodes: &[Node<'p>]) -> Made<Vec<(Value<'p>, Value<'p>)>> {
    let Node::List(items) = &nodes[at] else { return Err("an OrderedDict of no list".to_string()) };
    let pair = |item: &Value<'p>| match item {
        Value::Node(at) => match &nodes[*at] {
            Node::Tuple(pair) | Node::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err("an OrderedDict of no pairs".to_string()),
        },
        _ => Err("an OrderedDict of no pairs".to_string()),
    };
    items.iter().map(pair).collect()
}

/// The last argument says whether values are meant conjugated or negated; real weights are neither.
fn refuse_flags(rest: &[Value], nodes: &[Node]) -> Made<()> {
    for value in rest {
        if let Value::Node(at) = value
            && let Node::Dict(pairs) = &nodes[*at]
            && pairs.iter().any(|(_, value)| *value == Value::Bool(true))
        {
            return Err("a tensor is a conjugated or negated view; save its values with .clone()".to_string());
        }
    }
    Ok(())
}

/// A tensor of storage, offset, size and stride. Refuses one that looks out of its storage.
fn tensor<'p>(parts: [Value<'p>; 4], dtype: Option<Dtype>, nodes: &[Node<'p>]) -> Made<Node<'p>> {
    let [storage, offset, size, stride] = parts;
    let storage = match storage {
        Value::Node(at) => match nodes[at] {
            Node::Storage(storage) => storage,
            _ => return Err(format!("a tensor's storage is {}", storage.kind(nodes))),
        },
        other => return Err(format!("a tensor's storage is {}", other.kind(nodes))),
    };
    let dtype = dtype.or(storage.dtype).ok_or("a tensor over plain bytes says no type")?;
    let (shape, strides) = (sizes(size, nodes)?, sizes(stride, nodes)?);
    let offset = natural(offset, nodes)?;
    let tensor = Tensor { storage, dtype, offset, shape, strides };
    check(&tensor)?;
    Ok(Node::Tensor(tensor))
}

fn sizes(value: Value, nodes: &[Node]) -> Made<Vec<usize>> {
    tuple(value, nodes, "sizes")?.iter().map(|item| natural(*item, nodes)).collect()
}

fn natural(value: Value, nodes: &[Node]) -> Made<usize> {
    match value {
        Value::Int(number) => {
            usize::try_from(number).map_err(|_| format!("wanted a size from 0 on, came {number}"))
        }
        other => Err(format!("wanted a size, came {}", other.kind(nodes))),
    }
}

/// The last value that the tensor sees must be in its storage, and in the part of it that is meant.
fn check(tensor: &Tensor) -> Made<()> {
    let Tensor { storage, dtype, offset, shape, strides } = tensor;
    if shape.len() != strides.len() {
        return Err(format!("a tensor of {} axes has {} strides", shape.len(), strides.len()));
    }
    let outside = || {
        format!(
            "a tensor of shape {shape:?}, strides {strides:?} from value {offset} on does not lie in storage {} of {} values",
            storage.key, storage.len
        )
    };
    dtype.size_bytes(shape).ok_or_else(outside)?;
    let available = available_values(storage, *dtype).ok_or_else(outside)?;
    if shape.contains(&0) {
        return if *offset <= available { Ok(()) } else { Err(outside()) };
    }
    let mut last = Some(*offset);
    for (&axis, &stride) in shape.iter().zip(strides) {
        last = last.and_then(|last| last.checked_add((axis - 1).checked_mul(stride)?));
    }
    if last.is_some_and(|last| last < available) { Ok(()) } else { Err(outside()) }
}

/// Values of a type in a storage, from its begin or that of the part that is meant.
fn available_values(storage: &Storage, dtype: Dtype) -> Option<usize> {
    let len = match storage.part {
        None => storage.len,
        Some((start, len)) if start.checked_add(len)? <= storage.len => len,
        Some(_) => return None,
    };
    Some(len.checked_mul(storage.value_bytes())? / dtype.block().1)
}
