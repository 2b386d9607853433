//! The tensors by name that a pickle comes to.

use std::collections::HashSet;

use super::pickle::Unpickled;
use super::value::{Node, Tensor, Value};

/// Name and tensor, in the file's order. Refuses anything that is not a dictionary of tensors.
pub(super) fn state_dict<'u, 'p>(
    unpickled: &'u Unpickled<'p>,
) -> Result<Vec<(&'p str, &'u Tensor<'p>)>, String> {
    let nodes = &unpickled.nodes;
    let dict = match unpickled.value {
        Value::Node(at) => match &nodes[at] {
            Node::Dict(dict) => Some(dict),
            _ => None,
        },
        _ => None,
    };
    let dict = dict.ok_or_else(|| {
        let kind = unpickled.value.kind(nodes);
        format!("holds {kind}; wanted a dictionary of tensors, as model.state_dict() gives it")
    })?;
    if dict.is_empty() {
        return Err("holds no tensor".to_string());
    }
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(dict.len());
    for (key, value) in dict {
        let Value::Text(name) = *key else {
            return Err(format!(
                "a key of the dictionary is {}; wanted the name of a tensor",
                key.kind(nodes)
            ));
        };
        if !names.insert(name) {
            return Err(format!("tensor {name} stands twice in the dictionary"));
        }
        let Value::Node(at) = *value else { return Err(no_tensor(name, value.kind(nodes))) };
        let Node::Tensor(tensor) = &nodes[at] else { return Err(no_tensor(name, value.kind(nodes))) };
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

fn no_tensor(name: &str, kind: &str) -> String {
    format!(
        "key {name:?} holds {kind}, no tensor; save only the weights, model.state_dict(), with torch.save"
    )
}
