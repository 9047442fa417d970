//! Roles: the configured names and their order.
//!
//! A role is its place in the operator's list, lowest first. Nothing else about a role exists: what it
//! may do is what the rules say. Not here: who has which role (`token`, `store`).

use std::fmt;

/// Words that `allow` reads as something other than a role.
pub const RESERVED: [&str; 3] = ["public", "authenticated", "deny"];

/// The largest number of roles that a configuration may name.
pub const MAX_ROLES: usize = 200;

/// A role's rank, 0 the lowest. Only [`Roles`] makes one, so it always names a configured role.
/// Never outlives its snapshot: claims and caches hold the role's name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Hash)]
pub struct Role(u8);

/// The configured roles, lowest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Roles {
    names: Vec<String>,
}

/// Why a list of role names is not a list of roles.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RolesError {
    /// More than [`MAX_ROLES`].
    TooMany,
    /// The same name twice.
    Duplicate(String),
    /// One of [`RESERVED`].
    Reserved(String),
}

impl fmt::Display for RolesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "more than {MAX_ROLES} roles"),
            Self::Duplicate(name) => write!(f, "the role '{name}' is listed twice"),
            Self::Reserved(name) => write!(f, "'{name}' is a reserved word and cannot name a role"),
        }
    }
}

impl std::error::Error for RolesError {}

impl Roles {
    /// Takes the names from lowest to highest.
    ///
    /// # Errors
    /// A name twice, a reserved word, or more than [`MAX_ROLES`] names.
    pub fn new(names: Vec<String>) -> Result<Self, RolesError> {
        if names.len() > MAX_ROLES {
            return Err(RolesError::TooMany);
        }
        for (index, name) in names.iter().enumerate() {
            if RESERVED.contains(&name.as_str()) {
                return Err(RolesError::Reserved(name.clone()));
            }
            if names[..index].contains(name) {
                return Err(RolesError::Duplicate(name.clone()));
            }
        }
        Ok(Self { names })
    }

    /// The role of that name; names are compared exactly.
    pub fn find(&self, name: &str) -> Option<Role> {
        // A handful of short names: a scan beats a hash.
        let rank = self.names.iter().position(|known| known == name)?;
        Some(Role(u8::try_from(rank).expect("Roles::new bounds the count below 256")))
    }

    /// The name of a role of this list.
    pub fn name(&self, role: Role) -> &str {
        &self.names[usize::from(role.0)]
    }

    /// All names, lowest first.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// All roles, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        (0u8..).take(self.names.len()).map(Role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_name_is_a_higher_role() {
        let roles = Roles::new(vec!["Viewer".into(), "Editor".into()]).unwrap();
        assert!(roles.find("Viewer") < roles.find("Editor"));
        assert_eq!(roles.find("viewer"), None, "names are exact");
        assert_eq!(roles.name(roles.find("Editor").unwrap()), "Editor");
    }

    #[test]
    fn a_list_that_could_be_misread_is_refused() {
        for (names, error) in [
            (vec!["A", "A"], RolesError::Duplicate("A".into())),
            (vec!["public"], RolesError::Reserved("public".into())),
            (vec!["deny"], RolesError::Reserved("deny".into())),
        ] {
            let names = names.into_iter().map(str::to_owned).collect();
            assert_eq!(Roles::new(names), Err(error));
        }
        assert_eq!(Roles::new((0..201).map(|n| n.to_string()).collect()), Err(RolesError::TooMany));
    }
}
