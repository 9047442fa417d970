//! From the roles of a CMS to the gateway's one role of a user.
//!
//! A row says a role by its name, a number or a list: PHP's serialised array (WordPress' capabilities,
//! <https://www.php.net/serialize>), a JSON array, or an array of PostgreSQL. Of several the highest
//! counts. Bytes that are not exactly such a list are one role's name, which is then in no `role_map`.

use std::collections::HashMap;

/// The most roles that are taken from one list.
const MOST: usize = 256;

/// What roles of the CMS are here.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// A role of the CMS, and the place of ours in `ranked`.
    places: HashMap<String, usize>,
    ranked: Vec<String>,
    default: Option<String>,
}

impl Roles {
    /// `ranked` are the gateway's, lowest first; `map` leads from the CMS's to one of them, without it they have
    /// one name here and there; `default` is for users who have none there.
    #[must_use]
    pub fn new(ranked: &[String], map: Option<&[(String, String)]>, default: Option<&str>) -> Roles {
        let place = |role: &str| ranked.iter().position(|ranked| ranked == role);
        let places = match map {
            Some(map) => {
                map.iter().filter_map(|(theirs, ours)| Some((theirs.clone(), place(ours)?))).collect()
            }
            None => ranked.iter().cloned().zip(0..).collect(),
        };
        Roles { places, ranked: ranked.to_vec(), default: default.map(str::to_owned) }
    }

    /// Whether a user needs no role of the CMS.
    #[must_use]
    pub fn has_default(&self) -> bool {
        self.default.is_some()
    }

    /// The highest of ours among `theirs`, or the default one for nobody's; `None` where none of them counts here.
    #[must_use]
    pub fn highest(&self, theirs: &[String]) -> Option<&str> {
        if theirs.is_empty() {
            return self.default.as_deref();
        }
        let highest = theirs.iter().filter_map(|role| self.places.get(role)).max()?;
        Some(&self.ranked[*highest])
    }
}

/// The roles that a value of the role column names, in their order.
#[must_use]
pub fn named_in(value: &str) -> Vec<String> {
    let listed = match value.as_bytes() {
        [] => Some(Vec::new()),
        [b'a', b':', ..] => php_array(value),
        [b'[', ..] => serde_json::from_str::<Vec<String>>(value).ok().filter(|roles| roles.len() <= MOST),
        _ => None,
    };
    listed.unwrap_or_else(|| vec![value.to_owned()])
}

/// `a:1:{s:13:"administrator";b:1;}`, where the keys are what somebody may be and `b:0` takes one back, or
/// `a:1:{i:0;s:5:"admin";}`. `None` for anything else, a nested array for example.
fn php_array(value: &str) -> Option<Vec<String>> {
    let mut reader = Reader(value);
    reader.literal("a:")?;
    let count = reader.number(':')?;
    reader.literal("{")?;
    if count > MOST {
        return None;
    }
    let mut roles = Vec::new();
    for _ in 0..count {
        let role = if reader.0.starts_with("i:") {
            reader.literal("i:")?;
            reader.number(';')?;
            Some(reader.string()?)
        } else {
            let key = reader.string()?;
            reader.literal("b:")?;
            let granted = reader.number(';')?;
            match granted {
                0 => None,
                1 => Some(key),
                _ => return None,
            }
        };
        roles.extend(role);
    }
    reader.literal("}")?;
    reader.0.is_empty().then_some(roles)
}

struct Reader<'t>(&'t str);

impl<'t> Reader<'t> {
    fn literal(&mut self, text: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// Up to six digits and what ends them.
    fn number(&mut self, end: char) -> Option<usize> {
        let (digits, rest) = self.0.split_once(end)?;
        let plain = (1..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        self.0 = rest;
        plain.then(|| digits.parse().ok())?
    }

    /// `s:5:"admin";`, counted in bytes.
    fn string(&mut self) -> Option<String> {
        self.literal("s:")?;
        let length = self.number(':')?;
        self.literal("\"")?;
        // `get`: the count may end inside a character.
        let (text, rest) = (self.0.get(..length)?, self.0.get(length..)?);
        self.0 = rest;
        self.literal("\";")?;
        Some(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_names_one_role_or_a_list_of_them() {
        for (value, is) in [
            ("editor", vec!["editor"]),
            ("", vec![]),
            ("1", vec!["1"]),
            (r#"a:1:{s:13:"administrator";b:1;}"#, vec!["administrator"]),
            (r#"a:2:{s:6:"author";b:1;s:6:"editor";b:0;}"#, vec!["author"]),
            (r#"a:0:{}"#, vec![]),
            (r#"a:2:{i:0;s:10:"ROLE_ADMIN";i:1;s:9:"ROLE_USER";}"#, vec!["ROLE_ADMIN", "ROLE_USER"]),
            (r#"a:1:{s:6:"r\u{e9}d";b:1;}"#, vec![r#"a:1:{s:6:"r\u{e9}d";b:1;}"#]),
            ("a:1:{s:5:\"ré\";d\";b:1;}", vec!["a:1:{s:5:\"ré\";d\";b:1;}"]),
            (r#"["ROLE_ADMIN","ROLE_USER"]"#, vec!["ROLE_ADMIN", "ROLE_USER"]),
            ("[]", vec![]),
        ] {
            assert_eq!(named_in(value), is, "{value}");
        }
    }

    #[test]
    fn a_list_that_is_not_whole_grants_nothing_that_is_in_it() {
        for value in [
            r#"a:1:{s:13:"administrator";b:1;"#,
            r#"a:2:{s:13:"administrator";b:1;}"#,
            r#"a:1:{s:12:"administrator";b:1;}"#,
            r#"a:1:{s:13:"administrator";b:2;}"#,
            r#"a:1:{s:13:"administrator";i:1;}"#,
            r#"a:1:{s:13:"administrator";b:1;}x"#,
            r#"a:+1:{s:13:"administrator";b:1;}"#,
            r#"a:9999999:{s:13:"administrator";b:1;}"#,
            r#"a:1:{i:0;a:1:{s:13:"administrator";b:1;}}"#,
            r#"["administrator""#,
            r#"["administrator", 1]"#,
            r#"O:8:"stdClass":0:{}"#,
        ] {
            assert_eq!(named_in(value), [value], "{value}");
        }
    }

    #[test]
    fn the_highest_role_counts_and_one_that_is_not_mapped_does_not() {
        let ours = ["Viewer", "Editor", "Admin"].map(str::to_owned);
        let map = [("administrator", "Admin"), ("author", "Editor"), ("subscriber", "Viewer")]
            .map(|(theirs, ours)| (theirs.to_owned(), ours.to_owned()));
        let highest = |map: Option<&[(String, String)]>, default, theirs: &[&str]| {
            let theirs: Vec<String> = theirs.iter().map(|role| (*role).to_owned()).collect();
            Roles::new(&ours, map, default).highest(&theirs).map(str::to_owned)
        };
        for (theirs, mapped, same, with_default) in [
            (&["author"][..], Some("Editor"), None, Some("Editor")),
            (&["subscriber", "administrator", "author"], Some("Admin"), None, Some("Admin")),
            (&["Admin"], None, Some("Admin"), None),
            (&["shop_manager"], None, None, None),
            (&["shop_manager", "subscriber"], Some("Viewer"), None, Some("Viewer")),
            (&["AUTHOR"], None, None, None),
            (&[], None, None, Some("Viewer")),
        ] {
            assert_eq!(highest(Some(&map), None, theirs).as_deref(), mapped, "{theirs:?}");
            assert_eq!(highest(None, None, theirs).as_deref(), same, "{theirs:?}");
            assert_eq!(highest(Some(&map), Some("Viewer"), theirs).as_deref(), with_default, "{theirs:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read(value in "(a:[0-9]{1,3}:\\{)?([sib]:[0-9]{1,3}[:;]|\"[é;{}\"]{0,5}|\\[|\\PC){0,20}") {
            let _ = named_in(&value);
        }

        #[test]
        fn what_php_writes_comes_back(roles in proptest::collection::vec("[a-zé\"; ]{0,20}", 0..10)) {
            let mut text = format!("a:{}:{{", roles.len());
            for role in &roles {
                text.push_str(&format!("s:{}:\"{role}\";b:1;", role.len()));
            }
            text.push('}');
            prop_assert_eq!(named_in(&text), roles);
        }
    }
}
