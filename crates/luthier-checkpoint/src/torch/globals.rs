//! The names that a pickle may use. Every other would be code, and is refused by its name.

use crate::Dtype;

/// A name that is known; none of them runs anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `_rebuild_tensor(storage, offset, size, stride)`, of files before PyTorch 0.4.
    RebuildTensor,
    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, metadata)`.
    RebuildTensorV2,
    /// `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, backward_hooks, dtype, metadata)`.
    RebuildTensorV3,
    /// `_rebuild_parameter(data, requires_grad, backward_hooks)`.
    RebuildParameter,
    /// The same with a fourth value, the parameter's own attributes.
    RebuildParameterWithState,
    OrderedDict,
    Set,
    /// A tuple of sizes.
    Size,
    Device,
    /// `_codecs.encode(text, encoding)`: how protocol 2 spells bytes.
    Encode,
    /// The class of a storage of one type.
    Storage(Dtype),
    /// The class of a storage of plain bytes.
    UntypedStorage,
    /// The name of a type.
    Dtype(Dtype),
}

/// Classes of storages, in the module `torch` (`torch.cuda` for those saved by old versions on a GPU).
const STORAGES: [(&str, Dtype); 12] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("DoubleStorage", Dtype::F64),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::Bool),
    ("Float8_e4m3fnStorage", Dtype::F8E4M3),
    ("Float8_e5m2Storage", Dtype::F8E5M2),
];

/// Names of types, in the module `torch`.
const DTYPES: [(&str, Dtype); 15] = [
    ("float32", Dtype::F32),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float64", Dtype::F64),
    ("int64", Dtype::I64),
    ("int32", Dtype::I32),
    ("int16", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint64", Dtype::U64),
    ("uint32", Dtype::U32),
    ("uint16", Dtype::U16),
    ("uint8", Dtype::U8),
    ("bool", Dtype::Bool),
    ("float8_e4m3fn", Dtype::F8E4M3),
    ("float8_e5m2", Dtype::F8E5M2),
];

/// The known name, or what to do about one that is not.
pub(super) fn find(module: &str, name: &str) -> Result<Global, String> {
    let found = match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch._utils", "_rebuild_parameter_with_state") => Some(Global::RebuildParameterWithState),
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("builtins" | "__builtin__", "set" | "frozenset") => Some(Global::Set),
        ("torch", "Size") => Some(Global::Size),
        ("torch", "device") => Some(Global::Device),
        ("_codecs", "encode") => Some(Global::Encode),
        ("torch.storage" | "torch" | "torch.cuda", "UntypedStorage") => Some(Global::UntypedStorage),
        ("torch" | "torch.cuda" | "torch.storage", _) if name.ends_with("Storage") => {
            STORAGES.iter().find(|row| row.0 == name).map(|row| Global::Storage(row.1))
        }
        ("torch", _) => DTYPES.iter().find(|row| row.0 == name).map(|row| Global::Dtype(row.1)),
        _ => None,
    };
    found.ok_or_else(|| refusal(module, name))
}

fn refusal(module: &str, name: &str) -> String {
    let advice = match (module, name) {
        ("torch.storage", "_load_from_bytes") => {
            "the file was made by pickle, not by torch.save; save the weights with torch.save"
        }
        ("torch", _) if name.ends_with("Storage") || DTYPES_NOT_HELD.contains(&name) => {
            "values of that type are not read; convert them in PyTorch first"
        }
        _ if module.starts_with("torch.nn") || module.starts_with("transformers") => {
            "the file holds a whole program object; save model.state_dict() instead"
        }
        _ => "it could run code; save only the weights, model.state_dict()",
    };
    format!("the pickle names {module}.{name}, which is not among what describes tensors: {advice}")
}

/// Types of PyTorch that no file of ours holds.
const DTYPES_NOT_HELD: &[&str] = &[
    "complex32",
    "complex64",
    "complex128",
    "qint8",
    "quint8",
    "qint32",
    "quint4x2",
    "quint2x4",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
];
