//! `noded`: started alone, restarted alone. Its configuration goes in as a sealed memory file, resolved here once.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use openred_policy::Role;
use openred_policy::socket::{sealed_file, stream_pair};
use tokio::sync::watch;

use super::child::{Caged, Fault, Plan, start};
use super::places::{module_listener, pending_listener, publish, remove};
use super::{Context, End, StartFailure};

/// How long `noded` may take to finish what it has begun.
const DRAIN: Duration = Duration::from_secs(15);

/// `noded` in service.
pub(crate) struct Node(Caged);

fn setup(what: &'static str) -> impl Fn(io::Error) -> StartFailure {
    move |source| StartFailure::Child(Fault::Setup { role: Role::Noded, what, source })
}

/// Starts `noded` and makes its admin socket reachable.
pub(crate) async fn begin(context: &Context) -> Result<Node, StartFailure> {
    let peers = context.places.peers.try_clone().map_err(setup("the peer-to-peer listener"))?;
    // The operator's socket stays the operator's: `noded` serves it through the descriptor and never by name.
    let admin = pending_listener(&context.home, "admin", None).map_err(setup("its socket"))?;
    let state = context.places.state.try_clone().map_err(setup("its state directory"))?;
    let config = sealed_file("openred.toml", context.settings.text().as_bytes()).map_err(setup("its configuration"))?;
    let modules = module_listener(&context.home, &context.identities).map_err(setup("its socket for modules"))?;
    let (asked, asks) = stream_pair().map_err(setup("its channel for modules"))?;
    let or_nothing = |listener: &Option<TcpListener>| -> io::Result<OwnedFd> {
        match listener {
            Some(listener) => listener.try_clone().map(Into::into),
            None => context.starter.null.try_clone().map(Into::into),
        }
    };
    let monitor = or_nothing(&context.places.monitor).map_err(setup("the monitor's listener"))?;
    let auth = or_nothing(&context.places.auth).map_err(setup("the API's listener"))?;
    let plan = Plan {
        role: Role::Noded,
        program: "noded",
        arguments: vec![context.home.path().as_os_str().to_owned()],
        identity: context.identities.noded,
        kept: context.home.noded_keeps(),
        descriptors: vec![peers.into(), admin.into(), state.into(), config, modules.into(), asks, monitor, auth],
    };
    let begun = async {
        let mut child = start(&context.starter, plan).await?;
        // It has its modules started before it says that it is ready, and they dial it.
        let reachable = publish(&context.home, "module", &context.home.module_socket());
        let heard = async { context.modules.hear(asked).await.and(reachable) };
        let what = "its channel for modules";
        heard.await.map_err(|source| Fault::Setup { role: Role::Noded, what, source })?;
        child.ready().await.map(|()| child)
    };
    let child = begun.await.inspect_err(|_| context.settings.refused())?;
    context.settings.taken();
    publish(&context.home, "admin", &context.home.admin_socket()).map_err(setup("its socket"))?;
    context.state(Role::Noded, "ready");
    Ok(Node(child))
}

impl Node {
    /// Serves until it ends or `stop` is set.
    pub(crate) async fn live(self, context: &Context, stop: &mut watch::Receiver<bool>) -> End {
        let wanted = async {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            exit = self.0.end() => {
                let _ = remove(&context.home.admin_socket());
                End::Died { role: Role::Noded, exit, lived: self.0.lived() }
            }
            () = context.settings.reloaded() => {
                context.state(Role::Noded, "restarting");
                self.0.stop(DRAIN).await;
                let _ = remove(&context.home.admin_socket());
                End::Reloaded
            }
            () = wanted => {
                self.0.stop(DRAIN).await;
                let _ = remove(&context.home.admin_socket());
                End::Stopped
            }
        }
    }
}
