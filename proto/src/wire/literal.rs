//! The one reader of values for both notations of COMET, JSON and Python literals: the first is nearly a part of the second.
//! It builds no tree, so a message takes no more memory than its own parts, whatever else is in it.

use alloc::vec::Vec;

use super::message::Malformed;

/// Values within values. Messages have three levels; the rest is for members that we don't know.
const MAX_DEPTH: u32 = 32;

/// A value that is no list and no object.
pub(super) enum Scalar<'a> {
    /// A string, as bytes.
    Text(Vec<u8>),
    /// An integer, in decimal digits, perhaps with a minus in front.
    Integer(&'a [u8]),
    /// `null` or `None`.
    Null,
    /// Any other value; it was skipped.
    Other,
}

/// A list or an object that is being read.
pub(super) struct Level {
    close: u8,
    fresh: bool,
}

/// Reads values one after the other.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
    python: bool,
    strings: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Reader<'a> {
        Reader { rest: input, depth: 0, python: false, strings: false }
    }

    /// Whether something was seen that Python writes and JSON doesn't have.
    pub(super) fn saw_python(&self) -> bool {
        self.python
    }

    /// Whether any string was seen, which tells the two apart.
    pub(super) fn saw_string(&self) -> bool {
        self.strings
    }

    /// Whether nothing but white space is left.
    pub(super) fn is_done(&mut self) -> bool {
        self.peek().is_none()
    }

    /// The next byte that is no white space, which stays.
    fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    fn take(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed::Cut)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Takes this byte, white space before it or not.
    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        match self.peek() {
            Some(found) if found == byte => self.take().map(|_| ()),
            Some(_) => Err(Malformed::Syntax),
            None => Err(Malformed::Cut),
        }
    }

    /// Steps into an object or a list. `None` when the next value is something else.
    pub(super) fn enter_object(&mut self) -> Result<Option<Level>, Malformed> {
        match self.peek().ok_or(Malformed::Cut)? {
            b'{' => self.enter(b'}').map(Some),
            _ => Ok(None),
        }
    }

    /// The same for a list, or the tuple of Python.
    pub(super) fn enter_list(&mut self) -> Result<Option<Level>, Malformed> {
        match self.peek().ok_or(Malformed::Cut)? {
            b'[' => self.enter(b']').map(Some),
            b'(' => {
                self.python = true;
                self.enter(b')').map(Some)
            }
            _ => Ok(None),
        }
    }

    fn enter(&mut self, close: u8) -> Result<Level, Malformed> {
        self.take()?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Malformed::Deep);
        }
        Ok(Level { close, fresh: true })
    }

    /// Whether there is one more in this list or object; when not, its end was taken.
    pub(super) fn more(&mut self, level: &mut Level) -> Result<bool, Malformed> {
        let fresh = core::mem::replace(&mut level.fresh, false);
        let mut close = self.peek() == Some(level.close);
        if !fresh && !close {
            self.expect(b',')?;
            // A tuple of one is written with a comma behind it.
            close = level.close == b')' && self.peek() == Some(b')');
        }
        if close {
            self.take()?;
            self.depth -= 1;
        }
        Ok(!close)
    }

    /// The key of a member, and the colon behind it.
    pub(super) fn key(&mut self) -> Result<Vec<u8>, Malformed> {
        match self.scalar()? {
            Scalar::Text(key) => self.expect(b':').map(|()| key),
            _ => Err(Malformed::Syntax),
        }
    }

    /// Any value; lists and objects are skipped.
    pub(super) fn scalar(&mut self) -> Result<Scalar<'a>, Malformed> {
        match self.peek().ok_or(Malformed::Cut)? {
            quote @ (b'"' | b'\'') => self.string(quote, false).map(Scalar::Text),
            b'-' | b'0'..=b'9' => self.number(),
            b'[' | b'(' => {
                let Some(mut level) = self.enter_list()? else { return Err(Malformed::Syntax) };
                while self.more(&mut level)? {
                    self.scalar()?;
                }
                Ok(Scalar::Other)
            }
            b'{' => {
                let Some(mut level) = self.enter_object()? else { return Err(Malformed::Syntax) };
                while self.more(&mut level)? {
                    // A dictionary's keys may be anything.
                    self.scalar()?;
                    self.expect(b':')?;
                    self.scalar()?;
                }
                Ok(Scalar::Other)
            }
            _ => self.word(),
        }
    }

    /// `true` and its like, or the letter in front of a string of Python.
    fn word(&mut self) -> Result<Scalar<'a>, Malformed> {
        let length = self.rest.iter().take_while(|b| b.is_ascii_alphabetic()).count();
        let (word, rest) = self.rest.split_at(length);
        let known = match word {
            b"true" | b"false" | b"NaN" | b"Infinity" => Scalar::Other,
            b"null" => Scalar::Null,
            b"True" | b"False" | b"nan" | b"inf" => {
                self.python = true;
                Scalar::Other
            }
            b"None" => {
                self.python = true;
                Scalar::Null
            }
            b"u" | b"b" => {
                let Some(quote @ (b'"' | b'\'')) = rest.first().copied() else { return Err(wrong(rest)) };
                self.python = true;
                self.rest = rest;
                return self.string(quote, word == b"u").map(Scalar::Text);
            }
            // Where the bytes end within a word, more of them may make it a known one.
            _ => return Err(if length > 0 { wrong(rest) } else { Malformed::Syntax }),
        };
        self.rest = rest;
        Ok(known)
    }

    /// A number of JSON, or a long integer of Python 2.
    fn number(&mut self) -> Result<Scalar<'a>, Malformed> {
        let whole = self.rest;
        if self.rest.first() == Some(&b'-') {
            self.take()?;
            // Infinity and its like have a sign too.
            if self.rest.first().is_some_and(u8::is_ascii_alphabetic) {
                let minus = self.word()?;
                return if matches!(minus, Scalar::Other) { Ok(minus) } else { Err(Malformed::Syntax) };
            }
        }
        let zero = self.rest.first() == Some(&b'0');
        if self.digits()? > 1 && zero {
            return Err(Malformed::Syntax);
        }
        let text = &whole[..whole.len() - self.rest.len()];
        let mut integer = true;
        if self.rest.first() == Some(&b'.') {
            self.take()?;
            self.digits()?;
            integer = false;
        }
        if matches!(self.rest, [b'e' | b'E', ..]) {
            self.take()?;
            if matches!(self.rest, [b'+' | b'-', ..]) {
                self.take()?;
            }
            self.digits()?;
            integer = false;
        }
        if integer && self.rest.first() == Some(&b'L') {
            self.take()?;
            self.python = true;
        }
        // A number may always go on, and no message ends in one.
        if self.rest.is_empty() {
            return Err(Malformed::Cut);
        }
        Ok(if integer { Scalar::Integer(text) } else { Scalar::Other })
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<usize, Malformed> {
        let count = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        if count == 0 { Err(wrong(self.rest)) } else { Ok(count) }
    }

    /// A string. In a Unicode string of Python `\xNN` is a character, elsewhere a byte.
    fn string(&mut self, quote: u8, unicode: bool) -> Result<Vec<u8>, Malformed> {
        self.take()?;
        self.strings = true;
        self.python |= quote == b'\'';
        let mut text = Vec::new();
        loop {
            let end = memchr::memchr2(quote, b'\\', self.rest).ok_or(Malformed::Cut)?;
            let (plain, rest) = self.rest.split_at(end);
            text.extend_from_slice(plain);
            self.rest = rest;
            if self.take()? == quote {
                return Ok(text);
            }
            self.escape(unicode, &mut text)?;
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, unicode: bool, text: &mut Vec<u8>) -> Result<(), Malformed> {
        let plain = match self.take()? {
            same @ (b'"' | b'\'' | b'\\' | b'/') => same,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let code = self.hexadecimal(2)?;
                match u8::try_from(code) {
                    Ok(byte) if !unicode => byte,
                    _ => return push_char(code, text),
                }
            }
            b'u' => {
                let code = self.hexadecimal(4)?;
                if !(0xd800..0xdc00).contains(&code) {
                    return push_char(code, text);
                }
                // A character beyond the first plane is written as two of these.
                for byte in *b"\\u" {
                    if self.take()? != byte {
                        return Err(Malformed::Syntax);
                    }
                }
                let low = self.hexadecimal(4)?;
                if !(0xdc00..0xe000).contains(&low) {
                    return Err(Malformed::Syntax);
                }
                return push_char(0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00), text);
            }
            b'U' => {
                let code = self.hexadecimal(8)?;
                return push_char(code, text);
            }
            _ => return Err(Malformed::Syntax),
        };
        text.push(plain);
        Ok(())
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32, Malformed> {
        let mut code = 0;
        for _ in 0..digits {
            let digit = char::from(self.take()?).to_digit(16).ok_or(Malformed::Syntax)?;
            code = code << 4 | digit;
        }
        Ok(code)
    }
}

/// What is wrong where these bytes begin: at the end of all, more of them might have been right.
fn wrong(rest: &[u8]) -> Malformed {
    if rest.is_empty() { Malformed::Cut } else { Malformed::Syntax }
}

fn push_char(code: u32, text: &mut Vec<u8>) -> Result<(), Malformed> {
    let character = char::from_u32(code).ok_or(Malformed::Syntax)?;
    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}

/// Appends a string of JSON.
pub(super) fn write_json(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    write_json_part(text, out);
    out.push(b'"');
}

/// Appends bytes as a string of JSON: each is the character of its number, as in ISO-8859-1.
pub(super) fn write_json_latin(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        write_json_part(char::from(*byte).encode_utf8(&mut [0; 4]), out);
    }
    out.push(b'"');
}

fn write_json_part(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some(plain) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        out.extend_from_slice(&rest[..plain]);
        match rest[plain] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => {
                out.extend_from_slice(b"\\u00");
                write_hexadecimal(byte, out);
            }
        }
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends bytes as Python 2 writes a string.
pub(super) fn write_python(text: &[u8], out: &mut Vec<u8>) {
    let quote = if text.contains(&b'\'') && !text.contains(&b'"') { b'"' } else { b'\'' };
    out.push(quote);
    for byte in text {
        match *byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            same if same == quote => out.extend_from_slice(&[b'\\', same]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            plain @ 0x20..0x7f => out.push(plain),
            other => {
                out.extend_from_slice(b"\\x");
                write_hexadecimal(other, out);
            }
        }
    }
    out.push(quote);
}

fn write_hexadecimal(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend([byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
}
