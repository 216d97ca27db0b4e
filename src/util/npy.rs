//! The header of NumPy's `.npy` files: numpy/numpy, `numpy/lib/_format_impl.py`.
//!
//! Read here, within bounds: general parsers of NumPy's types follow nested records as deep as a
//! file says, and a few hundred bytes can say very deep.

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail, ensure};

/// What every such file begins with.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// NumPy itself reads no longer header unless it is told to trust the file
/// (`max_header_size` of `numpy.load`).
const MAX_HEADER: usize = 10_000;
/// NumPy's own limit on dimensions.
const MAX_RANK: usize = 64;
/// Data begin at a multiple of this many bytes.
const ALIGNMENT: usize = 64;

/// Types of elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Signed integers of 1, 2, 4 or 8 bytes.
    Int(u8),
    /// Unsigned integers of 1, 2, 4 or 8 bytes.
    Uint(u8),
    /// A byte, 0 or 1.
    Bool,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// NumPy's name of the elements' type, such as `<f4`.
    pub descr: String,
    /// Whether the first axis, not the last, is the one whose elements are neighbours.
    pub fortran_order: bool,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl Header {
    /// Reads a header and leaves `file` at the first element.
    ///
    /// # Errors
    /// When the file cannot be read, is no `.npy` file, or its header is damaged or longer than
    /// 10,000 bytes.
    pub fn read(file: &mut impl Read) -> Result<Self> {
        let mut start = [0; 8];
        let cut = "its header is cut off";
        file.read_exact(&mut start).context(cut)?;
        ensure!(start.starts_with(MAGIC), "it does not begin as a .npy file");
        let length = match start[6] {
            1 => {
                let mut length = [0; 2];
                file.read_exact(&mut length).context(cut)?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                file.read_exact(&mut length).context(cut)?;
                usize::try_from(u32::from_le_bytes(length))?
            }
            version => bail!("its format version is {version}; expected 1, 2 or 3"),
        };
        ensure!(
            length <= MAX_HEADER,
            "its header has {length} bytes; expected at most {MAX_HEADER}"
        );
        let mut text = vec![0; length];
        file.read_exact(&mut text).context(cut)?;
        let text = str::from_utf8(&text).context("its header is no text")?;
        Self::parse(text).context("its header is damaged")
    }

    /// Parses the Python dictionary that a header is.
    fn parse(text: &str) -> Result<Self> {
        let mut rest = Tokens(text.trim_end_matches([' ', '\n', '\0']));
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        rest.expect('{')?;
        while !rest.takes('}') {
            let key = rest.string()?;
            rest.expect(':')?;
            let fresh = match key {
                "descr" => descr.replace(rest.type_name()?).is_none(),
                "fortran_order" => fortran_order.replace(rest.boolean()?).is_none(),
                "shape" => shape.replace(rest.tuple()?).is_none(),
                other => bail!("it has the entry {other:?}"),
            };
            ensure!(fresh, "it has {key} twice");
            if !rest.takes(',') {
                rest.expect('}')?;
                break;
            }
        }
        ensure!(rest.0.trim().is_empty(), "something follows its end");
        Ok(Self {
            descr: descr.context("it has no descr")?,
            fortran_order: fortran_order.context("it has no fortran_order")?,
            shape: shape.context("it has no shape")?,
        })
    }

    /// Writes a header for elements that follow in row-major order.
    ///
    /// # Errors
    /// When `file` cannot be written.
    pub fn write(file: &mut impl Write, descr: &str, shape: &[u64]) -> io::Result<()> {
        let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
        let sides = match shape.len() {
            1 => sides.trim_end(),
            _ => sides.trim_end_matches(", "),
        };
        let mut text =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
        // Magic, version and length take ten bytes, the final newline one.
        let padding = (10 + text.len() + 1).next_multiple_of(ALIGNMENT) - (10 + text.len() + 1);
        text.extend(std::iter::repeat_n(' ', padding));
        text.push('\n');
        let length = u16::try_from(text.len()).map_err(io::Error::other)?;
        file.write_all(MAGIC)?;
        file.write_all(&[1, 0])?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(text.as_bytes())
    }

    /// The elements' type.
    ///
    /// # Errors
    /// When they are no real numbers, or in big-endian order.
    pub fn element(&self) -> Result<Element> {
        let descr = self.descr.as_str();
        ensure!(
            !descr.starts_with('>') || descr.ends_with('1'),
            "its elements are {descr}, in big-endian order; save it again as little-endian"
        );
        Ok(match descr.trim_start_matches(['<', '|', '=', '>']) {
            "f2" => Element::F16,
            "f4" => Element::F32,
            "f8" => Element::F64,
            "i1" => Element::Int(1),
            "i2" => Element::Int(2),
            "i4" => Element::Int(4),
            "i8" => Element::Int(8),
            "u1" => Element::Uint(1),
            "u2" => Element::Uint(2),
            "u4" => Element::Uint(4),
            "u8" => Element::Uint(8),
            "b1" => Element::Bool,
            _ => bail!("its elements are {descr}; expected real numbers or integers"),
        })
    }
}

/// What is left of a header's text.
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    /// Takes `wanted`, if it is next.
    fn takes(&mut self, wanted: char) -> bool {
        let rest = self.0.trim_start();
        match rest.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        ensure!(
            self.takes(wanted),
            "expected {wanted:?} before {}",
            self.near()
        );
        Ok(())
    }

    /// A quoted text without escapes.
    fn string(&mut self) -> Result<&'a str> {
        let quote = ['\'', '"'].into_iter().find(|&quote| self.takes(quote));
        let text = quote.and_then(|quote| self.0.split_once(quote));
        let (text, rest) = text.with_context(|| format!("expected a name at {}", self.near()))?;
        self.0 = rest;
        Ok(text)
    }

    fn type_name(&mut self) -> Result<String> {
        ensure!(
            !self.0.trim_start().starts_with('['),
            "its elements are records; expected real numbers or integers"
        );
        Ok(self.string()?.to_owned())
    }

    fn boolean(&mut self) -> Result<bool> {
        self.0 = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        bail!("expected True or False at {}", self.near())
    }

    fn tuple(&mut self) -> Result<Vec<u64>> {
        let mut sides = Vec::new();
        self.expect('(')?;
        while !self.takes(')') {
            self.0 = self.0.trim_start();
            let digits = self.0.len()
                - self
                    .0
                    .trim_start_matches(|c: char| c.is_ascii_digit())
                    .len();
            let (number, rest) = self.0.split_at(digits);
            let side = number.parse();
            sides.push(side.with_context(|| format!("expected a length at {}", self.near()))?);
            ensure!(
                sides.len() <= MAX_RANK,
                "it has more than {MAX_RANK} dimensions"
            );
            // Python 2 wrote long integers.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if !self.takes(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sides)
    }

    /// The beginning of what is left, for a message.
    fn near(&self) -> String {
        format!("{:?}", self.0.chars().take(20).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let length = (header.len() as u32).to_le_bytes();
        [MAGIC, &[2, 0], &length, header.as_bytes()].concat()
    }

    fn read(header: &str) -> Result<Header> {
        Header::read(&mut file(header).as_slice())
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [&[][..], &[7], &[2, 3], &[1, 0, 5, 9]] {
            let mut file = Vec::new();
            Header::write(&mut file, "<f4", shape).unwrap();
            assert!(file.len().is_multiple_of(ALIGNMENT));
            let mut rest = file.as_slice();
            let header = Header::read(&mut rest).unwrap();
            assert!(rest.is_empty());
            assert_eq!(header.shape, shape);
            assert_eq!(header.element().unwrap(), Element::F32);
        }
    }

    #[test]
    fn headers_of_other_writers() {
        let header =
            read("{'shape': (3L, 4L,), \"fortran_order\": True, 'descr': '|u1'}\n").unwrap();
        assert_eq!(
            (header.shape.as_slice(), header.fortran_order),
            (&[3, 4][..], true)
        );
        assert_eq!(header.element().unwrap(), Element::Uint(1));
    }

    #[test]
    fn what_is_no_header_of_numbers_is_refused_by_name() {
        let rest = "'fortran_order': False, 'shape': (1,), }";
        let nested = "[('a', ".repeat(1000);
        let many = "1, ".repeat(65);
        for (header, said) in [
            (format!("{{'descr': {nested}, {rest}"), "records"),
            (format!("{{'descr': [('a', '<f4')], {rest}"), "records"),
            (
                format!("{{'descr': '<f4', 'descr': '<f4', {rest}"),
                "descr twice",
            ),
            (format!("{{'other': '<f4', {rest}"), "the entry \"other\""),
            (format!("{{{rest}"), "no descr"),
            (format!("{{'descr': '<f4', {rest} more"), "follows its end"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }".into(),
                "a length",
            ),
            (
                format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({many}), }}"),
                "64 dimensions",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }"
                    .into(),
                "a length",
            ),
            (String::new(), "expected '{'"),
            (" ".repeat(10_001), "at most 10000"),
        ] {
            let error = format!("{:#}", read(&header).unwrap_err());
            assert!(error.contains(said), "{error}");
            assert!(error.len() < 200, "{error}");
        }
        for (descr, said) in [
            (">f4", "big-endian"),
            ("<c8", "expected real"),
            ("<U5", "real"),
        ] {
            let header = read(&format!("{{'descr': '{descr}', {rest}")).unwrap();
            let error = header.element().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let whole = file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }");
        for at in 0..whole.len() {
            assert!(Header::read(&mut &whole[..at]).is_err(), "cut at {at}");
        }
    }
}
