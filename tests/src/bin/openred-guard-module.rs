//! A module of hooks for tests, written against the bare contract, without the SDK: what each of its hooks does is a setting, so that a test changes
//! it while the node runs. Not installed.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use openred_proto::module::attachment_client::AttachmentClient;
use openred_proto::module::hook_reply::Verdict;
use openred_proto::module::host_client::HostClient;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind;
use openred_proto::module::{
    Activated, Cancelled, Configured, Continue, Deny, Drained, End, EventDone, Hello, HookFailed, HookReply,
    ModuleFrame, OpenRequest, Pong, Reply,
};
use openred_tests::hostile::dial;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve()),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Failed> {
    let socket = std::env::args().nth(1).ok_or("no socket")?;
    let mut proof = [0; 32];
    std::io::stdin().read_exact(&mut proof)?;
    let (to, frames) = mpsc::channel(512);
    let hello = Hello {
        proof: proof.to_vec().into(),
        module: "guard".to_owned(),
        version: "1.0.0".to_owned(),
        newest: 1,
        oldest: 1,
        features: vec!["hooks".to_owned()],
        ..Hello::default()
    };
    to.send(frame(Kind::Hello(hello))).await?;
    let mut client = AttachmentClient::new(dial(&socket).await?);
    let mut from = client.attach(ReceiverStream::new(frames)).await?.into_inner();
    let Some(FromHost::Welcome(welcome)) = from.message().await?.and_then(|frame| frame.kind) else {
        return Err("no welcome".into());
    };
    let mut host = HostClient::new(dial(&socket).await?);
    host.open(OpenRequest { ticket: welcome.ticket }).await?;
    let (mut acts, mut hanging) = (toml::Table::new(), Vec::new());
    while let Some(came) = from.message().await? {
        let answer = match came.kind {
            Some(FromHost::Configure(configure)) => {
                acts = configure.document.parse()?;
                Kind::Configured(Configured {})
            }
            Some(FromHost::Activate(_)) => Kind::Activated(Activated {}),
            Some(FromHost::Ping(ping)) => Kind::Pong(Pong { number: ping.number }),
            Some(FromHost::Event(event)) => Kind::EventDone(EventDone { call: event.call }),
            Some(FromHost::Drain(_)) => Kind::Drained(Drained {}),
            Some(FromHost::Call(call)) => reply(call.call, &acts.to_string()),
            Some(FromHost::Cancel(cancel)) if hanging.contains(&cancel.call) => {
                hanging.retain(|call| *call != cancel.call);
                Kind::Cancelled(Cancelled { call: cancel.call })
            }
            Some(FromHost::HookCall(hook)) => {
                let act = acts.get(&hook.hook).and_then(toml::Value::as_str).unwrap_or_default();
                match decide(act, hook.call) {
                    Some(said) => {
                        if act == "twice" {
                            to.send(frame(said.clone())).await?;
                        }
                        said
                    }
                    None => {
                        hanging.push(hook.call);
                        continue;
                    }
                }
            }
            _ => continue,
        };
        to.send(frame(answer)).await?;
    }
    Ok(())
}

/// What a hook says; nothing where it hangs.
fn decide(act: &str, call: u64) -> Option<Kind> {
    let deny = Deny { code: "not-today".to_owned(), detail: "Not today.".to_owned() };
    let verdict = match act {
        "hang" => return None,
        "abort" => std::process::abort(),
        "garbage" => None,
        "deny" => Some(Verdict::Deny(deny)),
        "fail" => Some(Verdict::Failed(HookFailed { code: "cannot".to_owned() })),
        _ => Some(Verdict::Continue(Continue {})),
    };
    Some(Kind::HookReply(HookReply { call, verdict }))
}

fn frame(kind: Kind) -> ModuleFrame {
    ModuleFrame { kind: Some(kind) }
}

fn reply(call: u64, body: &str) -> Kind {
    let (content_type, body, end) = ("text/plain".to_owned(), body.to_owned().into(), End::Done.into());
    Kind::Reply(Reply { call, status: 200, content_type, length: None, body, end })
}
