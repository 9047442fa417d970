-- Users of another system's database who have signed in, as they were then: what changes over there is found by looking
-- at them again. `subject` is a key as in `ended`; `password` is 16 bytes of a digest that tells another hash from the
-- same one; nobody has a session that lasts beyond `until` (Unix seconds).
CREATE TABLE seen_users (
    subject  BLOB    NOT NULL PRIMARY KEY CHECK (length(subject) = 16),
    username TEXT    NOT NULL,
    role     TEXT    NOT NULL,
    password BLOB    NOT NULL CHECK (length(password) = 16),
    until    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_users_until ON seen_users (until);
