//! Leads a module in any language through a module's life at the SDK's own door: `door PROGRAM ARGUMENT…` starts the program with the
//! socket's path behind its arguments and a pipe as descriptor 0, as a node does, but without a cage. The module is the `greet` of docs/modules.md.
//!
//! Prints each step; ends with 1 at the first that fails. Behind the door stands a node in memory.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use openred_module::remote::{Attached, Door, Fault};
use openred_module::{
    Body, Caller, Context, Event, Manifest, Method, Module, NodeId, Request, Response, Routes, TestHost, async_trait,
};
use openred_proto::secret::Secret;
use tokio::net::UnixListener;
use tokio::time::timeout;

/// The longest that one step may take on a loaded machine.
const STEP: Duration = Duration::from_secs(60);

/// Nothing of a module runs here: its node's state is what is wanted.
struct Nobody;

#[async_trait]
impl Module for Nobody {
    fn manifest(&self) -> Manifest {
        Manifest { id: "nobody", version: "0.0.0", summary: "Has a node's state" }
    }

    fn routes(_: &mut Routes<Self>) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match lead().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            say(&format!("FAILED: {what}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

type Outcome = Result<(), String>;

struct Stage {
    door: Arc<Door>,
    host: TestHost,
    child: Child,
    pipe: ChildStdin,
}

async fn lead() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (program, arguments) = words.split_first().ok_or("name a program")?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = folder.path().join("module.sock");
    let host = TestHost::start(1, Nobody).await;
    let door = Door::new(host.id());
    let listener = UnixListener::bind(&socket).map_err(|error| error.to_string())?;
    tokio::spawn(Arc::clone(&door).serve(listener));
    let child = Command::new(program).args(arguments).arg(&socket).stdin(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("{program}: {error}"))?;
    let pipe = child.stdin.take().ok_or("it has no pipe")?;
    let mut stage = Stage { door, host, child, pipe };
    let first = stage.attach(1).await?;
    calls(&first).await?;
    bodies(&first).await?;
    let second = stage.attach(2).await?;
    check("the first attachment ends with the next", timeout(STEP, first.ended()).await == Ok(Fault::Gone))?;
    counted(&second, 4).await?;
    check("it drains", second.drain(STEP).await)?;
    second.shut_down();
    let ended = timeout(STEP, stage.ended()).await.map_err(|_| "it does not end")?;
    check("it ends well when it is told to", ended)
}

fn check(what: &str, holds: bool) -> Outcome {
    if !holds {
        return Err(what.to_owned());
    }
    say(&format!("ok      {what}"));
    Ok(())
}

impl Drop for Stage {
    fn drop(&mut self) {
        // One that has ended needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stage {
    /// Waits for the program's end; whether it was a good one.
    async fn ended(&mut self) -> bool {
        loop {
            match self.child.try_wait() {
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                ended => return ended.is_ok_and(|status| status.is_some_and(|status| status.success())),
            }
        }
    }

    async fn attach(&mut self, number: u8) -> Result<Attached, String> {
        let context: Context = self.host.context();
        let expected = self.door.expect("greet", Secret::new([number; 32]), context);
        self.pipe.write_all(&[number; 32]).map_err(|error| error.to_string())?;
        let attached = timeout(STEP, expected.attached()).await.map_err(|_| "it does not attach")?;
        let attached = attached.map_err(|fault| fault.to_string())?;
        let started = timeout(STEP, attached.start()).await.map_err(|_| "its start does not end")?;
        started.map_err(|error| error.to_string())?;
        check("it attaches and starts", attached.ping().await)?;
        Ok(attached)
    }
}

async fn ask(attached: &Attached, request: Request) -> Result<(u16, String), String> {
    let answer: Response = timeout(STEP, attached.dispatch(request)).await.map_err(|_| "no answer")?;
    let status = answer.status.code();
    let body = answer.body.collect(1 << 20).await.map_err(|error| error.to_string())?;
    Ok((status, String::from_utf8_lossy(&body).replace(' ', "")))
}

fn greet(caller: Caller, body: Body) -> Request {
    Request::new(caller, Method::Post, "/greet").with_body("application/json", body)
}

fn ada() -> Body {
    Body::whole(r#"{"name":"Ada"}"#)
}

async fn counted(attached: &Attached, count: u32) -> Outcome {
    let (status, body) = ask(attached, greet(Caller::Operator, ada())).await?;
    let wanted = format!(r#"{{"text":"Hello,Ada!","count":{count}}}"#);
    check(&format!("it greets and counts {count}"), (status, body.as_str()) == (200, wanted.as_str()))
}

async fn calls(attached: &Attached) -> Outcome {
    counted(attached, 1).await?;
    let peer = Caller::Peer(NodeId::from_bytes([7; 32]));
    let (status, _) = ask(attached, greet(peer, ada())).await?;
    check("peers are greeted too", status == 200)?;
    let count = |caller| Request::new(caller, Method::Get, "/greeted/Ada");
    check("it tells the operator", ask(attached, count(Caller::Operator)).await? == (200, "2".into()))?;
    for (what, request, status, code) in [
        ("it tells no peer", count(peer), 404, "no-such-route"),
        ("an unknown route", Request::new(Caller::Operator, Method::Get, "/x"), 404, "no-such-route"),
        ("another method", Request::new(Caller::Operator, Method::Get, "/greet"), 405, "wrong-method"),
        ("no JSON", greet(Caller::Operator, Body::whole("x")), 400, "bad-json"),
        ("a long body", greet(Caller::Operator, Body::whole(vec![b'x'; 2000])), 413, "body-too-long"),
    ] {
        let (answered, problem) = ask(attached, request).await?;
        check(&format!("{what}: {status} {code}"), answered == status && problem.contains(code))?;
    }
    for event in [Event::Timer(1), Event::PeerReachable(NodeId::from_bytes([7; 32]))] {
        check("an event is dealt with", timeout(STEP, attached.event(event)).await == Ok(true))?;
    }
    Ok(())
}

async fn bodies(attached: &Attached) -> Outcome {
    let (writer, body) = Body::channel();
    let feed = async {
        for piece in [&br#"{"name""#[..], br#":"Ada"}"#] {
            // A module that has refused reads no more.
            let _ = writer.send(bytes::Bytes::copy_from_slice(piece)).await;
        }
        writer.finish().await;
    };
    let (answer, ()) = tokio::join!(ask(attached, greet(Caller::Operator, body)), feed);
    check("a body in pieces", answer?.0 == 200)?;
    let (writer, body) = Body::channel();
    drop(writer);
    check("a body that breaks off", ask(attached, greet(Caller::Operator, body)).await?.0 == 400)?;
    let (_writer, body) = Body::channel();
    let given_up = timeout(Duration::from_millis(50), attached.dispatch(greet(Caller::Operator, body))).await;
    check("a call without an end is given up", given_up.is_err())?;
    let ended = async { while attached.running() > 0 && attached.ping().await {} };
    check("and ends in the module", timeout(STEP, ended).await.is_ok() && attached.running() == 0)
}
