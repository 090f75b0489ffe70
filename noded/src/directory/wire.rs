//! The directory's JSON as this client writes and reads it (its OpenAPI document is the reference), and the one form of
//! HTTP date that a server sends. Fields that this client does not need are not named.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use openred_proto::error::WireError;
use openred_proto::id::NodeId;
use openred_proto::log::{Hash, PROOF_HASHES};
use serde::{Deserialize, Serialize};

use super::DirectoryError;
use super::log::Place;
use super::stream::Kind;

#[derive(Serialize)]
pub(super) struct RegisterBody {
    pub(super) card: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) work: Option<WorkBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) invite: Option<String>,
}

#[derive(Serialize)]
pub(super) struct WorkBody {
    pub(super) time: u64,
    pub(super) nonce: u64,
}

#[derive(Deserialize)]
pub(super) struct Registered {
    #[serde(default)]
    pub(super) outcome: String,
    pub(super) announce_after_seconds: u64,
}

#[derive(Deserialize)]
pub(super) struct NodeView {
    pub(super) card: String,
    #[serde(default)]
    pub(super) fresh: bool,
    /// Older directories keep no log.
    #[serde(default)]
    pub(super) log: Option<LogPlace>,
}

#[derive(Deserialize)]
pub(super) struct LogPlace {
    index: u64,
    #[serde(default)]
    salt: Option<String>,
}

impl LogPlace {
    pub(super) fn place(self) -> Result<Place, WireError> {
        let malformed = WireError::Malformed { what: "place in the log", why: "the salt is not 16 bytes of hex" };
        let salt = self.salt.map(|text| {
            let mut salt = [0; 16];
            hex::decode_to_slice(text, &mut salt).map(|()| salt).map_err(|_| malformed)
        });
        Ok(Place { index: self.index, salt: salt.transpose()? })
    }
}

#[derive(Deserialize)]
pub(super) struct Sealed {
    pub(super) sealed: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct LogHead {
    pub(super) head: String,
}

#[derive(Deserialize)]
pub(super) struct LogProof {
    proof: Vec<String>,
}

impl LogProof {
    pub(super) fn hashes(self) -> Result<Vec<Hash>, DirectoryError> {
        let malformed = WireError::Malformed { what: "log proof", why: "not hashes in base64" };
        if self.proof.len() > PROOF_HASHES {
            return Err(WireError::TooLong { what: "log proof", limit: PROOF_HASHES }.into());
        }
        let hash = |text: &String| Hash::try_from(&decode("log proof", text).ok()?[..]).ok();
        Ok(self.proof.iter().map(hash).collect::<Option<_>>().ok_or(malformed)?)
    }
}

#[derive(Serialize)]
pub(super) struct OfferBody {
    pub(super) offer: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ReceiptBody {
    pub(super) receipt: String,
}

#[derive(Deserialize)]
pub(super) struct Delivery {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) from: String,
    pub(super) payload: String,
}

#[derive(Deserialize)]
pub(super) struct Received {
    pub(super) items: Vec<Delivery>,
    pub(super) cursor: u64,
}

impl Delivery {
    pub(super) fn sender(&self) -> Result<NodeId, WireError> {
        self.from.parse()
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(what: &'static str, text: &str) -> Result<Bytes, WireError> {
    STANDARD.decode(text).map(Bytes::from).map_err(|_| WireError::Malformed { what, why: "not base64" })
}

/// Seconds since the epoch of an IMF-fixdate (RFC 9110 §5.6.7), the only form that servers may send.
pub(super) fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.strip_suffix(" GMT")?.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil date, counted in years that begin in March, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::parse_date;

    #[test]
    fn dates_of_servers() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for bad in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
