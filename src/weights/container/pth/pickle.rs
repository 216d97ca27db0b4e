//! What the pickle of a checkpoint holds.

use super::super::encoding::Encoding;
use super::globals::Global;

/// A range of [`Pickle::items`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
}

/// A value on the stack; containers and tensors are positions in the lists of [`Pickle`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Value<'a> {
    #[default]
    None,
    Bool,
    Int(i64),
    /// A number that no tensor needs: a float, or one of more than 64 bits.
    Number,
    Str(&'a str),
    Global(Global),
    Tuple(Span),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

impl Value<'_> {
    /// What the value is, in messages.
    pub fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) | Self::Number => "a number",
            Self::Str(_) => "a string",
            Self::Global(_) => "a function or type",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }

    /// Whether it is a tensor or a container.
    pub fn may_hold_tensors(self) -> bool {
        matches!(
            self,
            Self::Tensor(_) | Self::Dict(_) | Self::List(_) | Self::Tuple(_)
        )
    }
}

/// The memory that tensors view: a record of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    /// Name of the record.
    pub key: &'a str,
    /// Type of its elements; `None` are bytes.
    pub encoding: Option<Encoding>,
    /// How many there are.
    pub elements: usize,
}

/// A view of a storage, as the pickle has it: nothing is checked against the storage yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    /// Position in [`Pickle::storages`].
    pub storage: usize,
    /// Type of its elements.
    pub encoding: Encoding,
    /// Elements of the storage before the first.
    pub offset: usize,
    /// Dimensions, outermost first.
    pub shape: Span,
    /// Elements from one index to the next, for each dimension.
    pub strides: Span,
}

/// What a pickle holds.
#[derive(Debug, Default)]
pub(super) struct Pickle<'a> {
    pub root: Value<'a>,
    pub lists: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub storages: Vec<Storage<'a>>,
    pub tensors: Vec<Tensor>,
    pub items: Vec<Value<'a>>,
}

impl<'a> Pickle<'a> {
    /// The values of a tuple.
    pub fn items(&self, span: Span) -> &[Value<'a>] {
        &self.items[span.start..span.end]
    }
}
