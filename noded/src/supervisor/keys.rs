//! The key process: unsealer, vault and front. Front and vault live and die together.
//!
//! The unsealer is given the passphrase only once its cage was seen; its secrets go through a pipe straight to the vault
//! and never through this process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use openred_policy::Role;
use openred_policy::socket::{open_no_symlinks, stream_pair};
use openred_policy::spawn::Exit as Ended;
use tokio::sync::watch;

use super::child::{Caged, Fault, Plan, start};
use super::places::{pending_listener, publish, remove};
use super::{Context, End, StartFailure};

/// How long vault and front may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(5);
/// Exit code of the unsealer for a passphrase that does not open the keystore.
const WRONG_PASSPHRASE: i32 = 5;

/// Front and vault in service.
pub(crate) struct Keys {
    front: Caged,
    vault: Caged,
    /// The operator's role at the vault. Held so that the vault's end stays open; closed, it says that the supervisor is gone.
    _operator: OwnedFd,
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
    let (operator, operator_side) = pair("the operator's pair")?;
    let state = context.places.vault_state.try_clone().map_err(setup(Role::Vault, "the state file"))?;
    let vault = Plan {
        role: Role::Vault,
        program: "cryptod-vault",
        arguments: Vec::new(),
        identity: context.identities.vault,
        kept: Vec::new(),
        descriptors: vec![vault_side, operator_side, state.into(), secrets],
    };
    let listener = pending_listener(&context.home, "cryptod", context.identities.noded);
    let listener = listener.map_err(setup(Role::Front, "its socket"))?;
    let front = Plan {
        role: Role::Front,
        program: "cryptod",
        arguments: Vec::new(),
        identity: context.identities.front,
        kept: Vec::new(),
        descriptors: vec![listener.into(), front_side],
    };
    let begun = tokio::join!(unseal(context, secrets_end), serving(context, vault), serving(context, front));
    // In the order of causes: without secrets the vault gives up, without a vault the front does.
    let (unsealed, vault, front) = begun;
    unsealed?;
    let (vault, front) = (vault?, front?);
    publish(&context.home, "cryptod", &context.home.cryptod_socket()).map_err(setup(Role::Front, "its socket"))?;
    context.state(Role::Vault, "ready");
    context.state(Role::Front, "ready");
    Ok(Keys { front, vault, _operator: operator })
}

async fn serving(context: &Context, plan: Plan) -> Result<Caged, Fault> {
    let mut child = start(&context.starter, plan).await?;
    child.ready().await?;
    Ok(child)
}

/// Opens the keystore; afterwards the secrets wait in the pipe for the vault.
async fn unseal(context: &Context, secrets: OwnedFd) -> Result<(), StartFailure> {
    let keystore = open_no_symlinks(&context.home.keystore(), OFlag::O_RDONLY, 0);
    let keystore = keystore.map_err(setup(Role::Unseal, "the keystore"))?;
    let (passphrase, passphrase_end) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| setup(Role::Unseal, "a pipe")(errno.into()))?;
    let plan = Plan {
        role: Role::Unseal,
        program: "cryptod-unseal",
        arguments: vec!["open".into()],
        identity: context.identities.unseal,
        kept: Vec::new(),
        descriptors: vec![keystore.into(), passphrase, secrets],
    };
    let mut child = start(&context.starter, plan).await?;
    // A pipe holds far more than the longest passphrase: this never waits.
    let bytes = context.passphrase.bytes().map_err(StartFailure::Passphrase)?;
    File::from(passphrase_end).write_all(&bytes).map_err(setup(Role::Unseal, "the passphrase"))?;
    drop(bytes);
    match child.finished().await {
        Ok(Ended::Code(0)) => Ok(()),
        Ok(exit) => Err(Fault::Ended { role: Role::Unseal, exit }.into()),
        Err(fault) if fault.exit() == Some(Ended::Code(WRONG_PASSPHRASE)) => Err(StartFailure::Locked(fault)),
        Err(fault) => Err(fault.into()),
    }
}

impl Keys {
    /// Serves until one of the two ends or `stop` is set; then neither is left.
    pub(crate) async fn live(self, context: &Context, stop: &mut watch::Receiver<bool>) -> End {
        let Keys { front, vault, .. } = &self;
        let wanted = async {
            // The sender lives in the supervisor; its loss would mean that the supervisor ends.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let (role, exit) = tokio::select! {
            biased;
            exit = vault.end() => (Role::Vault, exit),
            exit = front.end() => (Role::Front, exit),
            () = wanted => {
                // No new requests first; then the vault, which writes its state before every answer and has nothing to save.
                front.stop(PATIENCE).await;
                vault.stop(PATIENCE).await;
                let _ = remove(&context.home.cryptod_socket());
                return End::Stopped;
            }
        };
        let _ = remove(&context.home.cryptod_socket());
        let other = if role == Role::Vault { front } else { vault };
        // Each ends when the other does, so which end was seen first says little: the graver one is the cause.
        let second = other.stop(PATIENCE).await;
        let ended = if gravity(second) > gravity(exit) { (other.role, second) } else { (role, exit) };
        End::Died { role: ended.0, exit: ended.1, lived: vault.lived() }
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
