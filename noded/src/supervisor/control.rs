//! The supervisor's own socket: status, doctor, stop, and the keys' lock, for the operator.
//!
//! The socket lies in a directory that only the operator enters; the caller's uid is checked as well.

use std::sync::Arc;

use bytes::Bytes;
use openred_proto::admin::supervisor_server::{Supervisor, SupervisorServer};
use openred_proto::admin::{
    DoctorReport, DoctorRequest, KeyStatus, LockKeysRequest, ModuleChange, ModuleChanged, ModuleLogLine,
    ModuleLogRequest, ModuleReleased, ModuleSelector, PeerSelector, RotateKeyRequest, ShowKeyRequest, StatusRequest,
    StopReply, StopRequest, Subject, SupervisorStatus, UnlockKeysRequest,
};
use openred_proto::id::NodeId;
use openred_proto::unseal::SECRET_BYTES;
use openred_proto::vault::ShortKey;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use zeroize::{Zeroize, Zeroizing};

use super::board::Board;
use super::gate::{Answer, Ask, Asker};
use super::journal::Words;
use super::modules::Modules;
use crate::cli::{Exit, Failure, one_line};
use crate::packages::Order;

/// Calls of one connection at a time: a person and a monitor.
const CALLS: usize = 8;
/// The longest request names all that a module is granted; one with a passphrase or identities is shorter. A longer message is none of ours.
const MESSAGE: usize = 64 * 1024;
const _: () = assert!(MESSAGE > SECRET_BYTES);

/// Lines of a log that wait for their reader.
const LINES: usize = 64;

struct Control {
    board: Arc<Board>,
    stop: watch::Sender<bool>,
    asker: Asker,
    modules: Modules,
}

impl Control {
    async fn ask(&self, ask: impl FnOnce(Answer) -> Ask) -> Result<Response<KeyStatus>, Status> {
        self.asker.ask(ask).await.map_err(Failure::into_status)?;
        Ok(Response::new(self.board.key()))
    }
}

/// Serves until this task is ended.
pub(crate) async fn serve(
    listener: UnixListener,
    board: Arc<Board>,
    stop: watch::Sender<bool>,
    asker: Asker,
    modules: Modules,
) -> Result<(), tonic::transport::Error> {
    let service = SupervisorServer::new(Control { board, stop, asker, modules }).max_decoding_message_size(MESSAGE);
    Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
}

/// Root, or the user this supervisor runs as.
fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let own = nix::unistd::geteuid().as_raw();
    match caller {
        Some(caller) if caller.uid() == 0 || caller.uid() == own => Ok(()),
        _ => Err(Status::permission_denied("this socket is for the node's operator")),
    }
}

#[tonic::async_trait]
impl Supervisor for Control {
    async fn get_status(&self, request: Request<StatusRequest>) -> Result<Response<SupervisorStatus>, Status> {
        check(&request)?;
        Ok(Response::new(self.board.status()))
    }

    async fn doctor(&self, request: Request<DoctorRequest>) -> Result<Response<DoctorReport>, Status> {
        check(&request)?;
        Ok(Response::new(self.board.doctor()))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopReply>, Status> {
        check(&request)?;
        self.stop.send_replace(true);
        Ok(Response::new(StopReply {}))
    }

    async fn show_key(&self, request: Request<ShowKeyRequest>) -> Result<Response<KeyStatus>, Status> {
        check(&request)?;
        Ok(Response::new(self.board.key()))
    }

    async fn lock_keys(&self, request: Request<LockKeysRequest>) -> Result<Response<KeyStatus>, Status> {
        check(&request)?;
        self.ask(Ask::Lock).await
    }

    async fn unlock_keys(&self, request: Request<UnlockKeysRequest>) -> Result<Response<KeyStatus>, Status> {
        check(&request)?;
        let secret = wiped(request.into_inner().secret);
        self.ask(|answer| Ask::Unlock(secret, answer)).await
    }

    async fn rotate_key(&self, request: Request<RotateKeyRequest>) -> Result<Response<KeyStatus>, Status> {
        check(&request)?;
        let what = match request.into_inner().what.as_str() {
            "prekey" => ShortKey::Prekey,
            "statics" => ShortKey::Statics,
            _ => return Err(Status::invalid_argument("only prekey and statics are rotated by this call")),
        };
        self.ask(|answer| Ask::Rotate(what, answer)).await
    }

    type ModuleLogStream = ReceiverStream<Result<ModuleLogLine, Status>>;

    async fn module_log(&self, request: Request<ModuleLogRequest>) -> Result<Response<Self::ModuleLogStream>, Status> {
        check(&request)?;
        let request = request.into_inner();
        let Some(words) = self.board.journal.find(&request.module) else {
            let what = format!("no module {} was started", one_line(&request.module));
            let help = "`openred status` lists those that were";
            return Err(Failure::new(Exit::NotFound, "module.unknown", what, help).into_status());
        };
        let (to, lines) = mpsc::channel(LINES);
        tokio::spawn(send_lines(words, request, to));
        Ok(Response::new(ReceiverStream::new(lines)))
    }

    async fn release_module(&self, request: Request<ModuleSelector>) -> Result<Response<ModuleReleased>, Status> {
        check(&request)?;
        let released = self.modules.release(request.into_inner().module).await;
        released.map(|()| Response::new(ModuleReleased {})).map_err(Failure::into_status)
    }

    async fn change_modules(&self, request: Request<ModuleChange>) -> Result<Response<ModuleChanged>, Status> {
        check(&request)?;
        let changed = match Order::try_from(request.into_inner()) {
            Ok(order) => self.modules.change(order).await,
            Err(failure) => Err(failure),
        };
        changed.map(|()| Response::new(ModuleChanged {})).map_err(Failure::into_status)
    }

    async fn show_subject(&self, request: Request<PeerSelector>) -> Result<Response<Subject>, Status> {
        check(&request)?;
        let peer = request.into_inner().peer.parse();
        let peer: NodeId = peer.map_err(|_| Status::invalid_argument("no node id, did:key:…"))?;
        let subject = self.asker.ask(|answer| Ask::Name(peer, answer)).await.map_err(Failure::into_status)?;
        Ok(Response::new(Subject { subject: Bytes::copy_from_slice(&subject) }))
    }
}

/// Sends lines as they come, until there are no more to be sent or nobody reads them.
async fn send_lines(words: Arc<Words>, request: ModuleLogRequest, to: mpsc::Sender<Result<ModuleLogLine, Status>>) {
    let mut heard = words.hear();
    let (mut after, mut most) = (0, request.lines as usize);
    loop {
        let last = *heard.borrow_and_update();
        for line in words.read(after, most) {
            after = line.number;
            let line = ModuleLogLine { number: line.number, at: line.at, text: line.text };
            if to.send(Ok(line)).await.is_err() {
                return;
            }
        }
        if !request.follow {
            return;
        }
        after = after.max(last);
        most = usize::MAX;
        tokio::select! {
            changed = heard.changed() => if changed.is_err() { return },
            () = to.closed() => return,
        }
    }
}

/// A copy that is wiped when it was used; the received one is wiped now, where the library holds it alone.
fn wiped(received: Bytes) -> Zeroizing<Vec<u8>> {
    let secret = Zeroizing::new(received.to_vec());
    if let Ok(mut own) = received.try_into_mut() {
        own[..].zeroize();
    }
    secret
}
