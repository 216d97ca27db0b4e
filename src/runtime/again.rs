//! What a process hands to the fresh one that takes its place.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;

/// The process and its tries, the budget, the saved run, the clip.
const VARIABLES: [&str; 4] = [
    "WAN_AGAIN",
    "WAN_AGAIN_BUDGET",
    "WAN_AGAIN_STATE",
    "WAN_AGAIN_OUTPUT",
];

/// A run that goes on in this process after an error of the GPU ended the process before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// Processes in a row that were to go on and got no further, this one included.
    pub tries: usize,
    /// Whether memory ran out just now.
    pub ran_out: bool,
    /// The most bytes to take, where memory ran out, then or before.
    pub budget: Option<u64>,
    /// The saved run; `None` where there is none yet, or a batch has its own.
    pub state: Option<PathBuf>,
    /// The clip.
    pub output: Option<PathBuf>,
}

impl Again {
    /// The environment's variables that hand it to the process `pid`.
    pub fn variables(&self, pid: u32) -> [(&'static str, Option<OsString>); 4] {
        let [tries, budget, state, output] = VARIABLES;
        let ran_out = u8::from(self.ran_out);
        [
            (
                tries,
                Some(format!("{pid} {} {ran_out}", self.tries).into()),
            ),
            (budget, self.budget.map(|bytes| bytes.to_string().into())),
            (state, self.state.clone().map(Into::into)),
            (output, self.output.clone().map(Into::into)),
        ]
    }

    /// What was handed to the process `pid`, and to no child of it.
    fn of(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Self> {
        let number = |text: &str| text.parse::<u64>().ok();
        let [tries, budget, state, output] = VARIABLES.map(variable);
        let tries = tries?.into_string().ok()?;
        let (tries, ran_out) = tries.strip_prefix(&format!("{pid} "))?.split_once(' ')?;
        Some(Self {
            tries: tries.parse().ok()?,
            ran_out: ran_out == "1",
            budget: budget.and_then(|text| number(text.to_str()?)),
            state: state.map(Into::into),
            output: output.map(Into::into),
        })
    }
}

/// What the process before this one has handed over.
pub fn again() -> Option<&'static Again> {
    static AGAIN: OnceLock<Option<Again>> = OnceLock::new();
    AGAIN
        .get_or_init(|| Again::of(|name| env::var_os(name), process::id()))
        .as_ref()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_is_handed_to_one_process_alone() {
        for again in [
            Again::default(),
            Again {
                tries: 2,
                ran_out: true,
                budget: Some(10_900_000_000),
                state: Some("a b\n.wan-state".into()),
                output: Some("a b\n".into()),
            },
        ] {
            let variables: HashMap<_, _> = again.variables(71).into_iter().collect();
            let of = |pid| Again::of(|name| variables.get(name).cloned().flatten(), pid);
            assert_eq!(of(71), Some(again));
            assert_eq!(of(7), None);
            assert_eq!(of(710), None);
        }
        assert_eq!(Again::of(|_| None, 71), None);
    }
}
