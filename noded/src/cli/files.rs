//! `openred share` and `openred fetch`: thin fronts of the built-in module `files`, which hashes, transfers and resumes.
//!
//! The node cannot open the operator's files: content goes in and comes out through the admin socket, and what comes out is
//! hashed once more while it is written.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use openred_files::{ByLink, MadeLink, Progress, ShareView};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::arguments::{Fetch, Share};
use super::landing::{self, Landing};
use super::messages::did;
use super::module::{Answer, Route, open};
use super::output::{Output, bytes};
use super::shares::{make_link, show_link};
use super::{Exit, Failure, Invocation, one_line};

const MODULE: &str = "files";
/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest line of progress.
const LINE: usize = 16 * 1024;
/// Longest link that is read from standard input.
const LINK: u64 = 1024;
/// Bytes read from a file at once.
const READ: usize = 256 * 1024;
/// What of a name is encoded in a path segment: all but the unreserved characters (RFC 3986 §2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) async fn share(invocation: &Invocation, options: Share) -> Result<Exit, Failure> {
    // A link is for whoever holds it; nobody else is let in by the way.
    let nobody = if options.link { "none" } else { "all" };
    let to = options.to.as_deref().map(did).transpose()?.map_or_else(|| nobody.to_owned(), |peer| peer.to_string());
    let shared = take_in(invocation, &options.path, &to).await?;
    let made = if options.link {
        Some(make_link(invocation, &shared.id.to_string(), options.expires, options.count).await?)
    } else {
        None
    };
    show_share(invocation, &shared, made.as_ref(), &to)?;
    Ok(Exit::Ok)
}

fn show_share(invocation: &Invocation, shared: &ShareView, made: Option<&MadeLink>, to: &str) -> Result<(), Failure> {
    let output = &invocation.output;
    let mut document = serde_json::to_value(shared).map_err(|_| cut_short())?;
    if let (Some(made), Value::Object(fields)) = (made, &mut document) {
        fields.insert(String::from("link"), json!(made));
    }
    output.document("openred.share/1", &document);
    output.line(shared.id.to_string());
    let whom = match to {
        "all" => "all linked nodes",
        "none" => "whoever holds the link",
        peer => peer,
    };
    output.line(format!("{} ({}) for {whom}", one_line(&shared.name), bytes(shared.length)));
    if let Some(made) = made {
        show_link(output, made);
    }
    Ok(())
}

/// Shares one file, with `all` or with one peer.
pub(crate) async fn take_in(invocation: &Invocation, path: &Path, to: &str) -> Result<ShareView, Failure> {
    let failed = |error: std::io::Error| Failure::local(path.display(), &error);
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{}: not a file", path.display()), "share files one by one"));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::usage("the file's name is not UTF-8 text", "rename it or share a copy"))?;
    let file = std::fs::File::open(path).map_err(failed)?;
    let bar = Bar::new(&invocation.output, meta.len());
    let encoded = utf8_percent_encode(name, SEGMENT);
    let route = Route { module: MODULE, method: "POST", path: format!("/share/{to}/{encoded}") };
    let content = Content { file, bar: bar.clone(), buffer: Vec::new(), at: 0 };
    let shared: ShareView = open(invocation, route, "application/octet-stream", content).await?.document().await?;
    bar.finish();
    if shared.length != meta.len() {
        let what = format!("{}: changed while it was read", path.display());
        return Err(Failure::new(Exit::Partial, "file.changed", what, "share it again"));
    }
    Ok(shared)
}

/// A local file as a body. Reads block, which is fine on this runtime: the one thing it waits for is this transfer.
struct Content {
    file: std::fs::File,
    bar: Bar,
    buffer: Vec<u8>,
    at: usize,
}

impl AsyncRead for Content {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        use std::io::Read as _;
        let this = self.get_mut();
        if this.at == this.buffer.len() {
            this.buffer.resize(READ, 0);
            let count = this.file.read(&mut this.buffer)?;
            this.buffer.truncate(count);
            this.at = 0;
            this.bar.advance(count as u64);
        }
        let count = into.remaining().min(this.buffer.len() - this.at);
        into.put_slice(&this.buffer[this.at..this.at + count]);
        this.at += count;
        std::task::Poll::Ready(Ok(()))
    }
}

pub(crate) async fn fetch(invocation: &Invocation, options: Fetch) -> Result<Exit, Failure> {
    if let Some(out) = options.out.as_deref().filter(|out| !out.is_dir()) {
        // Before anything is fetched for it; a folder takes the name that the peer tells later.
        landing::free(out, options.force)?;
    }
    let (path, order) = order(&options).await?;
    let route = Route { module: MODULE, method: "POST", path };
    let kind = if order.is_empty() { "" } else { "application/json" };
    let fetched = follow(invocation, open(invocation, route, kind, std::io::Cursor::new(order)).await?).await?;
    let out = match &options.out {
        Some(out) => Some(write_out(invocation, out, options.force, &fetched).await?),
        None => None,
    };
    let place = out.as_ref().map(|path| path.display().to_string());
    let body = json!({
        "id": fetched.id, "name": fetched.name, "length": fetched.length, "received": fetched.received,
        "resumed_from": fetched.present, "verified": fetched.verified == fetched.length, "path": place,
    });
    invocation.output.document("openred.fetch/1", &body);
    let name = one_line(&fetched.name);
    let place = place.unwrap_or_else(|| String::from("kept in the node; --out PATH writes it"));
    invocation.output.line(format!(
        "{name}: {} verified (BLAKE3), {} received",
        bytes(fetched.verified),
        bytes(fetched.received)
    ));
    invocation.output.line(place);
    Ok(if fetched.verified == fetched.length { Exit::Ok } else { Exit::Partial })
}

/// The module's route, and what it is told: a link goes into the body, since paths are shown to more than the module.
async fn order(options: &Fetch) -> Result<(String, Vec<u8>), Failure> {
    if let Some(id) = &options.id {
        return Ok((format!("/fetch/{}/{id}", did(&options.from)?), Vec::new()));
    }
    if did(&options.from).is_ok() {
        return Err(Failure::usage("no file is named", "`openred files list DID` names those that a node shares"));
    }
    let mut link = options.from.clone();
    if link == "-" {
        link.clear();
        let read = tokio::io::stdin().take(LINK).read_to_string(&mut link).await;
        read.map_err(|error| Failure::local("standard input", &error))?;
    }
    let order = serde_json::to_vec(&ByLink { link: link.trim().to_owned() }).map_err(|_| cut_short())?;
    Ok((String::from("/fetch-link"), order))
}

/// What a run of the transfer ended with.
#[derive(Default)]
struct Fetched {
    id: String,
    name: String,
    length: u64,
    /// Was here before this run.
    present: u64,
    received: u64,
    /// What the module has seen to have its hash in this run.
    verified: u64,
}

/// Reads the module's progress to its last line.
async fn follow(invocation: &Invocation, mut answer: Answer) -> Result<Fetched, Failure> {
    let mut fetched = Fetched::default();
    let mut bar = Bar::none();
    let mut waiting: Vec<u8> = Vec::new();
    while let Some(piece) = answer.next().await? {
        waiting.extend_from_slice(&piece);
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|_| cut_short())? {
                Progress::Begun { id, name, length, present, .. } => {
                    bar = Bar::new(&invocation.output, length);
                    bar.set(present);
                    fetched = Fetched { id: id.to_string(), name, length, present, ..Fetched::default() };
                    progress(&invocation.output, present, length, 0);
                }
                Progress::Verified { present, received } => {
                    bar.set(present);
                    progress(&invocation.output, present, fetched.length, received);
                }
                Progress::Done { length, verified, received } => {
                    bar.finish();
                    return Ok(Fetched { length, received, verified, ..fetched });
                }
                Progress::Failed { code, detail, .. } => {
                    bar.finish();
                    let (exit, way_out) = match code.as_str() {
                        "link-refused" => (Exit::Denied, "ask whoever gave it to you for another link"),
                        _ => (Exit::Partial, "the same command goes on where it stopped"),
                    };
                    return Err(Failure::new(exit, &code, one_line(&detail), way_out));
                }
            }
        }
        if waiting.len() > LINE {
            break;
        }
    }
    Err(cut_short())
}

fn cut_short() -> Failure {
    Failure::new(Exit::Partial, "cut-short", "the transfer was cut short", "the same command goes on where it stopped")
}

fn progress(output: &Output, done: u64, length: u64, received: u64) {
    output.document(
        "openred.progress/1",
        &json!({ "event": "progress", "done": done, "length": length, "received": received }),
    );
}

/// Copies the file out of the node; it gets its name only when its hash is right once more.
async fn write_out(invocation: &Invocation, out: &Path, force: bool, fetched: &Fetched) -> Result<PathBuf, Failure> {
    let id = &fetched.id;
    let place = if out.is_dir() { out.join(safe_name(&fetched.name, id)) } else { out.to_owned() };
    landing::free(&place, force)?;
    let route = Route { module: MODULE, method: "GET", path: format!("/read/{id}") };
    let mut content = open(invocation, route, "", std::io::Cursor::new(Vec::new())).await?;
    let mut landing = Landing::open(&place)?;
    let mut hasher = blake3::Hasher::new();
    let bar = Bar::new(&invocation.output, fetched.length);
    let written = async {
        while let Some(piece) = content.next().await? {
            hasher.update(&piece);
            landing.write(&piece)?;
            bar.advance(piece.len() as u64);
        }
        Ok::<(), Failure>(())
    };
    let written = written.await;
    bar.finish();
    written?;
    if hasher.finalize().to_hex().as_str() != *id {
        return Err(cut_short());
    }
    landing.land(force)
}

/// The peer's name for the file, if it names a file in a folder and nothing else; its id otherwise.
fn safe_name<'a>(name: &'a str, id: &'a str) -> &'a str {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']) && one_line(name) == name;
    if plain { name } else { id }
}

/// A progress bar that appears only on a terminal, and only for what takes longer than a second.
#[derive(Clone)]
struct Bar {
    bar: ProgressBar,
    begun: Instant,
    wanted: bool,
    length: u64,
}

impl Bar {
    fn new(output: &Output, length: u64) -> Self {
        Self { bar: ProgressBar::hidden(), begun: Instant::now(), wanted: output.is_terminal(), length }
    }

    fn none() -> Self {
        Self { bar: ProgressBar::hidden(), begun: Instant::now(), wanted: false, length: 0 }
    }

    fn set(&self, position: u64) {
        self.bar.set_position(position);
        self.appear();
    }

    fn advance(&self, count: u64) {
        self.bar.inc(count);
        self.appear();
    }

    fn appear(&self) {
        if self.wanted && self.bar.is_hidden() && self.begun.elapsed() >= PATIENCE {
            self.bar.set_length(self.length);
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_choose_the_path() {
        for bad in ["", ".bashrc", "../x", "/etc/passwd", "a\\b", "a\u{1b}[2J"] {
            assert_eq!(safe_name(bad, "id"), "id", "{bad}");
        }
        assert_eq!(safe_name("holiday photo.jpg", "id"), "holiday photo.jpg");
    }
}
