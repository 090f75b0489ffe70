//! A module that does one thing wrong, written against the bare contract, without the SDK. Which thing stands in the program itself
//! (`openred_tests::hostile`). Not installed.
//!
//! Told nothing, or `well`, it behaves: it counts its calls in its state and answers with the number. `at-` acts happen before it is attached, `on-`
//! acts when it is called.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use openred_proto::module::attachment_client::AttachmentClient;
use openred_proto::module::host_client::HostClient;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind;
use openred_proto::module::{
    Activated, Chunk, Configured, Drained, End, EventDone, Hello, KvApplyRequest, KvGetRequest, ModuleFrame,
    OpenRequest, Pong, Reply, Row,
};
use openred_tests::hostile::{ACT_BYTES, MARK, dial};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// The mark and the act, as [`openred_tests::hostile::plant`] finds and changes them.
#[used]
static ACT: [u8; 32] = *b"openred-does-so:................";

/// Where calls are counted.
const KEY: &[u8] = b"calls";

type Failed = Box<dyn std::error::Error>;

fn act() -> String {
    let all = std::hint::black_box(&ACT);
    let act = &all[MARK.len()..MARK.len() + ACT_BYTES];
    String::from_utf8_lossy(act).trim_end_matches('.').to_owned()
}

fn main() -> ExitCode {
    let act = act();
    let _ = writeln!(std::io::stderr(), "this module does {act:?}\u{1b}[2J");
    if act == "at-exit" {
        return ExitCode::from(7);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve(&act)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(9)
        }
    }
}

fn hello(act: &str, proof: [u8; 32]) -> Hello {
    let (newest, oldest) = if act == "at-version" { (999, 999) } else { (1, 1) };
    let module = if act == "at-impostor" { "messaging" } else { "files" };
    let mut proof = proof;
    proof[0] ^= u8::from(act == "at-unproven");
    Hello {
        proof: proof.to_vec().into(),
        module: module.to_owned(),
        version: "1.0.0".to_owned(),
        newest,
        oldest,
        ..Hello::default()
    }
}

async fn serve(act: &str) -> Result<(), Failed> {
    let socket = std::env::args().nth(1).ok_or("no socket")?;
    let mut proof = [0; 32];
    std::io::stdin().read_exact(&mut proof)?;
    let (to, frames) = mpsc::channel(64);
    to.send(frame(Kind::Hello(hello(act, proof)))).await?;
    let mut client = AttachmentClient::new(dial(&socket).await?);
    let mut from = client.attach(ReceiverStream::new(frames)).await?.into_inner();
    let Some(FromHost::Welcome(welcome)) = from.message().await?.and_then(|frame| frame.kind) else {
        return Err("no welcome".into());
    };
    let mut host = HostClient::new(dial(&socket).await?);
    host.open(OpenRequest { ticket: welcome.ticket }).await?;
    while let Some(came) = from.message().await? {
        match came.kind {
            Some(FromHost::Configure(_)) => to.send(frame(Kind::Configured(Configured {}))).await?,
            Some(FromHost::Activate(_)) => to.send(frame(Kind::Activated(Activated {}))).await?,
            Some(FromHost::Ping(ping)) => to.send(frame(Kind::Pong(Pong { number: ping.number }))).await?,
            Some(FromHost::Event(event)) => to.send(frame(Kind::EventDone(EventDone { call: event.call }))).await?,
            Some(FromHost::Drain(_)) if act != "on-drain" => to.send(frame(Kind::Drained(Drained {}))).await?,
            Some(FromHost::Call(call)) => {
                let body = match do_act(act, call.call, &to).await? {
                    Some(said) => said,
                    None => count(&mut host).await?.to_string(),
                };
                to.send(reply(call.call, body)).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// One call more, in the module's state.
async fn count(host: &mut HostClient<Channel>) -> Result<u64, Failed> {
    let value = host.kv_get(KvGetRequest { key: KEY.into() }).await?.into_inner().value;
    let count = value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok()).unwrap_or(0u64) + 1;
    let row = Row { key: KEY.into(), value: Some(count.to_string().into_bytes().into()) };
    host.kv_apply(KvApplyRequest { put: vec![row], ..KvApplyRequest::default() }).await?;
    Ok(count)
}

fn frame(kind: Kind) -> ModuleFrame {
    ModuleFrame { kind: Some(kind) }
}

fn reply(call: u64, body: String) -> ModuleFrame {
    let end = End::Done.into();
    frame(Kind::Reply(Reply {
        call,
        status: 200,
        content_type: "text/plain".to_owned(),
        length: None,
        body: body.into(),
        end,
    }))
}

/// What it does wrong when it is called; its answer where it lives on.
async fn do_act(act: &str, call: u64, to: &mpsc::Sender<ModuleFrame>) -> Result<Option<String>, Failed> {
    match act {
        "on-abort" => std::process::abort(),
        "on-exit" => std::process::exit(7),
        "on-hang" => loop {
            std::thread::park();
        },
        "on-garbage" => to.send(ModuleFrame { kind: None }).await?,
        "on-long" => to.send(reply(call, "x".repeat(100 << 10))).await?,
        "on-twice" => to.send(reply(call, "once".to_owned())).await?,
        "on-other" => to.send(reply(call + 1000, String::new())).await?,
        "on-overrun" => overrun(call, to).await?,
        // No status, with a body to come.
        "on-bad-head" => {
            to.send(frame(Kind::Reply(Reply { call, status: 7, end: End::More.into(), ..Reply::default() }))).await?;
        }
        "on-memory" => take_memory(),
        "on-cpu" => return Ok(Some(take_cpu())),
        "on-tasks" => return Ok(Some(take_tasks())),
        "on-descriptors" => return Ok(Some(take_descriptors())),
        "on-fork" => return Ok(Some(format!("{:?}", std::process::Command::new("/bin/true").status()))),
        "on-open" => return Ok(Some(open_files())),
        "on-dial" => return Ok(Some(format!("{:?}", std::net::TcpStream::connect("127.0.0.1:9")))),
        "on-log" => return Ok(Some(flood_log())),
        _ => return Ok(None),
    }
    // What follows the act is not needed any more, and where it is sent, the node has ended the attachment before.
    Ok(Some(String::new()))
}

/// A body of more than was granted.
async fn overrun(call: u64, to: &mpsc::Sender<ModuleFrame>) -> Result<(), Failed> {
    let more = End::More.into();
    let head = Reply { call, status: 200, content_type: "text/plain".to_owned(), end: more, ..Reply::default() };
    to.send(frame(Kind::Reply(head))).await?;
    for _ in 0..64 {
        let body = vec![b'x'; 32 << 10].into();
        to.send(frame(Kind::Chunk(Chunk { call, body, end: more, limit: 0, range: None }))).await?;
    }
    Ok(())
}

fn take_memory() {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&taken);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Beside its answers, which go on.
fn take_cpu() -> String {
    let spin = || {
        loop {
            std::hint::black_box(());
        }
    };
    format!("spins: {}", std::thread::Builder::new().spawn(spin).is_ok())
}

/// How many threads it got beside the first, and what it was told then.
fn take_tasks() -> String {
    let wait = || {
        loop {
            std::thread::park();
        }
    };
    let mut count = 0;
    loop {
        match std::thread::Builder::new().stack_size(64 << 10).spawn(wait) {
            Ok(_) => count += 1,
            Err(error) => return format!("{count} {error}"),
        }
    }
}

/// How many descriptors it got, and what it was told then.
fn take_descriptors() -> String {
    let mut taken = Vec::new();
    loop {
        match std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned() {
            Ok(copy) => taken.push(copy),
            Err(error) => return format!("{} {error}", taken.len()),
        }
    }
}

/// Which of the machine's files it could read or write.
fn open_files() -> String {
    let read = ["/etc/passwd", "/proc/self/status", "/", "/tmp"].into_iter();
    let read = read.filter(|path| std::fs::File::open(path).is_ok() || std::fs::read_dir(path).is_ok());
    let written = ["/openred-probe", "/usr/lib/openred-probe", "/tmp/openred-probe"].into_iter();
    let written = written.filter(|path| std::fs::write(path, b"x").is_ok());
    read.chain(written).collect::<Vec<_>>().join(" ")
}

fn flood_log() -> String {
    let mut out = std::io::stderr().lock();
    (0..20_000).for_each(|line| drop(writeln!(out, "line {line} \u{1b}[31m")));
    "flooded".to_owned()
}
