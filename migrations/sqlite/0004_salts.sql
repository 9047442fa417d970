-- For hashes of systems that keep the salt in a column of its own (Payload, many in-house ones).
ALTER TABLE users ADD COLUMN password_salt TEXT;
