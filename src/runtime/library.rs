//! Which library is MLX here, and whether it is the one that the program was made for.

use std::ffi::{CStr, CString, OsStr, c_void};
use std::fs::File;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::ffi::{gpu_architecture, mlx_version};
use crate::util::show::Show as _;

/// The version of MLX whose interface mlx-c has, and whose kernels [`super::kernels`] counts on.
const MADE_FOR: &str = "0.32.2";
/// `mlx::core::version()`, which any build of MLX has.
const SYMBOL: &CStr = c"_ZN3mlx4core7versionEv";
/// A load command of a Mach-O file: the system that it was made for (`LC_BUILD_VERSION` in Apple's
/// `mach-o/loader.h`), and the magic number of a file of 64 bits.
const BUILD_VERSION: u32 = 0x32;
const MACH_O: u32 = 0xfeed_facf;
/// A dynamic library's load commands end long before.
const HEADER: u64 = 64 << 10;
/// M5, the first with matrix units in its GPU cores (`applegpu_g17`), and the system from which MLX's
/// build has kernels for them.
const MATRIX_UNITS: u32 = 17;
const MATRIX_SYSTEM: (u32, u32) = (26, 2);

/// The file that MLX was loaded from; none when it is part of the program.
pub fn mlx_library() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: both calls look at what is loaded; the name that `info` points to lives as long as the
    // library, and is copied.
    let name = unsafe {
        let version: *mut c_void = libc::dlsym(libc::RTLD_DEFAULT, SYMBOL.as_ptr());
        let found = !version.is_null() && libc::dladdr(version, info.as_mut_ptr()) != 0;
        let name = found.then(|| info.assume_init().dli_fname)?;
        (!name.is_null()).then(|| CString::from(CStr::from_ptr(name)))?
    };
    let path = PathBuf::from(OsStr::from_bytes(name.as_bytes()));
    Some(path.canonicalize().unwrap_or(path))
}

/// Refuses another version of MLX than the program was made for, before anything is computed with it.
pub(super) fn check_version() -> Result<()> {
    check(&mlx_version(), mlx_library().as_deref())
}

fn check(version: &str, library: Option<&Path>) -> Result<()> {
    let of = |path: &Path| format!("{}: ", path.shown());
    ensure!(
        version == MADE_FOR,
        "{}found MLX {version}, but this wan-i2v was made for MLX {MADE_FOR}\nhint: install wan-i2v \
         again with its libraries, and unset DYLD_LIBRARY_PATH and LD_LIBRARY_PATH",
        library.map(of).unwrap_or_default()
    );
    Ok(())
}

/// What to do about MLX's error that it has no kernels: they are a file of their own, which MLX looks
/// for beside its library (`load_default_library` in `mlx/backend/metal/device.cpp`).
pub(super) fn kernels_hint(error: &str, library: Option<&Path>) -> Option<String> {
    let folder = library.and_then(Path::parent);
    error.contains("metallib").then(|| match folder {
        Some(folder) => format!(
            "\nhint: mlx.metallib belongs into {}; install wan-i2v again",
            folder.shown()
        ),
        None => "\nhint: mlx.metallib belongs beside the program; install wan-i2v again".into(),
    })
}

/// What would make this Mac's GPU faster: an M5's matrix units are used by MLX's build for macOS 26
/// alone.
pub fn faster_mlx() -> Option<&'static str> {
    let system = sysinfo::System::os_version()?;
    let mut numbers = system.split('.').map(str::parse);
    let system = (
        numbers.next()?.ok()?,
        numbers.next().map_or(Some(0), Result::ok)?,
    );
    let mut header = Vec::new();
    let library = File::open(mlx_library()?).ok()?;
    library.take(HEADER).read_to_end(&mut header).ok()?;
    faster_than(&gpu_architecture()?, system, made_for_macos(&header)?)
}

fn faster_than(
    architecture: &str,
    system: (u32, u32),
    library: (u32, u32),
) -> Option<&'static str> {
    let has_units = super::device::generation(architecture)? >= MATRIX_UNITS;
    match (has_units, library < MATRIX_SYSTEM, system < MATRIX_SYSTEM) {
        (true, true, true) => Some(
            "this chip's matrix units are used from macOS 26.2 on; update macOS, then install wan-i2v again",
        ),
        (true, true, false) => Some(
            "this MLX was made for an older macOS and leaves the chip's matrix units unused; install wan-i2v again",
        ),
        _ => None,
    }
}

/// The oldest macOS that a Mach-O file runs on.
fn made_for_macos(file: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| {
        let bytes = file.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut at = (word(0)? == MACH_O).then_some(32)?;
    for _ in 0..word(16)? {
        if word(at)? == BUILD_VERSION {
            // Command, size, platform, least version as xxxx.yy.zz.
            let version = word(at + 12)?;
            return Some((version >> 16, version >> 8 & 0xff));
        }
        at = at.checked_add(word(at + 4)?.max(8) as usize)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_and_is_the_one_wanted() {
        assert_eq!(mlx_version(), MADE_FOR);
        check_version().unwrap();
        // Built into the program there is no such file.
        if let Some(library) = mlx_library() {
            assert!(library.is_file(), "{}", library.shown());
        }
    }

    #[test]
    fn another_version_is_refused_with_its_place() {
        let error = check("0.31.0", Some(Path::new("/opt/lib/libmlx.dylib"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/opt/lib/libmlx.dylib: found MLX 0.31.0, but this wan-i2v was made for MLX 0.32.2\nhint: \
             install wan-i2v again with its libraries, and unset DYLD_LIBRARY_PATH and LD_LIBRARY_PATH"
        );
        let error = check("unknown", None).unwrap_err().to_string();
        assert!(error.starts_with("found MLX unknown"), "{error}");
    }

    #[test]
    fn missing_kernels_are_explained() {
        let mlx = "Failed to load the default metallib. library not found ";
        let hint = |library| kernels_hint(mlx, library).unwrap();
        let found = hint(Some(Path::new("/opt/wan/lib/libmlx.dylib")));
        assert!(
            found.contains("mlx.metallib belongs into /opt/wan/lib;"),
            "{found}"
        );
        assert!(hint(None).contains("beside the program"));
        assert_eq!(kernels_hint("[matmul] shapes do not fit", None), None);
    }

    #[test]
    fn only_an_m5_gains_from_another_mlx() {
        for (architecture, system, library, gains) in [
            ("applegpu_g17g", (15, 5), (14, 0), Some("update macOS")),
            ("applegpu_g17s", (26, 1), (14, 0), Some("update macOS")),
            (
                "applegpu_g17s",
                (26, 2),
                (15, 0),
                Some("this MLX was made for"),
            ),
            ("applegpu_g17s", (26, 4), (26, 2), None),
            ("applegpu_g16s", (15, 0), (14, 0), None),
            (
                "applegpu_g18p",
                (27, 0),
                (14, 0),
                Some("this MLX was made for"),
            ),
            ("sm_90", (26, 2), (14, 0), None),
        ] {
            let advice = faster_than(architecture, system, library);
            assert_eq!(
                advice.is_some(),
                gains.is_some(),
                "{architecture} {system:?}"
            );
            assert!(advice.is_none_or(|text| text.contains(gains.unwrap())));
        }
    }

    #[test]
    fn a_mach_o_file_says_its_system() {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        // Header with two commands: one of 16 bytes, then the system (macOS is platform 1).
        let head = [MACH_O, 0, 0, 6, 2, 40, 0, 0];
        let file = |minimum: u32| {
            let commands = [0x1b, 16, 0, 0, BUILD_VERSION, 24, 1, minimum, minimum, 0];
            words(&[&head[..], &commands[..]].concat())
        };
        assert_eq!(made_for_macos(&file((26 << 16) + (2 << 8))), Some((26, 2)));
        assert_eq!(made_for_macos(&file(14 << 16)), Some((14, 0)));
        let whole = file(14 << 16);
        for end in 0..whole.len() - 8 {
            assert_eq!(made_for_macos(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(
            made_for_macos(b"\x7fELF............................................"),
            None
        );
        let mut endless = words(&[MACH_O, 0, 0, 6, u32::MAX, 0, 0, 0]);
        endless.extend([0; 64]);
        assert_eq!(made_for_macos(&endless), None);
    }
}
