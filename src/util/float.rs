//! A float of eight bits that several modules read.

/// What an e8m0 stands for, an exponent alone: from 2^-127, and infinity for the code that is no number (Open
/// Compute Project, OCP Microscaling Formats, 2023).
pub fn e8m0(code: u8) -> f32 {
    match code {
        // Below what a float32 holds in full.
        0 => f32::from_bits(1 << 22),
        code => f32::from_bits(u32::from(code) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_e8m0_is_a_power_of_two() {
        for code in 0..=254 {
            let expected = 2_f64.powi(i32::from(code) - 127);
            assert_eq!(f64::from(e8m0(code)), expected, "{code}");
        }
        assert_eq!(e8m0(255), f32::INFINITY);
    }
}
