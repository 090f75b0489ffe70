//! Signatures of both sides of sessions (`audited` mode): lasting proof of contact, kept for the operator to show.

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use rusqlite::{Connection, params};

use super::links::{millis, node_id};
use super::{Result, StoreError};
use crate::p2p::ports::SignedSession;

/// Sessions of one peer that are kept, the newest: ten days of one an hour, 100 KiB.
pub(crate) const KEPT_PROOFS: usize = 256;

/// Keeps one; the oldest of the same peer makes room. What comes is the newest by its time, too, wherever the clock has been set to: it
/// would make room for itself otherwise, and its keeping have been reported.
pub(crate) fn put(connection: &Connection, signed: &SignedSession) -> Result<()> {
    let sql = "INSERT INTO session_proof (hash, peer, link_id, initiator, responder, signed_at)
               VALUES (?1, ?2, ?3, ?4, ?5,
                       max(?6, (SELECT coalesce(max(signed_at), -1) + 1 FROM session_proof WHERE peer = ?2)))
               ON CONFLICT (hash) DO NOTHING";
    connection.prepare_cached(sql)?.execute(params![
        signed.hash,
        signed.peer.as_bytes(),
        signed.link.as_bytes(),
        &signed.initiator[..],
        &signed.responder[..],
        millis(signed.at),
    ])?;
    let sql = "DELETE FROM session_proof WHERE peer = ?1 AND hash NOT IN
               (SELECT hash FROM session_proof WHERE peer = ?1 ORDER BY signed_at DESC, hash LIMIT ?2)";
    connection.prepare_cached(sql)?.execute(params![signed.peer.as_bytes(), KEPT_PROOFS as i64])?;
    Ok(())
}

/// Those of one peer, newest first.
pub(crate) fn of_peer(connection: &Connection, peer: &NodeId) -> Result<Vec<SignedSession>> {
    let sql = "SELECT hash, peer, link_id, initiator, responder, signed_at FROM session_proof
               WHERE peer = ?1 ORDER BY signed_at DESC, hash";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([peer.as_bytes()], |row| {
        let blob = |column| row.get::<_, Vec<u8>>(column);
        Ok(node_id(row, 1).and_then(|peer| {
            Some(SignedSession {
                hash: row.get(0).ok()?,
                peer,
                link: LinkId::from_bytes(row.get(2).ok()?),
                initiator: blob(3).ok()?.into(),
                responder: blob(4).ok()?.into(),
                at: UnixMillis(row.get::<_, i64>(5).ok()?.cast_unsigned()),
            })
        }))
    })?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("session_proof"))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use bytes::Bytes;

    use super::super::schema;
    use super::*;

    fn signed(peer: u8, number: u64) -> SignedSession {
        let mut hash = [peer; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        SignedSession {
            link: LinkId::from_bytes([1; 16]),
            peer: NodeId::from_bytes([peer; 32]),
            hash,
            initiator: Bytes::from_static(b"one"),
            responder: Bytes::from_static(b"other"),
            at: UnixMillis(1_000 + number),
        }
    }

    #[test]
    fn the_newest_of_each_peer_are_kept_and_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open_in_memory().unwrap();
        schema::migrate(&connection, folder.path()).unwrap();
        put(&connection, &signed(2, 0)).unwrap();
        for number in 0..=KEPT_PROOFS as u64 {
            put(&connection, &signed(1, number)).unwrap();
        }
        put(&connection, &signed(1, 9)).unwrap();
        let kept = of_peer(&connection, &NodeId::from_bytes([1; 32])).unwrap();
        assert_eq!(kept.len(), KEPT_PROOFS, "the oldest has made room");
        let expected: Vec<_> = (1..=KEPT_PROOFS as u64).rev().map(|number| signed(1, number)).collect();
        assert_eq!(kept, expected);
        assert_eq!(
            of_peer(&connection, &NodeId::from_bytes([2; 32])).unwrap(),
            [signed(2, 0)],
            "another's are its own"
        );
        assert!(of_peer(&connection, &NodeId::from_bytes([3; 32])).unwrap().is_empty());
    }

    #[test]
    fn what_comes_after_the_clock_was_set_back_is_the_newest_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open_in_memory().unwrap();
        schema::migrate(&connection, folder.path()).unwrap();
        for number in 0..KEPT_PROOFS as u64 {
            put(&connection, &signed(1, number)).unwrap();
        }
        for late in [900, 901] {
            let back = SignedSession { at: UnixMillis(5), ..signed(1, late) };
            put(&connection, &back).unwrap();
            let kept = of_peer(&connection, &back.peer).unwrap();
            assert_eq!((kept.len(), kept[0].hash), (KEPT_PROOFS, back.hash));
            assert_eq!(kept[0].at, UnixMillis(kept[1].at.0 + 1), "a moment after the newest before it");
        }
    }
}
