//! The command line: `wan-i2v --image start.png --prompt "..." --model DIR --output clip.mp4`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
