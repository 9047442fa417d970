//! Filling in `${NAME}` and `${file:path}`.
//!
//! What they stand for is never shown: problems name the reference. A reference that does not resolve is
//! an error rather than text, since `${jwt_secret}` taken literally would be a secret that everybody knows.
//! Not here: a template's own `$name` and `${name}` (`template`), which pass untouched.

use std::path::{Path, PathBuf};

use super::diagnostic::{FileProblem, Problem};

/// What surrounds a reference: plain text, or a template whose own variables stay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Surroundings {
    /// `$$` becomes `$`, and a `${…}` that is neither a variable nor a file is a mistake.
    Plain,
    /// `$$`, `$name` and `${name}` stay for the template; a `$` that comes from outside is doubled.
    Template,
}

/// Where references are looked up.
pub struct Lookup<'a> {
    /// What relative paths are relative to.
    pub folder: &'a Path,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Every file that was asked for, there or not: a watcher wants to know when one appears.
    pub files: Vec<PathBuf>,
}

/// The longest file that `${file:…}` takes in, in bytes.
const LONGEST_INCLUDED: u64 = 1024 * 1024;

impl Lookup<'_> {
    /// Fills in `${NAME}` and `${file:path}`. `None` when there was nothing to fill in or to unescape.
    ///
    /// # Errors
    /// Every reference of the text that cannot be resolved, each with its own text.
    pub fn interpolate(
        &mut self,
        text: &str,
        surroundings: Surroundings,
    ) -> Result<Option<String>, Vec<(String, Problem)>> {
        if !text.contains('$') {
            return Ok(None);
        }
        let (mut out, mut problems, mut rest) = (String::new(), Vec::new(), text);
        while let Some(dollar) = rest.find('$') {
            out.push_str(&rest[..dollar]);
            let after = &rest[dollar + 1..];
            if let Some(behind) = after.strip_prefix('$') {
                out.push_str(if surroundings == Surroundings::Plain { "$" } else { "$$" });
                rest = behind;
            } else if let Some(inside) = after.strip_prefix('{') {
                let end = inside.find('}');
                let name = &inside[..end.unwrap_or(inside.len())];
                let reference = &rest[dollar..dollar + 2 + name.len() + usize::from(end.is_some())];
                rest = end.map_or("", |end| &inside[end + 1..]);
                match self.resolve(name, end.is_some(), reference, surroundings) {
                    Ok(Some(value)) if surroundings == Surroundings::Template => {
                        out.push_str(&value.replace('$', "$$"))
                    }
                    Ok(Some(value)) => out.push_str(&value),
                    Ok(None) => out.push_str(reference),
                    Err(problem) => problems.push((reference.to_owned(), problem)),
                }
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        match problems.is_empty() {
            true => Ok(Some(out).filter(|out| out != text)),
            false => Err(problems),
        }
    }

    /// What a reference stands for; `None` for a template's own variable.
    fn resolve(
        &mut self,
        name: &str,
        closed: bool,
        reference: &str,
        surroundings: Surroundings,
    ) -> Result<Option<String>, Problem> {
        let bad = || Problem::BadReference { text: reference.to_owned() };
        if !closed {
            return Err(bad());
        }
        if let Some(path) = name.strip_prefix("file:") {
            let full = self.folder.join(path.trim());
            let content = included(&full);
            if !self.files.contains(&full) {
                self.files.push(full);
            }
            return content.map(Some).map_err(|why| Problem::File { path: path.trim().to_owned(), why });
        }
        let upper = name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        if upper {
            let missing = || Problem::MissingVariable { name: name.to_owned() };
            return (self.env)(name).map(Some).ok_or_else(missing);
        }
        let is_template_variable = surroundings == Surroundings::Template
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b));
        is_template_variable.then_some(None).ok_or_else(bad)
    }
}

/// A file's text without the newline that editors end it with.
fn included(path: &Path) -> Result<String, FileProblem> {
    use std::io::{ErrorKind, Read};
    let refused = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => FileProblem::Missing,
        ErrorKind::IsADirectory => FileProblem::Folder,
        ErrorKind::PermissionDenied => FileProblem::Unreadable("permission denied".into()),
        _ => FileProblem::Unreadable(error.to_string()),
    };
    if path.as_os_str().is_empty() || path.to_string_lossy().contains('\0') {
        return Err(FileProblem::Missing);
    }
    // Asked before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(refused)?;
    if metadata.is_dir() {
        return Err(FileProblem::Folder);
    }
    if !metadata.is_file() {
        return Err(FileProblem::NotAFile);
    }
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(refused)?;
    file.take(LONGEST_INCLUDED + 1).read_to_end(&mut content).map_err(refused)?;
    if content.len() as u64 > LONGEST_INCLUDED {
        return Err(FileProblem::TooLarge(LONGEST_INCLUDED));
    }
    let mut text = String::from_utf8(content).map_err(|_| FileProblem::NotText)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
