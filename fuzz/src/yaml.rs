//! `gateway.yaml` from arbitrary text: every problem has its place in the file, they come in the file's
//! order, the report can be written, and what is valid stays so with a comment behind it.

use std::path::PathBuf;

use portcullis::config::snapshot::{Surroundings, build};
use portcullis::config::{Source, read};

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files elsewhere are none of this target's business.
    if text.contains("file:") || text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let valid = judge(text);
    if valid {
        assert!(
            judge(&format!("{}\n# nothing\n", text.trim_end_matches(['\n', ' ']))),
            "a comment made it invalid"
        );
    }
}

fn judge(text: &str) -> bool {
    let folder = PathBuf::from("/nonexistent");
    let source = Source { name: "gateway.yaml".to_owned(), text: text.to_owned(), folder };
    let reading =
        read(&source, &|name| (name == "SECRET").then(|| "0123456789abcdef0123456789abcdef".to_owned()));
    let outcome = build(reading, &source, &Surroundings::default());
    let diagnostics = match &outcome {
        Ok(built) => &built.warnings,
        Err(diagnostics) => {
            assert!(diagnostics.has_errors(), "refused without a reason");
            diagnostics
        }
    };
    let lines: Vec<&str> = portcullis_lines(text);
    let mut before = None;
    for diagnostic in diagnostics.iter() {
        let Some(at) = diagnostic.at else { continue };
        assert!(before <= Some(at), "not in the file's order: {:?}", diagnostics.iter().collect::<Vec<_>>());
        before = Some(at);
        assert!(at.line >= 1 && at.column >= 1, "{at:?}");
        let line = at.line as usize - 1;
        // The end of the file is a place, too.
        assert!(line <= lines.len(), "{at:?} in a file of {} lines", lines.len());
        let width = lines.get(line).map_or(0, |line| line.chars().count());
        assert!(at.column as usize <= width + 1, "{at:?} in a line of {width}: {:?}", diagnostic.problem);
        let told = diagnostic.problem.to_string();
        assert!(!told.is_empty() && !told.contains('\n'), "{told:?}");
        assert!(!told.contains("0123456789abcdef"), "a secret is shown: {told:?}");
    }
    let shown = diagnostics.render(&source, false);
    assert!(!shown.contains("0123456789abcdef0123456789abcdef") || text.contains("0123456789abcdef"));
    outcome.is_ok()
}

/// Lines as YAML counts them (1.2, §5.4): LF, CR LF or CR.
fn portcullis_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r']) {
        lines.push(&rest[..end]);
        rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
    }
    lines.push(rest);
    lines
}
