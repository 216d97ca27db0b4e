//! The instructions of a pickle that name, call and build things: each makes a plain record.

use anyhow::{Context, Result, bail, ensure};

use super::globals::{self, Global};
use super::pickle::{Storage, Tensor, Value};
use super::unpickler::Unpickler;

/// Bytes of a storage's name at most; `torch.save` numbers them.
const MAX_KEY: usize = 64;

impl<'a> Unpickler<'a> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let global = globals::find(module, name).with_context(|| {
            format!(
                "the global {} is not read: it has no place in a dictionary of plain tensors. \
                 Do not load this file with other programs unless you trust its origin",
                format!("{module:.100}.{name:.100}").escape_debug()
            )
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// The storage that a persistent id names.
    pub(super) fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let parts = match id {
            Value::Tuple(span) => self.pickle.items(span),
            _ => &[],
        };
        let [
            Value::Str("storage"),
            Value::Global(Global::Storage(encoding)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(elements),
        ] = *parts
        else {
            bail!("a persistent id that is not that of a storage");
        };
        ensure!(
            key.len() <= MAX_KEY,
            "the name of a storage has {} bytes; expected at most {MAX_KEY}",
            key.len()
        );
        let storage = Storage {
            key,
            encoding,
            elements: usize::try_from(elements)
                .with_context(|| format!("the storage {key:?} has {elements} elements"))?,
        };
        let index = *self.keys.entry(key).or_insert(self.pickle.storages.len());
        if index == self.pickle.storages.len() {
            self.pickle.storages.push(storage);
        }
        ensure!(
            self.pickle.storages[index] == storage,
            "the storage {key:?} is described in two ways"
        );
        self.stack.push(Value::Storage(index));
        Ok(())
    }

    /// A call: of what is second on the stack, with the arguments on top.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(global)) = (arguments, callee) else {
            bail!("calls {} with {}", callee.kind(), arguments.kind());
        };
        let arguments = self.pickle.items(arguments);
        let value = match (global, arguments) {
            (Global::OrderedDict, []) => {
                self.dict();
                return Ok(());
            }
            (Global::TensorV2, [storage, offset, shape, strides, _, _, rest @ ..]) => {
                self.tensor([storage, offset, shape, strides], None, rest)?
            }
            (Global::TensorV3, [storage, offset, shape, strides, _, _, dtype, rest @ ..]) => {
                self.tensor([storage, offset, shape, strides], Some(dtype), rest)?
            }
            (Global::Parameter, [tensor @ Value::Tensor(_), _, _]) => {
                let parameter = *tensor;
                self.stack.push(parameter);
                return Ok(());
            }
            _ => bail!(
                "calls {global:?} with {} arguments of kinds that are not expected",
                arguments.len()
            ),
        };
        self.stack.push(Value::Tensor(self.pickle.tensors.len()));
        self.pickle.tensors.push(value);
        Ok(())
    }

    /// A tensor from the arguments of the functions that rebuild one.
    fn tensor(
        &self,
        arguments: [&Value<'a>; 4],
        dtype: Option<&Value<'a>>,
        rest: &[Value<'a>],
    ) -> Result<Tensor> {
        let [
            &Value::Storage(storage),
            &Value::Int(offset),
            &Value::Tuple(shape),
            &Value::Tuple(strides),
        ] = arguments
        else {
            bail!("rebuilds a tensor from arguments of other kinds than expected");
        };
        let encoding = match (dtype, self.pickle.storages[storage].encoding) {
            (None, Some(encoding)) => encoding,
            (Some(Value::Global(Global::Dtype(encoding))), None) => *encoding,
            _ => bail!("rebuilds a tensor of no type, or of two"),
        };
        match rest {
            [] | [Value::None] => {}
            [Value::Dict(dict)] if self.pickle.dicts[*dict].is_empty() => {}
            // They say, for example, that the values are negated.
            _ => bail!("rebuilds a tensor with metadata; expected a plain tensor"),
        }
        Ok(Tensor {
            storage,
            encoding,
            offset: usize::try_from(offset).context("a tensor with a negative offset")?,
            shape,
            strides,
        })
    }

    /// Attributes of an object. Those of an `OrderedDict`, such as the `_metadata` that
    /// `state_dict()` leaves on it, are no tensors: they are dropped.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let object = self.stack[self.top(1)?];
        ensure!(
            matches!((object, state), (Value::Dict(_), Value::Dict(_))),
            "sets the state of {} to {}; expected attributes of a dictionary",
            object.kind(),
            state.kind()
        );
        Ok(())
    }
}
