//! Choices between ways of computing the same that a measurement on a machine may make.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Precision;

/// What is computed otherwise than by the program's own rules, on a machine where that is faster.
///
/// Results are the same up to rounding: what decides last bits is a part of a saved run's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// The dtype of matrix products where the user leaves it open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Operations of one call of a fused attention kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_operations: Option<u64>,
    /// Whether self-attention's keys and values lie head by head in memory, or row by row; otherwise
    /// as they come about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_by_heads: Option<bool>,
    /// [`Device::dense_above`](super::Device::dense_above).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_above: Option<i32>,
    /// Whether convolutions are MLX's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole_convolutions: bool,
    /// How many times smaller the blocks of attention are that a core computes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_divisor: Option<i32>,
}

impl Tuning {
    /// The program's own rules.
    pub const NONE: Self = Self {
        precision: None,
        call_operations: None,
        keys_by_heads: None,
        dense_above: None,
        whole_convolutions: false,
        block_divisor: None,
    };

    /// The same with what `change` chooses.
    pub fn and(self, change: Self) -> Self {
        Self {
            precision: change.precision.or(self.precision),
            call_operations: change.call_operations.or(self.call_operations),
            keys_by_heads: change.keys_by_heads.or(self.keys_by_heads),
            dense_above: change.dense_above.or(self.dense_above),
            whole_convolutions: change.whole_convolutions || self.whole_convolutions,
            block_divisor: change.block_divisor.or(self.block_divisor),
        }
    }

    /// Whether tuning can have chosen it: what a file says may be anything.
    pub fn is_plausible(&self) -> bool {
        let within = |value: Option<u64>, [least, most]: [u64; 2]| {
            value.is_none_or(|value| (least..=most).contains(&value))
        };
        self.precision != Some(Precision::F32)
            // No call may take longer than the program's own rule allows.
            && within(self.call_operations, [1_000_000_000, super::device::CALL_OPERATIONS])
            && self.dense_above.is_none_or(|rows| rows >= 0)
            && self.block_divisor.is_none_or(|by| (1..=64).contains(&by))
    }
}

/// In a few words; `nothing` where it is [`Tuning::NONE`].
impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            precision,
            call_operations,
            keys_by_heads,
            dense_above,
            whole_convolutions,
            block_divisor,
        } = *self;
        let parts = [
            precision.map(|precision| precision.to_string()),
            call_operations.map(|most| format!("attention in calls of {most:.0e} operations")),
            keys_by_heads.map(|by_heads| match by_heads {
                true => "contiguous K/V".to_owned(),
                false => "strided K/V".to_owned(),
            }),
            dense_above.map(|rows| match rows {
                i32::MAX => "packed products".to_owned(),
                _ => format!("packed products up to {rows} rows"),
            }),
            whole_convolutions.then(|| "MLX's own convolutions".to_owned()),
            block_divisor.map(|by| format!("blocks of 1/{by}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => f.write_str("nothing"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_as_what_it_changes_and_told_in_words() {
        let all = Tuning {
            precision: Some(Precision::Bf16),
            call_operations: Some(500_000_000_000),
            keys_by_heads: Some(true),
            dense_above: Some(512),
            whole_convolutions: true,
            block_divisor: Some(2),
        };
        assert_eq!(
            all.to_string(),
            "bf16, attention in calls of 5e11 operations, contiguous K/V, packed products up to 512 \
             rows, MLX's own convolutions, blocks of 1/2"
        );
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Tuning>(&json).unwrap(), all);
        assert_eq!(serde_json::to_string(&Tuning::NONE).unwrap(), "{}");
        assert_eq!(Tuning::NONE, Tuning::default());
        assert_eq!(Tuning::NONE.to_string(), "nothing");
        assert!(serde_json::from_str::<Tuning>(r#"{"other": 1}"#).is_err());
        assert_eq!(Tuning::NONE.and(all), all);
        assert_eq!(all.and(Tuning::NONE), all);
    }

    #[test]
    fn what_no_tuning_has_chosen_is_implausible() {
        assert!(Tuning::NONE.is_plausible());
        let none = Tuning::NONE;
        for odd in [
            Tuning {
                precision: Some(Precision::F32),
                ..none
            },
            Tuning {
                call_operations: Some(3_000_000_000_000),
                ..none
            },
            Tuning {
                dense_above: Some(-1),
                ..none
            },
            Tuning {
                block_divisor: Some(0),
                ..none
            },
        ] {
            assert!(!odd.is_plausible(), "{odd:?}");
        }
    }
}
