-- The first schema, as it was; a test opens a database of it with today's program.
CREATE TABLE nodes (
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    sequence INTEGER NOT NULL,
    card BLOB,
    card_hash BLOB NOT NULL,
    listed INTEGER NOT NULL,
    sector TEXT NOT NULL,
    methods INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;
CREATE INDEX listed_nodes ON nodes (id) WHERE listed = 1 AND card IS NOT NULL;
CREATE INDEX ending_cards ON nodes (expires_at) WHERE card IS NOT NULL;
CREATE INDEX seen_nodes ON nodes (last_seen) WHERE card IS NOT NULL;
CREATE TABLE evidence (
    node BLOB NOT NULL, sequence INTEGER NOT NULL, held BLOB NOT NULL, offered BLOB NOT NULL, at INTEGER NOT NULL,
    UNIQUE (node, sequence)
) STRICT;
CREATE TABLE bans (node BLOB NOT NULL PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
PRAGMA user_version = 1;
