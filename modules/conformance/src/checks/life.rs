//! How a module begins, goes on under other nodes, and ends.

use anyhow::{Context as _, Result, bail, ensure};
use openred_module::remote::{Door, Fault};
use openred_module::{Event, NodeId, SandboxError, SandboxHost};
use openred_proto::module::host_frame::Kind;
use openred_proto::module::{Cancel, Chunk, Credit, End, HostFrame};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::subject::{Subject, all_ended, ask, is_well, stranger, unknown};

/// A version of the contract that nobody speaks.
const FUTURE: u32 = 1_000_000;

pub(super) async fn attach(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    ensure!(
        attached.version() == subject.version,
        "it says that it is version {}, its manifest {}",
        attached.version(),
        subject.version
    );
    is_well(&host, &attached).await
}

pub(super) async fn version(subject: &Subject) -> Result<()> {
    let future = Door::speaking(stranger(), FUTURE..=FUTURE);
    let mut host = SandboxHost::prepare_behind(future, &subject.module, &subject.program)?;
    host.launch().await?;
    match host.attach().await {
        Err(SandboxError::Fault(Fault::Version { .. })) => {}
        Err(other) => bail!("a node of version {FUTURE} of the contract: {other}"),
        Ok(_) => bail!("it attached to a node that speaks version {FUTURE} of the contract alone"),
    }
    drop(host);
    let (host, attached) = subject.start().await?;
    is_well(&host, &attached).await
}

pub(super) async fn wrong_value(subject: &Subject) -> Result<()> {
    let mut host = SandboxHost::prepare(1, &subject.module, &subject.program)?;
    host.launch().await?;
    host.give(&[0; 32])?;
    let attached = host.attach().await?;
    attached.start().await?;
    is_well(&host, &attached).await
}

pub(super) async fn start_twice(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    let again = timeout(PATIENCE, attached.start()).await.context("its second start does not end")?;
    again.context("its second start")?;
    is_well(&host, &attached).await
}

pub(super) async fn next_node(subject: &Subject) -> Result<()> {
    let (host, first) = subject.start().await?;
    let second = host.attach().await?;
    let fault = timeout(PATIENCE, first.ended()).await.context("it keeps its first attachment")?;
    ensure!(fault == Fault::Gone, "its first attachment ended as {}", fault.code());
    second.start().await?;
    is_well(&host, &second).await
}

pub(super) async fn node_gone(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    attached.end(Fault::Ended);
    let again = host.attach().await.context("after its node had gone")?;
    again.start().await?;
    is_well(&host, &again).await
}

pub(super) async fn ping(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    let calls = (0..openred_module::remote::CALLS).map(|_| ask(&attached, "one call of many", unknown_empty()));
    let calls = futures_util::future::join_all(calls);
    let (answers, pinged) = tokio::join!(calls, timeout(PATIENCE, attached.ping()));
    ensure!(pinged == Ok(true), "a ping beside {} calls is not answered", answers.len());
    for answer in answers {
        let status = answer?.status.code();
        ensure!(matches!(status, 404 | 429), "an unknown route is answered {status}");
    }
    is_well(&host, &attached).await
}

fn unknown_empty() -> openred_module::Request {
    unknown(openred_module::Body::empty())
}

pub(super) async fn strange_frames(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    // Ended already: what comes for it was on its way.
    let ended = 1;
    is_well(&host, &attached).await?;
    let late = [
        Kind::Chunk(Chunk {
            call: ended,
            body: b"late".as_slice().into(),
            end: End::More.into(),
            limit: 0,
            range: None,
        }),
        Kind::Credit(Credit { call: ended, bytes: 1 }),
        Kind::Cancel(Cancel { call: ended }),
    ];
    attached.inject(HostFrame { kind: None });
    late.into_iter().for_each(|kind| attached.inject(HostFrame { kind: Some(kind) }));
    is_well(&host, &attached).await
}

pub(super) async fn events(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    let peer: NodeId = stranger();
    let events = [
        Event::Timer(u32::MAX),
        Event::PeerReachable(peer),
        Event::PeerForgotten(peer),
        Event::IdentitiesChanged(peer),
    ];
    for event in events {
        let dealt = timeout(PATIENCE, attached.event(event)).await;
        ensure!(dealt.with_context(|| format!("{event:?} is not dealt with"))?, "{event:?} ended the attachment");
    }
    is_well(&host, &attached).await
}

pub(super) async fn drain(subject: &Subject) -> Result<()> {
    let (_host, attached) = subject.start().await?;
    ask(&attached, "a call", unknown_empty()).await?;
    ensure!(attached.drain(PATIENCE).await, "it does not say that it has drained");
    all_ended(&attached, "after it had drained").await
}

pub(super) async fn shutdown(subject: &Subject) -> Result<()> {
    let (host, _attached) = subject.start().await?;
    Ok(host.stop().await?)
}

pub(super) async fn pipe_end(subject: &Subject) -> Result<()> {
    let (host, _attached) = subject.start().await?;
    host.close_pipe();
    host.ended().await.context("it goes on without a supervisor")?;
    Ok(())
}
