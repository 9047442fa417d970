-- "Port": tells a file of ours from another application's before anything is written to it.
PRAGMA application_id = 1349481076;

-- AUTOINCREMENT: the id of a removed user is never given to another one, since old tokens carry it.
-- NOCASE folds ASCII only; names are stored in Unicode NFC. Times are Unix seconds.
CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    username      TEXT    NOT NULL COLLATE NOCASE UNIQUE,
    password_hash TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    name          TEXT,
    email         TEXT,
    disabled      INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at    INTEGER NOT NULL DEFAULT (unixepoch()),
    changed_at    INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT;
