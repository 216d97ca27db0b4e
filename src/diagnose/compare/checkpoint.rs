//! Networks by their tensors' canonical names, whatever their layouts.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::tensor::Tensor;
use super::{Input, Pairs, Problem, Progress, Side, union};
use crate::model::TensorSpec;
use crate::weights::PartName;
use crate::weights::config::PartConfig;
use crate::weights::part::{Part, Trouble, usizes};
use crate::weights::store::Location;

/// Compares two models, two parts of one kind, or a part with that of a model.
///
/// # Errors
/// When the two are no such pair, or the files of a part cannot be read.
pub(super) fn compare(a: &Input, b: &Input, pairs: &mut Pairs<'_>) -> Result<()> {
    let unlike = || format!("A is {}; B is {}", a.describe(), b.describe());
    let found: Vec<(Option<PartName>, PartName, [&Location; 2])> = match (a, b) {
        (Input::Model(ours), Input::Model(theirs)) => {
            let mut found = Vec::new();
            for name in PartName::ALL {
                match (ours.part(name), theirs.part(name)) {
                    (Some(a), Some(b)) => found.push((Some(name), name, [a, b])),
                    (None, None) => {}
                    (a, _) => {
                        let side = if a.is_some() { Side::B } else { Side::A };
                        pairs.unmatched(Some(name), "the whole part", Problem::Missing { side });
                    }
                }
            }
            found
        }
        (Input::Part(kind, ours), Input::Part(other, theirs)) => {
            ensure!(kind == other, "{}: these have nothing in common", unlike());
            // The experts of a model are alike in what the name decides, their dimensions.
            let name = Input::part_name(*kind, ours)
                .or_else(|| Input::part_name(*kind, theirs))
                .unwrap_or(PartName::HighNoise);
            vec![(None, name, [ours, theirs])]
        }
        (Input::Part(kind, location), Input::Model(layout))
        | (Input::Model(layout), Input::Part(kind, location)) => {
            let name = Input::part_name(*kind, location).with_context(|| {
                format!(
                    "{}, and the path of the one says neither high nor low: give the file of the \
                     model's expert instead of the model",
                    unlike()
                )
            })?;
            let of_model = layout
                .part(name)
                .with_context(|| format!("{}, which has no {name}", unlike()))?;
            match a {
                Input::Part(..) => vec![(None, name, [location, of_model])],
                _ => vec![(None, name, [of_model, location])],
            }
        }
        _ => bail!(
            "{}; expected two folders of --dump, two files, or two models or parts of models",
            unlike()
        ),
    };
    let opened = found
        .into_iter()
        .map(|(part, name, locations)| {
            let [a, b] = locations.map(|location| Part::open(location, name.kind()));
            Ok((part, name, [a?, b?]))
        })
        .collect::<Result<Vec<_>>>()?;
    let stores = opened.iter().flat_map(|(_, _, parts)| parts);
    let bytes = stores.map(|part| part.store().file_bytes()).sum();
    (pairs.progress)(Progress::Total(bytes));
    for (part, name, parts) in &opened {
        compare_parts(*part, *name, parts, pairs)?;
    }
    Ok(())
}

fn compare_parts(
    part: Option<PartName>,
    name: PartName,
    parts: &[Part; 2],
    pairs: &mut Pairs<'_>,
) -> Result<()> {
    let [a, b] = parts;
    let specs = |part: &Part| PartConfig::of(part, name)?.specs();
    let specs = [specs(a)?, specs(b)?];
    let shapes = specs.each_ref().map(|specs| {
        let shapes = specs.iter();
        shapes
            .map(|spec| (spec.name.as_str(), usizes(&spec.shape)))
            .collect::<BTreeMap<_, _>>()
    });
    let names = |specs: &[TensorSpec]| -> Vec<String> {
        specs.iter().map(|spec| spec.name.clone()).collect()
    };
    for tensor in union(names(&specs[0]), names(&specs[1])) {
        let look = |side: usize| match shapes[side].get(tensor.as_str()) {
            Some(shape) => parts[side].find(&tensor, shape),
            None => Err(Trouble::Missing(tensor.clone())),
        };
        let (ours, theirs) = (look(0), look(1));
        if let (Ok(ours), Ok(theirs)) = (&ours, &theirs) {
            let (ours, theirs) = (Tensor::of_part(a, ours)?, Tensor::of_part(b, theirs)?);
            pairs.pair(part, &tensor, &ours, &theirs)?;
            continue;
        }
        if let (Err(Trouble::Missing(_)), Err(Trouble::Missing(_))) = (&ours, &theirs) {
            pairs.unmatched(part, &tensor, Problem::Missing { side: Side::Both });
            continue;
        }
        for (found, side) in [(ours, Side::A), (theirs, Side::B)] {
            let problem = match found {
                Ok(_) => continue,
                Err(Trouble::Missing(_)) => Problem::Missing { side },
                Err(Trouble::Wrong(why)) => Problem::Wrong { side, why },
            };
            pairs.unmatched(part, &tensor, problem);
        }
    }
    let sides = parts.iter().zip(&specs).zip([Side::A, Side::B]);
    for ((content, specs), side) in sides {
        for extra in content.problems(specs).extra {
            let name = extra.split(' ').next().unwrap_or(&extra);
            pairs.unmatched(part, name, Problem::Unexpected { side });
        }
    }
    Ok(())
}
