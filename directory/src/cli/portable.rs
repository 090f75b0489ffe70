//! `directory export` and `import`: lines of JSON, the first of which says what they are. Both ask the running directory piece by
//! piece, so it goes on serving meanwhile; what changes during an export is in it or not.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{print, render};
use crate::admin::{Answer, Ask, Imported, client};
use crate::config::Loaded;
use crate::error::{Error, Result};
use crate::limits::{RECORD_BYTES, RECORDS};
use crate::store::decision::Kept;

const SCHEMA: &str = "openred.directory.export/1";

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    schema: String,
    directory: String,
    version: String,
}

pub(super) fn export(loaded: &Loaded, file: Option<&Path>, json: bool) -> Result<()> {
    let socket = loaded.home.socket();
    let Answer::Status(status) = client::ask(&socket, &Ask::Status)? else { return Err(Error::PeerMalformed) };
    let Some(path) = file else {
        return write_all(loaded, &status.health.directory, Path::new("standard output"), std::io::stdout().lock())
            .map(drop);
    };
    // It names nodes that chose not to be listed.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(Error::file("create (export never overwrites)", path))?;
    let records = write_all(loaded, &status.health.directory, path, &file)?;
    file.sync_all().map_err(Error::file("make durable", path))?;
    print(&render::exported(path, records, json))
}

fn write_all(loaded: &Loaded, directory: &str, path: &Path, out: impl Write) -> Result<u64> {
    let mut out = BufWriter::new(out);
    let (directory, version) = (directory.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    write_line(&mut out, path, &Header { schema: SCHEMA.to_owned(), directory, version })?;
    let (mut after, mut written) = (None, 0);
    loop {
        let Answer::Exported { records } = client::ask(&loaded.home.socket(), &Ask::Export { after })? else {
            return Err(Error::PeerMalformed);
        };
        let Some(last) = records.last() else { break };
        after = Some(last.clone());
        written += records.len() as u64;
        records.iter().try_for_each(|record| write_line(&mut out, path, record))?;
    }
    out.flush().map_err(Error::file("write", path))?;
    Ok(written)
}

fn write_line(out: &mut impl Write, path: &Path, line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec(line).map_err(|_| Error::PeerMalformed)?;
    text.push(b'\n');
    out.write_all(&text).map_err(Error::file("write", path))
}

pub(super) fn import(loaded: &Loaded, path: &Path, json: bool) -> Result<()> {
    let records = match path.to_str() {
        Some("-") => read_all(Path::new("standard input"), std::io::stdin().lock())?,
        _ => read_all(path, BufReader::new(File::open(path).map_err(Error::file("open", path))?))?,
    };
    let socket = loaded.home.socket();
    client::ask(&socket, &Ask::ImportBegins { records: records.len() as u64 })?;
    let mut all = Imported::default();
    for (piece, first) in records.chunks(RECORDS).zip((0_u64..).step_by(RECORDS)) {
        let ask = Ask::Import { records: piece.to_vec() };
        let Answer::Imported(imported) = client::ask(&socket, &ask)? else { return Err(Error::PeerMalformed) };
        all.taken += imported.taken;
        all.known += imported.known;
        all.ended += imported.ended;
        // Lines count from one, and the first is the header.
        all.refused.extend(imported.refused.into_iter().map(|(place, why)| (first + place + 2, why)));
    }
    print(&render::imported(&all, json))?;
    if all.refused.is_empty() { Ok(()) } else { Err(Error::LocalPartly) }
}

/// Reads the whole file before anything is asked: a file that is not one changes nothing.
fn read_all(path: &Path, mut from: impl BufRead) -> Result<Vec<Kept>> {
    let wrong = |line, why| Error::LocalLine { path: path.to_owned(), line, why };
    let mut records = Vec::new();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let mut bounded = std::io::Read::take(&mut from, RECORD_BYTES + 1);
        bounded.read_until(b'\n', &mut text).map_err(Error::file("read", path))?;
        if text.is_empty() {
            break;
        }
        if text.len() as u64 > RECORD_BYTES {
            return Err(wrong(line, "longer than any record"));
        }
        if line == 1 {
            let header: Option<Header> = serde_json::from_slice(&text).ok();
            if header.is_none_or(|header| header.schema != SCHEMA) {
                return Err(wrong(1, "not written by `directory export` of this version"));
            }
            continue;
        }
        records.push(serde_json::from_slice(&text).map_err(|_| wrong(line, "not a record of `directory export`"))?);
    }
    Ok(records)
}
