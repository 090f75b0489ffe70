//! A peer for the file benchmark: iroh-blobs, from one store on disk to another over loopback, verified.
//!
//!     peer-iroh-blobs server FOLDER FILE          prints the endpoint's id and the file's hash, then serves
//!     peer-iroh-blobs client FOLDER ID HASH RUNS  fetches RUNS times into fresh stores, prints one line per run
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use iroh::endpoint::{PortmapperConfig, presets};
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, RelayMode};
use iroh_blobs::{BlobsProtocol, Hash, store::fs::FsStore};

const SERVER: &str = "127.0.0.1:45150";

async fn endpoint(address: &str) -> Result<Endpoint> {
    let address: SocketAddr = address.parse()?;
    Ok(Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .bind_addr(address)?
        .bind()
        .await?)
}

async fn serve(folder: &Path, file: &Path) -> Result<()> {
    let store = FsStore::load(folder).await?;
    let tag = store.blobs().add_path(std::path::absolute(file)?).await?;
    let endpoint = endpoint(SERVER).await?;
    println!("{} {}", endpoint.id(), tag.hash);
    let _router = Router::builder(endpoint).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None)).spawn();
    std::future::pending().await
}

async fn fetch(folder: &Path, id: &str, hash: &str, runs: usize) -> Result<()> {
    let hash: Hash = hash.parse()?;
    let server = EndpointAddr::new(id.parse()?).with_ip_addr(SERVER.parse()?);
    for run in 0..runs {
        let store = FsStore::load(folder.join(run.to_string())).await?;
        let endpoint = endpoint("127.0.0.1:0").await?;
        let start = Instant::now();
        let connection = endpoint.connect(server.clone(), iroh_blobs::ALPN).await?;
        store.remote().fetch(connection, hash).await?;
        let seconds = start.elapsed().as_secs_f64();
        let bytes = store.remote().local(hash).await?.local_bytes();
        println!("file:{} bytes={bytes} MiB/s={:.1}", bytes >> 20, bytes as f64 / seconds / 1048576.0);
        endpoint.close().await;
        store.shutdown().await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["server", folder, file] => serve(Path::new(folder), Path::new(file)).await,
        ["client", folder, id, hash, runs] => fetch(Path::new(folder), id, hash, runs.parse().context("RUNS")?).await,
        _ => bail!("usage: peer-iroh-blobs server FOLDER FILE | client FOLDER ID HASH RUNS"),
    }
}
