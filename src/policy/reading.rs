//! Every way an upstream could read one request target.
//!
//! Upstreams decode twice, merge slashes, cut `;params`, ignore letter case or trailing dots, route
//! `/users.php/x` to `users.php` and `/index.php/x` to `/x`, take `//host/x` for `/x`, and obey a method
//! named in a header. Each is a way round a rule that was decided on another reading. Here all of them are worked out and combined until nothing
//! new appears; the strictest requirement among them counts (`super::Policy`).
//!
//! A path written plainly has one reading besides letter case and pays for none of this.
//! Not here: what is refused outright (`path`), what a reading requires (`rules`).

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

use super::path::{ENCODED_SLASH, EncodedSlash, NormalizedPath, PathError, decode_valid, is_dot_segment};
use super::pattern::fold;
use super::query::Query;

/// More readings of one path than this, and it is refused: no honest path comes near.
const MAX_READINGS: usize = 64;

/// More bytes in all readings of one path together: a long path has its few, a short one all of its many.
const MAX_READING_BYTES: usize = 64 * 1024;

/// More methods that headers and `_method` name besides the request's own, and it is refused: each costs
/// what a request costs.
const MAX_OVERRIDES: usize = 8;

/// How paths are read; `paths` of the configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PathOptions {
    /// What to do with `%2F`.
    pub encoded_slash: EncodedSlash,
    /// Extensions after which an upstream may cut a path, lower case, without the dot.
    pub scripts: Vec<String>,
}

/// One request, as far as rules are concerned: method, path, query, and what an upstream may take
/// for the method instead.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    method: &'a str,
    /// Methods that headers or `_method` name, upper case. Almost always empty.
    overrides: Vec<String>,
    path: NormalizedPath<'a>,
    /// The raw query, and the same taken apart if there is one.
    query: Option<Query>,
    readings: Readings,
}

/// Readings of a path besides itself.
#[derive(Clone, Debug, Default)]
struct Readings {
    /// Whose literals may be compared exactly.
    others: Vec<String>,
    /// Those that lost an accent on the way: literals have to lose theirs as well.
    unaccented: Vec<String>,
}

impl<'a> Target<'a> {
    /// Reads a request target in origin-form, split at the first `?`. `overrides` are the values of
    /// headers that name a method.
    ///
    /// # Errors
    /// [`PathError`] if the path, or a reading of it, is one that no rule may be asked about.
    pub fn parse<'v>(
        method: &'a str,
        path: &'a str,
        query: Option<&str>,
        overrides: impl IntoIterator<Item = &'v str>,
        options: &PathOptions,
    ) -> Result<Self, PathError> {
        let path = NormalizedPath::parse(path, options.encoded_slash)?;
        let readings =
            if path.is_plain() { Readings::default() } else { readings(path.as_str(), &options.scripts)? };
        let query = query.map(Query::parse);
        let mut named: Vec<String> = overrides.into_iter().map(method_named_by).collect();
        if let Some(query) = &query {
            named.extend(query.values("_method").map(method_named_by));
        }
        named.retain(|name| !name.is_empty() && name != method);
        named.sort_unstable();
        named.dedup();
        if named.len() > MAX_OVERRIDES {
            return Err(PathError::TooManyReadings);
        }
        Ok(Self { method, overrides: named, path, query, readings })
    }

    /// The method on the request line.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The path as decoded once.
    pub fn path(&self) -> &NormalizedPath<'a> {
        &self.path
    }

    pub(super) fn query(&self) -> Option<&Query> {
        self.query.as_ref()
    }

    /// The methods that an upstream might act on, the one on the request line first.
    pub(super) fn methods(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(self.method).chain(self.overrides.iter().map(String::as_str))
    }

    /// The texts that an upstream might route by, the one decoded once first.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(self.path.as_str()).chain(self.readings.others.iter().map(String::as_str))
    }

    /// The texts that it might come to by leaving accents out first. Only to be compared folded: `/cafe` is
    /// `/café` to whoever reads it so.
    pub(super) fn unaccented_texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.readings.unaccented.iter().map(String::as_str)
    }

    /// The same request without the methods that headers name: what an upstream would see if they
    /// were removed.
    pub(super) fn without_overrides(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(self.method)
    }
}

/// The method that a header or parameter names. What is not ASCII is no part of any, but may be a blank to
/// an upstream that trims (U+00A0, as one byte or as two).
fn method_named_by(value: &str) -> String {
    value.chars().filter(char::is_ascii).collect::<String>().trim().to_ascii_uppercase()
}

/// Everything that `text` can be read as, itself left out.
fn readings(text: &str, scripts: &[String]) -> Result<Readings, PathError> {
    let mut found = vec![text.to_owned()];
    let mut bytes = text.len();
    let mut next = 0;
    while next < found.len() {
        change_all(&mut found, next, &mut bytes, scripts)?;
        next += 1;
    }
    let with_accents = found.len();
    // Again from the first, whatever has become of them without.
    for index in 0..with_accents {
        drop_accents(&mut found, index, &mut bytes)?;
    }
    while next < found.len() {
        change_all(&mut found, next, &mut bytes, scripts)?;
        drop_accents(&mut found, next, &mut bytes)?;
        next += 1;
    }
    let unaccented = found.split_off(with_accents);
    found.remove(0);
    Ok(Readings { others: found, unaccented })
}

/// Adds what every change makes of the text at `index`.
fn change_all(
    found: &mut Vec<String>,
    index: usize,
    bytes: &mut usize,
    scripts: &[String],
) -> Result<(), PathError> {
    let current = found[index].clone();
    for change in CHANGES {
        if let Cow::Owned(changed) = change(&current, scripts) {
            take(found, index, changed, bytes)?;
        }
    }
    Ok(())
}

/// Adds the text at `index` with the marks taken off its letters.
fn drop_accents(found: &mut Vec<String>, index: usize, bytes: &mut usize) -> Result<(), PathError> {
    let text = &found[index];
    if text.is_ascii() {
        return Ok(());
    }
    let without = text.nfd().filter(|c| canonical_combining_class(*c) == 0).nfc().collect();
    take(found, index, without, bytes)
}

/// Adds what became of the text at `from`, if it is new.
fn take(found: &mut Vec<String>, from: usize, changed: String, bytes: &mut usize) -> Result<(), PathError> {
    if found.contains(&changed) {
        return Ok(());
    }
    refuse_what_appeared(&found[from], &changed)?;
    *bytes += changed.len();
    if found.len() == MAX_READINGS || *bytes > MAX_READING_BYTES {
        return Err(PathError::TooManyReadings);
    }
    found.push(changed);
    Ok(())
}

/// A change to a whole path that some upstream makes; borrowed where it changes nothing.
type Change = for<'t> fn(&'t str, &[String]) -> Cow<'t, str>;

const CHANGES: [Change; 14] = [
    decode_again,
    split_encoded_slash,
    cut_parameters,
    compatibility_forms,
    drop_invisible,
    plus_as_blank,
    cut_blanks,
    cut_trailing_dots,
    // Each by itself: an upstream may know the one and not the other.
    |text, _| cut_at(text, '?'),
    |text, _| cut_at(text, '#'),
    cut_after_script,
    drop_script,
    |text, _| merge_slashes(text),
    |text, _| cut_authority(text),
];

/// A reading may merge slashes or be shorter; it must not bring up what would be refused as sent.
fn refuse_what_appeared(before: &str, after: &str) -> Result<(), PathError> {
    if after.split('/').any(is_dot_segment) {
        return Err(PathError::DotSegment);
    }
    if after.contains('\\') {
        return Err(PathError::Backslash);
    }
    if after.chars().any(|c| c.is_control() && c != ENCODED_SLASH) {
        return Err(PathError::Control);
    }
    let slashes = |text: &str| text.matches(['/', ENCODED_SLASH]).count();
    if slashes(after) > slashes(before) {
        return Err(PathError::EncodedSlash);
    }
    Ok(())
}

/// Applies `change` to every segment; borrowed if none changes.
fn each_segment<'t>(text: &'t str, change: impl Fn(&'t str) -> Cow<'t, str>) -> Cow<'t, str> {
    let mut changed = false;
    let segments: Vec<Cow<'t, str>> = text
        .split('/')
        .map(|segment| {
            let new = change(segment);
            changed |= *new != *segment;
            new
        })
        .collect();
    if changed { Cow::Owned(segments.join("/")) } else { Cow::Borrowed(text) }
}

/// Decodes valid escapes once more; an invalid one stays as it is.
fn decode_again<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    decode_valid(text)
}

/// `encoded_slash: strict`: the slash that was sent as `%2F` separates after all.
fn split_encoded_slash<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    if text.contains(ENCODED_SLASH) {
        Cow::Owned(text.replace(ENCODED_SLASH, "/"))
    } else {
        Cow::Borrowed(text)
    }
}

/// RFC 3986 §3.3 leaves `;` to the upstream; servlet containers cut there.
fn cut_parameters<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    each_segment(text, |segment| Cow::Borrowed(segment.split(';').next().unwrap_or(segment)))
}

/// Full-width letters and other compatibility forms of ASCII (Unicode NFKC).
fn compatibility_forms<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.nfkc().collect()) }
}

/// Characters without a width of their own, which databases and NFKC_Casefold compare as if they were not there.
fn drop_invisible<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    if text.contains(is_invisible) { Cow::Owned(text.replace(is_invisible, "")) } else { Cow::Borrowed(text) }
}

/// Whether a character is ignorable by default (Unicode, Default_Ignorable_Code_Point).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// A `+` taken for a blank, as it is in a query: PHP's `urldecode`, Python's `unquote_plus`.
fn plus_as_blank<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) }
}

/// Blanks at either end of a segment.
fn cut_blanks<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    each_segment(text, |segment| Cow::Borrowed(segment.trim_matches(|c: char| c.is_whitespace())))
}

/// Dots at the end of a segment, as Windows file systems drop them.
fn cut_trailing_dots<'t>(text: &'t str, _: &[String]) -> Cow<'t, str> {
    each_segment(text, |segment| Cow::Borrowed(segment.trim_end_matches('.')))
}

/// A `?` or `#` that was sent encoded, taken for the end of the path.
fn cut_at(text: &str, delimiter: char) -> Cow<'_, str> {
    text.find(delimiter).map_or(Cow::Borrowed(text), |end| Cow::Owned(absolute(&text[..end])))
}

/// `/users.php/x` is `users.php` with path info `/x` (CGI, RFC 3875 §4.1.5).
fn cut_after_script<'t>(text: &'t str, scripts: &[String]) -> Cow<'t, str> {
    find_script(text, scripts).map_or(Cow::Borrowed(text), |(_, end)| Cow::Owned(text[..end].to_owned()))
}

/// `/index.php/x` is `/x`: a front controller routes by its path info as it does by a rewritten path.
fn drop_script<'t>(text: &'t str, scripts: &[String]) -> Cow<'t, str> {
    find_script(text, scripts)
        .map_or(Cow::Borrowed(text), |(start, end)| Cow::Owned([&text[..start], &text[end + 1..]].concat()))
}

/// Where the first segment that names a script begins and ends, if something follows it.
fn find_script(text: &str, scripts: &[String]) -> Option<(usize, usize)> {
    let mut end = 0;
    for segment in text.split_inclusive('/') {
        let start = end;
        end += segment.len();
        let name = segment.strip_suffix('/')?;
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        let extension = extension.map(fold);
        if extension.is_some_and(|given| scripts.contains(&given)) {
            return (end < text.len()).then_some((start, end - 1));
        }
    }
    None
}

/// Empty segments dropped.
fn merge_slashes(text: &str) -> Cow<'_, str> {
    if !text.contains("//") {
        return Cow::Borrowed(text);
    }
    let mut merged = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    Cow::Owned(merged)
}

/// `//host/x` is `/x` on another host to whoever reads a target as a reference (RFC 3986 §4.2): WHATWG's URL
/// with any number of slashes, PHP's `parse_url` and Python's `urlsplit` with two.
fn cut_authority(text: &str) -> Cow<'_, str> {
    if !text.starts_with("//") {
        return Cow::Borrowed(text);
    }
    let behind = text.trim_start_matches('/');
    Cow::Owned(behind.find('/').map_or_else(|| "/".to_owned(), |end| behind[end..].to_owned()))
}

fn absolute(text: &str) -> String {
    if text.starts_with('/') { text.to_owned() } else { format!("/{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn readings(raw: &str) -> Result<Vec<String>, PathError> {
        let options = PathOptions { encoded_slash: EncodedSlash::Reject, scripts: vec!["php".into()] };
        Target::parse("GET", raw, None, [], &options)
            .map(|target| target.texts().chain(target.unaccented_texts()).map(str::to_owned).collect())
    }

    #[test]
    fn every_way_to_read_a_path_is_found() {
        for (raw, expected) in [
            ("/admin//users", "/admin/users"),
            ("//admin/users", "/admin/users"),
            ("/%2561dmin", "/admin"),
            ("/%252561dmin", "/admin"),
            ("/admin;x=1/users", "/admin/users"),
            ("/admin%3Bx/users", "/admin/users"),
            ("/admin./users", "/admin/users"),
            ("/admin%20/users", "/admin/users"),
            ("/admin%20./users", "/admin/users"),
            ("/admin/users%3Fx", "/admin/users"),
            ("/admin/users%23x", "/admin/users"),
            ("/users.php/x", "/users.php"),
            ("/users.PHP/x/y", "/users.PHP"),
            ("/users.php;a/x", "/users.php"),
            ("/users.php%20/x", "/users.php"),
            ("//admin/users.php/x", "/admin/users.php/x"),
            ("//admin/users.php/x", "/admin/users.php"),
            ("/index.php/admin/x", "/admin/x"),
            ("/blog/index.php/admin", "/blog/admin"),
            ("/INDEX.PHP/%2561dmin", "/admin"),
            ("/a.php/b.php/admin", "/admin"),
            ("/index%2Ephp;x/admin", "/admin"),
            ("//host/admin", "/admin"),
            ("///host:80/admin", "/admin"),
            ("//host//admin", "/admin"),
            ("//admin", "/"),
            ("//host/index.php/admin", "/admin"),
            ("/admin+/x", "/admin/x"),
            ("/users.php+", "/users.php"),
            ("/my+page", "/my page"),
            ("/+/admin", "/admin"),
            ("/ad%E2%80%8Bmin", "/admin"),
            ("/admin%EF%BB%BF/x", "/admin/x"),
            ("/admin%C2%AD", "/admin"),
            ("/a%23b/c%3Fd", "/a"),
            ("/a%23b/c%3Fd", "/a#b/c"),
            ("/a%3Fb/c%23d", "/a?b/c"),
            ("/%EF%BD%81dmin", "/admin"),
            ("/%E2%84%AAeys", "/Keys"),
            ("/;x/admin", "/admin"),
            ("/admin%2500/x", "refused"),
            ("/admin%252f..%252fx", "refused"),
            ("/admin/..;/x", "refused"),
            ("/admin/..;x/y", "refused"),
            ("/admin/.;/x", "refused"),
            ("/a/..%20/b", "refused"),
            ("/a/%20../b", "refused"),
            ("/a/..%20./b", "refused"),
            ("/a%255cb", "refused"),
            ("/a%252fb", "refused"),
            ("/a%EF%BC%8Fb", "refused"),
            ("/a/%EF%BC%8E%EF%BC%8E/b", "refused"),
            ("/a/%EF%BC%BCb", "refused"),
            ("/users.p%CC%81hp/x", "/users.php"),
            ("/users.%CC%81php/x", "/users.php"),
            ("/%25%CC%8161dmin", "/admin"),
            ("/%256%CC%811dmin", "/admin"),
            ("/caf%C3%A9//x", "/café/x"),
            ("/a/.%CC%81./b", "refused"),
            ("/a%25%CC%812fb", "refused"),
            ("/a/..+/b", "refused"),
            ("/a/.%E2%80%8B./b", "refused"),
            ("/index.php/../x", "refused"),
        ] {
            match readings(raw) {
                Ok(found) => assert!(found.iter().any(|text| text == expected), "{raw}: {found:?}"),
                Err(why) => assert_eq!(expected, "refused", "{raw}: {why}"),
            }
        }
    }

    #[test]
    fn a_strict_encoded_slash_is_read_both_ways() {
        let options = PathOptions { encoded_slash: EncodedSlash::Strict, scripts: vec![] };
        let target = Target::parse("GET", "/a%2Fb", None, [], &options).unwrap();
        assert_eq!(target.texts().collect::<Vec<_>>(), ["/a\u{1}b", "/a/b"]);
        assert_eq!(
            Target::parse("GET", "/a%2F..%2Fb", None, [], &options).err(),
            Some(PathError::DotSegment),
            "a separator after all brings up a dot segment"
        );
    }

    #[test]
    fn a_method_may_be_named_by_header_or_parameter() {
        let options = PathOptions::default();
        let methods = |query: Option<&str>, headers: &[&str]| {
            let target = Target::parse("POST", "/", query, headers.iter().copied(), &options).unwrap();
            target.methods().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(methods(None, &["delete"]), ["POST", "DELETE"]);
        assert_eq!(methods(Some("_method=put&_METHOD=PATCH"), &[]), ["POST", "PATCH", "PUT"]);
        assert_eq!(methods(Some("_method=post"), &["POST", ""]), ["POST"]);
        assert_eq!(
            methods(Some("_method=put%A0"), &["delete\u{a0}", "\u{fffd}Patch"]),
            ["POST", "DELETE", "PATCH", "PUT"]
        );
    }

    #[test]
    fn a_path_with_more_readings_than_any_honest_one_is_refused_soon() {
        let mut raw = String::from("/");
        for _ in 0..2000 {
            raw.push_str("%25");
        }
        raw.push_str("41");
        // Whatever the verdict, it must come from a bounded number of readings.
        if let Ok(found) = readings(&raw) {
            assert!(found.len() <= MAX_READINGS);
        }
        // The same readings of a path that is long, and of one that is not.
        for (times, verdict) in [(1, true), (400, false)] {
            let raw = format!("{}//q", "/%2525252541;x%20.".repeat(times));
            let refused = readings(&raw).err();
            assert_eq!(refused, (!verdict).then_some(PathError::TooManyReadings), "{times}");
        }
    }

    #[test]
    fn a_request_that_names_more_methods_than_any_honest_one_is_refused() {
        let methods = |count: usize| {
            let query: String = (0..count).map(|n| format!("&_method=M{n}")).collect();
            Target::parse("POST", "/", Some(&query), [], &PathOptions::default())
                .map(|target| target.methods().count())
        };
        assert_eq!(methods(MAX_OVERRIDES), Ok(1 + MAX_OVERRIDES));
        assert_eq!(methods(MAX_OVERRIDES + 1), Err(PathError::TooManyReadings));
    }

    proptest! {
        #[test]
        fn reading_a_reading_again_brings_nothing_new(raw in "/(a|A|/|;|\\.|\\+|%20|%25|2e|%3f|%23|%EF%BD%81|%C2%AD|%CC%81|\\.php/|%2561){0,10}") {
            if let Ok(found) = readings(&raw) {
                for text in &found {
                    for change in CHANGES {
                        if let Cow::Owned(again) = change(text, &["php".to_owned()]) {
                            prop_assert!(found.contains(&again), "{raw}: {text} -> {again} not in {found:?}");
                        }
                    }
                    prop_assert!(!text.split('/').any(is_dot_segment));
                }
            }
        }
    }
}
