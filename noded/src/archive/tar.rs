//! The little of tar that a backup takes (POSIX ustar): regular files with short names, one after the other.

use std::io::{self, Read};

use super::ArchiveError;

/// Everything is in blocks of this size.
const BLOCK: usize = 512;
/// The most that eleven octal digits say. A longer file has its size in binary, marked by the first bit, as every `tar` of today reads it.
const LONGEST: u64 = (1 << 33) - 1;
/// Marks such a size.
const BINARY: u8 = 0x80;
/// Two empty blocks end an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
const ZEROS: [u8; BLOCK] = [0; BLOCK];

// Fields of a header: where each lies.
const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..265;
/// The folder, where name and folder together are longer than the name's field.
const PREFIX: std::ops::Range<usize> = 345..500;

/// The header of a regular file that only its owner may use.
pub(crate) fn header(name: &str, size: u64, modified: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    let (folder, name) = match name.rsplit_once('/') {
        Some((folder, last)) if name.len() > NAME.len() => (folder, last),
        _ => ("", name),
    };
    debug_assert!(name.len() <= NAME.len() && folder.len() <= PREFIX.len(), "the names are ours");
    put(NAME.start, name);
    put(PREFIX.start, folder);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(SIZE.start, &format!("{:011o}", size.min(LONGEST)));
    put(136, &format!("{:011o}", modified.min(LONGEST)));
    put(KIND, "0");
    put(MAGIC.start, "ustar\x0000");
    if size > LONGEST {
        block[SIZE].fill(0);
        block[SIZE.start] = BINARY;
        block[SIZE.end - 8..SIZE.end].copy_from_slice(&size.to_be_bytes());
    }
    let sum = checksum(&block);
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// What fills the last block of a file of `size` bytes.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    &ZEROS[..missing(size)]
}

fn missing(size: u64) -> usize {
    let rest = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - rest) % BLOCK
}

/// Sum of all bytes, the checksum's own counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = block[CHECKSUM].iter().map(|byte| u32::from(*byte)).sum();
    all - own + CHECKSUM.len() as u32 * u32::from(b' ')
}

/// The next file's name and size; none at the end.
pub(crate) fn read_header(stream: &mut impl Read) -> Result<Option<(String, u64)>, ArchiveError> {
    let mut block = [0; BLOCK];
    stream.read_exact(&mut block).map_err(cut)?;
    if block == ZEROS {
        return Ok(None);
    }
    let shape = ArchiveError::Shape("a header is damaged");
    if octal(&block[CHECKSUM]) != Some(u64::from(checksum(&block))) || block[MAGIC] != *b"ustar\x0000" {
        return Err(shape);
    }
    if block[KIND] != b'0' {
        return Err(ArchiveError::Shape("it holds something other than regular files"));
    }
    let text = |field: &[u8]| {
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map(str::to_owned).ok()
    };
    match (text(&block[PREFIX]), text(&block[NAME]), size(&block[SIZE])) {
        (Some(folder), Some(name), Some(size)) if folder.is_empty() => Ok(Some((name, size))),
        (Some(folder), Some(name), Some(size)) => Ok(Some((format!("{folder}/{name}"), size))),
        _ => Err(shape),
    }
}

fn size(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (&BINARY, rest) => {
            let (zeros, size) = rest.split_last_chunk::<8>()?;
            zeros.iter().all(|byte| *byte == 0).then_some(u64::from_be_bytes(*size))
        }
        _ => octal(field),
    }
}

/// Reads over what fills a file's last block, which must be zeros.
pub(crate) fn skip_padding(stream: &mut impl Read, size: u64) -> Result<(), ArchiveError> {
    let mut rest = [0; BLOCK];
    let rest = &mut rest[..missing(size)];
    stream.read_exact(rest).map_err(cut)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(ArchiveError::Shape("there is something between its files"));
    }
    Ok(())
}

fn cut(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Shape("it ends too early"),
        _ => ArchiveError::Io(error),
    }
}

/// Octal digits up to a zero byte or a space.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.split(|byte| matches!(byte, 0 | b' ')).next()?;
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.is_empty())?;
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn long_names_and_long_files_read_back_and_a_stock_tar_reads_them_too() {
        let name = format!("{}/{}", "state/blobs/a-module-of-a-long-name", "b".repeat(96));
        for (name, size) in [("short", LONGEST), (&name[..], 5), ("huge", LONGEST + 1), ("more", 1 << 40)] {
            let header = header(name, size, 1);
            assert_eq!(read_header(&mut &header[..]).unwrap(), Some((name.to_owned(), size)));
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join("header.tar");
            std::fs::write(&place, header).unwrap();
            // It says that the content is missing, after it has said what it read.
            let listed = std::process::Command::new("tar").arg("-tvf").arg(&place).output().unwrap();
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(listed.contains(name) && listed.contains(&size.to_string()), "{listed}");
        }
    }
}
