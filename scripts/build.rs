//! Tells the program where MLX's libraries are: beside it, as in a bundle, and where scripts/setup
//! left them (its `libraries` in .cargo/config.toml), which a bundle must not name.

#![allow(clippy::disallowed_macros)]

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=scripts/build.rs");
    println!("cargo::rerun-if-env-changed=WAN_BUNDLE");
    let beside = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@executable_path/../lib/wan-i2v",
        _ => "$ORIGIN/../lib/wan-i2v",
    };
    println!("cargo::rustc-link-arg=-Wl,-rpath,{beside}");
    if env::var_os("WAN_BUNDLE").is_none()
        && let Ok(libraries) = env::var("DEP_MLX_LIBRARIES")
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{libraries}");
    }
}
