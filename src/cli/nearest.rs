//! What the user may have meant.

/// `; did you mean NAME?` with the known name that is most like `name`, or nothing when none is
/// much like it.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(known) => format!("; did you mean {known}?"),
        None => String::new(),
    }
}

/// The known name that is most like `name`, by clap's own measure and limit.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let known = known.into_iter();
    known
        .map(|known| (strsim::jaro(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_alike_is_meant() {
        let flags = ["steps", "strip", "shift", "size"];
        assert_eq!(did_you_mean("stepps", flags), "; did you mean steps?");
        assert_eq!(did_you_mean("shfit", flags), "; did you mean shift?");
        assert_eq!(did_you_mean("xyz", flags), "");
        assert_eq!(did_you_mean("", flags), "");
        assert_eq!(did_you_mean("steps", []), "");
    }
}
