//! The guard over a stream of bytes against an independent reading of the same stream: whatever passes
//! is cut into messages where the other parser cuts it, however the bytes arrive.
//!
//! Input: a byte that says in what pieces the rest arrives, then the stream.

use portcullis::wire::hygiene::{Guard, HeadLimits, Piece};

/// The defaults of `limits`.
pub const LIMITS: HeadLimits = HeadLimits { head_bytes: 32 * 1024, target_bytes: 8 * 1024, headers: 100 };

/// See the module.
pub fn check(data: &[u8]) {
    let [step, stream @ ..] = data else { return };
    let (whole, error) = messages(stream, stream.len().max(1));
    let (pieces, broken) = messages(stream, usize::from(*step).max(1));
    assert_eq!(whole, pieces, "the pieces made a difference");
    // A head that is wrong at its end may be refused for its beginning sooner, never let through.
    assert_eq!(error, broken, "the pieces made a difference");
    let mut at = 0;
    for message in &whole {
        let Some(read) = Message::read(&stream[at..]) else {
            panic!("passed, and another parser makes nothing of it: {:?}", show(&stream[at..]));
        };
        assert_eq!(read.length, message.len(), "cut elsewhere by another parser: {:?}", show(&stream[at..]));
        at += message.len();
    }
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The complete messages that the guard hands on, and whether it then refused.
fn messages(stream: &[u8], step: usize) -> (Vec<Vec<u8>>, bool) {
    let mut guard = Guard::new(LIMITS);
    let (mut messages, mut message, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for piece in stream.chunks(step) {
        waiting.extend_from_slice(piece);
        while !waiting.is_empty() {
            match guard.next(&waiting) {
                Ok(Piece::Partial) => break,
                Ok(Piece::Pass(length)) => {
                    assert!((1..=waiting.len()).contains(&length));
                    message.extend(waiting.drain(..length));
                    if guard.between_messages() {
                        messages.push(std::mem::take(&mut message));
                    }
                }
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

/// One message as another parser reads it: httparse for the head, RFC 9112 §6 and §7 by hand for the body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Bytes of head and body.
    pub length: usize,
    pub method: String,
    /// As it stands in the request line.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Whole lines.
    pub trailers: Vec<Vec<u8>>,
}

impl Message {
    /// The message that `bytes` begin with; `None` if it is malformed, or longer than they are.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut space = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut space);
        let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
        let headers: Vec<(String, Vec<u8>)> = request
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec()))
            .collect();
        let values = |name: &str| {
            headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &value[..]).collect::<Vec<_>>()
        };
        let rest = &bytes[head..];
        let Chunks { data: body, trailers, length } =
            match (&values("transfer-encoding")[..], &values("content-length")[..]) {
                ([], []) => Chunks::default(),
                ([], [length]) => {
                    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
                    Chunks { data: rest.get(..length)?.to_vec(), trailers: Vec::new(), length }
                }
                ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => chunked(rest)?,
                _ => return None,
            };
        Some(Self {
            length: head + length,
            method: request.method?.to_owned(),
            target: request.path?.to_owned(),
            headers,
            body,
            trailers,
        })
    }
}

/// A body without its framing, and the bytes that it takes up with it.
#[derive(Default)]
struct Chunks {
    data: Vec<u8>,
    trailers: Vec<Vec<u8>>,
    length: usize,
}

fn chunked(bytes: &[u8]) -> Option<Chunks> {
    let mut at = 0;
    let (mut data, mut trailers) = (Vec::new(), Vec::new());
    let line = |from: usize| {
        bytes[from..].windows(2).position(|two| two == b"\r\n").map(|end| &bytes[from..from + end])
    };
    loop {
        let size_line = line(at)?;
        let digits = size_line.split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at += size_line.len() + 2;
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let trailer = line(at)?;
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Some(Chunks { data, trailers, length: at });
        }
        trailers.push(trailer.to_vec());
    }
}
