//! What errors say where a limit of the process is their cause.

use std::error::Error;
use std::io::{self, ErrorKind};

use crate::util::show::chain;

/// An error with its causes, and advice where a limit of the process is one of them.
pub(crate) fn with_advice(error: &anyhow::Error) -> String {
    let text = chain(error);
    let is_too_large = |cause: &(dyn Error + 'static)| {
        let kind = cause.downcast_ref().map(io::Error::kind);
        kind == Some(ErrorKind::FileTooLarge)
    };
    if error.chain().any(is_too_large) {
        text + "\nhint: this process may not write so large a file; raise the limit: ulimit -f unlimited"
    } else if let Some(plain) = refusal(&text) {
        plain
            + "\nhint: raise the limits of the process (ulimit -v, ulimit -u), or give the program less \
                 to do at once with --memory-budget"
    } else {
        text
    }
}

/// An error that says that memory or a thread was refused, without the place in MLX's source where it
/// was noticed.
fn refusal(text: &str) -> Option<String> {
    // scripts/mlx/mlx_allocator.cpp, and the system for a thread.
    let said = ["the system refuses ", "Resource temporarily unavailable"];
    let (before, after) = text.split_at(said.iter().find_map(|said| text.find(said))?);
    let (what, _) = after.split_once(" at ").unwrap_or((after, ""));
    Some(before.trim_end_matches('"').to_owned() + what)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn limits_of_the_process_are_told_with_advice() {
        let large = anyhow::Error::from(io::Error::from(ErrorKind::FileTooLarge));
        let text = with_advice(&large.context("cannot write a.mp4"));
        assert!(text.starts_with("cannot write a.mp4: "), "{text}");
        assert!(text.contains("\nhint: this process may not"), "{text}");
        let mlx = "\"the system refuses 12 bytes of memory at a/transforms.cpp:73\" at b/function.rs:250:5";
        let text = with_advice(&anyhow!(mlx).context("the VAE"));
        let start = "the VAE: the system refuses 12 bytes of memory\nhint: raise the limits";
        assert!(text.starts_with(start), "{text}");
        let text =
            with_advice(&anyhow!("the system refuses 12 bytes of memory").context("the VAE"));
        assert!(text.starts_with(start), "{text}");
        assert_eq!(with_advice(&anyhow!("a").context("b")), "b: a");
    }
}
