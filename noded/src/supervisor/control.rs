//! The supervisor's own socket: status, doctor, stop, for the operator.
//!
//! The socket lies in a directory that only the operator enters; the caller's uid is checked as well.

use std::sync::Arc;

use openred_proto::admin::supervisor_server::{Supervisor, SupervisorServer};
use openred_proto::admin::{DoctorReport, DoctorRequest, StatusRequest, StopReply, StopRequest, SupervisorStatus};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::board::Board;

/// Calls of one connection at a time: a person and a monitor.
const CALLS: usize = 8;
/// Requests have no content; a longer message is none of ours.
const MESSAGE: usize = 1024;

struct Control {
    board: Arc<Board>,
    stop: watch::Sender<bool>,
}

/// Serves until this task is ended.
pub(crate) async fn serve(
    listener: UnixListener,
    board: Arc<Board>,
    stop: watch::Sender<bool>,
) -> Result<(), tonic::transport::Error> {
    let service = SupervisorServer::new(Control { board, stop }).max_decoding_message_size(MESSAGE);
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
}
