-- What is remembered of failed logins, so that a restart forgives nothing. An empty `account` or
-- `network` stands for any. Accounts are names as `users` compares them, whether there is such a user or
-- not; networks are an IPv4 address, an IPv6 /64, or what was banned. Times are Unix milliseconds.
CREATE TABLE login_failures (
    account      TEXT    NOT NULL,
    network      TEXT    NOT NULL,
    failures     INTEGER NOT NULL,
    counted_at   INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    PRIMARY KEY (account, network)
) STRICT, WITHOUT ROWID;

-- From where an account's owner has signed in.
CREATE TABLE login_networks (
    account TEXT    NOT NULL,
    network TEXT    NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (account, network)
) STRICT, WITHOUT ROWID;

-- What `ban add` has locked out; one of `account` and `network` is empty. No `ends_at`: for good.
CREATE TABLE login_bans (
    account TEXT    NOT NULL,
    network TEXT    NOT NULL,
    since   INTEGER NOT NULL,
    ends_at INTEGER,
    PRIMARY KEY (account, network)
) STRICT, WITHOUT ROWID;

-- What `ban` was told to do, in order, for gateways that run meanwhile. AUTOINCREMENT: an id that was
-- seen never comes again.
CREATE TABLE login_orders (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT    NOT NULL,
    network TEXT    NOT NULL,
    lifted  INTEGER NOT NULL CHECK (lifted IN (0, 1)),
    at      INTEGER NOT NULL
) STRICT;
