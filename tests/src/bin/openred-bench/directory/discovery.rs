//! Syncthing's discovery server, where it is installed: what people would pick for look-ups of addresses by key. A device is its TLS
//! certificate, so each caller has one and announces that; look-ups are of those devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openred_tests::harness::{free_port, wait_for};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsConnector;

use super::drive::{Door, Manner, drive, tls};
use super::{CALLERS, Size};
use crate::bench::figures::{Better, Figures};

const ANNOUNCEMENT: &str = "{\"addresses\":[\"tcp://192.0.2.7:22000\",\"quic://192.0.2.7:22000\"]}";

/// The program, on the path.
pub(crate) fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("stdiscosrv")).find(|program| program.exists())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures announcements and look-ups over kept TLS connections.
pub(crate) async fn measure(program: &Path, folder: &Path, size: Size, figures: &mut Figures) -> Result<()> {
    fs::create_dir(folder)?;
    let address = free_port()?;
    let (certificate, key) = certificate(folder, "server")?;
    let log = File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command.arg("-listen").arg(address.to_string()).arg("-cert").arg(&certificate).arg("-key").arg(&key);
    command.args(["-replication-listen", "127.0.0.1:0", "-db-dir"]).arg(folder.join("db")).current_dir(folder);
    let server = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let _server = Server(server);
    wait_for("the discovery server", || Ok(std::net::TcpStream::connect(address).ok()))?;
    let (mut devices, mut connectors) = (Vec::new(), Vec::<TlsConnector>::new());
    for number in 0..CALLERS {
        let (certificate, key) = certificate_of(folder, number)?;
        let der = CertificateDer::from_pem_slice(&certificate)?;
        devices.push(device(&Sha256::digest(&der).into()));
        connectors.push(tls(Some((&certificate, &key)))?);
    }
    let door = Door { address, tls: connectors };
    let manner = Manner { callers: CALLERS, depth: 1, time: Duration::from_millis(size.millis) };
    let (mut announced, mut looked_up) = (Vec::new(), Vec::new());
    let length = ANNOUNCEMENT.len();
    let announce = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{ANNOUNCEMENT}");
    for _ in 0..size.runs {
        let outcome = drive(&door, manner, || Some(Ok(announce.clone().into_bytes()))).await?.all(204)?;
        announced.push(outcome.rate());
    }
    let mut number = 0;
    for _ in 0..size.runs {
        let next = || {
            number += 1;
            let device = &devices[number % devices.len()];
            Some(Ok(format!("GET /?device={device} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()))
        };
        looked_up.push(drive(&door, manner, next).await?.all(200)?.rate());
    }
    figures.add_runs("syncthing_announce_rate", "/s", Better::Higher, announced);
    figures.add_runs("syncthing_lookup_rate", "/s", Better::Higher, looked_up);
    Ok(())
}

fn certificate_of(folder: &Path, number: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let (certificate, key) = certificate(folder, &format!("device{number}"))?;
    Ok((fs::read(certificate)?, fs::read(key)?))
}

/// Makes a certificate that its own key signed.
fn certificate(folder: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch"]);
    openssl.args(["-subj", "/CN=syncthing", "-days", "30", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    let made = openssl.stdin(Stdio::null()).output().context("openssl: install it")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok((certificate, key))
}

/// A device's id: base32 (RFC 4648) of the certificate's hash, without check digits and padding.
fn device(hash: &[u8; 32]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |place: usize| hash.get(place / 8).is_some_and(|byte| byte >> (7 - place % 8) & 1 == 1);
    let digit = |first: usize| (first..first + 5).fold(0, |value, place| value << 1 | usize::from(bit(place)));
    (0..256).step_by(5).map(|first| char::from(DIGITS[digit(first)])).collect()
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn a_device_is_its_hash_in_base32() {
        assert_eq!(device(&[0; 32]), "A".repeat(52));
        let mut hash = [0; 32];
        hash[..5].copy_from_slice(b"fooba");
        assert!(device(&hash).starts_with("MZXW6YTB"), "RFC 4648 section 10");
    }
}
