//! What MLX reads from the environment.

use std::env;
use std::path::Path;

/// Variables that are set for MLX unless the user has set them.
///
/// * `MLX_ENABLE_TF32=0`: float32 products, attention and convolutions are float32 on an M5 too, whose
///   accelerators would otherwise take some 10 bits of each factor (`mlx::core::env::enable_tf32`);
///   bfloat16 and float16 use them as before.
/// * `MLX_CONV_WINOGRAD_TILE_BATCH=1`: Winograd's algorithm goes frame by frame, since what it takes for a
///   frame lives until the command buffer ends (`winograd_batch_step`).
pub const ENVIRONMENT: [(&str, &str); 2] = [
    ("MLX_ENABLE_TF32", "0"),
    ("MLX_CONV_WINOGRAD_TILE_BATCH", "1"),
];

/// Sets [`ENVIRONMENT`]; before MLX's first call, and while the program has one thread.
pub fn prepare_environment() {
    for (name, value) in ENVIRONMENT {
        if env::var_os(name).is_none() {
            // SAFETY: nothing else runs yet that could read the environment meanwhile.
            unsafe { env::set_var(name, value) };
        }
    }
}

/// Names the file of the machines for MLX's ring; when [`prepare_environment`] may be called.
pub fn prepare_host_file(path: &Path) {
    // SAFETY: nothing else runs yet that could read the environment meanwhile.
    unsafe { env::set_var("MLX_HOSTFILE", path) };
}
