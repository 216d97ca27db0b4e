//! Sets of weights in a folder: single files and shards, plain ones and variants.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

use super::layout::Tree;

/// A safetensors file's name, taken apart: `model-00001-of-00003.fp16.safetensors` has the base
/// `model.fp16` and is shard 1 of 3.
pub(super) struct Piece<'a> {
    name: &'a str,
    base: String,
    shard: Option<(u32, u32)>,
}

impl<'a> Piece<'a> {
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let bare = name.strip_suffix(".safetensors")?;
        let Some((before, number, total, after)) = numbering(bare) else {
            let base = bare.to_owned();
            return Some(Self {
                name,
                base,
                shard: None,
            });
        };
        Some(Self {
            name,
            base: format!("{before}{after}"),
            shard: Some((number, total)),
        })
    }

    /// The set of shards that it belongs to.
    pub(super) fn set(&self) -> Option<(String, u32)> {
        self.shard.map(|(_, total)| (self.base.clone(), total))
    }
}

/// Finds `-00001-of-00003` in a name.
fn numbering(name: &str) -> Option<(&str, u32, u32, &str)> {
    let at = name.find("-of-")?;
    let (before, rest) = (name.get(..at)?, name.get(at + 4..)?);
    let (head, number) = before.rsplit_once('-')?;
    let (total, tail) = (rest.get(..5)?, rest.get(5..)?);
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(total)).then_some(())?;
    Some((head, number.parse().ok()?, total.parse().ok()?, tail))
}

pub(super) fn is_index(name: &str) -> bool {
    name.contains(".index.") && name.ends_with(".json")
}

/// The names of one whole set of weights in a folder, with its index.
pub(super) fn one_set<'a>(tree: &Tree<'a>, folder: &str, stems: &[&str]) -> Result<Vec<&'a str>> {
    let pieces: Vec<Piece> = tree.names(folder).filter_map(Piece::parse).collect();
    let plain = |base: &str| stems.contains(&base);
    let sets: BTreeSet<(String, u32)> = pieces.iter().filter_map(Piece::set).collect();
    let singles: Vec<&Piece> = pieces
        .iter()
        .filter(|piece| piece.shard.is_none())
        .collect();
    let index_of = |base: &str| format!("{base}.safetensors.index.json");
    let indices = || tree.names(folder).filter(|name| is_index(name));

    // With an index the shards are the weights; a lone file beside them is a copy.
    let plain_sets: Vec<_> = sets.iter().filter(|(base, _)| plain(base)).collect();
    let indexed = |base: &str| tree.has(&format!("{folder}{}", index_of(base)));
    let sharded = plain_sets.iter().find(|(base, _)| indexed(base));
    let single = singles.iter().find(|piece| plain(&piece.base));
    if let (None, Some(piece)) = (sharded, single) {
        return Ok(vec![piece.name]);
    }
    if let Some((base, total)) = sharded.or(plain_sets.first()) {
        ensure!(
            plain_sets.len() == 1,
            "{folder} holds several sets of shards: name the files that are wanted"
        );
        let mut names = whole(folder, &pieces, base, *total)?;
        names.extend(indices().filter(|name| *name == index_of(base)));
        return Ok(names);
    }
    // Only variants (fp16, bf16): one of them is as good as a plain set, of several none is.
    match (
        sets.iter().collect::<Vec<_>>().as_slice(),
        singles.as_slice(),
    ) {
        ([(base, total)], []) => {
            let mut names = whole(folder, &pieces, base, *total)?;
            names.extend(indices());
            Ok(names)
        }
        ([], [single]) => Ok(vec![single.name]),
        _ => {
            let bases: BTreeSet<&str> = pieces.iter().map(|piece| piece.base.as_str()).collect();
            bail!(
                "{folder} holds several sets of weights ({}): name the files that are wanted",
                bases.into_iter().collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// The names of a set's shards, all of them.
pub(super) fn whole<'a>(
    folder: &str,
    pieces: &[Piece<'a>],
    base: &str,
    total: u32,
) -> Result<Vec<&'a str>> {
    let of_set = |piece: &&Piece| piece.set().is_some_and(|(b, t)| b == base && t == total);
    let shards: BTreeMap<u32, &str> = pieces
        .iter()
        .filter(of_set)
        .filter_map(|piece| Some((piece.shard?.0, piece.name)))
        .collect();
    // Counted up to what is there, not to `total`, which is whatever a name says.
    let absent = (1..=total).find(|number| !shards.contains_key(number));
    ensure!(
        absent.is_none() && shards.len() == usize::try_from(total)?,
        "{folder}{base} has {} of {total} shards; {} is not there",
        shards.len(),
        absent.map_or_else(
            || "the rest".to_owned(),
            |number| format!("number {number}")
        )
    );
    Ok(shards.into_values().collect())
}
