-- What ended before its time. A key is 16 bytes that name a token, a login or a user and cannot be turned
-- back into one. `seq` rises with every change, so that another process reads what is new by it alone: a
-- row that changes is replaced. `generation` is NULL for a token or login that is over, else the mark on a
-- user. No token that a row is about can be valid from `until` on (Unix seconds).
CREATE TABLE ended (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    key        BLOB    NOT NULL UNIQUE CHECK (length(key) = 16),
    generation INTEGER,
    until      INTEGER NOT NULL
) STRICT;
CREATE INDEX ended_until ON ended (until);

-- Which token took the place of which. A successor is made again from what is here and its user's record:
-- the token itself is not kept. `rotated_at` is in milliseconds of Unix time, all else in seconds.
CREATE TABLE rotations (
    token      BLOB    NOT NULL PRIMARY KEY CHECK (length(token) = 16),
    family     BLOB    NOT NULL CHECK (length(family) = 16),
    jti        TEXT    NOT NULL,
    issued_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    rotated_at INTEGER NOT NULL,
    until      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX rotations_family ON rotations (family);
CREATE INDEX rotations_until ON rotations (until);
