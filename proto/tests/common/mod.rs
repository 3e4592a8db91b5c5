//! Reads the files in `fixtures/`; `fixtures/README.md` says what their lines mean. Needs nothing but std, so that the tests
//! of every crate here can take it in with `#[path]`.

#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod messages;
pub(crate) mod random;

use std::fs;
use std::path::{Path, PathBuf};

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It opened the connection: `>`.
    Dialling,
    /// It accepted the connection: `<`.
    Listening,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Dialling => Side::Listening,
            Side::Listening => Side::Dialling,
        }
    }
}

/// One step of a transcript. Where a step names a side, it is the one whose bytes they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Bytes(Side, Vec<u8>),
    /// The end of this side's bytes.
    Close(Side),
    /// Whoever reads this side's bytes sees this event.
    Expect(Side, Vec<u8>),
    /// The side says nothing until its reader takes the body to be over.
    Quiet(Side),
    /// The side waits until it may send the first request.
    Pause(Side),
    /// The bytes before it are, byte by byte, what we send for the same message.
    Ours(Side),
    /// The message before it is one that we never send.
    Theirs(Side),
    /// The bytes behind it come when this side may not speak any more.
    Late(Side),
}

/// How an input is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status of the answer; `None` when there is none and the connection only closes.
    pub(crate) status: Option<u16>,
    /// The stable name of the error.
    pub(crate) code: String,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    /// The file's name without `.txt`.
    pub(crate) name: String,
    pub(crate) items: Vec<Item>,
    /// Whether the last bytes are to be refused.
    pub(crate) refusal: Option<Refusal>,
}

impl Transcript {
    /// Everything that one side sends.
    pub(crate) fn bytes_of(&self, side: Side) -> Vec<u8> {
        let mut all = Vec::new();
        for item in &self.items {
            if let Item::Bytes(from, bytes) = item
                && *from == side
            {
                all.extend_from_slice(bytes);
            }
        }
        all
    }

    /// The side that speaks last: of a refused input, the one that is refused.
    pub(crate) fn last_speaker(&self) -> Side {
        let speakers = self.items.iter().rev().find_map(|item| match item {
            Item::Bytes(side, _) | Item::Close(side) => Some(*side),
            _ => None,
        });
        speakers.unwrap_or(Side::Dialling)
    }

    /// The events that the reader of this side's bytes must see; pieces of body that follow each other are one.
    pub(crate) fn expected_from(&self, side: Side) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for item in &self.items {
            if let Item::Expect(from, event) = item
                && *from == side
            {
                push_event(&mut all, event);
            }
        }
        all
    }
}

/// Says which fixture a failed test was about, however it failed.
pub(crate) struct Naming(pub(crate) String);

impl Drop for Naming {
    #[allow(clippy::print_stderr, reason = "only when a test fails, and there it belongs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the fixture {}", self.0);
        }
    }
}

/// Adds an event to a list; a piece of body is added to the piece before it.
pub(crate) fn push_event(events: &mut Vec<Vec<u8>>, event: &[u8]) {
    match (events.last_mut(), event.strip_prefix(b"data ")) {
        (Some(last), Some(more)) if last.starts_with(b"data ") => last.extend_from_slice(more),
        _ => events.push(event.to_vec()),
    }
}

/// All transcripts of a folder of `fixtures/`, by name.
pub(crate) fn load(folder: &str) -> Vec<Transcript> {
    let folder = fixtures().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "no fixtures in {}", folder.display());
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Transcript {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match parse(&name, &text) {
        Ok(transcript) => transcript,
        Err((line, why)) => panic!("{}:{line}: {why}", path.display()),
    }
}

/// The folder `fixtures/`, which lies beside or above the crate whose test this is.
pub(crate) fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here.ancestors().map(|folder| folder.join("fixtures")).find(|folder| folder.join("README.md").exists());
    found.unwrap_or_else(|| panic!("no fixtures above {}", here.display()))
}

/// Reads one file's text. An error names its line.
pub(crate) fn parse(name: &str, text: &str) -> Result<Transcript, (usize, String)> {
    let mut transcript = Transcript { name: name.to_owned(), items: Vec::new(), refusal: None };
    let mut last = None;
    for (number, line) in text.lines().enumerate() {
        let done = match line.as_bytes().first() {
            None | Some(b'#') => Ok(()),
            Some(b'>') => add_line(&mut transcript.items, Side::Dialling, &line[1..], &mut last),
            Some(b'<') => add_line(&mut transcript.items, Side::Listening, &line[1..], &mut last),
            Some(b'!') => directive(&mut transcript, &line[1..], &mut last),
            Some(_) => Err("a line starts with > < ! or #".to_owned()),
        };
        done.map_err(|why| (number + 1, why))?;
    }
    Ok(transcript)
}

fn add_line(items: &mut Vec<Item>, side: Side, text: &str, last: &mut Option<Side>) -> Result<(), String> {
    // A backslash that is not itself escaped stands for "no line end".
    let open = text.len() - text.trim_end_matches('\\').len();
    let (text, ends) = if open % 2 == 1 { (&text[..text.len() - 1], false) } else { (text, true) };
    let mut bytes = unescape(text)?;
    if ends {
        bytes.extend_from_slice(b"\r\n");
    }
    add_bytes(items, side, &bytes);
    *last = Some(side);
    Ok(())
}

/// Lines of one side that follow each other are one piece.
fn add_bytes(items: &mut Vec<Item>, side: Side, bytes: &[u8]) {
    match items.last_mut() {
        Some(Item::Bytes(before, all)) if *before == side => all.extend_from_slice(bytes),
        _ => items.push(Item::Bytes(side, bytes.to_vec())),
    }
}

fn directive(transcript: &mut Transcript, text: &str, last: &mut Option<Side>) -> Result<(), String> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let speaker = || last.ok_or_else(|| "nobody has spoken yet".to_owned());
    let item = match word {
        "turn" => Item::Expect(speaker()?, b"turned".to_vec()),
        "expect" => Item::Expect(speaker()?, unescape(rest)?),
        "ours" => Item::Ours(speaker()?),
        "theirs" => Item::Theirs(speaker()?),
        "quiet" | "pause" | "close" | "late" => {
            let side = side_of(rest)?;
            *last = Some(side);
            match word {
                "quiet" => Item::Quiet(side),
                "pause" => Item::Pause(side),
                "late" => Item::Late(side),
                _ => Item::Close(side),
            }
        }
        "repeat" => {
            let (times, what) = rest.split_once(' ').ok_or("repeat: how often and what")?;
            let times = times.parse().map_err(|_| "repeat: no number")?;
            add_bytes(&mut transcript.items, speaker()?, &unescape(what)?.repeat(times));
            return Ok(());
        }
        "refuse" => {
            let (status, code) = rest.split_once(' ').ok_or("refuse: a status or close, and a code")?;
            let status = match status {
                "close" => None,
                number => Some(number.parse().map_err(|_| "refuse: no status")?),
            };
            transcript.refusal = Some(Refusal { status, code: code.to_owned() });
            return Ok(());
        }
        _ => return Err(format!("no such directive: {word}")),
    };
    transcript.items.push(item);
    Ok(())
}

fn side_of(text: &str) -> Result<Side, String> {
    match text {
        ">" => Ok(Side::Dialling),
        "<" => Ok(Side::Listening),
        _ => Err("which side, > or <".to_owned()),
    }
}

/// The bytes that a line's text stands for.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (escaped, after) = match rest {
            [b'r', after @ ..] => (b'\r', after),
            [b'n', after @ ..] => (b'\n', after),
            [b'\\', after @ ..] => (b'\\', after),
            [b'x', high, low, after @ ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
                match (digit(high), digit(low)) {
                    (Some(high), Some(low)) => (high * 16 + low, after),
                    _ => return Err("\\x needs two hexadecimal digits".to_owned()),
                }
            }
            _ => return Err("escapes are \\r \\n \\\\ \\xNN".to_owned()),
        };
        bytes.push(escaped);
        rest = after;
    }
    Ok(bytes)
}

/// The text of bytes, on one line: [`unescape`] gives them back.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}
