//! How far two sets of tensors are apart: known differences are found, named and judged.

mod checkpoints;
mod clips;
mod command;
mod dumps;

use std::path::Path;

use wan_i2v::diagnose::compare::{Comparison, Input, compare};

fn compared(a: &Path, b: &Path, tolerance: Option<f64>) -> anyhow::Result<Comparison> {
    compare(&Input::open(a)?, &Input::open(b)?, tolerance, &mut |_| {})
}

/// The comparison of what can be compared.
fn of(a: &Path, b: &Path) -> Comparison {
    compared(a, b, None).unwrap()
}

/// A row by its tensor's name.
#[track_caller]
fn row<'a>(made: &'a Comparison, name: &str) -> &'a wan_i2v::diagnose::compare::Row {
    let found = made.rows.iter().find(|row| row.name == name);
    found.unwrap_or_else(|| panic!("no row for {name}"))
}

/// A `.npy` file as NumPy writes it.
pub fn npy(path: &Path, descr: &str, fortran: bool, shape: &[usize], bytes: &[u8]) {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let order = if fortran { "True" } else { "False" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({sides}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

pub fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
