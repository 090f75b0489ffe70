//! What a module may take of the machine: it serves within what its manifest says, and what would take more in its place is held.

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use openred_module::SandboxHost;
use openred_policy::limits::{Limits, Resource};
use openred_policy::spawn::Exit;

use crate::probe::{REFUSED, TAKE};
use crate::subject::{Subject, is_well};

/// Percent of a processor that the probe may take at most: on a busy machine no program gets a whole one, and so none would break a limit of that.
const PROCESSOR: u32 = 10;

/// Bytes that the probe may take at most: the machine is not to be brought down.
const MEMORY: u64 = 128 << 20;

pub(super) async fn within(subject: &Subject) -> Result<()> {
    let mut host = SandboxHost::prepare(1, &subject.module, &subject.program)?.with_limits(subject.limits);
    host.launch().await?;
    let attached = host.attach().await?;
    attached.start().await?;
    is_well(&host, &attached).await
}

/// All at the same time: the processor's share is judged over ten seconds.
pub(super) async fn hold(subject: &Subject) -> Result<()> {
    try_join_all(Resource::ALL.map(|resource| holds(subject, resource))).await?;
    Ok(())
}

async fn holds(subject: &Subject, resource: Resource) -> Result<()> {
    let limits = match resource {
        Resource::Cpu => Limits { cpu: subject.limits.cpu.min(PROCESSOR), ..subject.limits },
        _ => Limits { memory: subject.limits.memory.min(MEMORY), ..subject.limits },
    };
    let name = format!("{TAKE}{resource}");
    let mut host = SandboxHost::prepare(1, &name, &subject.probe)?.with_limits(limits);
    host.launch().await.with_context(|| format!("{}: the probe", subject.probe.display()))?;
    host.give(b".")?;
    let exit = host.ended().await.with_context(|| format!("{resource}: it is not held"))?;
    let is_held = host.broke() == Some(resource) || exit == Exit::Code(REFUSED.into());
    ensure!(is_held, "{resource}: it ended with {exit}, and was not held");
    Ok(())
}
