//! What the attacker says of each attempt: one JSON line, written before the next attempt begins.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use openred_proto::audit::Event;
use openred_proto::cryptod as rpc;
use openred_proto::refusal::outcome_name;
use openred_proto::vault::Refusal;
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;

use super::front::Refused;
use super::honest::Honest;

/// Who is tried: the five kinds of the design.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Area {
    /// Operations out of role or phase.
    Operations,
    /// Signed bytes confused across labels.
    Labels,
    /// Sealed rows replayed, swapped, rolled back.
    Rows,
    /// Descriptors and `/proc`.
    Descriptors,
    /// Signals, ptrace, other processes.
    Processes,
    /// The audit trail.
    Audit,
}

impl Area {
    const fn name(self) -> &'static str {
        match self {
            Area::Operations => "operations",
            Area::Labels => "labels",
            Area::Rows => "rows",
            Area::Descriptors => "descriptors",
            Area::Processes => "processes",
            Area::Audit => "audit",
        }
    }
}

/// What came back: a message, or all that a refusal says.
fn bytes_of<M: Message>(came: &Result<M, Refused>) -> Vec<u8> {
    match came {
        Ok(message) => message.encode_to_vec(),
        Err(refused) => [&refused.more[..], refused.text.as_bytes()].concat(),
    }
}

/// The file of lines.
pub(crate) struct Report(File);

impl Report {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("opening {}", path.display()))?))
    }

    fn line(&mut self, line: &Value) -> Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes()).context("writing the report")
    }

    /// An attempt, with the record that it must leave, if it leaves one, and with what came back, if anything did.
    fn attempt(
        &mut self,
        (area, name): (Area, &str),
        expected: &str,
        outcome: &str,
        record: Option<(Event, u8)>,
        came: &[u8],
    ) -> Result<()> {
        self.line(&json!({
            "kind": "attempt", "area": area.name(), "attempt": name, "expected": expected, "outcome": outcome,
            "event": record.map(|(event, _)| event.name()),
            "result": record.and_then(|(_, number)| outcome_name(number)), "came": hex::encode(came),
        }))
    }

    /// A call that the vault must refuse, and record.
    pub(crate) fn refused<M: Message>(
        &mut self,
        what: (Area, &str),
        event: Event,
        expected: Refusal,
        came: Result<M, Refused>,
    ) -> Result<()> {
        let bytes = bytes_of(&came);
        let outcome = match came {
            Ok(_) => String::from("it worked"),
            Err(refused) => refused.refusal.unwrap_or(refused.text),
        };
        self.attempt(what, expected.code(), &outcome, Some((event, expected.number())), &bytes)
    }

    /// A call that the front must turn away, and report.
    pub(crate) fn turned_away<M: Message>(
        &mut self,
        what: (Area, &str),
        expected: Code,
        came: Result<M, Refused>,
    ) -> Result<()> {
        let bytes = bytes_of(&came);
        let outcome = match came {
            Ok(_) => String::from("it worked"),
            Err(refused) => format!("{:?}", refused.code),
        };
        self.attempt(what, &format!("{expected:?}"), &outcome, Some((Event::CallRefused, 0)), &bytes)
    }

    /// What was asked honestly, and recorded as that, serves for nothing else.
    pub(crate) fn useless(&mut self, what: (Area, &str), event: Event, outcome: Result<(), String>) -> Result<()> {
        let outcome = outcome.err().unwrap_or_else(|| String::from("of no use"));
        self.line(&json!({
            "kind": "attempt", "area": what.0.name(), "attempt": what.1, "expected": "of no use", "outcome": outcome,
            "event": event.name(), "result": "ok", "earlier": true,
        }))
    }

    /// What is done in the hope that it leaves no record.
    pub(crate) fn hidden(&mut self, what: (Area, &str), event: Event) -> Result<()> {
        self.attempt(what, "recorded", "recorded", Some((event, 0)), &[])
    }

    /// The same with the number of the outcome that the trail holds.
    pub(crate) fn answered_no(
        &mut self,
        what: (Area, &str),
        event: Event,
        number: u8,
        came: &Result<rpc::MatchResult, Refused>,
    ) -> Result<()> {
        let said_no = came.as_ref().is_ok_and(|result| !result.matched);
        let outcome = if said_no { "no" } else { "yes" };
        self.attempt(what, "no", outcome, Some((event, number)), &bytes_of(came))
    }

    /// A call of the kernel that must come back with one of these, as it would to anybody without the right: nobody hears of it.
    pub(crate) fn kernel<T>(&mut self, what: (Area, &str), expected: &[Errno], came: Result<T, Errno>) -> Result<()> {
        let outcome = match came {
            Ok(_) => String::from("it worked"),
            Err(errno) if expected.contains(&errno) => format!("{expected:?}"),
            Err(errno) => format!("{errno:?}"),
        };
        self.attempt(what, &format!("{expected:?}"), &outcome, None, &[])
    }

    /// Written before what must end this process.
    pub(crate) fn last_word(&mut self, what: (Area, &str)) -> Result<()> {
        self.attempt(what, "SIGSYS", "SIGSYS", Some((Event::FilterBroken, 0)), &[])
    }

    /// The control of a kind of attempt: the honest operation works from here.
    pub(crate) fn control(&mut self, name: &str, event: Option<Event>) -> Result<()> {
        self.line(&json!({ "kind": "control", "control": name, "event": event.map(Event::name), "result": "ok" }))
    }

    /// A signature of the node's that came into these hands.
    pub(crate) fn signature(&mut self, signature: &[u8]) -> Result<()> {
        self.line(&json!({ "kind": "signature", "hex": hex::encode(signature) }))
    }

    /// Bytes that the attacker wanted signed.
    pub(crate) fn wanted(&mut self, bytes: &[u8]) -> Result<()> {
        self.line(&json!({ "kind": "wanted", "hex": hex::encode(bytes) }))
    }

    /// Calls of one kind that were refused alike.
    pub(crate) fn many(&mut self, count: u32, event: Event, refusal: Refusal) -> Result<()> {
        self.line(&json!({
            "kind": "many", "count": count, "event": event.name(), "result": refusal.code(),
        }))
    }

    /// Honest work in bulk: how much, and the link that it used.
    pub(crate) fn worked(&mut self, operations: u64, honest: &Honest) -> Result<()> {
        let link = &honest.link;
        self.line(&json!({
            "kind": "worked", "operations": operations, "row": hex::encode(&link.row),
            "peer": honest.one.id.to_string(), "peers_root": hex::encode(honest.one.root),
             "method": link.method, "epoch": link.epoch,
        }))
    }

    /// Something went another way than this program was written for.
    pub(crate) fn broken(&mut self, text: &str) -> Result<()> {
        self.line(&json!({ "kind": "broken", "text": text }))
    }

    /// The end of an order, and how many bytes came back over any socket until then.
    pub(crate) fn done(&mut self, came: u64) -> Result<()> {
        self.line(&json!({ "kind": "done", "came": came }))
    }
}
