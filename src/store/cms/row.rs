//! From the rows that a query found to one user, or to what keeps them from being one.
//!
//! Nothing that a row holds is believed to be what it should be: a value may be NULL, of another type, too
//! long, or differ between two rows of one user. Pure.

use super::roles::{Roles, named_in};
use crate::store::{UnusableUser, UserId, UserRecord};
use crate::token::fits_identity;

/// The most rows that a user may have, one a role.
pub const MOST_ROWS: usize = 64;

/// The longest id, name, e-mail address and user name, in bytes.
const MOST_BYTES: usize = 255;

/// The longest hash or salt, in bytes; Payload's has 1024 digits.
const MOST_HASH_BYTES: usize = 4096;

/// The longest value of the role column, in bytes.
const MOST_ROLE_BYTES: usize = 64 * 1024;

/// The columns that a query must answer with, and those that it may.
pub const REQUIRED: [&str; 3] = ["id", "username", "password_hash"];
/// Required, too, unless there is a role for everybody.
pub const ROLE: &str = "role";
const OPTIONAL: [&str; 4] = ["name", "email", "disabled", "salt"];

/// One value, whatever type its column has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cell {
    /// NULL.
    Null,
    /// Any integer.
    Number(i128),
    /// A boolean.
    Switch(bool),
    /// A text.
    Text(String),
    /// Texts.
    List(Vec<String>),
    /// Bytes that are no text.
    NotText,
    /// Of a type that means nothing here, by its name.
    Unreadable(String),
}

impl Cell {
    /// A text, if the bytes are one.
    pub fn text(bytes: &[u8]) -> Cell {
        std::str::from_utf8(bytes).map_or(Cell::NotText, |text| Cell::Text(text.to_owned()))
    }

    /// As everybody writes it (RFC 9562 §4).
    pub fn uuid(bytes: [u8; 16]) -> Cell {
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Cell::Text(text)
    }
}

/// What is wrong with a query rather than with a user: nobody can log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ColumnProblem {
    /// It has to be there.
    Missing(&'static str),
    /// It is there twice.
    Twice(&'static str),
}

/// Whether a query has what it must have.
///
/// # Errors
/// The first column that is missing or there twice.
pub fn check_columns<'c>(
    columns: impl Iterator<Item = &'c str> + Clone,
    roles: &Roles,
) -> Result<(), ColumnProblem> {
    let role = (!roles.has_default()).then_some(ROLE);
    let count = |name: &str| columns.clone().filter(|column| column.eq_ignore_ascii_case(name)).count();
    if let Some(missing) = REQUIRED.into_iter().chain(role).find(|name| count(name) == 0) {
        return Err(ColumnProblem::Missing(missing));
    }
    let known = REQUIRED.into_iter().chain([ROLE]).chain(OPTIONAL);
    known.into_iter().find(|name| count(name) > 1).map_or(Ok(()), |twice| Err(ColumnProblem::Twice(twice)))
}

/// The user whose rows these are; `None` without a row.
///
/// # Errors
/// What is wrong with the query, or (inside) with the user.
pub fn user(
    rows: &[Vec<(String, Cell)>],
    roles: &Roles,
) -> Result<Result<Option<UserRecord>, UnusableUser>, ColumnProblem> {
    let Some(first) = rows.first() else { return Ok(Ok(None)) };
    check_columns(first.iter().map(|(name, _)| name.as_str()), roles)?;
    for (name, cell) in rows.iter().flatten() {
        let known = REQUIRED.into_iter().chain([ROLE]).chain(OPTIONAL).find(|known| known == name);
        if let (Some(name), Cell::Unreadable(kind)) = (known, cell) {
            return Ok(Err(UnusableUser::Type { column: name, kind: kind.clone() }));
        }
    }
    Ok(one_user(rows, roles).map(Some))
}

fn one_user(rows: &[Vec<(String, Cell)>], roles: &Roles) -> Result<UserRecord, UnusableUser> {
    if rows.len() > MOST_ROWS {
        return Err(UnusableUser::TooManyRows);
    }
    let first = Fields(&rows[0]);
    let id = first.id()?;
    let record = UserRecord {
        username: first.name_like("username")?,
        // NULL is a user without a password.
        password_hash: first.text("password_hash", MOST_HASH_BYTES)?.unwrap_or_default(),
        password_salt: first.text("salt", MOST_HASH_BYTES)?,
        role: String::new(),
        name: first.detail("name")?,
        email: first.detail("email")?,
        disabled: first.disabled(),
        created_at: 0,
        changed_at: 0,
        id,
    };
    let mut theirs = Vec::new();
    let mut disabled = false;
    for row in rows.iter().map(|row| Fields(row)) {
        if row.id()? != record.id {
            return Err(UnusableUser::Several);
        }
        for column in ["username", "password_hash", "salt"] {
            if row.get(column) != first.get(column) {
                return Err(UnusableUser::Contradiction { column });
            }
        }
        disabled |= row.disabled();
        theirs.extend(row.roles()?);
    }
    let role = roles.highest(&theirs).ok_or_else(|| UnusableUser::NoRole { theirs: theirs.join(", ") })?;
    Ok(UserRecord { role: role.to_owned(), disabled, ..record })
}

struct Fields<'r>(&'r [(String, Cell)]);

impl Fields<'_> {
    fn get(&self, column: &str) -> Option<&Cell> {
        self.0.iter().find(|(name, _)| name == column).map(|(_, cell)| cell)
    }

    /// A number or a short text.
    fn id(&self) -> Result<UserId, UnusableUser> {
        if let Some(Cell::Number(number)) = self.get("id")
            && let Ok(number) = i64::try_from(*number)
        {
            return Ok(UserId::Number(number));
        }
        self.name_like("id").map(UserId::Text)
    }

    /// What somebody is known by: exactly as it stands there, or not at all.
    fn name_like(&self, column: &'static str) -> Result<String, UnusableUser> {
        let text = self.line(column)?.filter(|text| !text.is_empty());
        let text = text.ok_or(UnusableUser::Value { column, what: "is NULL or empty" })?;
        if fits_identity(&text) {
            Ok(text)
        } else {
            Err(UnusableUser::Value { column, what: "begins or ends with a blank" })
        }
    }

    /// What is only told on: many a CMS has an empty text where another has NULL.
    fn detail(&self, column: &'static str) -> Result<Option<String>, UnusableUser> {
        let text = self.line(column)?;
        Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// Text of at most `most` bytes.
    fn text(&self, column: &'static str, most: usize) -> Result<Option<String>, UnusableUser> {
        let text = match self.get(column) {
            None | Some(Cell::Null) => return Ok(None),
            Some(Cell::Text(text)) => text.clone(),
            Some(Cell::Number(number)) => number.to_string(),
            Some(Cell::Switch(switch)) => switch.to_string(),
            Some(Cell::List(_)) => return Err(UnusableUser::Value { column, what: "is a list" }),
            Some(Cell::NotText | Cell::Unreadable(_)) => {
                return Err(UnusableUser::Value { column, what: "is no UTF-8 text" });
            }
        };
        if text.len() > most {
            return Err(UnusableUser::Value { column, what: "is too long" });
        }
        Ok(Some(text))
    }

    /// Text that goes into a token, a header and a log line.
    fn line(&self, column: &'static str) -> Result<Option<String>, UnusableUser> {
        let text = self.text(column, MOST_BYTES)?;
        if text.as_ref().is_some_and(|text| text.chars().any(char::is_control)) {
            return Err(UnusableUser::Value { column, what: "holds a control character" });
        }
        Ok(text)
    }

    /// Whatever is not plainly "no" keeps a user out.
    fn disabled(&self) -> bool {
        match self.get("disabled") {
            None | Some(Cell::Number(0) | Cell::Switch(false)) => false,
            Some(Cell::Text(text)) => {
                !["0", "f", "false", "n", "no"].iter().any(|no| text.eq_ignore_ascii_case(no))
            }
            Some(_) => true,
        }
    }

    fn roles(&self) -> Result<Vec<String>, UnusableUser> {
        match self.get(ROLE) {
            Some(Cell::List(roles)) => Ok(roles.clone()),
            _ => Ok(self.text(ROLE, MOST_ROLE_BYTES)?.map_or_else(Vec::new, |role| named_in(&role))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles() -> Roles {
        Roles::new(&["Viewer".into(), "Editor".into()], None, None)
    }

    fn text(text: &str) -> Cell {
        Cell::Text(text.into())
    }

    fn row(changes: &[(&str, Cell)]) -> Vec<(String, Cell)> {
        let mut row: Vec<(String, Cell)> = [
            ("id", Cell::Number(7)),
            ("username", text("vera")),
            ("password_hash", text("$2y$10$x")),
            ("role", text("Viewer")),
        ]
        .map(|(name, cell)| (name.to_owned(), cell))
        .into();
        for (name, cell) in changes {
            row.retain(|(known, _)| known != name);
            row.push(((*name).to_owned(), cell.clone()));
        }
        row
    }

    fn read(rows: &[Vec<(String, Cell)>]) -> Result<UserRecord, UnusableUser> {
        user(rows, &roles()).unwrap().map(|found| found.unwrap())
    }

    #[test]
    fn several_rows_of_one_user_are_one_user_with_their_highest_role() {
        let found =
            read(&[row(&[]), row(&[("role", text("Editor"))]), row(&[("role", text("other"))])]).unwrap();
        assert_eq!(
            (found.id, found.username.as_str(), found.role.as_str()),
            (UserId::Number(7), "vera", "Editor")
        );
        assert_eq!(user(&[], &roles()), Ok(Ok(None)));
        let one_is_blocked = [row(&[("disabled", Cell::Number(0))]), row(&[("disabled", Cell::Number(1))])];
        assert!(read(&one_is_blocked).unwrap().disabled);
    }

    #[test]
    fn rows_that_are_no_user_are_refused_with_what_is_wrong() {
        use UnusableUser::*;
        let long = text(&"x".repeat(5000));
        let value = |column, what| Value { column, what };
        for (rows, why) in [
            (vec![row(&[]), row(&[("id", Cell::Number(8))])], Several),
            (
                vec![row(&[]), row(&[("password_hash", text("other"))])],
                Contradiction { column: "password_hash" },
            ),
            (vec![row(&[]), row(&[("username", text("Vera"))])], Contradiction { column: "username" }),
            (vec![row(&[]); MOST_ROWS + 1], TooManyRows),
            (vec![row(&[("id", Cell::Null)])], value("id", "is NULL or empty")),
            (vec![row(&[("id", text(""))])], value("id", "is NULL or empty")),
            (vec![row(&[("username", Cell::Null)])], value("username", "is NULL or empty")),
            (vec![row(&[("username", text("vera "))])], value("username", "begins or ends with a blank")),
            (vec![row(&[("username", text("ve\nra"))])], value("username", "holds a control character")),
            (vec![row(&[("username", Cell::NotText)])], value("username", "is no UTF-8 text")),
            // In SQLite, and where a column is NULL for most, one user's and nobody else's.
            (
                vec![row(&[("name", Cell::Unreadable("REAL".into()))])],
                Type { column: "name", kind: "REAL".into() },
            ),
            (vec![row(&[("password_hash", long.clone())])], value("password_hash", "is too long")),
            (vec![row(&[("name", long.clone())])], value("name", "is too long")),
            (vec![row(&[("role", Cell::Null)])], NoRole { theirs: String::new() }),
            (vec![row(&[("role", text("root"))])], NoRole { theirs: "root".into() }),
        ] {
            assert_eq!(read(&rows), Err(why));
        }
    }

    #[test]
    fn an_empty_detail_is_none() {
        let found = read(&[row(&[("name", text(" Vera ")), ("email", text(""))])]).unwrap();
        assert_eq!((found.name.as_deref(), found.email), (Some("Vera"), None));
    }

    #[test]
    fn ids_of_every_kind_are_ids() {
        for (cell, id) in [
            (Cell::Number(-3), UserId::Number(-3)),
            (Cell::Number(i128::from(u64::MAX)), UserId::Text("18446744073709551615".into())),
            (text("ck9x"), UserId::Text("ck9x".into())),
            (Cell::uuid([0xab; 16]), UserId::Text("abababab-abab-abab-abab-abababababab".into())),
        ] {
            assert_eq!(read(&[row(&[("id", cell)])]).unwrap().id, id);
        }
    }

    #[test]
    fn only_a_plain_no_leaves_a_user_enabled() {
        for (cell, disabled) in [
            (Cell::Number(0), false),
            (Cell::Switch(false), false),
            (text("0"), false),
            (text("False"), false),
            (Cell::Number(2), true),
            (Cell::Switch(true), true),
            (text(""), true),
            (text("blocked"), true),
            (Cell::Null, true),
        ] {
            assert_eq!(read(&[row(&[("disabled", cell.clone())])]).unwrap().disabled, disabled, "{cell:?}");
        }
    }

    #[test]
    fn a_query_without_a_column_or_with_one_twice_is_the_querys_fault() {
        let without =
            |name: &str| row(&[]).into_iter().filter(|(known, _)| known != name).collect::<Vec<_>>();
        for column in ["id", "username", "password_hash", "role"] {
            assert_eq!(user(&[without(column)], &roles()), Err(ColumnProblem::Missing(column)));
        }
        let everybody = Roles::new(&["Viewer".into()], None, Some("Viewer"));
        assert!(user(&[without("role")], &everybody).unwrap().is_ok());
        let mut twice = row(&[]);
        twice.push(("id".into(), Cell::Number(8)));
        assert_eq!(user(&[twice], &roles()), Err(ColumnProblem::Twice("id")));
    }
}
