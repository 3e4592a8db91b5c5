//! What is said on stderr, and the access log. stdout belongs to the public URL.

use std::fmt::{self, Display, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::net::addr::Remote;

/// Lines of the access log are held back until there are so many bytes of them, or until the loop rests: one write for a
/// thousand lines under load, at once when there is none.
const BUFFER: usize = 32 * 1024;

struct Stderr {
    program: &'static str,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ptth")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let weight = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        // One write for a line, so that two programs on one terminal don't mix theirs. A closed stderr is nobody's loss.
        let line = format!("{}: {weight}{}\n", self.program, record.args());
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Sends what the `log` crate's macros say to stderr.
pub fn to_stderr(program: &'static str, level: LevelFilter) {
    if log::set_boxed_logger(Box::new(Stderr { program })).is_ok() {
        log::set_max_level(level);
    }
}

/// One line for each exchange.
pub struct AccessLog {
    out: Option<Box<dyn Write + Send>>,
    lines: String,
    failed: bool,
}

/// What a line of the access log says.
#[allow(missing_debug_implementations, reason = "it is only ever written")]
pub struct Line<'a> {
    /// When the exchange ended.
    pub time: SystemTime,
    /// Its number.
    pub id: u64,
    /// Who asked.
    pub visitor: Visitor<'a>,
    /// The tunnel, or what stands for it.
    pub tunnel: &'a str,
    /// The request's method, or nothing when it could not be read.
    pub method: &'a [u8],
    /// The request-target.
    pub target: &'a [u8],
    /// The status that was answered; 0 when none was.
    pub status: u16,
    /// Bytes of the request's body that were passed on.
    pub bytes_in: u64,
    /// Bytes of the response's body that were passed on.
    pub bytes_out: u64,
    /// From the request's head to the end of the exchange.
    pub took: Duration,
    /// What went wrong, if anything.
    pub code: Option<&'a str>,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor<'a> {
    /// Whoever is at the other end of the connection.
    At(Remote),
    /// Whom the program at the other end has named.
    Named(&'a [u8]),
}

impl Display for Visitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Visitor::At(remote) => remote.fmt(f),
            Visitor::Named(name) => Word(name).fmt(f),
        }
    }
}

/// Bytes as they stand in a line; a dash for none.
struct Word<'a>(&'a [u8]);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

impl AccessLog {
    /// No log: nothing is formatted.
    pub fn none() -> AccessLog {
        AccessLog { out: None, lines: String::new(), failed: false }
    }

    /// To stderr.
    pub fn stderr() -> AccessLog {
        AccessLog { out: Some(Box::new(io::stderr())), ..AccessLog::none() }
    }

    /// To the end of a file.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn file(path: &Path) -> io::Result<AccessLog> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(AccessLog { out: Some(Box::new(file)), ..AccessLog::none() })
    }

    /// Whether anybody reads it.
    pub fn is_on(&self) -> bool {
        self.out.is_some()
    }

    /// Adds a line.
    pub fn line(&mut self, line: &Line<'_>) {
        let _ = writeln!(
            self.lines,
            "{} {} {} {} {} {} {} {} {} {}.{:03} {}",
            humantime::format_rfc3339_millis(line.time),
            line.id,
            line.visitor,
            line.tunnel,
            Word(line.method),
            Word(line.target),
            line.status,
            line.bytes_in,
            line.bytes_out,
            line.took.as_millis(),
            line.took.subsec_micros() % 1000,
            line.code.unwrap_or("-"),
        );
        if self.lines.len() >= BUFFER {
            self.flush();
        }
    }

    /// Writes what was held back.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if let Some(out) = &mut self.out
            && let Err(error) = out.write_all(self.lines.as_bytes())
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("the access log can't be written: {error}");
        }
        self.lines.clear();
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").field("on", &self.is_on()).finish_non_exhaustive()
    }
}
