//! What is wrong with a `gateway.yaml`, where, and what was probably meant.
//!
//! A [`Problem`] is one sentence for the person who wrote the file; a [`Diagnostics`] is every
//! problem of a file in the file's order, and can show the lines they stand on. Nothing here ever
//! shows a secret: interpolated values are named by their reference, and a shown line has what
//! follows a secret's key, or a URL's password, masked. Not here: finding the problems (`check`).

use std::fmt;

use super::Source;
use super::preset::Preset;
use super::query::QueryError;
use super::value::ValueError;
use crate::policy::method::MethodError;
use crate::policy::pattern::PatternError;

/// The text that a place is in. In order of weight: of two places that contradict each other, the one that
/// somebody can change is named.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// A default.
    #[default]
    Nowhere,
    /// The preset that the file names.
    Preset(Preset),
    /// The file itself.
    File,
}

/// A place in the file or its preset: line and column, both from 1, the column in characters.
///
/// 0:0 is nowhere and belongs to values that were filled in by default.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// Of which text.
    pub origin: Origin,
    /// From 1; 0 when the value is not written anywhere.
    pub line: u32,
    /// In characters, from 1; 0 when the value is not written anywhere.
    pub column: u32,
}

impl Position {
    /// A place in the file.
    pub const fn in_file(line: u32, column: u32) -> Position {
        Position { origin: Origin::File, line, column }
    }

    /// The place, unless it is that of a default.
    pub fn known(self) -> Option<Position> {
        (self.line > 0).then_some(self)
    }

    /// The preset that it is in, unless it is in the file.
    pub fn preset(self) -> Option<Preset> {
        match self.origin {
            Origin::Preset(preset) => Some(preset),
            Origin::Nowhere | Origin::File => None,
        }
    }

    /// `7`, or `7 of the preset wordpress`: what goes behind the word "line".
    pub fn line_in_words(self) -> String {
        match self.preset() {
            None => self.line.to_string(),
            Some(preset) => format!("{} of the preset {}", self.line, preset.name()),
        }
    }

    /// `gateway.yaml:7:3`, or `preset wordpress:7:3`; `file` is the file's name.
    pub fn with_name(self, file: &str) -> String {
        let (line, column) = (self.line, self.column);
        match self.preset() {
            None => format!("{file}:{line}:{column}"),
            Some(preset) => format!("preset {}:{line}:{column}", preset.name()),
        }
    }
}

/// Whether a problem refuses the file.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file loads; somebody should look at this.
    Warning,
}

/// One problem: where it is, how bad, and what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    /// `None` for a problem of the file as a whole.
    pub at: Option<Position>,
    /// Whether it refuses the file.
    pub severity: Severity,
    /// What is wrong.
    pub problem: Problem,
}

impl Diagnostic {
    /// A problem that refuses the file.
    pub fn error(at: Position, problem: Problem) -> Self {
        Diagnostic { at: at.known(), severity: Severity::Error, problem }
    }

    /// A problem that the file loads with.
    pub fn warning(at: Position, problem: Problem) -> Self {
        Diagnostic { at: at.known(), severity: Severity::Warning, problem }
    }
}

/// Why a `${file:…}` could not be read. Never holds any of the file's content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FileProblem {
    /// Nothing is there.
    Missing,
    /// It is a folder.
    Folder,
    /// It is neither a file nor a folder: a pipe, a socket, a device.
    NotAFile,
    /// The operating system refused, in its words.
    Unreadable(String),
    /// It is longer than the limit, in bytes.
    TooLarge(u64),
    /// Its content is not UTF-8.
    NotText,
}

/// What can be wrong. `Display` is one sentence, without the position.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Problem {
    /// The file is longer than the limit, in bytes.
    FileTooLarge { limit: u64 },
    /// Nothing but blanks and comments.
    Empty,
    /// The YAML itself does not parse; the parser's words.
    Syntax { what: String },
    /// A tab where YAML wants spaces.
    Tab,
    /// Collections nested deeper than the limit.
    TooDeep { limit: usize },
    /// More values than the limit, aliases written out.
    TooMany,
    /// `---` a second time.
    ManyDocuments,
    /// The file as a whole is something other than keys and values.
    NotAMapping { found: &'static str },
    /// A key that means nothing here.
    UnknownKey { key: String, nearest: Option<String>, known: Vec<String>, belongs: Option<String> },
    /// A key for the second time in one mapping.
    DuplicateKey { key: String, first: Position },
    /// A key that has to be there; `within` is the mapping it is missing from, empty for the file itself.
    MissingKey { key: String, within: String },
    /// A value of the wrong kind. `hint` is what to do about the most likely reason.
    WrongType { key: String, wanted: String, found: &'static str, hint: Option<&'static str> },
    /// A value that is none of the listed ones.
    UnknownValue { key: String, value: Shown, nearest: Option<String>, known: Vec<String> },
    /// A whole number outside its bounds.
    OutOfBounds { key: String, value: i128, minimum: Option<i128>, maximum: Option<i128> },
    /// A list with too few or too many items.
    ListLength { key: String, length: usize, minimum: usize, maximum: Option<usize> },
    /// A text that has to be something in particular (a duration, a header name …) and is not.
    Value { key: String, value: Shown, why: ValueError },
    /// The same item twice in a list whose items differ.
    DuplicateItem { value: Shown, first: Position },
    /// Not exactly one of several keys; `found` holds those that are there.
    NotExactlyOne { of: Vec<String>, found: Vec<String> },
    /// `${NAME}` and no such environment variable.
    MissingVariable { name: String },
    /// `${file:…}` and no such text.
    File { path: String, why: FileProblem },
    /// `${…}` that is neither of the two, or has no end.
    BadReference { text: String },
    /// A template's variable that its place does not have.
    UnknownTemplateVariable { name: String, nearest: Option<String>, known: Vec<String> },
    /// Two identity headers that an upstream could not tell apart.
    SameHeader { name: String, other: String, first: Position },
    /// PROXY protocol headers are wanted, and from nobody.
    NobodyToBelieve,
    /// One header for two parts of a load balancer's description.
    DescribedTwice { name: String, first: Position },
    /// A trusted issuer whose users could be taken for local ones.
    NoIdPrefix { issuer: String },
    /// A method that nobody has registered, and much like one that everybody uses.
    UnknownMethod { name: String, nearest: String },
    /// Two trusted issuers of one name.
    SameIssuer { issuer: String, first: Position },
    /// The two form fields of a login are one.
    SameField { name: String },
    /// A login page whose login would leave nothing in the browser.
    PageWithoutCookie,
    /// A cookie that browsers take only when it is secure, and it is not.
    CookieNeedsSecure { what: String },
    /// A symmetric algorithm without a secret.
    AlgorithmNeedsSecret { algorithm: String },
    /// A secret with an algorithm that wants a key pair.
    AlgorithmNeedsKeys { algorithm: String },
    /// Assertions that only somebody with the signing secret could check.
    AssertionNeedsKeys { algorithm: String },
    /// Assertions for an upstream that the gateway does not know, or for several.
    AssertionForWhom { several: bool },
    /// Assertions for the audience of login tokens.
    AssertionAudience { audience: String },
    /// A trusted issuer's algorithm and its kind of key that do not go together.
    AlgorithmAndSource { algorithm: String, source: &'static str },
    /// `shutdown.drain` reaches past `shutdown.timeout`.
    DrainPastTimeout,
    /// Two of the gateway's own endpoints have one path.
    SamePath { path: String },
    /// A session that may be rotated ends before its first token does.
    SessionShorterThanToken,
    /// A role that `roles` does not list.
    UnknownRole { name: String, nearest: Option<String> },
    /// A `path` that is no pattern.
    Pattern { path: String, why: PatternError },
    /// A rule's methods that are none.
    Methods { why: MethodError },
    /// Two rules that neither is the more specific of. `method`: the one that both list.
    RulesTie { other: Position, method: Option<String> },
    /// A rule for a path that the gateway answers itself.
    CoversEndpoint { path: String },
    /// Other rules take everything that this one matches.
    RuleNeverWins,
    /// A query rule that everybody may pass.
    QueryRaisesNothing,
    /// A rule that lets a POST pass for less than a query rule asks.
    BodyCouldCarry { laxer: Position },
    /// No rule at all.
    NoRules,
    /// Password hashes that anybody who reads the table can turn into passwords are let in. `key`: by which.
    WeakHashes { key: &'static str },
    /// `users.query` is not one SELECT for one name.
    UserQuery { why: QueryError },
    /// A key of `users` without the one that it needs.
    UsersNeed { key: &'static str, needs: &'static str },
    /// An `expect` case that does not hold. `rule`: the one that decides otherwise.
    ExpectationFailed { expected: String, found: String, rule: Option<Position> },
    /// The signing keys cannot be used; a sentence.
    Keys { what: String },
    /// A certificate, its key, or a CA cannot be used; a sentence.
    Certificate { what: String },
    /// `client_auth` and no CA that could vouch for anybody.
    ClientAuthWithoutCa,
    /// A trusted issuer's keys cannot be used, or not all of them; a sentence.
    TrustedKeys { what: String },
    /// A fault of this program: the checked tree did not fit its types.
    Internal { what: String },
}

/// A value as it may be shown: as written, cut to a length, or not at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shown {
    /// The text that the file holds. For a value with a `${NAME}` in it, the reference and not what it stands for.
    Text(String),
    /// A value that was interpolated: its text as written, so `${NAME}`.
    Reference(String),
    /// A secret.
    Hidden,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shown::Text(text) => write!(f, "'{}'", tidy(text)),
            Shown::Reference(text) => write!(f, "the value of '{}'", tidy(text)),
            Shown::Hidden => f.write_str("this secret"),
        }
    }
}

/// A text as a message may hold it: one line, no control characters, no password of a URL, at most 80 characters.
pub fn tidy(text: &str) -> String {
    const MOST: usize = 80;
    let masked = mask_passwords(text);
    let mut tidy: String = masked.chars().take(MOST).map(|c| if hides(c) { '\u{fffd}' } else { c }).collect();
    if masked.chars().nth(MOST).is_some() {
        tidy.push('…');
    }
    tidy
}

/// Characters that would move the cursor, colour the terminal or turn the text round.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `http://user:password@host` without the password.
fn mask_passwords(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        masked.push_str(before);
        // A password may hold anything, if somebody forgot to encode it; the last `@` ends it.
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let user_info = after[..end].rfind('@').and_then(|at| after[..at].find(':').map(|colon| (colon, at)));
        match user_info {
            Some((colon, at)) => {
                masked.push_str(&after[..=colon]);
                masked.push_str("***");
                masked.push_str(&after[at..end]);
            }
            None => masked.push_str(&after[..end]),
        }
        rest = &after[end..];
    }
    masked + rest
}

/// The known name that `name` was probably meant to be: a third of it may differ, case does not count.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Nobody means a name by a page of text, and the comparison's cost is a product of both lengths.
    if name.chars().nth(100).is_some() {
        return None;
    }
    let folded = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            let length = folded.chars().count().max(candidate.chars().count());
            *distance <= (length / 3).max(1) && *distance < candidate.chars().count()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn did_you_mean(f: &mut fmt::Formatter<'_>, nearest: &Option<String>, known: &[String]) -> fmt::Result {
    match nearest {
        Some(nearest) => write!(f, ", did you mean '{nearest}'?"),
        None if known.is_empty() => Ok(()),
        None => write!(f, "; known here: {}", known.join(", ")),
    }
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileProblem::Missing => f.write_str("is not there"),
            FileProblem::Folder => f.write_str("is a folder"),
            FileProblem::NotAFile => f.write_str("is not a regular file"),
            FileProblem::Unreadable(why) => write!(f, "cannot be read: {why}"),
            FileProblem::TooLarge(limit) => write!(f, "is larger than {} KiB", limit / 1024),
            FileProblem::NotText => f.write_str("is not UTF-8 text"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::FileTooLarge { limit } => {
                write!(f, "the file is larger than {} MiB", limit / (1024 * 1024))
            }
            Problem::Empty => {
                f.write_str("the file is empty; it needs at least the keys 'upstream' and 'roles'")
            }
            Problem::Syntax { what } => write!(f, "not valid YAML: {}", tidy(what)),
            Problem::Tab => f.write_str("not valid YAML: a tab in the indentation; use spaces"),
            Problem::TooDeep { limit } => write!(f, "nested deeper than {limit} levels"),
            Problem::TooMany => f.write_str("more values than one file may hold, aliases written out"),
            Problem::ManyDocuments => {
                f.write_str("a second YAML document begins here; the file must be a single one")
            }
            Problem::NotAMapping { found } => {
                write!(f, "the file must be a mapping of keys to values, not {found}")
            }
            Problem::UnknownKey { key, nearest, known, belongs } => {
                write!(f, "unknown key '{}'", tidy(key))?;
                match belongs {
                    Some(belongs) => write!(f, "; it belongs in '{belongs}'"),
                    None => did_you_mean(f, nearest, known),
                }
            }
            Problem::DuplicateKey { key, first } => {
                write!(f, "the key '{}' stands here a second time, first in line {}", tidy(key), first.line_in_words())
            }
            Problem::MissingKey { key, within } if within.is_empty() => {
                write!(f, "the key '{key}' is missing")
            }
            Problem::MissingKey { key, within } => write!(f, "the key '{key}' is missing in '{within}'"),
            Problem::WrongType { key, wanted, found, hint } => {
                write!(f, "'{key}' must be {wanted}, not {found}")?;
                hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
            }
            Problem::UnknownValue { key, value, nearest, known } => {
                write!(f, "'{key}' cannot be {value}")?;
                match nearest {
                    Some(_) => did_you_mean(f, nearest, known),
                    None => write!(f, "; it must be {}", either(known)),
                }
            }
            Problem::OutOfBounds { key, value, minimum, maximum } => match (minimum, maximum) {
                (Some(minimum), Some(maximum)) => {
                    write!(f, "'{key}' must be from {minimum} to {maximum}, not {value}")
                }
                (Some(minimum), None) => write!(f, "'{key}' must be at least {minimum}, not {value}"),
                (_, Some(maximum)) => write!(f, "'{key}' must be at most {maximum}, not {value}"),
                (None, None) => write!(f, "'{key}' cannot be {value}"),
            },
            Problem::ListLength { key, length: 0, .. } => write!(f, "'{key}' must not be empty"),
            Problem::ListLength { key, length, minimum, maximum } => match maximum {
                Some(maximum) if length > maximum => {
                    write!(f, "'{key}' has {length} items, {maximum} are the most allowed")
                }
                _ => write!(f, "'{key}' has {length} items, {minimum} are the fewest allowed"),
            },
            Problem::Value { key, value, why } => write!(f, "'{key}': {value} {why}"),
            Problem::DuplicateItem { value, first } => {
                write!(f, "{value} is listed a second time, first in line {}", first.line_in_words())
            }
            Problem::NotExactlyOne { of, found } if found.is_empty() => {
                write!(f, "one of the keys {} is missing", either(&quoted(of)))
            }
            Problem::NotExactlyOne { of, found } => {
                write!(
                    f,
                    "only one of the keys {} may be given, not {}",
                    either(&quoted(of)),
                    both(&quoted(found))
                )
            }
            Problem::MissingVariable { name } => write!(f, "the environment variable '{name}' is not set"),
            Problem::File { path, why } => write!(f, "the file '{}' {why}", tidy(path)),
            Problem::BadReference { text } => write!(
                f,
                "'{}' is neither ${{NAME}} (upper-case) nor ${{file:path}}; a '${{' of its own is written '$${{'",
                tidy(text)
            ),
            Problem::UnknownTemplateVariable { name, nearest, known } => {
                write!(f, "'${}' is not known here and will be null", tidy(name))?;
                did_you_mean(f, &nearest.as_ref().map(|name| format!("${name}")), known)
            }
            Problem::SameHeader { name, other, first } => write!(
                f,
                "an upstream could take the header '{name}' for '{other}' {}; identity headers must differ",
                of(*first)
            ),
            Problem::NobodyToBelieve => f.write_str(
                "a PROXY protocol header is believed from 'trusted_proxies' alone: list your load balancer there",
            ),
            Problem::DescribedTwice { name, first } => {
                write!(f, "the header '{name}' is already that {}: method, uri and host need one each", of(*first))
            }
            Problem::SameIssuer { issuer, first } => {
                write!(f, "tokens of the issuer '{}' are already those {}", tidy(issuer), of(*first))
            }
            Problem::NoIdPrefix { issuer } => write!(
                f,
                "'{}' has no 'id_prefix': to the CMS its user '1' is the local user '1'",
                tidy(issuer)
            ),
            Problem::UnknownMethod { name, nearest } => {
                write!(f, "'{}' is no method that is known, did you mean '{nearest}'?", tidy(name))
            }
            Problem::SameField { name } => {
                write!(f, "user name and password cannot both be in the field '{}'", tidy(name))
            }
            Problem::PageWithoutCookie => f.write_str(
                "the login page needs a cookie to sign a browser in with: write 'cookie: true' beside it",
            ),
            Problem::CookieNeedsSecure { what } => {
                write!(f, "browsers take {what} only with 'secure: true'")
            }
            Problem::AlgorithmNeedsSecret { algorithm } => {
                write!(f, "{algorithm} signs with a secret: give it as 'keys: {{ secret: ${{JWT_SECRET}} }}'")
            }
            Problem::ClientAuthWithoutCa => f.write_str(
                "'client_auth' needs 'client_ca': the file with the CA whose certificates count",
            ),
            Problem::AlgorithmNeedsKeys { algorithm } => write!(
                f,
                "{algorithm} signs with a key pair: 'keys' must be a folder, or 'algorithm' one of HS256, HS384 or HS512"
            ),
            Problem::AssertionNeedsKeys { algorithm } => write!(
                f,
                "an assertion signed with {algorithm} could only be checked by whoever can make login tokens: \
                 'tokens.algorithm' must be one with a key pair, such as EdDSA"
            ),
            Problem::AssertionForWhom { several } => {
                let why = if *several { "with several upstreams" } else { "without 'upstream'" };
                write!(f, "{why}, an assertion needs an 'audience': write a mapping with 'header' and 'audience'")
            }
            Problem::AssertionAudience { audience } => write!(
                f,
                "assertions cannot have the audience of login tokens, '{}': name the upstream by another",
                tidy(audience)
            ),
            Problem::AlgorithmAndSource { algorithm, source } => {
                write!(f, "{algorithm} cannot be verified with {source}")
            }
            Problem::UnknownRole { name, nearest } => {
                write!(f, "unknown role '{}'", tidy(name))?;
                nearest.as_ref().map_or(Ok(()), |nearest| write!(f, ", did you mean '{nearest}'?"))
            }
            Problem::Pattern { path, why } => write!(f, "'{}' is not a path: {why}", tidy(path)),
            Problem::Methods { why } => why.fmt(f),
            Problem::RulesTie { other, method } => {
                let what = method.as_ref().map_or("every method".to_owned(), |method| method.clone());
                let line = other.line_in_words();
                write!(f, "ties with the rule in line {line}: both are for the same paths and {what}")
            }
            Problem::CoversEndpoint { path } => {
                write!(f, "'{path}' belongs to the gateway itself; no rule can be for it")
            }
            Problem::RuleNeverWins => {
                f.write_str("this rule never decides: more specific ones take all it matches")
            }
            Problem::QueryRaisesNothing => f.write_str(
                "this rule never decides: a rule with 'query' only raises, and everybody passes this one",
            ),
            Problem::BodyCouldCarry { laxer } => write!(
                f,
                "bodies are not read: a POST, for which the rule in line {} asks less, may carry these parameters too",
                laxer.line_in_words()
            ),
            Problem::NoRules => f.write_str("there are no rules, so every request is refused"),
            Problem::UserQuery { why } => write!(f, "'users.query' {why}"),
            Problem::UsersNeed { key, needs } => write!(f, "{key} needs {needs}"),
            Problem::WeakHashes { key } => write!(
                f,
                "'{key}' lets in password hashes that are not stretched: whoever reads the table finds most of \
                 the passwords in hours"
            ),
            Problem::ExpectationFailed { expected, found, rule } => {
                write!(f, "expected {expected}, but it is {found}")?;
                rule.map_or(Ok(()), |rule| write!(f, " by the rule in line {}", rule.line_in_words()))
            }
            Problem::Keys { what } | Problem::Certificate { what } | Problem::TrustedKeys { what } => f.write_str(what),
            Problem::SamePath { path } => write!(
                f,
                "'{path}' is the path of two endpoints: 'login.path', 'login.logout' and 'login.rotate' must differ"
            ),
            Problem::SessionShorterThanToken => f.write_str(
                "'tokens.max_session' is shorter than 'tokens.ttl': a rotated token would end before the one it replaces",
            ),
            Problem::DrainPastTimeout => f.write_str(
                "'shutdown.drain' reaches past 'shutdown.timeout', and both count from the signal to stop",
            ),
            Problem::Internal { what } => {
                write!(f, "a fault of this program, please report it: {}", tidy(what))
            }
        }
    }
}

/// "of line 7", or of no line.
fn of(place: Position) -> String {
    place.known().map_or("of a default".into(), |place| format!("of line {}", place.line_in_words()))
}

fn quoted(names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("'{name}'")).collect()
}

fn both(names: &[String]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        _ => names.concat(),
    }
}

/// A file's problems in the file's order, those of the whole file first, nothing said twice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Sorts by position and drops what an alias would make appear several times.
    pub fn new(mut found: Vec<Diagnostic>) -> Self {
        found.sort_by_key(|diagnostic| (diagnostic.at, diagnostic.severity));
        found.dedup();
        Diagnostics(found)
    }

    /// Adds more and sorts again.
    pub fn extend(&mut self, more: impl IntoIterator<Item = Diagnostic>) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(more);
        *self = Diagnostics::new(all);
    }

    /// Whether one of them refuses the file.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Whether there are none, not even warnings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the file's order.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// All of them for people: `gateway.yaml:7:38: …` and the line with a caret under the place.
    ///
    /// A secret in a shown line is masked. `colour` adds ANSI colours, for a terminal.
    pub fn render(&self, source: &Source, colour: bool) -> String {
        let lines: Vec<&str> = lines(&source.text).collect();
        let mut out = String::new();
        for diagnostic in &self.0 {
            render_one(&mut out, diagnostic, source, &lines, colour);
        }
        out
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn render_one(out: &mut String, diagnostic: &Diagnostic, source: &Source, lines: &[&str], colour: bool) {
    let paint = |code: &'static str| if colour { code } else { "" };
    let (bold, red, yellow, dim, reset) =
        (paint("\x1b[1m"), paint("\x1b[31m"), paint("\x1b[33m"), paint("\x1b[2m"), paint("\x1b[0m"));
    let tone = if diagnostic.severity == Severity::Error { red } else { yellow };
    let name = tidy(&source.name);
    let place = diagnostic.at.map_or(name.clone(), |at| at.with_name(&name));
    out.push_str(&format!("{bold}{place}:{reset} "));
    if diagnostic.severity == Severity::Warning {
        out.push_str(&format!("{tone}warning:{reset} "));
    }
    out.push_str(&format!("{}\n", diagnostic.problem));

    let Some(at) = diagnostic.at else { return };
    let preset: Vec<&str>;
    let lines = match at.preset() {
        None => lines,
        Some(named) => {
            preset = self::lines(named.text()).collect();
            &preset
        }
    };
    let index = at.line as usize - 1;
    if index >= lines.len() {
        return;
    }
    let (shown, column) = excerpt(&masked_line(lines, index), at.column as usize);
    let number = at.line.to_string();
    let blank = " ".repeat(number.len());
    out.push_str(&format!("{dim}{number} |{reset} {shown}\n"));
    out.push_str(&format!("{dim}{blank} |{reset} {}{tone}^{reset}\n", " ".repeat(column - 1)));
}

/// YAML ends a line at LF, CR LF or a lone CR.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.strip_prefix('\u{feff}')
        .unwrap_or(text)
        .split('\n')
        .flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// The part of a line round a column (from 1), and where the column is in it: a file may be one endless line.
fn excerpt(line: &str, column: usize) -> (String, usize) {
    const WIDTH: usize = 110;
    let length = line.chars().count();
    let column = column.clamp(1, length + 1);
    let visible = |c: char| match c {
        '\t' => ' ',
        c if hides(c) => '\u{fffd}',
        c => c,
    };
    if length <= WIDTH {
        return (line.chars().map(visible).collect(), column);
    }
    let start = column.saturating_sub(1 + WIDTH / 2).min(length - WIDTH);
    let mut shown: String = line.chars().skip(start).take(WIDTH).map(visible).collect();
    let mut place = column - start;
    if start > 0 {
        shown.insert_str(0, "… ");
        place += 2;
    }
    if start + WIDTH < length {
        shown.push_str(" …");
    }
    (shown, place)
}

/// Keys whose value is never shown. `value` is that of `identity.secret`.
fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key == "value" || ["secret", "password", "passwd", "token"].iter().any(|part| key.ends_with(part))
}

const MASK: &str = "***";

/// A line without the secrets that it holds.
///
/// Works on text, not on the tree: a file that does not parse has no tree, and its lines are shown too.
/// In doubt it hides too much.
fn masked_line(lines: &[&str], index: usize) -> String {
    let line = lines[index];
    if continues_a_secret(lines, index) {
        let indent = line.len() - line.trim_start().len();
        return format!("{}{MASK}", &line[..indent]);
    }
    mask_passwords(&mask_values(line))
}

/// Masks what follows a secret's key, to the end of the line unless it is a reference, a mapping or a plain word.
fn mask_values(line: &str) -> String {
    let mut from = 0;
    while let Some(found) = line[from..].find(':') {
        let colon = from + found;
        from = colon + 1;
        let key = line[..colon]
            .trim_end_matches(['"', '\'', ' '])
            .rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .next()
            .unwrap_or_default();
        let value = line[colon + 1..].trim_start();
        if !is_secret_key(key) || value.is_empty() || harmless(value) {
            continue;
        }
        return format!("{} {MASK}", &line[..=colon]);
    }
    line.to_owned()
}

/// Whether what follows a secret's key shows nothing: a reference, a switch, a nested mapping, a template variable.
fn harmless(value: &str) -> bool {
    if opens_a_mapping(value) {
        return true;
    }
    let value = value.trim_start_matches(['"', '\'']);
    let end = match value.strip_prefix("${") {
        Some(inside) => inside.find('}').map_or(0, |end| end + 3),
        None => value.find([',', '}', '#', ' ', '"', '\'']).unwrap_or(value.len()),
    };
    let (word, behind) = value.split_at(end);
    // Only when it is the whole value: `${PREFIX}clear-text` and `off and on` are secrets.
    let is_whole =
        behind.trim_start_matches(['"', '\'', ' ']).chars().next().is_none_or(|c| ",}#".contains(c));
    let shows_nothing = match word.strip_prefix('$') {
        Some(name) if name.starts_with('{') => !name[1..].contains(['{', '$']),
        Some(name) => !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b"._".contains(&b)),
        None => ["false", "true", "off", "~", "null", "|", ">", "|-", ">-"].contains(&word),
    };
    is_whole && shows_nothing
}

/// Whether it is the mapping of `identity.secret`, whose own keys are looked at one by one.
fn opens_a_mapping(value: &str) -> bool {
    value.strip_prefix('{').is_some_and(|inside| {
        let inside = inside.trim_start_matches([' ', '"', '\'']);
        ["", "header", "value", "#"]
            .iter()
            .any(|key| if key.is_empty() { inside.is_empty() } else { inside.starts_with(key) })
    })
}

/// Whether a line is a later line of a secret: the line that it is indented under has a secret's key and begins its text.
fn continues_a_secret(lines: &[&str], index: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = lines[index];
    // Secrets of many lines are rare and short; a bound keeps a file of a million lines quick.
    let mut above = lines[..index].iter().rev().take(200).filter(|line| !line.trim().is_empty());
    let Some((key, value)) = above.find(|line| indent(line) < indent(own)).and_then(|line| last_pair(line))
    else {
        return false;
    };
    // After `secret:` alone comes either its text or, for `identity.secret`, a mapping.
    let value = value.trim();
    is_secret_key(key) && !value.starts_with('{') && !(value.is_empty() && last_pair(own).is_some())
}

/// The last `key: value` of a line.
fn last_pair(line: &str) -> Option<(&str, &str)> {
    let colon = line
        .match_indices(':')
        .map(|(at, _)| at)
        .rfind(|at| line[at + 1..].chars().next().is_none_or(|c| c == ' ' || c == '\t'))?;
    let key = line[..colon]
        .trim_end_matches(['"', '\'', ' '])
        .rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
        .next()
        .unwrap_or_default();
    Some((key, &line[colon + 1..]))
}
