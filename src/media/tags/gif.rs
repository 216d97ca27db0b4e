//! Comment extensions of GIF files (GIF89a specification, sections 15 to 24).

use std::io::{Read, Write};

use ::gif::{AnyExtension, Encoder, Extension};
use anyhow::{Result, bail};

use super::{Tags, check_length, text};

/// Beginnings of blocks.
const IMAGE: u8 = 0x2c;
const EXTENSION: u8 = 0x21;
const TRAILER: u8 = 0x3b;

/// Blocks before the first image, at most: there are three in what this program writes.
const MAX_BLOCKS: usize = 64;

pub fn write(encoder: &mut Encoder<impl Write>, tags: &Tags) -> Result<()> {
    let comment = AnyExtension(Extension::Comment as u8);
    Ok(encoder.write_raw_extension(comment, &[tags.comment.as_bytes()])?)
}

/// The first comment before the first image.
pub fn read(mut file: impl Read) -> Result<Option<String>> {
    let screen: [u8; 13] = array(&mut file)?;
    let flags = screen[10];
    if flags & 0x80 != 0 {
        skip(&mut file, 3 << ((flags & 7) + 1))?;
    }
    for _ in 0..MAX_BLOCKS {
        match array(&mut file)? {
            [EXTENSION] => {
                let [label] = array(&mut file)?;
                let wanted = label == Extension::Comment as u8;
                let content = sub_blocks(&mut file)?;
                if wanted {
                    return text(content).map(Some);
                }
            }
            [IMAGE | TRAILER] => return Ok(None),
            [other] => bail!("the GIF data is damaged: a block begins with {other:#04x}"),
        }
    }
    Ok(None)
}

fn array<const N: usize>(file: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    if file.read_exact(&mut bytes).is_err() {
        bail!("the GIF data is cut off");
    }
    Ok(bytes)
}

fn skip(file: &mut impl Read, count: u64) -> Result<()> {
    std::io::copy(&mut file.take(count), &mut std::io::sink())?;
    Ok(())
}

/// The content of blocks, each after its length, up to an empty one.
fn sub_blocks(file: &mut impl Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let [length] = array(file)?;
        if length == 0 {
            return Ok(content);
        }
        let before = content.len();
        file.by_ref()
            .take(length.into())
            .read_to_end(&mut content)?;
        if content.len() - before < usize::from(length) {
            bail!("the GIF data is cut off");
        }
        check_length(content.len() as u64)?;
    }
}
