//! How long denoising will still take, from what its steps have taken.

use crate::weights::Expert;

/// A step of the schedule: who predicts, and in how many passes unless a cache spares some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlannedStep {
    pub(super) expert: Expert,
    pub(super) passes: usize,
}

/// Counts passes, not steps: steps without guidance take half of one with it, and a step that a
/// cache stood in for hardly any time.
#[derive(Debug)]
pub(super) struct Eta {
    steps: Vec<PlannedStep>,
    taken: Vec<TimedStep>,
    /// Seconds of the last loading of an expert.
    loading: f64,
}

#[derive(Debug)]
struct TimedStep {
    passes: usize,
    computed: usize,
    seconds: f64,
}

impl Eta {
    pub(super) fn new(steps: Vec<PlannedStep>) -> Self {
        Self {
            steps,
            taken: Vec::new(),
            loading: 0.0,
        }
    }

    /// An expert has been loaded.
    pub(super) fn loaded(&mut self, seconds: f64) {
        self.loading = seconds;
    }

    /// The step `index` was taken, with `computed` passes computed.
    pub(super) fn took(&mut self, index: usize, computed: usize, seconds: f64) {
        if let Some(step) = self.steps.get(index) {
            self.taken.push(TimedStep {
                passes: step.passes,
                computed,
                seconds,
            });
        }
    }

    /// Seconds until the last step is done, when the step `last` is the last one taken; nothing
    /// before a pass was computed.
    pub(super) fn left(&self, last: usize) -> Option<f64> {
        let now = self.steps.get(last)?.expert;
        let ahead = self.steps.get(last + 1..).unwrap_or_default();
        // The first step also compiles kernels and first touches the weights.
        let settled = match self.taken.as_slice() {
            [_, settled @ ..] if settled.iter().any(|t| t.computed > 0) => settled,
            all => all,
        };
        let computed: usize = settled.iter().map(|t| t.computed).sum();
        if computed == 0 {
            return None;
        }
        let seconds: f64 = settled.iter().map(|t| t.seconds).sum();
        let passes: usize = settled.iter().map(|t| t.passes).sum();
        // A cache is taken to spare as many as it has so far.
        let share = computed as f64 / passes.max(1) as f64;
        let coming: usize = ahead.iter().map(|step| step.passes).sum();
        let loading = if ahead.iter().any(|step| step.expert != now) {
            self.loading
        } else {
            0.0
        };
        Some(seconds / computed as f64 * share * coming as f64 + loading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: Expert = Expert::HighNoise;
    const LOW: Expert = Expert::LowNoise;

    fn eta(steps: &[(Expert, usize)]) -> Eta {
        let ahead = |&(expert, passes)| PlannedStep { expert, passes };
        Eta::new(steps.iter().map(ahead).collect())
    }

    #[test]
    fn nothing_is_said_before_a_step_was_computed() {
        let mut eta = eta(&[(LOW, 2); 3]);
        assert_eq!(eta.left(0), None);
        eta.took(0, 0, 0.1);
        assert_eq!(eta.left(0), None);
    }

    #[test]
    fn passes_are_counted_and_loading_the_other_expert_too() {
        let mut eta = eta(&[(HIGH, 2), (HIGH, 2), (LOW, 1), (LOW, 1)]);
        eta.loaded(30.0);
        eta.took(0, 2, 20.0);
        assert_eq!(eta.left(0), Some(4.0 * 10.0 + 30.0));
        // From the second on, the first step counts no more.
        eta.took(1, 2, 8.0);
        assert_eq!(eta.left(1), Some(2.0 * 4.0 + 30.0));
        eta.loaded(40.0);
        eta.took(2, 1, 4.0);
        assert_eq!(eta.left(2), Some(4.0));
        eta.took(3, 1, 4.0);
        assert_eq!(eta.left(3), Some(0.0));
    }

    #[test]
    fn what_a_cache_has_spared_it_is_taken_to_spare_again() {
        let mut eta = eta(&[(LOW, 2); 9]);
        for (index, computed) in [2, 2, 0, 2, 0].into_iter().enumerate() {
            eta.took(index, computed, 5.0 * computed as f64);
        }
        // Four of eight settled passes were computed.
        assert_eq!(eta.left(4), Some(0.5 * 8.0 * 5.0));
    }
}
