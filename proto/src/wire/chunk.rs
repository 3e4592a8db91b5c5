//! The chunked coding (RFC 9112 §7.1). What bounds a chunk is compared, not skipped by count.

use alloc::vec::Vec;

use crate::error::{Error, Fault, Over};
use crate::limits::Limits;
use crate::wire::fields::Fields;
use crate::wire::head::{self, Scanner};

/// Where in a chunked body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// At the start of a size line.
    Size,
    /// In a chunk's data, this many bytes of it left.
    Data(u64),
    /// At the CRLF behind a chunk's data.
    DataEnd,
    /// In the trailer section.
    Trailers(Scanner),
    /// Behind the last CRLF.
    Done,
}

/// What a piece of a body gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Body bytes, never empty.
    Data(&'a [u8]),
    /// The body is over.
    End,
}

impl Decoder {
    /// Reads on. Gives how many bytes of `input` are done with, and what they were; `None` asks for more input, with the
    /// bytes that were not used in front of it. At the end `trailers` holds the trailer fields, or nothing.
    ///
    /// # Errors
    /// When the coding is broken or beyond a limit; the decoder is of no use after that.
    pub fn read<'a>(
        &mut self,
        input: &'a [u8],
        trailers: &mut Fields,
        limits: &Limits,
    ) -> Result<(usize, Option<Part<'a>>), Error> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self {
                Decoder::Size => match size_line(rest, limits)? {
                    None => return Ok((used, None)),
                    Some((n, size)) => {
                        used += n;
                        *self = if size == 0 { Decoder::Trailers(Scanner::default()) } else { Decoder::Data(size) };
                    }
                },
                Decoder::Data(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    if n == 0 {
                        return Ok((used, None));
                    }
                    *left -= n as u64;
                    if *left == 0 {
                        *self = Decoder::DataEnd;
                    }
                    return Ok((used + n, Some(Part::Data(&rest[..n]))));
                }
                Decoder::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        *self = Decoder::Size;
                    }
                    [] | [b'\r'] => return Ok((used, None)),
                    _ => return Err(Fault::ChunkEnd.into()),
                },
                Decoder::Trailers(scanner) => {
                    return match head::trailers(rest, scanner, trailers, limits)? {
                        None => Ok((used, None)),
                        Some(n) => {
                            *self = Decoder::Done;
                            Ok((used + n, Some(Part::End)))
                        }
                    };
                }
                Decoder::Done => return Ok((used, Some(Part::End))),
            }
        }
    }
}

/// One size line: its length and the size it gives. `httparse` refuses a sign, `0x`, a bare LF or CR and sizes over 64
/// bits; white space that no extension follows and control bytes in an extension are refused here, because other parsers
/// end the line there.
fn size_line(input: &[u8], limits: &Limits) -> Result<Option<(usize, u64)>, Error> {
    let window = &input[..input.len().min(limits.chunk_line)];
    match httparse::parse_chunk_size(window) {
        Ok(httparse::Status::Complete((n, size))) => {
            let line = &window[..n.saturating_sub(2)];
            let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            match line[digits..].trim_ascii_start() {
                // It takes an empty line for a zero.
                _ if digits == 0 => Err(Fault::ChunkSize.into()),
                [] if line.len() == digits => Ok(Some((n, size))),
                [b';', extension @ ..] if extension.iter().all(|b| *b == b'\t' || !b.is_ascii_control()) => {
                    Ok(Some((n, size)))
                }
                _ => Err(Fault::ChunkSize.into()),
            }
        }
        Ok(httparse::Status::Partial) if input.len() >= limits.chunk_line => Err(Over::ChunkLine.into()),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Fault::ChunkSize.into()),
    }
}

/// Appends one chunk. An empty one would end the body, so nothing is written for it.
pub fn write(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    let digits = data.len().checked_ilog2().unwrap_or(0) / 4 + 1;
    for place in (0..digits).rev() {
        let digit = (data.len() >> (place * 4)) & 0xf;
        out.push(b"0123456789abcdef"[digit]);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes whole, and with every cut in two; all must agree.
    fn decode(input: &[u8]) -> Result<(Vec<u8>, usize), Error> {
        let run = |cuts: &[usize]| {
            let (mut decoder, mut trailers, mut body) = (Decoder::Size, Fields::default(), Vec::new());
            let mut used = 0;
            for cut in cuts {
                loop {
                    let (n, part) = decoder.read(&input[used..*cut], &mut trailers, &Limits::default())?;
                    used += n;
                    match part {
                        Some(Part::Data(data)) => body.extend_from_slice(data),
                        Some(Part::End) => return Ok((body, used)),
                        None => break,
                    }
                }
            }
            Ok((body, usize::MAX))
        };
        let whole = run(&[input.len()]);
        for cut in 0..input.len() {
            assert_eq!(run(&[cut, input.len()]), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            decode(b"3\r\nabc\r\n00a;x=\"y\"\r\n0123456789\r\n0\r\n\r\nNEXT"),
            Ok((b"abc0123456789".to_vec(), 36))
        );
        assert_eq!(decode(b"1 ;x\r\na\r\n0\r\nX: y\r\n\r\n"), Ok((b"a".to_vec(), 20)));
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for (input, error) in [
            (&b"2\rXX"[..], Error::from(Fault::ChunkSize)),
            (b"+2\r\n", Fault::ChunkSize.into()),
            (b"0x2\r\n", Fault::ChunkSize.into()),
            (b"2\nab", Fault::ChunkSize.into()),
            (b"\r\n", Fault::ChunkSize.into()),
            (b"2 \r\nab\r\n", Fault::ChunkSize.into()),
            (b"2;a\x0bb\r\nab\r\n", Fault::ChunkSize.into()),
            (b"11111111111111111\r\n", Fault::ChunkSize.into()),
            (b"2\r\nabXX0\r\n\r\n", Fault::ChunkEnd.into()),
            (&[b'0'; 400], Fault::ChunkSize.into()),
        ] {
            assert_eq!(decode(input), Err(error), "{:?}", core::str::from_utf8(input));
        }
        let mut long = b"1;".to_vec();
        long.resize(400, b'x');
        let mut decoder = Decoder::Size;
        assert_eq!(decoder.read(&long, &mut Fields::default(), &Limits::default()), Err(Over::ChunkLine.into()));
    }

    #[test]
    fn what_is_written_is_read() {
        for size in [1, 9, 15, 16, 17, 255, 256, 4096, 70_000] {
            let data = alloc::vec![b'x'; size];
            let mut out = Vec::new();
            write(&data, &mut out);
            out.extend_from_slice(b"0\r\n\r\n");
            let mut decoder = Decoder::Size;
            let (n, part) = decoder.read(&out, &mut Fields::default(), &Limits::default()).unwrap();
            assert_eq!(part, Some(Part::Data(&data[..])));
            let (m, part) = decoder.read(&out[n..], &mut Fields::default(), &Limits::default()).unwrap();
            assert_eq!((n + m, part), (out.len(), Some(Part::End)));
        }
    }
}
