//! A machine for the pickles of tensor dictionaries, which executes nothing.
//!
//! A pickle is a program for a machine with a stack, marks on it and a memo (python/cpython,
//! `Lib/pickle.py` and `Lib/pickletools.py`). In general it may import and call whatever it names.
//! Here a global is one of a fixed list, calling one builds a plain record, and any other opcode
//! is refused. Containers are numbers into flat lists, so that neither depth nor cycles matter,
//! and every instruction adds at most one value: memory is bounded by [`MAX_INSTRUCTIONS`].

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::pickle::{Pickle, Span, Value};

/// Instructions at most: some 35 are used for a tensor.
const MAX_INSTRUCTIONS: usize = 1 << 21;

/// Runs the instructions in `data`.
///
/// # Errors
/// Names the byte of the instruction that is refused, and why.
pub(super) fn run(data: &[u8]) -> Result<Pickle<'_>> {
    let mut machine = Unpickler {
        data,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        keys: HashMap::new(),
        pickle: Pickle::default(),
    };
    machine.protocol().context("data.pkl, byte 0")?;
    for _ in 0..MAX_INSTRUCTIONS {
        let at = machine.at;
        let goes_on = machine
            .step()
            .with_context(|| format!("data.pkl, byte {at}"))?;
        if !goes_on {
            ensure!(
                machine.at == data.len(),
                "data.pkl: {} bytes follow the end of the pickle; expected none",
                data.len() - machine.at
            );
            return Ok(machine.pickle);
        }
    }
    bail!("data.pkl has more than {MAX_INSTRUCTIONS} instructions; no model needs so many")
}

pub(super) struct Unpickler<'a> {
    data: &'a [u8],
    at: usize,
    pub(super) stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    /// Positions of the storages by key.
    pub(super) keys: HashMap<&'a str, usize>,
    pub(super) pickle: Pickle<'a>,
}

impl<'a> Unpickler<'a> {
    /// Runs one instruction; false after the last.
    fn step(&mut self) -> Result<bool> {
        let [opcode] = self.bytes()?;
        match opcode {
            // A frame's length, which only helps readers that fetch the pickle piece by piece.
            0x95 => drop(self.bytes::<8>()?),
            b'.' => {
                self.pickle.root = self.pop()?;
                ensure!(
                    self.stack.is_empty() && self.marks.is_empty(),
                    "the pickle ends with values left on its stack"
                );
                return Ok(false);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'J' => {
                let number = i32::from_le_bytes(self.bytes()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'K' => {
                let number = u8::from_le_bytes(self.bytes()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.bytes()?);
                self.stack.push(Value::Int(number.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.bytes::<8>()?;
                self.stack.push(Value::Number);
            }
            0x8c => {
                let length = u8::from_le_bytes(self.bytes()?);
                self.string(length.into())?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.string(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.bytes()?);
                self.string(length)?;
            }
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let count = self.since_mark()?;
                self.tuple(count)?;
            }
            b']' => {
                self.stack.push(Value::List(self.pickle.lists.len()));
                self.pickle.lists.push(Vec::new());
            }
            b'a' => self.append(1)?,
            b'e' => {
                let count = self.since_mark()?;
                self.append(count)?;
            }
            b'}' => self.dict(),
            b's' => self.set_items(2)?,
            b'u' => {
                let count = self.since_mark()?;
                self.set_items(count)?;
            }
            b'q' => {
                let index = u8::from_le_bytes(self.bytes()?);
                self.memoize(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.bytes()?);
                self.memoize(index)?;
            }
            0x94 => self.memoize(u32::try_from(self.memo.len())?)?,
            b'h' => {
                let index = u8::from_le_bytes(self.bytes()?);
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.bytes()?);
                self.recall(index)?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (Value::Str(name), Value::Str(module)) = (self.pop()?, self.pop()?) else {
                    bail!("a global whose name is no string");
                };
                self.global(module, name)?;
            }
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => bail!(
                "the opcode 0x{other:02x} ({:?}) has no place in a dictionary of tensors; \
                 the file is damaged, hostile, or holds more than tensors",
                char::from(other)
            ),
        }
        Ok(true)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let rest = &self.data[self.at..];
        let taken = rest
            .get(..length)
            .with_context(|| format!("the pickle is cut off: {length} bytes expected"))?;
        self.at += length;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn line(&mut self) -> Result<&'a str> {
        // Longer than any name there is: the search for the line's end must not take long.
        const MAX_LINE: usize = 256;
        let rest = &self.data[self.at..];
        let length = rest.iter().take(MAX_LINE).position(|&b| b == b'\n');
        let length = length.context("a global whose name has no end")?;
        let line = self.take(length)?;
        self.at += 1;
        str::from_utf8(line).context("a global whose name is not UTF-8")
    }

    fn string(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(usize::try_from(length)?)?;
        let string = str::from_utf8(bytes).context("a string that is not UTF-8")?;
        self.stack.push(Value::Str(string));
        Ok(())
    }

    /// A signed number of as many bytes as a first byte says.
    fn long(&mut self) -> Result<()> {
        let [length] = self.bytes()?;
        let bytes = self.take(length.into())?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        self.stack.push(match number.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(number))
            }
            None => Value::Number,
        });
        Ok(())
    }

    /// The first instruction, which pickles of protocol 0 and 1 do not have.
    fn protocol(&mut self) -> Result<()> {
        let [opcode, version] = self.bytes()?;
        ensure!(
            opcode == 0x80 && (2..=5).contains(&version),
            "begins with 0x{opcode:02x} 0x{version:02x}; expected a pickle of protocol 2 to 5"
        );
        Ok(())
    }

    /// Takes the topmost value; a mark is not passed.
    pub(super) fn pop(&mut self) -> Result<Value<'a>> {
        let values = self.top(1)?;
        let value = self.stack[values];
        self.stack.truncate(values);
        Ok(value)
    }

    /// Where the topmost `count` values begin.
    pub(super) fn top(&self, count: usize) -> Result<usize> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count);
        start
            .filter(|start| *start >= bottom)
            .context("too few values on the pickle's stack")
    }

    /// Removes the topmost mark and counts the values above it.
    fn since_mark(&mut self) -> Result<usize> {
        let mark = self.marks.pop().context("no mark on the pickle's stack")?;
        Ok(self.stack.len() - mark)
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        let start = self.pickle.items.len();
        self.pickle.items.extend(self.stack.drain(first..));
        let end = self.pickle.items.len();
        self.stack.push(Value::Tuple(Span { start, end }));
        Ok(())
    }

    fn append(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        let list = self.top(count.saturating_add(1))?;
        let Value::List(list) = self.stack[list] else {
            bail!("appends to {}; expected a list", self.stack[list].kind());
        };
        self.pickle.lists[list].extend(self.stack.drain(first..));
        Ok(())
    }

    pub(super) fn dict(&mut self) {
        self.stack.push(Value::Dict(self.pickle.dicts.len()));
        self.pickle.dicts.push(Vec::new());
    }

    fn set_items(&mut self, count: usize) -> Result<()> {
        ensure!(count.is_multiple_of(2), "a key without a value");
        let first = self.top(count)?;
        let dict = self.top(count.saturating_add(1))?;
        let Value::Dict(dict) = self.stack[dict] else {
            bail!(
                "sets entries of {}; expected a dictionary",
                self.stack[dict].kind()
            );
        };
        let entries = self.stack[first..].chunks_exact(2);
        self.pickle.dicts[dict].extend(entries.map(|pair| (pair[0], pair[1])));
        self.stack.truncate(first);
        Ok(())
    }

    fn memoize(&mut self, index: u32) -> Result<()> {
        let value = self.stack[self.top(1)?];
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let value = self.memo.get(&index);
        let value = value.with_context(|| format!("the memo has no entry {index}"))?;
        self.stack.push(*value);
        Ok(())
    }
}
