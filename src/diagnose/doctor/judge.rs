//! Where and how a kernel's result is wrong.

/// What a result is, held to what it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The largest absolute difference over the largest absolute expected value; infinite when a
    /// value is not finite that should be.
    pub error: f64,
    /// What is wrong, when something is.
    pub fault: Option<String>,
}

/// Judges `found`, row-major with `columns` values a row, by `expected`; the largest difference may
/// be `tolerance` times the largest expected value.
pub fn judge(found: &[f32], expected: &[f64], columns: usize, tolerance: f64) -> Judgement {
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Judgement {
            error: f64::INFINITY,
            fault: Some(format!("{found} values instead of {expected}")),
        };
    }
    let columns = columns.max(1);
    let largest = expected
        .iter()
        .fold(0.0_f64, |most, value| most.max(value.abs()));
    let most = tolerance * largest;
    let mut judgement = Judgement {
        error: 0.0,
        fault: None,
    };
    let mut wrong_rows = Rows::default();
    let mut not_finite = Rows::default();
    let mut zero = Rows::default();
    for (row, (found, expected)) in found
        .chunks(columns)
        .zip(expected.chunks(columns))
        .enumerate()
    {
        let mut is_wrong = false;
        let mut is_finite = true;
        for (&found, &expected) in found.iter().zip(expected) {
            let difference = (f64::from(found) - expected).abs();
            let relative = match (difference == 0.0, difference.is_finite()) {
                (true, _) => 0.0,
                (_, true) => difference / largest.max(f64::MIN_POSITIVE),
                _ => f64::INFINITY,
            };
            judgement.error = judgement.error.max(relative);
            is_wrong |= difference.is_nan() || difference > most;
            is_finite &= found.is_finite();
        }
        if is_wrong {
            wrong_rows.add(row);
            let is_zero = found.iter().all(|&value| value == 0.0);
            zero.add_if(is_zero, row);
        }
        not_finite.add_if(!is_finite, row);
    }
    let rows = expected.len().div_ceil(columns);
    judgement.fault = wrong_rows.first.map(|first| {
        let mut fault = format!(
            "{} of {rows} rows are wrong, from row {first} to row {}",
            wrong_rows.count, wrong_rows.last
        );
        if let Some(first) = not_finite.first {
            fault += &format!(
                "; {} are not finite, the first is row {first}",
                not_finite.count
            );
        }
        if let Some(first) = zero.first {
            fault += &format!("; {} are all zero, the first is row {first}", zero.count);
        }
        fault
    });
    judgement
}

#[derive(Default)]
struct Rows {
    count: usize,
    first: Option<usize>,
    last: usize,
}

impl Rows {
    fn add(&mut self, row: usize) {
        self.count += 1;
        self.first.get_or_insert(row);
        self.last = row;
    }

    fn add_if(&mut self, is: bool, row: usize) {
        if is {
            self.add(row);
        }
    }
}

/// How two arrays differ that should not be the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Mean absolute difference over the mean absolute value of the first.
    pub relative: f64,
    /// Cosine of the angle between them.
    pub cosine: f64,
}

/// The distance of two arrays of one length; not a number where one is all zero or not finite.
pub fn distance(a: &[f32], b: &[f32]) -> Distance {
    let (mut difference, mut size, mut dot) = (0.0, 0.0, 0.0);
    let mut energy = [0.0; 2];
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        difference += (a - b).abs();
        size += a.abs();
        dot += a * b;
        energy[0] += a * a;
        energy[1] += b * b;
    }
    let same_length = if a.len() == b.len() { 1.0 } else { f64::NAN };
    Distance {
        relative: same_length * difference / size,
        cosine: dot / (energy[0] * energy[1]).sqrt(),
    }
}
