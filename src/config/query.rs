//! `users.query`: a `SELECT` of the operator's with `:username` in it, for the database that it goes to.
//!
//! [`UserQuery::compile`] puts the database's own placeholder in the place of `:username` (`?`, `$1`), so that the name is bound and
//! never becomes a part of the statement. It knows texts, quoted names and comments, which it leaves alone,
//! and refuses what two databases could read in two ways. Not here: whether the database understands it,
//! and which columns it answers with, which is for `check --network` and the store.

use std::fmt;

/// Which database's rules of quoting hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

/// A query as the database is sent it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserQuery {
    /// One statement, without a semicolon.
    pub sql: String,
    /// How often the name is bound.
    pub parameters: usize,
}

/// Why a text is no query. `Display` is the predicate of a sentence whose subject is the query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QueryError {
    /// It begins with another word than `SELECT` or `WITH`.
    NotASelect,
    /// `:username` is nowhere, or in quotes or comments alone.
    NoUsername,
    /// Another name after a colon.
    UnknownParameter,
    /// A placeholder of the database's own.
    Placeholder,
    /// Something after a semicolon.
    SecondStatement,
    /// A quoted text, a quoted name or a comment without an end.
    Unterminated,
    /// A backslash before the quote that would end a text: whether it does depends on the database's settings.
    Backslash,
    /// A control character other than a line break or tab.
    Control,
    /// More than [`MAX_BYTES`].
    TooLong,
}

/// The longest query, in bytes.
pub const MAX_BYTES: usize = 16 * 1024;

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueryError::NotASelect => "must begin with SELECT or WITH: the gateway only reads",
            QueryError::NoUsername => {
                "must hold :username, outside quotes, where the name of the user goes: … WHERE login = :username"
            }
            QueryError::UnknownParameter => "has a parameter other than :username",
            QueryError::Placeholder => {
                "has a placeholder of the database's own: write :username where the name goes"
            }
            QueryError::SecondStatement => "must be one statement: something follows the semicolon",
            QueryError::Unterminated => "has a quoted text or a comment without an end",
            QueryError::Backslash => {
                "has a backslash before a quote, which databases read in two ways: write the quote twice"
            }
            QueryError::Control => "holds a control character",
            QueryError::TooLong => "is longer than 16 KiB",
        })
    }
}

impl UserQuery {
    /// Reads what the file says.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn compile(text: &str, dialect: Dialect) -> Result<UserQuery, QueryError> {
        if text.len() > MAX_BYTES {
            return Err(QueryError::TooLong);
        }
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(QueryError::Control);
        }
        let mut reader =
            Reader { rest: text, dialect, sql: String::with_capacity(text.len()), parameters: 0 };
        reader.statement()?;
        if reader.parameters == 0 {
            return Err(QueryError::NoUsername);
        }
        Ok(UserQuery { sql: reader.sql.trim().to_owned(), parameters: reader.parameters })
    }
}

struct Reader<'t> {
    rest: &'t str,
    dialect: Dialect,
    sql: String,
    parameters: usize,
}

impl Reader<'_> {
    fn statement(&mut self) -> Result<(), QueryError> {
        // Whether the first word has been seen: it must be there before anything else is.
        let mut begun = false;
        while let Some(c) = self.rest.chars().next() {
            if self.comment()? {
                continue;
            }
            if c.is_whitespace() {
                self.take(c.len_utf8());
                continue;
            }
            if !begun {
                let word = self.word_at(0);
                if !["select", "with"].iter().any(|known| word.eq_ignore_ascii_case(known)) {
                    return Err(QueryError::NotASelect);
                }
                begun = true;
            }
            match c {
                ';' => return self.nothing_more(),
                '\'' => self.quoted('\'')?,
                '"' => self.quoted('"')?,
                '`' if self.dialect != Dialect::Postgres => self.quoted('`')?,
                '[' if self.dialect == Dialect::Sqlite => self.until("]")?,
                '$' if self.dialect == Dialect::Postgres => self.dollar()?,
                '$' | '@' if self.dialect == Dialect::Sqlite => return Err(QueryError::Placeholder),
                '?' if self.dialect != Dialect::Postgres => return Err(QueryError::Placeholder),
                ':' => self.colon()?,
                _ if is_word(c) => self.take(self.word_at(0).len()),
                _ => self.take(c.len_utf8()),
            }
        }
        if begun { Ok(()) } else { Err(QueryError::NotASelect) }
    }

    /// Takes over `bytes` bytes as they are.
    fn take(&mut self, bytes: usize) {
        let (taken, rest) = self.rest.split_at(bytes);
        self.sql.push_str(taken);
        self.rest = rest;
    }

    /// The word that begins `from` bytes further on; empty where none does.
    fn word_at(&self, from: usize) -> &str {
        let text = &self.rest[from..];
        // `$` goes on a name in PostgreSQL and MySQL, it does not begin one.
        let end = text.find(|c: char| !is_word(c) && c != '$').unwrap_or(text.len());
        if text.starts_with('$') { "" } else { &text[..end] }
    }

    /// Leaves a comment out, for a blank; false where none begins here.
    fn comment(&mut self) -> Result<bool, QueryError> {
        let after_dashes = self.rest.strip_prefix("--");
        let is_line = match self.dialect {
            // MySQL takes `a--1` for a sum.
            Dialect::MySql => {
                self.rest.starts_with('#')
                    || after_dashes.is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
            }
            _ => after_dashes.is_some(),
        };
        if is_line {
            let end = self.rest.find(['\n', '\r']).unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
        } else if self.rest.starts_with("/*") {
            let nested = self.dialect == Dialect::Postgres;
            let (mut depth, mut at) = (1, 2);
            while depth > 0 {
                let rest = &self.rest[at..];
                if rest.starts_with("*/") {
                    (depth, at) = (depth - 1, at + 2);
                } else if nested && rest.starts_with("/*") {
                    (depth, at) = (depth + 1, at + 2);
                } else {
                    at += rest.chars().next().ok_or(QueryError::Unterminated)?.len_utf8();
                }
            }
            // MySQL runs what stands in `/*! … */`; it is left out like any comment.
            self.rest = &self.rest[at..];
        } else {
            return Ok(false);
        }
        self.sql.push(' ');
        Ok(true)
    }

    /// Texts and names in quotes; a quote that stands twice is one of the text.
    fn quoted(&mut self, quote: char) -> Result<(), QueryError> {
        let mut at = 1;
        loop {
            let end = self.rest[at..].find(quote).ok_or(QueryError::Unterminated)? + at;
            if self.rest[at..end].ends_with('\\') {
                return Err(QueryError::Backslash);
            }
            at = end + 1;
            if !self.rest[at..].starts_with(quote) {
                self.take(at);
                return Ok(());
            }
            at += 1;
        }
    }

    fn until(&mut self, end: &str) -> Result<(), QueryError> {
        let at = self.rest.find(end).ok_or(QueryError::Unterminated)?;
        self.take(at + end.len());
        Ok(())
    }

    /// `$tag$ … $tag$`; `$1` is a placeholder.
    fn dollar(&mut self) -> Result<(), QueryError> {
        let tag: usize = self.rest[1..].find(|c: char| !is_word(c)).unwrap_or(self.rest.len() - 1);
        if !self.rest[1 + tag..].starts_with('$') || self.rest[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            return Err(QueryError::Placeholder);
        }
        let fence = self.rest[..tag + 2].to_owned();
        let end = self.rest[fence.len()..].find(&fence).ok_or(QueryError::Unterminated)?;
        self.take(fence.len() * 2 + end);
        Ok(())
    }

    /// `:username`, or a colon that means something else: `a::text`, `:=`, `x[1:2]`.
    fn colon(&mut self) -> Result<(), QueryError> {
        if self.rest.starts_with("::") || self.rest.starts_with(":=") {
            self.take(2);
            return Ok(());
        }
        match self.word_at(1) {
            "username" => {
                self.parameters += 1;
                match self.dialect {
                    // Each its own number: one may be compared with columns of several types.
                    Dialect::Postgres => self.sql.push_str(&format!("${}", self.parameters)),
                    Dialect::Sqlite | Dialect::MySql => self.sql.push('?'),
                }
                self.rest = &self.rest[":username".len()..];
                Ok(())
            }
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                Err(QueryError::UnknownParameter)
            }
            _ if self.dialect == Dialect::Postgres => {
                self.take(1);
                Ok(())
            }
            _ => Err(QueryError::Placeholder),
        }
    }

    /// After the semicolon.
    fn nothing_more(&mut self) -> Result<(), QueryError> {
        self.rest = &self.rest[1..];
        let length = self.sql.len();
        while let Some(c) = self.rest.chars().next() {
            if c.is_whitespace() {
                self.rest = &self.rest[c.len_utf8()..];
            } else if !self.comment()? {
                return Err(QueryError::SecondStatement);
            }
        }
        self.sql.truncate(length);
        Ok(())
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dialect::{MySql, Postgres, Sqlite};
    use proptest::prelude::*;

    #[test]
    fn the_name_is_bound_wherever_it_stands_outside_quotes_and_comments() {
        for (text, dialect, sql, parameters) in [
            ("SELECT 1 WHERE a = :username", Sqlite, "SELECT 1 WHERE a = ?", 1),
            ("select 1 where a=:username or b=:username;", Postgres, "select 1 where a=$1 or b=$2", 2),
            ("SELECT 1 WHERE a = :username ; -- done", MySql, "SELECT 1 WHERE a = ?", 1),
            (
                "SELECT ':username', \":username\", id::text FROM u WHERE a = lower(:username)",
                Postgres,
                "SELECT ':username', \":username\", id::text FROM u WHERE a = lower($1)",
                1,
            ),
            ("SELECT 'it''s :username' WHERE a=:username", MySql, "SELECT 'it''s :username' WHERE a=?", 1),
            ("SELECT `:username` WHERE a=:username", MySql, "SELECT `:username` WHERE a=?", 1),
            ("SELECT [:username] WHERE a=:username", Sqlite, "SELECT [:username] WHERE a=?", 1),
            ("SELECT $$:username$$ WHERE a=:username", Postgres, "SELECT $$:username$$ WHERE a=$1", 1),
            (
                "SELECT $q$ $$:username $q$ WHERE a=:username",
                Postgres,
                "SELECT $q$ $$:username $q$ WHERE a=$1",
                1,
            ),
            ("SELECT 1 -- :username\nWHERE a=:username", Sqlite, "SELECT 1  \nWHERE a=?", 1),
            (
                "/* :username */ WITH x AS (SELECT 1) SELECT :username",
                MySql,
                "WITH x AS (SELECT 1) SELECT ?",
                1,
            ),
            ("SELECT 1 /* /* :username */ */ WHERE a=:username", Postgres, "SELECT 1   WHERE a=$1", 1),
            ("SELECT 2--1 WHERE a=:username # x", MySql, "SELECT 2--1 WHERE a=?", 1),
            ("SELECT a ? 'k', b[1:2] WHERE c=:username", Postgres, "SELECT a ? 'k', b[1:2] WHERE c=$1", 1),
            ("SELECT a$1 WHERE c=:username", Postgres, "SELECT a$1 WHERE c=$1", 1),
            ("SELECT @@version WHERE c=:username", MySql, "SELECT @@version WHERE c=?", 1),
        ] {
            let is = UserQuery { sql: sql.to_owned(), parameters };
            assert_eq!(UserQuery::compile(text, dialect), Ok(is), "{text}");
        }
    }

    #[test]
    fn what_is_not_one_select_for_one_name_is_refused() {
        use QueryError::*;
        let long = format!("SELECT '{}' WHERE a=:username", "x".repeat(MAX_BYTES));
        for (text, dialect, why) in [
            ("", Sqlite, NotASelect),
            ("-- nothing", Sqlite, NotASelect),
            ("UPDATE u SET a = :username", Sqlite, NotASelect),
            ("selected :username", Sqlite, NotASelect),
            ("SELECT 1", Sqlite, NoUsername),
            ("SELECT ':username'", Sqlite, NoUsername),
            ("SELECT 1 -- :username", Sqlite, NoUsername),
            ("SELECT :name", Sqlite, UnknownParameter),
            ("SELECT :usernames", Sqlite, UnknownParameter),
            ("SELECT :USERNAME", Sqlite, UnknownParameter),
            ("SELECT ?, :username", Sqlite, Placeholder),
            ("SELECT ?, :username", MySql, Placeholder),
            ("SELECT $1, :username", Postgres, Placeholder),
            ("SELECT $a, :username", Sqlite, Placeholder),
            ("SELECT @a, :username", Sqlite, Placeholder),
            ("SELECT :1, :username", Sqlite, Placeholder),
            ("SELECT :username; DELETE FROM u", Sqlite, SecondStatement),
            ("SELECT :username;;", Sqlite, SecondStatement),
            ("SELECT ':username", Sqlite, Unterminated),
            ("SELECT 'a'' = :username", Sqlite, Unterminated),
            ("SELECT :username /* ", Sqlite, Unterminated),
            ("SELECT :username, $x$ a", Postgres, Unterminated),
            (r"SELECT 'a\' OR b = :username --'", MySql, Backslash),
            ("SELECT \u{0}:username", Sqlite, Control),
            (long.as_str(), Sqlite, TooLong),
        ] {
            assert_eq!(UserQuery::compile(text, dialect), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_never_with_the_parameter_left_in(
            text in "(SELECT|WITH) ([a-z:?$'\"`\\[\\]/*#;\\\\ \n-]|:username|\\$\\$){0,40}",
        ) {
            for dialect in [Sqlite, Postgres, MySql] {
                if let Ok(query) = UserQuery::compile(&text, dialect) {
                    let placeholders = query.sql.matches(['?', '$']).count();
                    prop_assert!(query.parameters > 0 && placeholders >= query.parameters);
                }
            }
        }
    }
}
