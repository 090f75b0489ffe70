//! Connections that a module has its node make: frames of the second connection to the host's bytes and back. Who may go where is the host's.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use openred_proto::module as wire;
use openred_proto::module::network_server::Network;
use tonic::{Request, Response, Status, Streaming};

use super::hosting::Hosting;
use crate::network::DESTINATION_BYTES;
use crate::wire::bodies;
use crate::wire::words::of_dial;

type Frames = Pin<Box<dyn Stream<Item = Result<wire::DialedFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Network for Hosting {
    type DialStream = Frames;

    async fn dial(&self, request: Request<Streaming<wire::DialFrame>>) -> Result<Response<Frames>, Status> {
        let malformed = || Status::invalid_argument("malformed");
        let mut frames = request.into_inner();
        let mut first = frames.message().await?.ok_or_else(malformed)?;
        let to = std::mem::take(&mut first.to);
        if to.is_empty() || to.len() > DESTINATION_BYTES {
            return Err(malformed());
        }
        let answer = self.host()?.dial(&to, bodies::body(first, frames)).await.map_err(of_dial)?;
        Ok(Response::new(Box::pin(bodies::frames(wire::DialedFrame::default(), answer).map(Ok))))
    }
}
