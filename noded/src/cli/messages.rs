//! `openred send`, `inbox`, `sent` and `conversations`: thin fronts of the built-in module `messaging`.

use std::path::Path;

use openred_messaging::{
    Attachment, ConversationsQuery, Delete, Deleted, InboxQuery, MarkRead, MessageView, Page, Peers, Sent, Summary,
    TEXT_LIMIT,
};
use openred_proto::id::NodeId;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::arguments::{Conversations, Inbox, Send, Sent as SentOptions};
use super::files;
use super::module::{Route, call, open};
use super::output::{bytes, moment, now};
use super::{Exit, Failure, Invocation, one_line};

const MODULE: &str = "messaging";
/// Messages that one order may mark as read or delete.
const MARKED: usize = 1000;

pub(crate) fn did(text: &str) -> Result<NodeId, Failure> {
    text.parse().map_err(|_| {
        Failure::usage(format!("{}: not a did:key", one_line(text)), "`openred peers list` shows those known")
    })
}

pub(crate) async fn send(invocation: &Invocation, options: Send) -> Result<Exit, Failure> {
    let peer = did(&options.peer)?;
    let text = if options.text == "-" { standard_input().await? } else { options.text.into_bytes() };
    let mut path = format!("/send/{peer}");
    for (at, file) in options.attach.iter().enumerate() {
        path.push(if at == 0 { '/' } else { ',' });
        path.push_str(&attached(invocation, &peer, file).await?);
    }
    let route = Route { module: MODULE, method: "POST", path };
    let sent: Sent = open(invocation, route, "", std::io::Cursor::new(text)).await?.document().await?;
    invocation.output.document("openred.sent/1", &sent);
    if let Some(code) = &sent.refused {
        return Err(Failure::new(Exit::Denied, code, format!("the peer refused the message: {}", one_line(code)), ""));
    }
    invocation.output.line(outcome(&sent));
    Ok(Exit::Ok)
}

/// The id of a file to be attached; a path is shared with the peer first.
async fn attached(invocation: &Invocation, peer: &NodeId, file: &str) -> Result<String, Failure> {
    // As `openred share` prints it. A file of such a name is reached by `./NAME`.
    if file.len() == 64 && file.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(file.to_owned());
    }
    let shared = files::take_in(invocation, Path::new(file), &peer.to_string()).await?;
    Ok(shared.id.to_string())
}

fn outcome(sent: &Sent) -> String {
    match (sent.state.as_str(), &sent.detail) {
        ("queued", Some(reason)) => format!("queued: {}; the node goes on trying", one_line(reason)),
        ("queued", None) => String::from("queued behind earlier messages; the node goes on trying"),
        (state, _) => state.to_owned(),
    }
}

async fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let most = TEXT_LIMIT as u64 + 1;
    let read = tokio::io::stdin().take(most).read_to_end(&mut text).await;
    read.map_err(|error| Failure::local("standard input", &error))?;
    if text.len() > TEXT_LIMIT {
        return Err(Failure::usage(
            format!("the text is longer than {TEXT_LIMIT} bytes"),
            "`openred share` sends files",
        ));
    }
    Ok(text)
}

pub(crate) async fn inbox(invocation: &Invocation, options: Inbox) -> Result<Exit, Failure> {
    let peer = options.from.as_deref().map(did).transpose()?.map(|peer| peer.to_string());
    if let Some(numbers) = &options.delete {
        return delete(invocation, numbers, peer).await;
    }
    let query = InboxQuery { unread: !options.all, peer, ..InboxQuery::default() };
    let messages = list(invocation, "/inbox", query).await?;
    invocation.output.document("openred.inbox/1", &json!({ "messages": messages }));
    if messages.is_empty() {
        invocation.output.line(if options.all { "no messages" } else { "nothing unread; --all shows read ones" });
    }
    if options.peek {
        return Ok(Exit::Ok);
    }
    if !invocation.output.is_heard() {
        invocation.output.aside("not all could be printed: these messages stay unread");
        return Ok(Exit::Partial);
    }
    mark(invocation, &messages).await?;
    Ok(Exit::Ok)
}

/// Prints what a query finds, page by page.
async fn list(invocation: &Invocation, path: &str, mut query: InboxQuery) -> Result<Vec<MessageView>, Failure> {
    let mut messages: Vec<MessageView> = Vec::new();
    loop {
        let route = Route { module: MODULE, method: "POST", path: path.to_owned() };
        let page: Page = call(invocation, route, Some(&query)).await?;
        for message in &page.messages {
            show(invocation, message);
        }
        messages.extend(page.messages);
        if !page.more {
            return Ok(messages);
        }
        query.after = page.next;
    }
}

pub(crate) async fn sent(invocation: &Invocation, options: SentOptions) -> Result<Exit, Failure> {
    let peer = options.to.as_deref().map(did).transpose()?.map(|peer| peer.to_string());
    let messages = list(invocation, "/sent", InboxQuery { peer, ..InboxQuery::default() }).await?;
    invocation.output.document("openred.sent-messages/1", &json!({ "messages": messages }));
    if messages.is_empty() {
        invocation.output.line("no messages");
    }
    Ok(Exit::Ok)
}

pub(crate) async fn conversations(invocation: &Invocation, options: Conversations) -> Result<Exit, Failure> {
    if let Some(peer) = &options.peer {
        let path = format!("/conversations/{}", did(peer)?);
        let messages = list(invocation, &path, InboxQuery::default()).await?;
        invocation.output.document("openred.conversation/1", &json!({ "messages": messages }));
        if messages.is_empty() {
            invocation.output.line("no messages");
        }
        return Ok(Exit::Ok);
    }
    let (mut query, mut all) = (ConversationsQuery::default(), Vec::new());
    loop {
        let route = Route { module: MODULE, method: "POST", path: String::from("/conversations") };
        let page: Peers = call(invocation, route, Some(&query)).await?;
        for line in &page.conversations {
            invocation.output.line(told(line));
        }
        all.extend(page.conversations);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    invocation.output.document("openred.conversations/1", &json!({ "conversations": all }));
    if all.is_empty() {
        invocation.output.line("no messages");
    }
    Ok(Exit::Ok)
}

fn told(line: &Summary) -> String {
    let Summary { peer, unread, received, sent, waiting, last_at, .. } = line;
    let last = moment(*last_at, now());
    format!("{peer}  {last}  {unread} unread of {received} received, {waiting} waiting of {sent} sent")
}

async fn delete(invocation: &Invocation, numbers: &[u64], peer: Option<String>) -> Result<Exit, Failure> {
    if numbers.is_empty() && peer.is_none() {
        let way_out = "`openred inbox --delete 12 13`, or all of a node: `openred inbox --delete --from DID`";
        return Err(Failure::usage("nothing named to delete", way_out));
    }
    let mut orders: Vec<Vec<u64>> = numbers.chunks(MARKED).map(<[u64]>::to_vec).collect();
    if orders.is_empty() {
        orders.push(Vec::new());
    }
    let mut deleted = 0;
    for sequences in orders {
        let route = Route { module: MODULE, method: "POST", path: String::from("/delete") };
        let order = Delete { v: 1, sequences, peer: peer.clone() };
        let answer: Deleted = call(invocation, route, Some(&order)).await?;
        deleted += answer.deleted;
    }
    invocation.output.document("openred.deleted/1", &json!({ "deleted": deleted }));
    invocation.output.line(match deleted {
        1 => String::from("1 message deleted"),
        some => format!("{some} messages deleted"),
    });
    // Of what was named by number, something was not there.
    Ok(if deleted < numbers.len() as u64 { Exit::Partial } else { Exit::Ok })
}

/// Only after they were printed: what was not shown stays unread.
async fn mark(invocation: &Invocation, messages: &[MessageView]) -> Result<(), Failure> {
    let unread = |message: &&MessageView| message.state == "unread";
    let sequences: Vec<u64> = messages.iter().filter(unread).map(|message| message.sequence).collect();
    for some in sequences.chunks(MARKED) {
        let route = Route { module: MODULE, method: "POST", path: String::from("/read") };
        let order = MarkRead { v: 1, sequences: some.to_vec() };
        let _: Value = call(invocation, route, Some(&order)).await?;
    }
    Ok(())
}

fn show(invocation: &Invocation, message: &MessageView) {
    let output = &invocation.output;
    output.line(format!("{}  {}  #{}{}", message.peer, moment(message.at, now()), message.sequence, mark_of(message)));
    match (&message.text, &message.data) {
        // The peer wrote this: no control characters reach the terminal.
        (Some(text), _) => text.lines().for_each(|line| output.line(format!("  {}", one_line(line)))),
        (None, data) => {
            let size = data.as_ref().map_or(0, |data| data.len() / 4 * 3);
            output.line(format!("  [{}, {size} bytes; --json shows them]", one_line(&message.content_type)));
        }
    }
    for Attachment { id, name, length } in &message.attachments {
        output.line(format!("  file: {} ({})", one_line(name), bytes(*length)));
        if message.direction == "in" {
            // By its id alone: a name is the peer's choice, and this line is made to be copied into a shell.
            output.line(format!("    openred fetch {} {id} --out .", message.peer));
        }
    }
}

/// What there is to say of a message besides what it says.
fn mark_of(message: &MessageView) -> String {
    match (message.direction.as_str(), message.state.as_str()) {
        ("in", "unread") => String::from(" *"),
        ("in", _) => String::new(),
        (_, "refused") => format!("  refused: {}", one_line(message.refused.as_deref().unwrap_or("refused"))),
        (_, state) => {
            let at = message.read_at.or(message.delivered_at);
            at.map_or_else(|| format!("  {state}"), |at| format!("  {state} {}", moment(at, now())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_message_is_shown_with_its_true_cause() {
        let sent = |state: &str, detail: Option<&str>| Sent {
            v: 1,
            id: String::new(),
            sequence: 1,
            state: state.to_owned(),
            attachments: Vec::new(),
            refused: None,
            waiting: None,
            detail: detail.map(str::to_owned),
        };
        assert_eq!(
            outcome(&sent("queued", Some("the peer's inbox is full"))),
            "queued: the peer's inbox is full; the node goes on trying"
        );
        assert!(!outcome(&sent("queued", None)).contains("reached"));
        assert_eq!(outcome(&sent("delivered", None)), "delivered");
    }
}
