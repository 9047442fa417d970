//! Log lines that are written on every request's or event's account: the access log, and what the audit
//! log's lines are written with.
//!
//! Lines are built on the thread that has something to say and written by a thread of their own, so
//! that a slow reader of the log never holds up a request: access lines are given up and counted when
//! it falls far behind, audit lines are waited for. Every value that a client had a say in is written as
//! a JSON string, in either format, so nothing can break or forge a line.

use std::io::Write;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::LogFormat;
use crate::wire::client::shown;

/// Buffers that may wait for the writer before access lines are given up.
const BACKLOG: usize = 256;

/// Where finished lines go.
#[derive(Clone)]
pub struct LineSink(SyncSender<Job>);

enum Job {
    Lines(Vec<u8>),
    Flush(SyncSender<()>),
}

impl LineSink {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        Self::writing_to(std::io::stderr())
    }

    /// As [`LineSink::start`], to somewhere else.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn writing_to(mut out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, jobs) = sync_channel(BACKLOG);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            for job in jobs {
                match job {
                    // Nothing better can be done about a place that takes nothing.
                    Job::Lines(lines) => drop(out.write_all(&lines)),
                    Job::Flush(done) => drop(done.send(())),
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Hands over lines that may be lost if the writer is far behind; `false` if they were.
    pub fn offer(&self, lines: Vec<u8>) -> bool {
        !matches!(self.0.try_send(Job::Lines(lines)), Err(TrySendError::Full(_)))
    }

    /// Hands over lines that must not be lost; waits if the writer is far behind.
    pub fn deliver(&self, lines: Vec<u8>) {
        let _ = self.0.send(Job::Lines(lines));
    }

    /// Waits until all that was handed over is written.
    pub fn flush(&self) {
        let (done, waits) = sync_channel(1);
        if self.0.send(Job::Flush(done)).is_ok() {
            let _ = waits.recv_timeout(Duration::from_secs(2));
        }
    }
}

/// One request, for the access log.
#[derive(Debug)]
pub struct Access<'a> {
    pub request_id: &'a str,
    pub client: IpAddr,
    pub method: &'a str,
    /// Without its query, which may hold what nobody should read.
    pub path: &'a str,
    pub status: u16,
    /// Of the response body, as far as it was sent.
    pub bytes: u64,
    /// Whether the response was sent to its end.
    pub complete: bool,
    pub took: Duration,
    /// The rule that decided, as in the file.
    pub rule: Option<&'a str>,
    /// The code of the refusal, or `allowed`.
    pub decision: &'a str,
    pub user: Option<&'a str>,
}

impl Access<'_> {
    /// Appends the line.
    pub fn write(&self, format: LogFormat, line: &mut Vec<u8>) {
        let mut line = Line::begin(format, "access", since_epoch(), line);
        line.text("client", &shown(self.client));
        line.text("method", self.method);
        line.text("path", self.path);
        line.number("status", u64::from(self.status));
        line.number("bytes", self.bytes);
        line.number("micros", u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX));
        line.text("decision", self.decision);
        line.optional("rule", self.rule);
        line.optional("user", self.user);
        line.text("request_id", self.request_id);
        if !self.complete {
            line.text("cut", "true");
        }
        line.end();
    }
}

/// Now.
pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A line being written.
pub(super) struct Line<'a> {
    format: LogFormat,
    out: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    /// `at` is the time since the epoch.
    pub(super) fn begin(format: LogFormat, log: &str, at: Duration, out: &'a mut Vec<u8>) -> Self {
        let mut line = Self { format, out };
        let time = timestamp(at);
        match format {
            LogFormat::Json => {
                line.out.extend_from_slice(b"{\"timestamp\":\"");
                line.out.extend_from_slice(&time);
                line.out.push(b'"');
                line.text("log", log);
            }
            LogFormat::Text => {
                line.out.extend_from_slice(&time);
                line.out.push(b' ');
                line.out.extend_from_slice(log.as_bytes());
            }
        }
        line
    }

    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Json => {
                self.out.extend_from_slice(b",\"");
                self.out.extend_from_slice(key.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            LogFormat::Text => {
                self.out.push(b' ');
                self.out.extend_from_slice(key.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        let bare = self.format == LogFormat::Text
            && !value.is_empty()
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.:~%".contains(&byte));
        if bare {
            self.out.extend_from_slice(value.as_bytes());
        } else {
            push_quoted(self.out, value);
        }
    }

    pub(super) fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        self.out.extend_from_slice(value.to_string().as_bytes());
    }

    pub(super) fn end(self) {
        if self.format == LogFormat::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }
}

/// A JSON string; what could move a terminal's cursor, or make it show a line in another order than it has
/// (Unicode's bidirectional and invisible format characters), is escaped as well.
fn push_quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            _ if c.is_control() || is_invisible(c) => {
                out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// RFC 3339 in UTC with milliseconds. The calendar is that of the proleptic Gregorian rules (Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn timestamp(since_epoch: Duration) -> [u8; 24] {
    let seconds = since_epoch.as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, width: usize, mut value: u64| {
        for place in (at..at + width).rev() {
            text[place] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second_of_day / 3600);
    put(14, 2, second_of_day / 60 % 60);
    put(17, 2, second_of_day % 60);
    put(20, 3, u64::from(since_epoch.subsec_millis()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access<'a>(path: &'a str, user: Option<&'a str>) -> Access<'a> {
        Access {
            request_id: "r-1",
            client: "192.0.2.1".parse().unwrap(),
            method: "GET",
            path,
            status: 200,
            bytes: 12,
            complete: true,
            took: Duration::from_micros(345),
            rule: Some("read /admin/*"),
            decision: "allowed",
            user,
        }
    }

    #[test]
    fn nothing_that_a_client_sends_breaks_or_forges_a_line() {
        for evil in ["/a\nb", "/\",\"user\":\"root", "/\u{1b}[2J", "/\\", "/é\u{2028}x", "/\0"] {
            let mut line = Vec::new();
            access(evil, Some(evil)).write(LogFormat::Json, &mut line);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "{evil:?}");
            let parsed: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(parsed["path"], evil);
            assert_eq!(parsed["user"], evil);
            let mut line = Vec::new();
            access(evil, Some(evil)).write(LogFormat::Text, &mut line);
            assert!(line[..line.len() - 1].iter().all(|byte| *byte >= b' '), "{evil:?}");
        }
    }

    #[test]
    fn a_line_for_people_is_short_where_it_can_be() {
        let mut line = Vec::new();
        access("/admin/x", None).write(LogFormat::Text, &mut line);
        let line = String::from_utf8(line).unwrap();
        assert_eq!(
            &line[24..],
            " access client=192.0.2.1 method=GET path=/admin/x status=200 bytes=12 micros=345 decision=allowed rule=\"read /admin/*\" request_id=r-1\n"
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_464_296, "2026-11-23T20:04:56.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&timestamp(Duration::from_secs(seconds))).unwrap(), text);
        }
    }
}
