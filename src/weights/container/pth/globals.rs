//! The Python names that a dictionary of tensors is made of.

use super::super::encoding::Encoding;

/// A name that a pickle may refer to, and what it stands for here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`, a view of a typed storage.
    TensorV2,
    /// `torch._utils._rebuild_tensor_v3`, a view with a dtype of its own; written for the dtypes
    /// that have no storage class, such as float8.
    TensorV3,
    /// `torch._utils._rebuild_parameter`, around a tensor.
    Parameter,
    /// A storage class; `None` is `torch.storage.UntypedStorage`, counted in bytes.
    Storage(Option<Encoding>),
    /// A dtype.
    Dtype(Encoding),
}

/// What `module.name` stands for, if it is known.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::TensorV2),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::TensorV3),
        ("torch._utils", "_rebuild_parameter") => Some(Global::Parameter),
        ("torch.storage", "UntypedStorage") => Some(Global::Storage(None)),
        ("torch", name) => storage(name)
            .map(|encoding| Global::Storage(Some(encoding)))
            .or_else(|| dtype(name).map(Global::Dtype)),
        _ => None,
    }
}

/// The storage classes of pytorch/pytorch, `torch/__init__.py`, but for the complex and the
/// quantized ones.
fn storage(name: &str) -> Option<Encoding> {
    Some(match name {
        "DoubleStorage" => Encoding::F64,
        "FloatStorage" => Encoding::F32,
        "HalfStorage" => Encoding::F16,
        "BFloat16Storage" => Encoding::Bf16,
        "LongStorage" => Encoding::I64,
        "IntStorage" => Encoding::I32,
        "ShortStorage" => Encoding::I16,
        "CharStorage" => Encoding::I8,
        "ByteStorage" => Encoding::U8,
        "BoolStorage" => Encoding::Bool,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Encoding> {
    Some(match name {
        "float64" => Encoding::F64,
        "float32" => Encoding::F32,
        "float16" => Encoding::F16,
        "bfloat16" => Encoding::Bf16,
        "float8_e4m3fn" => Encoding::F8E4M3,
        "float8_e5m2" => Encoding::F8E5M2,
        "int64" => Encoding::I64,
        "int32" => Encoding::I32,
        "int16" => Encoding::I16,
        "int8" => Encoding::I8,
        "uint64" => Encoding::U64,
        "uint32" => Encoding::U32,
        "uint16" => Encoding::U16,
        "uint8" => Encoding::U8,
        "bool" => Encoding::Bool,
        _ => return None,
    })
}
