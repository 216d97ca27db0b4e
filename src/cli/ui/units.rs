//! Numbers for people.

/// A duration for people: `0.43 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`.
pub(crate) fn human_time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=9 => format!("{seconds:.2} s"),
        10..=59 => format!("{seconds:.1} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..=172_799 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// As [`human_time`], of what may be over at once: `0.8 ms`.
pub(crate) fn human_short_time(seconds: f64) -> String {
    match seconds {
        0.0..5e-5 => "less than 0.1 ms".to_owned(),
        0.0..0.1 => format!("{:.1} ms", seconds * 1e3),
        _ => human_time(seconds),
    }
}

/// Bytes for people: `253.8 MB`, `28.6 GB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let bytes = bytes as f64;
    match bytes {
        0.0..1e6 => format!("{:.1} kB", bytes / 1e3),
        1e6..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    }
}

/// A count for people: `14.29 billion`, `2.8 million`.
pub(crate) fn human_count(count: u64) -> String {
    let number = count as f64;
    match number {
        0.0..1e6 => count.to_string(),
        1e6..1e9 => format!("{:.1} million", number / 1e6),
        _ => format!("{:.2} billion", number / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_are_told_in_days() {
        for (seconds, text) in [
            (4.25, "4.25 s"),
            (75.0, "1 min 15 s"),
            (90_000.0, "25 h 00 min"),
            (172_799.0, "47 h 59 min"),
            (172_799.6, "2.0 days"),
            (561_600.0, "6.5 days"),
        ] {
            assert_eq!(human_time(seconds), text);
        }
        for (seconds, text) in [
            (1e-6, "less than 0.1 ms"),
            (5e-5, "0.1 ms"),
            (0.1, "0.10 s"),
        ] {
            assert_eq!(human_short_time(seconds), text);
        }
    }
}
