//! `openred files …`: lists of shared files, who may fetch them, links to them. A thin front of the built-in module `files`.

use openred_files::{LinkOrder, LinkView, Links, MadeLink, Offer, Offers, ShareView, Shares};
use serde_json::json;

use super::arguments::Files;
use super::messages::did;
use super::module::{Route, call, open};
use super::output::{Output, bytes, moment, now};
use super::{Exit, Failure, Invocation, one_line};

const MODULE: &str = "files";
/// Pages that are asked of a peer: a peer decides how many there are.
const PAGES: usize = 1000;

fn get(path: String) -> Route {
    Route { module: MODULE, method: "GET", path }
}

fn post(path: String) -> Route {
    Route { module: MODULE, method: "POST", path }
}

/// What stands in a path is no path.
fn word(text: &str) -> Result<&str, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text);
    }
    Err(Failure::usage(format!("{}: not an id", one_line(text)), "`openred files list` and `files links` show them"))
}

fn whom(text: &str) -> Result<String, Failure> {
    if text == "all" { Ok(text.to_owned()) } else { did(text).map(|peer| peer.to_string()) }
}

pub(crate) async fn files(invocation: &Invocation, command: Files) -> Result<Exit, Failure> {
    match command {
        Files::List { peer: Some(peer) } => offered(invocation, &peer).await,
        Files::List { peer: None } => shared(invocation).await,
        Files::Allow { id, peer } => audience(invocation, "admit", &id, &peer).await,
        Files::Deny { id, peer } => audience(invocation, "exclude", &id, &peer).await,
        Files::Stop { id } => end(invocation, format!("/unshare/{}", word(&id)?), "no longer shared").await,
        Files::Link { id, expires, count } => {
            let made = make_link(invocation, word(&id)?, expires, count).await?;
            invocation.output.document("openred.file-link/1", &made);
            show_link(&invocation.output, &made);
            Ok(Exit::Ok)
        }
        Files::Links => links(invocation).await,
        Files::Revoke { link } => end(invocation, format!("/revoke/{}", word(&link)?), "revoked").await,
    }
}

async fn offered(invocation: &Invocation, peer: &str) -> Result<Exit, Failure> {
    let peer = did(peer)?;
    let (mut files, mut after): (Vec<Offer>, _) = (Vec::new(), Some(String::from("start")));
    for _ in 0..PAGES {
        let Some(place) = after.take() else { break };
        let page: Offers = call(invocation, get(format!("/offered/{peer}/{place}")), None::<&()>).await?;
        page.files.iter().for_each(|file| show(&invocation.output, &file.id.to_string(), &file.name, file.length));
        files.extend(page.files);
        after = page.next;
    }
    let is_whole = after.is_none();
    let body = json!({ "peer": peer.to_string(), "files": files, "complete": is_whole });
    invocation.output.document("openred.offered-files/1", &body);
    if files.is_empty() {
        invocation.output.line("that node shares nothing with this one");
    }
    if !is_whole {
        invocation.output.aside(&format!("not all: the list goes on after {PAGES} pages"));
    }
    Ok(if is_whole { Exit::Ok } else { Exit::Partial })
}

fn show(output: &Output, id: &str, name: &str, length: u64) {
    output.line(id);
    // The peer chose the name.
    output.line(format!("  {}  {}", one_line(name), bytes(length)));
}

async fn shared(invocation: &Invocation) -> Result<Exit, Failure> {
    let (mut shares, mut after): (Vec<ShareView>, _) = (Vec::new(), String::from("start"));
    loop {
        let page: Shares = call(invocation, get(format!("/shares/{after}")), None::<&()>).await?;
        let last = page.shares.last().map(|share| share.id.to_string());
        shares.extend(page.shares);
        match last.filter(|_| page.more) {
            Some(last) => after = last,
            None => break,
        }
    }
    let output = &invocation.output;
    output.document("openred.shares/1", &json!({ "shares": shares }));
    for share in &shares {
        show(output, &share.id.to_string(), &share.name, share.length);
        if share.audience.all {
            output.line("  for all linked nodes");
        }
        share.audience.peers.iter().for_each(|peer| output.line(format!("  for {}", one_line(peer))));
        if !share.audience.all && share.audience.peers.is_empty() {
            output.line("  for nobody by name");
        }
    }
    if shares.is_empty() {
        output.line("nothing is shared; `openred share PATH` does");
    }
    Ok(Exit::Ok)
}

async fn audience(invocation: &Invocation, what: &str, id: &str, peer: &str) -> Result<Exit, Failure> {
    let route = post(format!("/{what}/{}/{}", word(id)?, whom(peer)?));
    let share: ShareView = call(invocation, route, None::<&()>).await?;
    invocation.output.document("openred.share/1", &share);
    let named = share.audience.peers.len();
    invocation.output.line(match (share.audience.all, named) {
        (true, _) => String::from("for all linked nodes"),
        (false, 0) => String::from("for nobody by name"),
        (false, 1) => String::from("for 1 node"),
        (false, some) => format!("for {some} nodes"),
    });
    Ok(Exit::Ok)
}

async fn end(invocation: &Invocation, path: String, outcome: &str) -> Result<Exit, Failure> {
    let mut answer = open(invocation, post(path), "", std::io::Cursor::new(Vec::new())).await?;
    while answer.next().await?.is_some() {}
    invocation.output.document("openred.file-ended/1", &json!({ "outcome": outcome }));
    invocation.output.line(outcome);
    Ok(Exit::Ok)
}

/// Has the module make a link; what is not said is its settings'.
pub(crate) async fn make_link(
    invocation: &Invocation,
    id: &str,
    seconds: Option<u64>,
    fetches: Option<u64>,
) -> Result<MadeLink, Failure> {
    call(invocation, post(format!("/link/{id}")), Some(&LinkOrder { seconds, fetches })).await
}

/// The link alone in its line, so that it can be copied; it is not shown again.
pub(crate) fn show_link(output: &Output, made: &MadeLink) {
    output.line(&made.text);
    output.line(format!("{}; shown this once", terms(&made.link)));
}

fn terms(link: &LinkView) -> String {
    let fetches = if link.fetches == 1 { String::from("1 fetch") } else { format!("{} fetches", link.fetches) };
    format!("link {}: {} of {fetches} begun, ends {}", link.link, link.used, moment(link.expires_at, now()))
}

async fn links(invocation: &Invocation) -> Result<Exit, Failure> {
    let links: Links = call(invocation, get(String::from("/links")), None::<&()>).await?;
    invocation.output.document("openred.file-links/1", &links);
    for link in &links.links {
        invocation.output.line(terms(link));
        invocation.output.line(format!("  {}", link.id));
    }
    if links.links.is_empty() {
        invocation.output.line("no link holds");
    }
    Ok(Exit::Ok)
}
