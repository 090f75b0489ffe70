//! `openred link …`: thin over the node's admin service.

use std::io::IsTerminal as _;
use std::time::Duration;

use openred_proto::admin::{
    AcceptLinkRequest, ConfirmContactRequest, Contact, ContactRequest, Link, LinkSelector, ListLinksRequest,
    PeerSelector, RequestLinkRequest,
};

use super::arguments;
use super::client::{ANSWER, node, request};
use super::output::{Output, Tone, moment, now, table};
use super::{Exit, Failure, Invocation, one_line, proofs};
use crate::link::queue::QUEUED;

pub(crate) async fn link(invocation: &Invocation, command: arguments::Link) -> Result<Exit, Failure> {
    use arguments::Link as Word;
    let command = match command {
        Word::Proof { verify: Some(file), .. } => return proofs::verify(invocation, &file),
        Word::Proof { peer, .. } => return proofs::show(invocation, peer.unwrap_or_default()).await,
        other => other,
    };
    let mut node = node(invocation).await?;
    let selector = |link| request(LinkSelector { link });
    let link = match command {
        Word::List { all } => {
            let links = node.list_links(request(ListLinksRequest { all })).await?.into_inner();
            list(&invocation.output, &links.links);
            contacts(&invocation.output, &links.contacts);
            invocation.output.document("openred.links/1", &links);
            return Ok(Exit::Ok);
        }
        Word::Offers => {
            let mut links = node.list_links(request(ListLinksRequest { all: false })).await?.into_inner();
            links.links.retain(|link| link.waits_until > 0);
            offers(&invocation.output, &links.links);
            invocation.output.document("openred.links/1", &links);
            return Ok(Exit::Ok);
        }
        Word::Refuse { offer } => node.refuse_offer(selector(offer)).await?,
        Word::Sync { peer } => {
            let synced = node.sync_links(request(PeerSelector { peer })).await?.into_inner();
            invocation.output.line(match synced.mended {
                0 => String::from("both nodes hold the same links"),
                mended => format!("mended: {mended}"),
            });
            list(&invocation.output, &synced.links);
            invocation.output.document("openred.link-sync/1", &synced);
            return Ok(Exit::Ok);
        }
        Word::Request { peer, life, wait } => {
            let life_seconds = life.unwrap_or(0);
            let mut asked = request(RequestLinkRequest { peer, life_seconds, wait_millis: wait * 1000 });
            // The usual deadline is for the work; the wait that was asked for comes on top.
            asked.set_timeout(ANSWER + Duration::from_secs(wait));
            node.request_link(asked).await?
        }
        Word::Direct { url, expect, words, yes, life, wait } => {
            let asked = ContactRequest { url, expect: expect.unwrap_or_default() };
            let contact = node.contact_peer(request(asked)).await?.into_inner();
            let Some(words) = confirmed(invocation, &contact, words, yes)? else { return Ok(Exit::Ok) };
            if words == Confirmed::No {
                node.drop_contact(request(PeerSelector { peer: contact.peer })).await?;
                return Err(Failure::new(
                    Exit::Denied,
                    "contact.not-confirmed",
                    "the contact is ended; no link was made",
                    "",
                ));
            }
            let life_seconds = life.unwrap_or(0);
            let asked = ConfirmContactRequest {
                peer: contact.peer,
                words: words.shown(),
                life_seconds,
                wait_millis: wait * 1000,
            };
            let mut asked = request(asked);
            asked.set_timeout(ANSWER + Duration::from_secs(wait));
            node.confirm_contact(asked).await?
        }
        Word::Accept { peer, words } => {
            node.accept_link(request(AcceptLinkRequest { peer, words: words.unwrap_or_default() })).await?
        }
        Word::Show { link } => node.show_link(selector(link)).await?,
        // Answered above: it may need no node.
        Word::Proof { .. } => return Ok(Exit::Ok),
        Word::Revoke { link } => node.revoke_link(selector(link)).await?,
    };
    let link = link.into_inner();
    show(&invocation.output, &link);
    invocation.output.document("openred.link/1", &link);
    Ok(Exit::Ok)
}

/// What the operator says to the words of a contact.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Confirmed {
    /// They are not the same.
    No,
    /// They are, or he trusts whoever is there.
    Yes,
    /// He gives those of the other side.
    Shown(String),
}

impl Confirmed {
    fn shown(self) -> String {
        if let Self::Shown(words) = self { words } else { String::new() }
    }
}

/// Shows a contact and asks about it; none where there is nobody to ask: it is held open.
fn confirmed(
    invocation: &Invocation,
    contact: &Contact,
    words: Option<String>,
    yes: bool,
) -> Result<Option<Confirmed>, Failure> {
    let output = &invocation.output;
    output.line(format!("{:<12} {}", "peer", contact.peer));
    output.line(format!("{:<12} {}", "words", contact.words));
    output.document("openred.contact/1", contact);
    if let Some(words) = words {
        return Ok(Some(Confirmed::Shown(words)));
    }
    if yes {
        return Ok(Some(Confirmed::Yes));
    }
    if output.is_json() || !std::io::stdin().is_terminal() {
        output.line("compare the words with those that the other side shows (`openred link list` there), then:");
        output.line(format!("openred link accept {}", contact.peer));
        return Ok(None);
    }
    output.aside("Does the other side show the same words (`openred link list` there)? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::local("the terminal", &error))?;
    Ok(Some(if answer.trim().eq_ignore_ascii_case("y") { Confirmed::Yes } else { Confirmed::No }))
}

fn contacts(output: &Output, contacts: &[Contact]) {
    for contact in contacts {
        let who = if contact.initiator { "begun here" } else { "came" };
        output.line("");
        output.line(format!("direct contact, {who}: {}", contact.peer));
        output.line(format!("  words: {}", contact.words));
    }
    if !contacts.is_empty() {
        output.line("compare the words with the other side's, then `openred link accept DID`");
    }
}

pub(super) fn tone(state: &str) -> Tone {
    match state {
        "active" | "renewing" | "ready" | "open" | "registered" | "ok" | "matched" => Tone::Good,
        "revoked" | "expired" | "mismatched" | "error" | "refused" | "down" => Tone::Bad,
        "unknown" => Tone::Plain,
        _ => Tone::Warning,
    }
}

fn list(output: &Output, links: &[Link]) {
    if links.is_empty() {
        output.line("no links; offer one with `openred link request DID`");
        return;
    }
    let mut rows = vec![["LINK", "PEER", "STATE"].map(String::from).to_vec()];
    rows.extend(links.iter().map(|link| vec![short(&link.link_id), link.peer.clone(), link.state.clone()]));
    for line in table(&rows) {
        output.line(line);
    }
}

fn offers(output: &Output, links: &[Link]) {
    if links.is_empty() {
        output.line("no offer waits");
        return;
    }
    let now = now();
    let mut rows = vec![["LINK", "FROM", "SINCE", "UNTIL"].map(String::from).to_vec()];
    rows.extend(links.iter().map(|link| {
        vec![short(&link.link_id), link.peer.clone(), moment(link.created_at, now), moment(link.waits_until, now)]
    }));
    for line in table(&rows) {
        output.line(line);
    }
    output.line("take one with `openred link accept`, leave it with `openred link refuse`");
}

/// How many sessions with the peer both sides signed.
fn signed(link: &Link, now: u64) -> String {
    match link.signed_sessions {
        0 => String::new(),
        1 => format!("one session, by both sides; {}", moment(link.signed_at, now)),
        many => format!("{many} sessions, by both sides; the last {}", moment(link.signed_at, now)),
    }
}

/// The first digits; a link that is asked for has none yet.
fn short(id: &str) -> String {
    if id.is_empty() { String::from("-") } else { id.chars().take(8).collect() }
}

/// A link that no directory has answered about yet: there is no more of it.
fn show_queued(output: &Output, link: &Link) {
    let now = now();
    let rows = [
        ("peer", link.peer.clone()),
        ("state", output.paint(tone(&link.state), &link.state)),
        ("asked", moment(link.created_at, now)),
        ("given up", moment(link.not_after, now)),
        ("note", one_line(&link.detail)),
    ];
    for (name, value) in rows {
        output.line(format!("{name:<12} {value}"));
    }
}

fn show(output: &Output, link: &Link) {
    let now = now();
    if link.state == QUEUED {
        return show_queued(output, link);
    }
    let role = if link.issuer { "this node offered it" } else { "the peer offered it" };
    let mut rows = vec![
        ("link", link.link_id.clone()),
        ("peer", link.peer.clone()),
        ("state", output.paint(tone(&link.state), &link.state)),
        ("offered by", role.to_owned()),
        ("method", format!("{} (epoch {})", link.method, link.epoch)),
        ("age", if link.created_at == 0 { String::new() } else { moment(link.created_at, now) }),
        ("ends", moment(link.not_after, now)),
        ("waits until", if link.waits_until == 0 { String::new() } else { moment(link.waits_until, now) }),
        ("renewal", if link.renews_at == 0 { String::new() } else { moment(link.renews_at, now) }),
        ("renews", link.renews.clone()),
        ("tokens", output.paint(tone(&link.r#match), &link.r#match)),
        ("handshake", moment(link.last_handshake_at, now)),
        ("signed", signed(link, now)),
        ("mutual link", link.mutual_link.clone()),
        ("in words", link.mutual_words.clone()),
        ("note", one_line(&link.detail)),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    for (name, value) in rows {
        output.line(format!("{name:<12} {value}"));
    }
}
