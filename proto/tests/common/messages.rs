//! Reads the files in `fixtures/messages/`; `fixtures/README.md` says what their lines mean.

use std::fs;

use super::{escape, fixtures, unescape};

/// One block of a file.
pub(crate) struct Block {
    /// Its file and line.
    pub(crate) place: String,
    /// The message, or the base64 of it.
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_base64: bool,
    /// The lines that say what it reads as, or why it is refused; escaped as [`escape`] does it.
    pub(crate) expected: String,
    /// Whether what it reads as is written as these bytes.
    pub(crate) exact: bool,
}

/// All blocks of all files.
pub(crate) fn load() -> Vec<Block> {
    let folder = fixtures().join("messages");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut current: Option<Block> = None;
        for (number, line) in text.lines().enumerate() {
            let place = format!("{name}:{}", number + 1);
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (word, &mut current) {
                ("bytes" | "base64", None) => {
                    let bytes = unescape(rest).unwrap_or_else(|why| panic!("{place}: {why}"));
                    let is_base64 = word == "base64";
                    current = Some(Block { place, bytes, is_base64, expected: String::new(), exact: false });
                }
                ("", _) => all.extend(current.take()),
                ("#", None) => {}
                ("exact", Some(block)) => block.exact = true,
                ("notation" | "ask" | "reply" | "head" | "field" | "body" | "nothing" | "wrong", Some(block)) => {
                    // The same escapes as ours, whatever was escaped without need.
                    let line = unescape(line).unwrap_or_else(|why| panic!("{place}: {why}"));
                    block.expected.push_str(&escape(&line));
                    block.expected.push('\n');
                }
                _ => panic!("{place}: {line}"),
            }
        }
        all.extend(current);
    }
    assert!(!all.is_empty(), "no fixtures in {}", folder.display());
    all
}
