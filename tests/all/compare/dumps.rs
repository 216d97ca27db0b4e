//! Folders of `--dump`, and single arrays.

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use tempfile::TempDir;
use wan_i2v::diagnose::compare::{Problem, Side, What};

use crate::compare::{compared, floats, npy, of, row};

/// What a run of two steps leaves, a few values of each.
const NAMES: [&str; 11] = [
    "text_encoded_cond",
    "mask",
    "condition",
    "noise",
    "sigmas",
    "text_embedding_high_cond",
    "step_000_time",
    "step_000_cond",
    "step_000_latents",
    "step_001_latents",
    "frames",
];

fn dump(change: impl Fn(&str, &mut [f32])) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let mut values: Vec<f32> = (0..12).map(|i| (i as f32 - 5.5) / 8.0).collect();
        change(name, &mut values);
        let path = folder.path().join(format!("{name}.npy"));
        npy(&path, "<f4", false, &[3, 4], &floats(&values));
    }
    let ids: Vec<u8> = [7_i64, 300, 1]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let path = folder.path().join("token_ids_cond.npy");
    npy(&path, "<i8", false, &[3], &ids);
    folder
}

fn sound() -> TempDir {
    dump(|_, _| {})
}

#[test]
fn a_dump_is_the_same_as_itself() {
    let (a, b) = (sound(), sound());
    let made = of(a.path(), b.path());
    assert!(made.inside && made.departs.is_none());
    assert_eq!(made.what, What::Dumps);
    let names: Vec<&str> = made.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names[0], "token_ids_cond");
    assert_eq!(names[1..], NAMES);
    assert!(made.rows.iter().all(|row| row.difference.max == 0.0));
}

/// As a fault shows in everything after it, the first is what matters, not the worst.
#[test]
fn the_first_stage_that_departs_is_named() {
    let b = dump(|name, values| match name {
        "condition" => values[6] += 0.001,
        "step_000_cond" | "step_000_latents" | "frames" => values[2] += 0.5,
        _ => {}
    });
    let a = sound();
    let made = of(a.path(), b.path());
    assert!(!made.inside);
    let departs = made.departs.as_ref().unwrap();
    assert_eq!(departs.name, "condition");
    assert!(departs.stage.contains("VAE's encoder"), "{departs:?}");
    let condition = row(&made, "condition");
    assert_eq!(condition.difference.first, Some(vec![1, 2]));
    assert!((condition.difference.max - 0.001).abs() < 1e-7);
    assert!((condition.difference.error - 0.001 / 0.6885).abs() < 1e-3);
    let outside = made.rows.iter().filter(|row| !row.inside).count();
    assert_eq!(outside, 4);
    // Rounding of another machine is not departing, and a wider tolerance moves the first.
    let b = dump(|name, values| match name {
        "condition" => values[6] += 1e-6,
        "frames" => values[0] += 1.0,
        _ => {}
    });
    assert_eq!(of(a.path(), b.path()).departs.unwrap().name, "frames");
    let wide = compared(a.path(), b.path(), Some(2.0)).unwrap();
    assert!(wide.inside && wide.departs.is_none());
    let exact = compared(a.path(), b.path(), Some(0.0)).unwrap();
    assert_eq!(exact.departs.unwrap().name, "condition");
}

#[test]
fn what_is_missing_departs_too() {
    let (a, b) = (sound(), sound());
    fs::remove_file(b.path().join("step_000_time.npy")).unwrap();
    fs::copy(
        a.path().join("mask.npy"),
        b.path().join("step_001_uncond.npy"),
    )
    .unwrap();
    let made = of(a.path(), b.path());
    assert!(!made.inside);
    let missing = |name: &str| {
        let found = made.unmatched.iter().find(|tensor| tensor.name == name);
        found.unwrap().problem.clone()
    };
    assert_eq!(missing("step_000_time"), Problem::Missing { side: Side::B });
    assert_eq!(
        missing("step_001_uncond"),
        Problem::Missing { side: Side::A }
    );
    assert_eq!(made.departs.unwrap().name, "step_000_time");
}

#[test]
fn tokens_have_to_be_equal() {
    let (a, b) = (sound(), sound());
    let ids: Vec<u8> = [7_i64, 301, 1]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    npy(
        &b.path().join("token_ids_cond.npy"),
        "<i8",
        false,
        &[3],
        &ids,
    );
    let made = of(a.path(), b.path());
    let tokens = row(&made, "token_ids_cond");
    assert_eq!((tokens.inside, tokens.tolerance), (false, 0.0));
    assert_eq!(tokens.difference.first, Some(vec![1]));
    assert_eq!(made.departs.unwrap().name, "token_ids_cond");
}

#[test]
fn nan_is_outside_whatever_the_tolerance() {
    let a = sound();
    let b = dump(|name, values| {
        if name == "step_001_latents" {
            values[7] = f32::NAN;
        }
    });
    let made = compared(a.path(), b.path(), Some(1e9)).unwrap();
    let latents = row(&made, "step_001_latents");
    assert_eq!((latents.inside, latents.difference.unequal), (false, 1));
    assert_eq!(latents.difference.non_finite, [0, 1]);
    assert_eq!(latents.difference.first, Some(vec![1, 3]));
    assert_eq!(made.departs.unwrap().name, "step_001_latents");
    assert!(
        of(b.path(), b.path()).inside,
        "NaN in the same place of both"
    );
}

/// An array of another folder, written by one of NumPy's other ways.
fn array(folder: &TempDir, descr: &str, fortran: bool, shape: &[usize], bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(format!("{}-{fortran}.npy", &descr[1..]));
    npy(&path, descr, fortran, shape, bytes);
    path
}

#[test]
fn a_reference_in_another_type_or_order_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let values = [0.5_f32, -1.0, 2.0, 4.0, -8.0, 0.25];
    let ours = array(&folder, "<f4", false, &[2, 3], &floats(&values));
    let doubles: Vec<u8> = values
        .iter()
        .flat_map(|&v| f64::from(v).to_le_bytes())
        .collect();
    let halves = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes());
    let halves: Vec<u8> = halves.collect();
    // Column by column.
    let turned = floats(&[0.5, 4.0, -1.0, -8.0, 2.0, 0.25]);
    for theirs in [
        array(&folder, "<f8", false, &[2, 3], &doubles),
        array(&folder, "<f2", false, &[2, 3], &halves),
        array(&folder, "<f4", true, &[2, 3], &turned),
    ] {
        let made = of(&ours, &theirs);
        assert!(made.inside, "{}", theirs.display());
        assert_eq!(made.rows[0].difference.max, 0.0, "{}", theirs.display());
    }
    let other = folder.path().join("other.npy");
    npy(&other, "<f4", false, &[3, 2], &floats(&values));
    let made = of(&ours, &other);
    assert!(!made.inside);
    let shapes = Problem::Misshapen {
        a: vec![2, 3],
        b: vec![3, 2],
    };
    assert_eq!(made.unmatched[0].problem, shapes);
}

#[test]
fn arrays_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let values = floats(&[1.0, 2.0]);
    let sound = array(&folder, "<f4", false, &[2], &values);
    let refuse = |descr: &str, bytes: &[u8], part: &str| {
        let bad = folder.path().join("bad.npy");
        npy(&bad, descr, false, &[2], bytes);
        let error = format!("{:#}", compared(&sound, &bad, None).unwrap_err());
        assert!(error.contains("bad.npy") && error.contains(part), "{error}");
    };
    refuse("<f4", &values[..7], "holds 7");
    refuse(">f4", &values, "big-endian");
    refuse("<c8", &[0; 16], "expected real numbers");
    fs::write(folder.path().join("bad.npy"), b"\x93NUMPY\x01\x00\xff\xff{").unwrap();
    let bad: &Path = &folder.path().join("bad.npy");
    let error = format!("{:#}", compared(&sound, bad, None).unwrap_err());
    assert!(error.contains("its header has 65535 bytes"), "{error}");
    fs::write(bad, b"\x93NUMPY\x01\x00\x76\x00{").unwrap();
    let error = format!("{:#}", compared(&sound, bad, None).unwrap_err());
    assert!(error.contains("its header is cut off"), "{error}");
}
