//! The command line: `wan-i2v --image start.png --prompt "..." --model DIR --output clip.mp4`.

use std::process::ExitCode;

fn main() -> ExitCode {
    wan_i2v::cli::main()
}
