//! A seeded grammar of the ways to write one request so that two parsers read it differently.
//!
//! A request begins as an honest one for something protected and goes through a few tricks: of a character, of a
//! segment, of a separator, of the path's ends, of the query, of headers. Each number of a seed always gives the
//! same request, whatever ran before it, so a finding is two numbers.

/// SplitMix64: small, and the same on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A request as it goes on the wire, but for Host and credentials.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub method: &'static str,
    /// Origin-form or absolute-form; `HOST` in it stands for the Host.
    pub target: Vec<u8>,
    pub headers: Vec<(String, String)>,
}

impl Attempt {
    /// The bytes of a whole request.
    pub fn bytes(&self, host: &str, authorization: Option<&str>) -> Vec<u8> {
        let mut bytes = format!("{} ", self.method).into_bytes();
        let target = self.target.strip_prefix(b"http://HOST");
        match target {
            Some(rest) => bytes.extend([b"http://", host.as_bytes(), rest].concat()),
            None => bytes.extend(&self.target),
        }
        bytes.extend(format!(" HTTP/1.1\r\nHost: {host}\r\n").bytes());
        if let Some(authorization) = authorization {
            bytes.extend(format!("Authorization: {authorization}\r\n").bytes());
        }
        for (name, value) in &self.headers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        if self.method != "GET" {
            bytes.extend(b"Content-Length: 0\r\n");
        }
        bytes.extend(b"\r\n");
        bytes
    }

    /// Whether a gateway that compares what was sent with what is protected, prefix by prefix, lets it through.
    pub fn passes_a_naive_gateway(&self) -> bool {
        let text = String::from_utf8_lossy(&self.target);
        let (path, query) = text.split_once('?').unwrap_or((&text, ""));
        let protected = path.starts_with("/admin") && !path.starts_with("/admin/open/")
            || path.starts_with("/users.php")
            || path.strip_prefix("/item/").is_some_and(|rest| rest.contains('/'))
            || path == "/item"
            || self.method == "DELETE"
            || query.contains("rest_route=/private");
        !protected
    }
}

/// What is protected in every site of these tests, segment by segment.
const PROTECTED: [&[&str]; 7] = [
    &["admin", "secret.txt"],
    &["admin", "secret.txt"],
    &["admin", "users.php"],
    &["admin", "x"],
    &["admin"],
    &["users.php"],
    &["item", "7", "edit"],
];

/// The request number `number` of `seed`.
pub fn attempt(seed: u64, number: u64) -> Attempt {
    let mut random = Random::new(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let random = &mut random;
    match random.below(10) {
        0 => by_method(random),
        1 => by_query(random),
        2 => by_header(random),
        _ => {
            let mut target = path(random);
            if random.chance(10) {
                target.extend(
                    random.pick(&["?", "?x=1", "?/../public", "?#", "?x#/public", "?;/public"]).as_bytes(),
                );
            }
            if random.chance(5) {
                let before = random.pick(&[
                    "http://HOST",
                    "http://HOST",
                    "http://elsewhere",
                    "https://HOST",
                    "http://HOST@elsewhere",
                    "HTTP://x",
                    "http:",
                    "file://",
                ]);
                target = [before.as_bytes(), &target].concat();
            }
            let method = if random.chance(90) { "GET" } else { random.pick(&["POST", "PUT", "PROPFIND"]) };
            Attempt { method, target, headers: Vec::new() }
        }
    }
}

const METHOD_HEADERS: [&str; 7] = [
    "X-HTTP-Method-Override",
    "x-http-method",
    "X-Method-Override",
    "X_HTTP_Method_Override",
    "X.Method.Override",
    "X-Original-Method",
    "X-Forwarded-Method",
];

fn by_method(random: &mut Random) -> Attempt {
    let mut attempt =
        Attempt { method: random.pick(&["GET", "POST"]), target: b"/page".to_vec(), headers: Vec::new() };
    let value = random.pick(&["DELETE", "delete", "Delete", " DELETE ", "DELETE\t", "POST, DELETE"]);
    if random.chance(50) {
        attempt.headers.push((random.pick(&METHOD_HEADERS).to_owned(), value.to_owned()));
        if random.chance(30) {
            // Another before or behind it, in the hope that only one is looked at.
            let at = random.below(2);
            attempt.headers.insert(at, (random.pick(&METHOD_HEADERS).to_owned(), "GET".to_owned()));
        }
        if random.chance(20) {
            let named = attempt.headers[0].0.clone();
            attempt.headers.push(("Connection".to_owned(), named));
        }
    } else {
        let name = random.pick(&[
            "_method",
            "_METHOD",
            "%5fmethod",
            "_meth%6fd",
            "+_method",
            "_method[]",
            ".method",
        ]);
        let value =
            random.pick(&["DELETE", "delete", "%44ELETE", "DELETE+", "%20delete", "del%65te", "DELETE%00"]);
        let before = random.pick(&["", "x=1&", "_method=GET&", "x;", "&&"]);
        let after = random.pick(&["", "&x=1", "&_method=GET", ";x", "%26"]);
        attempt.target.extend(format!("?{before}{name}={value}{after}").bytes());
    }
    attempt
}

fn by_query(random: &mut Random) -> Attempt {
    let name = random.pick(&[
        "rest_route",
        "rest_route",
        "rest.route",
        "rest%20route",
        "rest+route",
        "rest[route",
        "rest%5Froute",
        "rest_route[]",
        "rest_route[x]",
        "%20rest_route",
        "REST_ROUTE",
        "rest_route%00",
        "rest_route%00x",
    ]);
    let value = random.pick(&[
        "/private",
        "/private/list",
        "%2Fprivate%2Flist",
        "/priv%61te/list",
        "//private//list",
        "/PRIVATE/list",
        "/private/list%00",
        "/private/",
        "/private/../private/x",
        "%2fprivate%2f",
        "/private%2flist",
    ]);
    let before = random.pick(&["", "x=1&", "rest_route=/public&", "?", "&", "x;"]);
    let after = random.pick(&["", "&x", "&rest_route=/public", ";x", "#x"]);
    let path = random.pick(&["/", "/", "/index.php", "//", "/./", "/index.php/"]);
    let target = format!("{path}?{before}{name}={value}{after}").into_bytes();
    Attempt { method: random.pick(&["GET", "POST"]), target, headers: Vec::new() }
}

fn by_header(random: &mut Random) -> Attempt {
    let name = random.pick(&[
        "X-Original-URL",
        "X_Original_URL",
        "x-original-uri",
        "X-Rewrite-URL",
        "X.Rewrite.URL",
        "X-Rewrite-URI",
        "X-Override-URL",
        "X-Forwarded-Uri",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X_FORWARDED-PREFIX",
        "SCRIPT_NAME",
        "Script-Name",
        "PATH_INFO",
        "Path-Info",
    ]);
    let value = random.pick(&["/admin/x", "/admin", "/users.php", "http://x/admin/x", "/public/../admin/x"]);
    let mut headers = vec![(name.to_owned(), value.to_owned())];
    if random.chance(20) {
        headers.push(("Connection".to_owned(), name.to_owned()));
    }
    if random.chance(20) {
        headers.insert(0, (name.to_owned(), "/public".to_owned()));
    }
    let target = random.pick(&["/public", "/", "/x", "/admin/open/x", "/index.php/x"]);
    Attempt { method: "GET", target: target.as_bytes().to_vec(), headers }
}

/// A path to something protected, with tricks.
fn path(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    let mut tricks = 1 + random.below(3);
    if random.chance(25) {
        tricks -= 1;
        text.push_str(&before(random));
    }
    let segments = random.pick(&PROTECTED);
    for (index, segment) in segments.iter().enumerate() {
        let plain = index > 0 || !text.is_empty() && random.chance(80);
        let between = if tricks > 0 && random.chance(if plain { 15 } else { 25 }) {
            tricks -= 1;
            separator(random)
        } else {
            "/"
        };
        text.push_str(between);
        if tricks > 0 && random.chance(60) {
            tricks -= 1;
            text.push_str(&spelled(random, segment));
        } else {
            text.push_str(segment);
        }
    }
    if tricks > 0 || random.chance(20) {
        text.push_str(random.pick(&BEHIND));
    }
    let mut bytes = text.into_bytes();
    if random.chance(2) {
        // Whatever nobody thought of.
        let at = 1 + random.below(bytes.len());
        let byte = random
            .pick(&[0x01, 0x09, 0x0b, 0x20, 0x22, 0x5c, 0x7f, 0x80, 0xa0, 0xad, 0xc0, 0xff, b'|', b'^']);
        bytes.insert(at, byte);
    }
    bytes
}

/// Something harmless that leads back to the root, or is thought away.
fn before(random: &mut Random) -> String {
    let up = random.pick(&[
        "..",
        "..",
        "%2e%2e",
        ".%2E",
        "%2e.",
        "%252e%252e",
        "%25252e.",
        "..;",
        "..;x=y",
        "..%3b",
        "..%3Bx",
        "..%20",
        "%20..",
        "..+",
        "..%09",
        "..%00",
        "..%2500",
        "..%5c..",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "%ef%bc%8e%ef%bc%8e",
        "%e2%80%a5",
        ".%e2%80%8b.",
        "..%c2%ad",
        "..%ef%bb%bf",
        "..%e3%80%80",
        "...",
        "..%2e",
        "..%3f",
        "..%23",
        "x/../..",
        "./..",
    ]);
    match random.below(10) {
        0..4 => format!(
            "{}/{up}",
            random.pick(&["/public", "/x", "/index.php", "/item", "/.", "/public;x", "/a.b"])
        ),
        4 => format!("/admin/open/{up}"),
        5 => format!(
            "/{}",
            random.pick(&["index.php", "INDEX.PHP", "index.php;x", "x.php", "index%2ephp", "sub/index.php"])
        ),
        6 => format!(
            "//{}",
            random.pick(&["x", "x:80", "x@y", "public", "127.0.0.1", "x%41", "x;y", "[::1]", "x/", "/x"])
        ),
        7 => format!("/{up}"),
        8 => random
            .pick(&["/;", "/;x=y", "/%3bx", "/.;x", "/.", "/%2e", "/%252e", "/+", "/%20", "/%c2%ad"])
            .to_owned(),
        _ => random
            .pick(&[
                "/public%2f..",
                "/x%5c..",
                "/x\\..",
                "/public%252f%252e%252e",
                "/x%c0%af..",
                "/x%ef%bc%8f..",
            ])
            .to_owned(),
    }
}

fn separator(random: &mut Random) -> &'static str {
    random.pick(&[
        "//",
        "///",
        "/./",
        "/.//",
        "/x/../",
        "/;/",
        "/;x=y/",
        "/.;x/",
        "/x/..;/",
        "/%2e/",
        "/%2f",
        "%2f",
        "%2F",
        "%252f",
        "%25252F",
        "\\",
        "/\\",
        "%5c",
        "%5C",
        "%255c",
        "%c0%af",
        "%e0%80%af",
        "%ef%bc%8f",
        "%e2%88%95",
        "%ef%bc%bc",
        "/%20/",
        "/+/",
        "/%09/",
        "/%00/",
        "/%e2%80%8b/",
        "/x/%2e%2e/",
        ";/",
        "./",
        "/%252e/",
        "%3f/",
        "%23/",
    ])
}

/// What stands behind a path that some upstream does not look at.
const BEHIND: [&str; 44] = [
    "/",
    "//",
    "/.",
    "/..",
    "/x",
    "/x.css",
    "/x/..",
    "/../x",
    ".",
    "..",
    "...",
    "/...",
    "%20",
    "+",
    "%09",
    "%0a",
    "%00",
    "%00.css",
    "%2500",
    "%c2%a0",
    "%ef%bb%bf",
    "%e3%80%80",
    "%e2%80%8b",
    ";",
    ";x",
    ";x=y",
    ";.css",
    "%3b",
    "%253b",
    "%3f",
    "%3Fx",
    "%253fx",
    "%23",
    "%23x",
    "#",
    "#x",
    "?",
    "?x",
    "%2f",
    "%5c",
    "\\",
    "%",
    "%zz",
    "::$DATA",
];

/// A segment in a spelling that some upstream takes for the plain one.
fn spelled(random: &mut Random, segment: &str) -> String {
    match random.below(9) {
        0 => {
            // Some characters escaped, each as often as it likes.
            let often = random.pick(&[10, 40, 100]);
            let (deep, upper) = (random.below(4), random.chance(50));
            segment
                .chars()
                .map(|c| if random.chance(often) { escaped(c, deep, upper) } else { c.to_string() })
                .collect()
        }
        1 => segment.chars().map(|c| if random.chance(50) { c.to_ascii_uppercase() } else { c }).collect(),
        2 => one_replaced(random, segment, compatible),
        3 => one_replaced(random, segment, folds_to),
        4 => {
            // Something invisible, or an accent, behind a letter.
            let inserted = random.pick(&[
                "%cc%81",
                "%e2%80%8b",
                "%c2%ad",
                "%e2%80%8d",
                "%ef%bb%bf",
                "%cd%8f",
                "%ef%b8%8f",
                "%00",
            ]);
            let at = 1 + random.below(segment.len());
            format!("{}{inserted}{}", &segment[..at], &segment[at..])
        }
        5 => {
            format!("{segment}{}", random.pick(&[";", ";x", ";x=y", "%3b", "%3Bx", "%253b", ";/", ";%2f.."]))
        }
        6 => format!(
            "{segment}{}",
            random.pick(&[".", "..", "...", "%2e", "%252e", "%20.", ". ", "%e2%80%a4"])
        ),
        7 => {
            let blank = random.pick(&[
                "%20",
                "+",
                "%09",
                "%0b",
                "%c2%a0",
                "%e3%80%80",
                "%e2%80%a8",
                "%ef%bb%bf",
                "%2520",
                "%1f",
            ]);
            if random.chance(50) { format!("{segment}{blank}") } else { format!("{blank}{segment}") }
        }
        _ => one_replaced(random, segment, |random, c| {
            // Overlong UTF-8, and the escapes of another age.
            let byte = c as u32;
            match random.below(4) {
                0 => format!("%c{}%{:02x}", byte >> 6 & 3, 0x80 | byte & 0x3f),
                1 => format!("%e0%8{}%{:02x}", byte >> 6, 0x80 | byte & 0x3f),
                2 => format!("%u{byte:04x}"),
                _ => format!("%u00{byte:02X}"),
            }
        }),
    }
}

fn one_replaced(random: &mut Random, segment: &str, new: impl Fn(&mut Random, char) -> String) -> String {
    let at = random.below(segment.len());
    segment.chars().enumerate().map(|(i, c)| if i == at { new(random, c) } else { c.to_string() }).collect()
}

fn escaped(c: char, deep: usize, upper: bool) -> String {
    let digits = if upper { format!("{:02X}", c as u32) } else { format!("{:02x}", c as u32) };
    format!("%{}{digits}", "25".repeat(deep))
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// A compatibility form of an ASCII character (Unicode NFKC).
fn compatible(random: &mut Random, c: char) -> String {
    let at = |base: u32| char::from_u32(base).map(|c| c.to_string());
    let offset = c as u32 - u32::from(b'a').min(c as u32);
    let form = match (c, random.below(4)) {
        ('a'..='z', 0) => at(0x24D0 + offset),
        ('a'..='z', 1) => at(0x1D41A + offset),
        ('a'..='z', 2) => at(0xFF21 + offset),
        ('7', _) => Some("\u{2077}".to_owned()),
        _ => at(0xFF01 + (c as u32 - 0x21)),
    };
    percent(&form.unwrap_or_else(|| c.to_string()))
}

/// Something that equals a letter where case, accents or both do not count.
fn folds_to(random: &mut Random, c: char) -> String {
    let forms: &[&str] = match c {
        'a' => &["\u{e1}", "\u{c5}", "\u{101}", "\u{aa}"],
        'd' => &["\u{10f}", "\u{10e}"],
        'e' => &["\u{e9}", "\u{ca}", "\u{1eb9}"],
        'i' => &["\u{131}", "\u{130}", "\u{ed}", "\u{2170}"],
        'n' => &["\u{f1}", "\u{148}"],
        's' => &["\u{17f}", "\u{161}", "\u{15e}"],
        'u' => &["\u{fc}", "\u{16f}"],
        'c' => &["\u{e7}", "\u{10d}"],
        't' => &["\u{165}", "\u{163}"],
        'r' => &["\u{159}"],
        _ => return escaped(c, 0, false),
    };
    percent(random.pick(forms))
}
