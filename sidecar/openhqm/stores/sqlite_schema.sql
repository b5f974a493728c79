-- Version 1 of the store's file. A later version is a further script, applied to this one in order.
--
-- records   one narrow row each, rewritten by every transition but the lease
-- requests  the request while it may still be sent or looked at: written once, deleted when done. While a broker
--           carries it there is no envelope, and no row unless there is a callback
-- answers   what a record ended with, written once: the note of its last attempt, the answer if there is one
-- timers    when to look at a run of records, whatever has become of them since
-- leases    which records are leased, and since when. A lease changes nothing else: until it ends, the
--           record's own row is as it was before, its place ready, its epoch the one before
-- lanes     figures of a lane, changed in the transaction that changes the records
--
-- state: queued 0, running 1, retrying 2, done 3, failed 4, cancelled 5, expired 6
-- place: where an unfinished record waits, and so which index finds it
--        carried by a broker -2, to be published -1, ready 0, delayed 1, behind its key 2, final 4
-- wake_at: when a waiting record is due or expires, or a final one is deleted; whoever sets it sets a
--        timer too. Of a leased record it means nothing: when a lease runs out is known in memory, for
--        the one process that owns this file holds them all
-- timers.place: where its records wait. Those that a broker has, or is to have, have theirs in common with the
--        ready ones: they wake at their deadline alone
-- request_bytes: of what was accepted, 0 while a broker carries it; a final record that is not failed has
--        dropped them
-- room: as many bytes as the state and the times of an ending take. They replace it, so that the row of an
--        ordinary record keeps its size: a row that grows splits its page, for pages are filled in order

CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    lane INTEGER NOT NULL,
    state INTEGER NOT NULL,
    place INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    claims INTEGER NOT NULL DEFAULT 0,
    max_claims INTEGER NOT NULL,
    repeat INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    accepted_at REAL NOT NULL,
    ready_at REAL NOT NULL,
    deadline REAL,
    started_at REAL,
    finished_at REAL,
    wake_at REAL,
    key BLOB,
    scope BLOB,
    fingerprint BLOB,
    parent BLOB,
    replay_of BLOB,
    replayed_as BLOB,
    request_bytes INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    history BLOB NOT NULL DEFAULT x'',
    room BLOB DEFAULT x'0000000000000000000000000000000000000000000000000000'
);
CREATE UNIQUE INDEX records_by_id ON records (id);
CREATE INDEX records_ready ON records (lane, priority DESC, seq) WHERE place = 0;
CREATE INDEX records_publishing ON records (seq) WHERE place = -1;
CREATE INDEX records_by_key ON records (lane, key, seq) WHERE key IS NOT NULL AND place < 4;
CREATE UNIQUE INDEX records_by_scope ON records (scope) WHERE scope IS NOT NULL;
CREATE INDEX records_dead ON records (lane, seq) WHERE state = 4;

CREATE TABLE requests (
    seq INTEGER PRIMARY KEY,
    envelope BLOB,
    body BLOB,
    blob TEXT,
    blob_bytes INTEGER,
    callback BLOB
);

CREATE INDEX requests_by_blob ON requests (blob) WHERE blob IS NOT NULL;

CREATE TABLE answers (
    seq INTEGER PRIMARY KEY,
    note BLOB NOT NULL,
    head BLOB,
    body BLOB,
    blob TEXT,
    blob_bytes INTEGER
);

CREATE TABLE timers (
    place INTEGER NOT NULL,
    at REAL NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (place, at, first)
) WITHOUT ROWID;

CREATE TABLE leases (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL
);

CREATE TABLE lanes (
    lane INTEGER PRIMARY KEY,
    queued INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    retrying INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    replayed INTEGER NOT NULL DEFAULT 0,
    dead_letters INTEGER NOT NULL DEFAULT 0,
    ready INTEGER NOT NULL DEFAULT 0,
    publishing INTEGER NOT NULL DEFAULT 0,
    carried INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    stale INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0
);
INSERT INTO lanes (lane) VALUES (0), (1);
