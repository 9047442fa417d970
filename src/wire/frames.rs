//! Follows the frames of an HTTP/2 connection, to see what h2 does not look at.
//!
//! h2 bounds what a client can have it remember. That a client has it work for nothing, by frames that cost
//! nothing to send and mean nothing (CVE-2019-9512, -9515, -9518, CVE-2023-44487), is counted here; and whether
//! a head that has begun goes on. Headers of frames alone are read (RFC 9113 §4.1), never their content. Pure.

use std::time::{Duration, Instant};

/// The client's connection preface (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// A frame's header, in bytes.
const HEADER: usize = 9;

/// Idle frames that a client may send in [`PERIOD`]. Browsers that give up a page's images send some hundred.
const IDLE_FRAMES: u32 = 1000;

/// See [`IDLE_FRAMES`].
const PERIOD: Duration = Duration::from_secs(10);

/// A GOAWAY frame for a client that asks for too much (ENHANCE_YOUR_CALM): `last` is the last stream that
/// anything was done for.
pub fn goaway(last: u32) -> [u8; HEADER + 8] {
    let mut frame = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb];
    frame[HEADER..HEADER + 4].copy_from_slice(&last.to_be_bytes());
    frame
}

/// More idle frames than anybody needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flood;

/// Where in a stream of frames the next byte stands. The other direction has no preface.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Bytes to come of the preface, or of a frame's content.
    skip: usize,
    header: [u8; HEADER],
    /// How much of `header` is there.
    have: usize,
}

impl Position {
    /// Whether the next byte begins a frame.
    pub fn between_frames(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// Goes on over `bytes`, and tells of each frame whose header is complete.
    pub fn follow<E>(
        &mut self,
        mut bytes: &[u8],
        mut frame: impl FnMut(&[u8; HEADER]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                frame(&self.header)?;
            }
        }
        Ok(())
    }
}

/// Follows what a client sends.
#[derive(Debug)]
pub struct FrameGuard {
    position: Position,
    /// The last frame's head is not complete: CONTINUATION has to follow.
    unfinished: bool,
    /// The last frame carries a head.
    carries_head: bool,
    preface: usize,
    idle_frames: u32,
    since: Option<Instant>,
    last_stream: u32,
}

impl FrameGuard {
    /// At a connection's first byte.
    pub fn new() -> Self {
        Self {
            position: Position { skip: PREFACE, ..Position::default() },
            unfinished: false,
            carries_head: false,
            preface: PREFACE,
            idle_frames: 0,
            since: None,
            last_stream: 0,
        }
    }

    /// Goes on over `bytes`; `now` is asked for where a frame is counted.
    ///
    /// # Errors
    /// Nothing of the connection is to be read any more.
    pub fn follow(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        self.preface = self.preface.saturating_sub(bytes.len());
        let Self { position, unfinished, carries_head, idle_frames, since, last_stream, .. } = self;
        position.follow(bytes, |header| {
            const END_STREAM: u8 = 0x1;
            const END_HEADERS: u8 = 0x4;
            let [a, b, c, kind, flags, stream @ ..] = *header;
            let is_empty = [a, b, c] == [0; 3];
            *carries_head = matches!(kind, 1 | 9);
            let is_idle = match kind {
                // DATA that neither brings anything nor ends.
                0 => is_empty && flags & END_STREAM == 0,
                1 => {
                    *last_stream = (*last_stream).max(u32::from_be_bytes(stream) & 0x7fff_ffff);
                    false
                }
                // WINDOW_UPDATE comes as often as the client takes something.
                8 => false,
                // PRIORITY, RST_STREAM, SETTINGS, PING, CONTINUATION, and kinds that nobody knows.
                _ => true,
            };
            if *carries_head {
                *unfinished = flags & END_HEADERS == 0;
            }
            if is_idle {
                let now = now();
                if since.is_none_or(|since| now.duration_since(since) > PERIOD) {
                    (*since, *idle_frames) = (Some(now), 0);
                }
                *idle_frames += 1;
                if *idle_frames > IDLE_FRAMES {
                    return Err(Flood);
                }
            }
            Ok(())
        })
    }

    /// Whether a preface or a head has begun and not ended: then the client is waited for.
    pub fn in_head(&self) -> bool {
        self.preface > 0 || self.unfinished || (self.carries_head && self.position.skip > 0)
    }

    /// The last stream that the client has opened.
    pub fn last_stream(&self) -> u32 {
        self.last_stream
    }
}

impl Default for FrameGuard {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(content);
        frame
    }

    fn started() -> FrameGuard {
        let mut guard = FrameGuard::new();
        guard.follow(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Instant::now).unwrap();
        guard
    }

    #[test]
    fn frames_that_mean_nothing_are_counted_and_those_that_do_are_not() {
        for (kind, flags, content, idle) in [
            (0, 0, &b""[..], true),
            (0, 1, b"", false),
            (0, 0, b"x", false),
            (1, 4, b"x", false),
            (2, 0, b"12345", true),
            (3, 0, b"1234", true),
            (4, 0, b"", true),
            (4, 1, b"", true),
            (6, 0, b"12345678", true),
            (8, 0, b"1234", false),
            (9, 4, b"", true),
            (77, 0, b"?", true),
        ] {
            let mut guard = started();
            let one = frame(kind, flags, 1, content);
            let now = Instant::now();
            let outcome = (0..=IDLE_FRAMES).try_for_each(|_| guard.follow(&one, || now));
            assert_eq!(outcome, if idle { Err(Flood) } else { Ok(()) }, "{kind}");
            // The same number over a longer time is no flood.
            let mut guard = started();
            let outcome = (0..=2 * IDLE_FRAMES)
                .try_for_each(|n| guard.follow(&one, || now + Duration::from_millis(20) * n));
            assert_eq!(outcome, Ok(()), "{kind}");
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[0; 12]));
        bytes.extend(frame(1, 0, 5, b"head"));
        bytes.extend(frame(9, 4, 5, b"more"));
        bytes.extend(frame(0, 1, 5, &[7; 300]));
        bytes.extend(frame(1, 4, 7, b"head"));
        for size in [1, 2, 7, 9, 10, 33, 1000] {
            let mut guard = FrameGuard::new();
            for piece in bytes.chunks(size) {
                guard.follow(piece, Instant::now).unwrap();
            }
            assert_eq!((guard.last_stream(), guard.in_head()), (7, false), "{size}");
            assert!(guard.position.between_frames());
            assert_eq!(guard.idle_frames, 2);
        }
    }

    #[test]
    fn a_head_has_begun_until_its_last_byte() {
        let mut guard = FrameGuard::new();
        assert!(guard.in_head(), "the preface is waited for");
        guard.follow(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Instant::now).unwrap();
        assert!(!guard.in_head());
        for (bytes, in_head) in [
            (frame(1, 0, 1, b"head"), true),
            (frame(9, 0, 1, b"more"), true),
            (frame(9, 4, 1, b"last")[..11].to_vec(), true),
            (b"st".to_vec(), false),
            (frame(0, 0, 1, b"body")[..10].to_vec(), false),
        ] {
            guard.follow(&bytes, Instant::now).unwrap();
            assert_eq!(guard.in_head(), in_head, "{bytes:?}");
        }
    }

    #[test]
    fn a_goaway_is_a_frame() {
        let mut position = Position::default();
        let mut kinds = Vec::new();
        let told = position.follow(&goaway(0x0102_0304), |header| {
            kinds.push(header[3]);
            Ok::<_, ()>(())
        });
        assert_eq!((told, kinds), (Ok(()), vec![7]));
        assert!(position.between_frames());
        assert_eq!(goaway(0x0102_0304)[9..13], [1, 2, 3, 4]);
    }
}
