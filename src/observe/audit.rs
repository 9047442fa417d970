//! The audit log: one line an authentication event, with words from closed lists.
//!
//! What happened is an [`Event`], why is a [`Reason`]; the reference lists both, and a test holds it to
//! that. A new event is a variant here and a row there. Not here: how a line is written (`lines`).

use std::net::IpAddr;
use std::time::Duration;

use super::LogFormat;
use super::lines::{Line, since_epoch};
use crate::wire::answer::{LockedBy, Refusal};
use crate::wire::client::shown;

/// An enum whose variants are words of a closed list.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The fixed name, for log lines and metric labels.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The one with that name.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.code() == code)
            }
        }
    };
}

words! {
    /// What happened.
    Event {
        /// Somebody logged in.
        Login = "login",
        /// Somebody did not get in.
        LoginFailed = "login_failed",
        /// Somebody logged out, and a token, a session or all of theirs has ended.
        Logout = "logout",
        /// A token was replaced by its successor.
        Rotation = "rotation",
        /// A token that had been replaced was to be replaced again, too late: its session has ended.
        Reuse = "reuse",
        /// A command ended tokens.
        Revocation = "revocation",
        /// So many failed that nothing is tried for a while.
        LockOut = "lock_out",
        /// `ban add` locked somebody out.
        Ban = "ban",
        /// `ban lift` let somebody in again.
        Lift = "lift",
        /// A request was refused for what its token, or its role, is.
        Refused = "refused",
        /// The configuration was loaded again.
        Reload = "reload",
        /// It was not, and the old one stays.
        ReloadRefused = "reload_refused",
        /// A signing key came, went or took its turn.
        KeyChange = "key_change",
        /// A user of the local store was changed by a command.
        UserChange = "user_change",
        /// A command made a token for a user.
        TokenIssued = "token_issued",
    }
}

words! {
    /// How far a logout went, where that is further than its own session.
    Scope {
        /// Everything that the user had.
        Everywhere = "everywhere",
    }
}

words! {
    /// What made a reload happen.
    Trigger {
        /// A file changed.
        File = "file",
        /// SIGHUP.
        Signal = "signal",
        /// `POST /reload`.
        Admin = "admin",
        /// A trusted issuer's JWKS URL had other keys.
        Keys = "keys",
    }
}

words! {
    /// What happened to a key.
    KeyChange {
        /// It was made, by a command or because it was due.
        Made = "made",
        /// This gateway has it: tokens that it signed count here.
        Published = "published",
        /// New tokens are signed with it.
        Signs = "signs",
        /// A command took it out of use.
        Retired = "retired",
        /// It was removed, because its last token has expired.
        Removed = "removed",
        /// This gateway does not have it any more: tokens that it signed do not count here.
        Gone = "gone",
    }
}

words! {
    /// What happened to a user.
    UserChange {
        /// There is one more.
        Added = "added",
        /// There are more, from a file.
        Imported = "imported",
        /// Another password.
        Password = "password",
        /// Another role.
        Role = "role",
        /// May not log in any more.
        Disabled = "disabled",
        /// May log in again.
        Enabled = "enabled",
        /// There is one less.
        Removed = "removed",
    }
}

/// Why it happened. Closed, because each part is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason<'a> {
    /// Of a reload.
    Trigger(Trigger),
    /// Of a logout.
    Scope(Scope),
    /// Of a lock-out.
    Locked(LockedBy),
    /// Of a failed login or a refused request.
    Refusal(&'a Refusal),
    /// What happened to a key.
    KeyChange(KeyChange),
    /// What happened to a user.
    UserChange(UserChange),
}

impl Reason<'_> {
    /// The fixed name. For a refusal it is its `$code`, or, where clients are told less than the log,
    /// what is behind that.
    pub fn code(self) -> &'static str {
        match self {
            Self::Trigger(trigger) => trigger.code(),
            Self::KeyChange(change) => change.code(),
            Self::UserChange(change) => change.code(),
            Self::Scope(scope) => scope.code(),
            Self::Locked(by) => by.code(),
            Self::Refusal(Refusal::InvalidToken(why)) => why.code(),
            Self::Refusal(Refusal::WrongCredentials(why)) => why.code(),
            Self::Refusal(Refusal::TooManyLogins { by, .. }) => by.code(),
            Self::Refusal(refusal) => refusal.code(),
        }
    }
}

impl Reason<'static> {
    /// The reason of that name, of an event that a command can bring about.
    pub fn of_command(event: Event, code: &str) -> Option<Self> {
        match event {
            Event::KeyChange => KeyChange::from_code(code).map(Self::KeyChange),
            Event::UserChange => UserChange::from_code(code).map(Self::UserChange),
            _ => None,
        }
    }
}

/// One authentication event. What is not known is left out of its line.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    /// What happened.
    pub event: Event,
    /// Why.
    pub reason: Option<Reason<'a>>,
    /// Whom it concerns, by name.
    pub user: Option<&'a str>,
    /// Which key it concerns, by its `kid`.
    pub key: Option<&'a str>,
    /// Which user of the operating system did it, by a command.
    pub by: Option<&'a str>,
    /// When, since the epoch; `None`: now.
    pub at: Option<Duration>,
    /// Who asked.
    pub client: Option<IpAddr>,
    /// The network that a ban is about, as it was given.
    pub network: Option<&'a str>,
    /// The rule that decided, as in the file.
    pub rule: Option<&'a str>,
    /// Of the request.
    pub method: Option<&'a str>,
    /// Of the request, without its query.
    pub path: Option<&'a str>,
    /// Of the request.
    pub request_id: Option<&'a str>,
}

impl<'a> Audit<'a> {
    /// An event of which nothing else is known: `Audit { user: …, ..Audit::of(Event::Login) }`.
    pub fn of(event: Event) -> Self {
        Self {
            event,
            reason: None,
            user: None,
            key: None,
            by: None,
            at: None,
            client: None,
            network: None,
            rule: None,
            method: None,
            path: None,
            request_id: None,
        }
    }

    /// Appends the line.
    pub fn write(&self, format: LogFormat, line: &mut Vec<u8>) {
        let mut line = Line::begin(format, "audit", self.at.unwrap_or_else(since_epoch), line);
        line.text("event", self.event.code());
        line.optional("user", self.user);
        line.optional("key", self.key);
        line.optional("by", self.by);
        if let Some(client) = self.client {
            line.text("client", &shown(client));
        }
        line.optional("network", self.network);
        line.optional("reason", self.reason.map(Reason::code));
        line.optional("rule", self.rule);
        line.optional("method", self.method);
        line.optional("path", self.path);
        line.optional("request_id", self.request_id);
        line.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// What a line for people says, read from its first byte to its last; `None` if it could be read otherwise.
    fn read_text(line: &str) -> Option<Vec<(String, String)>> {
        let mut rest = line.strip_suffix('\n')?.get(24..)?.strip_prefix(" audit")?;
        let mut members = Vec::new();
        while !rest.is_empty() {
            let (key, after) = rest.strip_prefix(' ')?.split_once('=')?;
            let (value, length) = if after.starts_with('"') {
                let mut texts = serde_json::Deserializer::from_str(after).into_iter::<String>();
                (texts.next()?.ok()?, texts.byte_offset())
            } else {
                let length = after.find(' ').unwrap_or(after.len());
                (after[..length].to_owned(), length)
            };
            members.push((key.to_owned(), value));
            rest = &after[length..];
        }
        Some(members)
    }

    /// Text as an attacker would choose it: pieces of lines, quotes, escapes, and anything at all.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\n".to_owned()),
            Just(
                "\r\n{\"timestamp\":\"2026-11-23T20:04:56.000Z\",\"log\":\"audit\",\"event\":\"login\"}"
                    .to_owned()
            ),
            Just("\",\"event\":\"login\",\"user\":\"root".to_owned()),
            Just("\" event=login user=root".to_owned()),
            Just("\\".to_owned()),
            Just("\u{1b}[2K\u{7}\u{9b}2J".to_owned()),
            Just("\u{202e}\u{2066}\u{feff}".to_owned()),
            Just("\u{2028}\u{85}\u{0}".to_owned()),
            ".{0,12}",
            "(?s).{0,4}",
            "[a-z/:._-]{0,8}",
        ];
        proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_breaks_or_forges_an_audit_line(
            user in hostile(), rule in hostile(), method in hostile(), path in hostile(), id in hostile(),
            key in hostile(), by in hostile(),
        ) {
            let audit = Audit {
                user: Some(&user),
                key: Some(&key),
                by: Some(&by),
                client: Some("192.0.2.1".parse().unwrap()),
                reason: Some(Reason::Refusal(&Refusal::AccessDenied)),
                rule: Some(&rule),
                method: Some(&method),
                path: Some(&path),
                request_id: Some(&id),
                ..Audit::of(Event::Refused)
            };
            let expected = [
                ("event", "refused"), ("user", &*user), ("key", &*key), ("by", &*by), ("client", "192.0.2.1"),
                ("reason", "access_denied"), ("rule", &*rule), ("method", &*method), ("path", &*path),
                ("request_id", &*id),
            ];
            for format in [LogFormat::Json, LogFormat::Text] {
                let mut line = Vec::new();
                audit.write(format, &mut line);
                let line = String::from_utf8(line).unwrap();
                prop_assert!(line.ends_with('\n'));
                prop_assert!(!line[..line.len() - 1].contains(|c: char| c.is_control()), "{:?}", line);
                prop_assert!(!line.contains(['\u{202e}', '\u{2066}', '\u{2028}', '\u{feff}']), "{:?}", line);
                let members = match format {
                    LogFormat::Json => {
                        let value: Value = serde_json::from_str(&line).unwrap();
                        let members = value.as_object().unwrap().clone();
                        let head: Vec<_> = members.keys().take(2).cloned().collect();
                        prop_assert_eq!(head, ["timestamp", "log"]);
                        prop_assert_eq!(&members["log"], "audit");
                        members.into_iter().skip(2)
                            .map(|(key, value)| (key, value.as_str().unwrap().to_owned()))
                            .collect::<Vec<_>>()
                    }
                    LogFormat::Text => read_text(&line).unwrap_or_else(|| panic!("{line:?}")),
                };
                let members: Vec<_> = members.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                prop_assert_eq!(members, expected);
            }
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut line = Vec::new();
        Audit { user: Some("vera"), ..Audit::of(Event::Login) }.write(LogFormat::Text, &mut line);
        assert_eq!(&line[24..], b" audit event=login user=vera\n");
    }

    #[test]
    fn a_word_of_a_list_is_found_by_its_name_and_stands_there_once() {
        for event in Event::ALL {
            assert_eq!(Event::from_code(event.code()), Some(*event));
        }
        assert_eq!(Event::from_code("nothing"), None);
        assert_eq!(Reason::of_command(Event::Login, "added"), None, "no command logs in");
    }
}
