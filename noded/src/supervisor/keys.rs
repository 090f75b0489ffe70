//! The key process: unsealer, vault and front. Front and vault live and die together.
//!
//! The unsealer is given the passphrase only once its cage was seen; its secrets go through a pipe straight to the vault
//! and never through this process. The trail of what the vault does is watched from here (`trail`).

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use openred_policy::Role;
use openred_policy::socket::{stream_pair, sync_directory};
use openred_policy::spawn::Exit as Ended;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::unseal::Order;
use openred_proto::vault::{Reply, Request, ShortKey};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::child::{Caged, Fault, Plan, start};
use super::errand::{self, Errand, Limit};
use super::gate::{Ask, Gate, not_locked};
use super::operator::Operator;
use super::places::{pending_listener, publish, remove};
use super::trail::{self, Watch};
use super::{Context, End, StartFailure, keystore, now};
use crate::cli::{Exit, Failure};

/// How long vault and front may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the vault may take to sign the end of its trail once the front is gone: one write.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often the trail is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Front and vault in service.
pub(crate) struct Keys {
    front: Caged,
    vault: Caged,
    /// The operator's role at the vault.
    operator: Operator,
    trail: Watch,
}

fn setup(role: Role, what: &'static str) -> impl Fn(io::Error) -> StartFailure {
    move |source| StartFailure::Child(Fault::Setup { role, what, source })
}

/// Starts unsealer, vault and front side by side, and makes the front's socket reachable. The vault waits for the unsealer's
/// pipe, the front for the vault's first answer.
pub(crate) async fn begin(context: &Context) -> Result<Keys, StartFailure> {
    let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC);
    let (secrets, secrets_end) = pipe.map_err(|errno| setup(Role::Unseal, "a pipe")(errno.into()))?;
    let pair = |what| stream_pair().map_err(setup(Role::Vault, what));
    let (front_side, vault_side) = pair("the front's pair")?;
    // Held until both are judged: a vault whose front has failed meanwhile would be gone before it was looked at.
    let front_stays = front_side.try_clone().map_err(setup(Role::Front, "the front's pair"))?;
    let (operator, operator_side) = pair("the operator's pair")?;
    let state = context.places.vault_state.try_clone().map_err(setup(Role::Vault, "the state file"))?;
    let segments = trail::open(&context.home).map_err(StartFailure::Named)?;
    let [first, second] = segments.descriptors().map_err(setup(Role::Vault, "the audit trail"))?;
    let vault = Plan {
        role: Role::Vault,
        program: "cryptod-vault",
        arguments: vault_arguments(context, context.home.audit_anew().exists()),
        identity: context.identities.vault,
        kept: Vec::new(),
        descriptors: vec![vault_side, operator_side, state.into(), secrets, first, second],
    };
    let listener = pending_listener(&context.home, "cryptod", context.identities.noded);
    let listener = listener.map_err(setup(Role::Front, "its socket"))?;
    let front = Plan {
        role: Role::Front,
        program: "cryptod",
        // As root it looks a second time at who connects; the listener's place is the first.
        arguments: context.identities.noded.map(|noded| noded.uid.to_string().into()).into_iter().collect(),
        identity: context.identities.front,
        kept: Vec::new(),
        descriptors: vec![listener.into(), front_side],
    };
    let begun = tokio::join!(unseal(context, secrets_end), vault_serving(context, vault), serving(context, front));
    drop(front_stays);
    // In the order of causes: without secrets the vault gives up, without a vault the front does.
    let (unsealed, vault, front) = begun;
    unsealed?;
    let (vault, front) = (vault?, front?);
    let mut operator = Operator::new(operator).map_err(setup(Role::Vault, "the operator's pair"))?;
    let mut trail = Watch::new(segments);
    trail.make_room(context, &mut operator).await;
    // Before anybody can reach it.
    context.starter.callers.front(front.admission()?).map_err(setup(Role::Front, "naming noded to it"))?;
    publish(&context.home, "cryptod", &context.home.cryptod_socket()).map_err(setup(Role::Front, "its socket"))?;
    context.state(Role::Vault, "ready");
    context.state(Role::Front, "ready");
    Ok(Keys { front, vault, operator, trail })
}

/// The operator's word to the vault.
fn vault_arguments(context: &Context, anew: bool) -> Vec<OsString> {
    let signatures = format!("signatures={}", context.settings.signatures_per_second());
    [signatures].into_iter().chain(anew.then(|| "audit-anew".to_owned())).map(OsString::from).collect()
}

/// The vault says that it serves once its trail is durable: from then on the operator's word to begin it anew is used up, whatever
/// becomes of the rest of this start. Left there, it would have the next start clear what this one recorded.
async fn vault_serving(context: &Context, plan: Plan) -> Result<Caged, StartFailure> {
    let vault = serving(context, plan).await?;
    let (audit, anew) = (context.home.audit(), context.home.audit_anew());
    let taken = if anew.exists() { remove(&anew).and_then(|()| sync_directory(&audit)) } else { Ok(()) };
    taken.map(|()| vault).map_err(setup(Role::Vault, "the word to begin its audit trail anew"))
}

async fn serving(context: &Context, plan: Plan) -> Result<Caged, Fault> {
    let mut child = start(&context.starter, plan).await?;
    // Both wait for the keystore to be opened.
    child.ready_after(context.settings.patience()).await?;
    Ok(child)
}

/// Opens the keystore; afterwards the secrets wait in the pipe for the vault.
async fn unseal(context: &Context, secrets: OwnedFd) -> Result<(), StartFailure> {
    let keystore = keystore::open(&context.home.keystore()).map_err(StartFailure::Named)?;
    let errand = Errand { mode: "open", input: keystore.into(), output: secrets, second: None };
    let order = || Ok(Order::with_secret(context.secret.bytes()?, UnixMillis(now())));
    let limit = Limit::Whole(context.settings.patience());
    let about = errand::run(&context.starter, context.identities.unseal, errand, order, limit).await?;
    context.starter.board.keystore(about);
    Ok(())
}

impl Keys {
    /// Serves until one of the two ends, the operator locks them, or `stop` is set; then neither is left.
    pub(crate) async fn live(self, context: &Context, stop: &mut watch::Receiver<bool>, gate: &mut Gate) -> End {
        let Keys { front, vault, mut operator, mut trail } = self;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ends = loop {
            let wanted = async {
                // The sender lives in the supervisor; its loss would mean that the supervisor ends.
                let _ = stop.wait_for(|stop| *stop).await;
            };
            tokio::select! {
                biased;
                exit = vault.end() => break [(Role::Vault, exit), (Role::Front, front.stop(PATIENCE).await)],
                exit = front.end() => break [(Role::Front, exit), (Role::Vault, farewell(&vault).await)],
                ask = gate.next() => match ask {
                    Ask::Lock(answer) => {
                        lock(context, &front, &vault, &mut operator).await;
                        trail.end(context);
                        return End::Locked(answer);
                    }
                    Ask::Unlock(_, answer) => drop(answer.send(Err(not_locked()))),
                    Ask::Rotate(what, answer) => drop(answer.send(rotate(&mut operator, what).await)),
                    Ask::Name(peer, answer) => drop(answer.send(name(&mut operator, peer).await)),
                },
                () = wanted => {
                    retire(&front, &vault).await;
                    let _ = remove(&context.home.cryptod_socket());
                    trail.end(context);
                    return End::Stopped;
                }
                _ = look.tick() => if !trail.look(context, &mut operator).await {
                    break retire(&front, &vault).await;
                },
            }
        };
        let _ = remove(&context.home.cryptod_socket());
        trail.end(context);
        // Each ends when the other does, so which end was seen first says little: the graver one is the cause.
        let [first, second] = ends;
        let (role, exit) = if gravity(second.1) > gravity(first.1) { second } else { first };
        End::Died { role, exit, lived: vault.lived() }
    }
}

/// Ends both, the front first: no new requests.
async fn retire(front: &Caged, vault: &Caged) -> [(Role, Ended); 2] {
    let front = front.stop(PATIENCE).await;
    [(Role::Vault, farewell(vault).await), (Role::Front, front)]
}

/// A vault whose front is gone sees that, signs the trail's end and goes too; one that does not is told to.
async fn farewell(vault: &Caged) -> Ended {
    match timeout(FAREWELL, vault.end()).await {
        Ok(exit) => exit,
        Err(_) => vault.stop(PATIENCE).await,
    }
}

/// Has the vault wipe its keys and end; one that does not answer is ended all the same.
async fn lock(context: &Context, front: &Caged, vault: &Caged, operator: &mut Operator) {
    let _ = remove(&context.home.cryptod_socket());
    if let Err(error) = operator.ask(Request::Lock).await {
        tracing::warn!("the vault did not answer the lock ({error}) and is killed");
        vault.kill().await;
    } else {
        vault.stop(PATIENCE).await;
    }
    front.stop(PATIENCE).await;
}

async fn rotate(operator: &mut Operator, what: ShortKey) -> Result<(), Failure> {
    match operator.ask(Request::Rotate { what }).await {
        Ok(Reply::Done) => Ok(()),
        other => Err(unserved(other)),
    }
}

async fn name(operator: &mut Operator, peer: NodeId) -> Result<[u8; 32], Failure> {
    match operator.ask(Request::AuditSubject { peer }).await {
        Ok(Reply::AuditSubject(subject)) => Ok(subject),
        other => Err(unserved(other)),
    }
}

fn unserved(answer: io::Result<Reply>) -> Failure {
    match answer {
        Ok(Reply::Refused(refusal)) => {
            let way_out = "`openred key show` says how things stand; try again later";
            Failure::new(Exit::Failed, "cryptod.refused", format!("the vault refused: {refusal}"), way_out)
        }
        Ok(_) => Failure::new(Exit::Failed, "cryptod.bad-answer", "the vault answered out of contract", ""),
        Err(error) => Failure::local("the vault", &error),
    }
}

/// How much an end says: the filter, a signal that was not ours, a code, a clean end.
fn gravity(exit: Ended) -> u8 {
    match exit {
        exit if exit.broke_the_filter() => 3,
        Ended::Signal(number) if number != nix::libc::SIGTERM => 2,
        Ended::Code(0) | Ended::Signal(_) => 0,
        Ended::Code(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_outweighs_its_consequence() {
        let rising =
            [Ended::Code(0), Ended::Code(1), Ended::Signal(nix::libc::SIGKILL), Ended::Signal(nix::libc::SIGSYS)];
        assert!(rising.windows(2).all(|pair| gravity(pair[0]) < gravity(pair[1])));
        assert_eq!(gravity(Ended::Signal(nix::libc::SIGTERM)), 0, "the supervisor's own");
    }
}
