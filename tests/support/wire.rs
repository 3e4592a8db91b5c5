//! One end of an HTTP/1 connection, in raw bytes: what is sent is sent as it is given, what comes is taken apart without
//! mercy. Both ends use it: visitors, upstreams, and agents of bare bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::PATIENCE;

/// A message's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// Everything, as it came.
    pub(crate) text: String,
    /// The first line.
    pub(crate) start: String,
    /// The fields in their order.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Head> {
        let wrong = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("{what}: {}", bytes.escape_ascii()));
        // Field values may have bytes beyond ASCII: one character for each byte.
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.strip_suffix("\r\n\r\n").ok_or_else(|| wrong("no end of a head"))?.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| wrong("no field"))?;
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
        Ok(Head { text, start, fields })
    }

    /// All values of a name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a name; more than one is a failure.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there more than once in\n{}", self.text);
        all.first().copied()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    fn word(&self, n: usize) -> &str {
        self.start.splitn(3, ' ').nth(n).unwrap_or_default()
    }

    /// A request's method.
    pub(crate) fn method(&self) -> &str {
        self.word(0)
    }

    /// A request's target.
    pub(crate) fn target(&self) -> &str {
        self.word(1)
    }

    /// A response's status.
    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_else(|_| panic!("no status in `{}`", self.start))
    }
}

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// A whole message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) framing: Framing,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The 1xx responses in front of it.
    pub(crate) interim: Vec<Head>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of an answer that one of our programs made itself: its page and its `Proxy-Status` must agree on it.
    pub(crate) fn code(&self) -> String {
        let status = self.head.get("Proxy-Status").unwrap_or_else(|| panic!("no Proxy-Status in {self:?}"));
        let code = status.split("details=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let text = self.text();
        assert!(
            text.contains(&format!("({code})")) || text.contains(&format!("\"code\":\"{code}\"")),
            "{code}: {text}"
        );
        code.to_owned()
    }
}

/// Where in a body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Before its first byte, or behind its last.
    Nothing,
    Length(u64),
    /// In a chunk, with so much of it left.
    Chunk(u64),
    /// In front of a chunk's size; behind another chunk when true.
    ChunkSize(bool),
    UntilClose,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    reading: Reading,
    trailers: Vec<(String, String)>,
}

impl Wire {
    /// Connects to a port of this machine.
    pub(crate) fn connect(port: u16) -> Wire {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        Wire::new(stream.unwrap_or_else(|error| panic!("can't connect to port {port}: {error}")))
    }

    /// Over a connection that stands.
    pub(crate) fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire { stream, buffer: Vec::new(), start: 0, reading: Reading::Nothing, trailers: Vec::new() }
    }

    /// Another hand on the same connection, for writing from another thread.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Wire {
        self.try_send(bytes).unwrap_or_else(|error| panic!("can't send: {error}"));
        self
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Ends our direction.
    pub(crate) fn shut(&mut self) -> &mut Wire {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// Ends the connection at once, both ways. When it is only dropped that may take a moment: a program that another test starts just
    /// then has a copy of the socket until it runs.
    pub(crate) fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// A GET and its whole answer; the connection may be used again.
    pub(crate) fn get(&mut self, tunnel: &str, target: &str) -> Message {
        self.send(get(tunnel, target)).response("GET")
    }

    /// Reads once more. False at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        let mut room = [0; 64 * 1024];
        let n = self.stream.read(&mut room).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "waited in vain for bytes"),
            _ => error,
        })?;
        self.buffer.extend_from_slice(&room[..n]);
        Ok(n > 0)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn need(&mut self, what: &str) -> io::Result<()> {
        if self.fill()? {
            return Ok(());
        }
        let text = format!("the connection ended in {what}, behind `{}`", self.unread().escape_ascii());
        Err(io::Error::new(ErrorKind::UnexpectedEof, text))
    }

    /// Everything that still comes, until the end of the connection, clean or not.
    pub(crate) fn whatever_comes(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(true) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => panic!("the connection was not closed"),
                Ok(false) | Err(_) => break,
            }
        }
        let all = self.unread().to_vec();
        self.start = self.buffer.len();
        all
    }

    /// Waits for the end of the connection, clean or not, behind which nothing may come.
    pub(crate) fn expect_end(&mut self) {
        let behind = self.whatever_comes();
        assert!(behind.is_empty(), "before its end came `{}`", behind.escape_ascii());
    }

    /// Whatever comes next, as it is; nothing at the end, clean or not.
    pub(crate) fn piece(&mut self) -> Option<Vec<u8>> {
        if self.unread().is_empty() && !self.fill().unwrap_or(false) {
            return None;
        }
        let bytes = self.unread().to_vec();
        self.start = self.buffer.len();
        Some(bytes)
    }

    /// Whether nothing comes for a while. Only for what is never to come: no test waits like that for what is.
    pub(crate) fn silence(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let silent = self.unread().is_empty() && self.fill().is_err_and(|error| error.kind() == ErrorKind::TimedOut);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    /// Whether nothing has come that was not read. It shows that nothing was sent once the sender has answered somebody else since.
    pub(crate) fn has_nothing(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let nothing = self.unread().is_empty() && self.fill().is_err_and(|error| error.kind() == ErrorKind::TimedOut);
        self.stream.set_nonblocking(false).unwrap();
        nothing
    }

    /// When it is dropped, the connection breaks off instead of ending.
    pub(crate) fn break_on_drop(&mut self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Waits for the end of the connection, which must be a reset.
    pub(crate) fn expect_reset(&mut self) {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => panic!("a clean end"),
                Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    }

    /// Exactly so many bytes, as they are.
    pub(crate) fn raw(&mut self, length: usize) -> Vec<u8> {
        while self.unread().len() < length {
            self.need("raw bytes").unwrap();
        }
        let bytes = self.unread()[..length].to_vec();
        self.start += length;
        bytes
    }

    /// The next head; `None` when the connection ends in front of it.
    fn head(&mut self) -> io::Result<Option<Head>> {
        assert_eq!(self.reading, Reading::Nothing, "the body before was not read");
        loop {
            if let Some(end) = self.unread().windows(4).position(|part| part == b"\r\n\r\n") {
                let head = Head::parse(&self.unread()[..end + 4]);
                self.start += end + 4;
                return head.map(Some);
            }
            if self.unread().is_empty() {
                if !self.fill()? {
                    return Ok(None);
                }
            } else {
                self.need("a head")?;
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread().windows(2).position(|part| part == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread()[..end]).into_owned();
                self.start += end + 2;
                return Ok(line);
            }
            self.need("a line of the chunked coding")?;
        }
    }

    /// A request's head; `None` when the peer has closed.
    pub(crate) fn request_head(&mut self) -> io::Result<Option<(Head, Framing)>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let framing = self.begin_body(&head, None)?;
        Ok(Some((head, framing)))
    }

    /// A final response's head with the 1xx ones in front of it.
    pub(crate) fn response_head(&mut self, method: &str) -> io::Result<(Head, Framing, Vec<Head>)> {
        let mut interim = Vec::new();
        loop {
            let head = self.head()?.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "no answer"))?;
            if (100..200).contains(&head.status()) {
                interim.push(head);
                continue;
            }
            let framing = self.begin_body(&head, Some(method))?;
            return Ok((head, framing, interim));
        }
    }

    /// One head of a response, of whatever status; behind a 1xx comes another.
    pub(crate) fn any_response_head(&mut self, method: &str) -> Head {
        let head = self.head().unwrap().unwrap_or_else(|| panic!("no answer"));
        if head.status() >= 200 {
            self.begin_body(&head, Some(method)).unwrap();
        }
        head
    }

    fn begin_body(&mut self, head: &Head, asked: Option<&str>) -> io::Result<Framing> {
        let wrong = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("{what}:\n{}", head.text));
        let length =
            head.get("Content-Length").map(|n| n.parse::<u64>().map_err(|_| wrong("a bad length"))).transpose()?;
        let coding = head.get("Transfer-Encoding");
        let bodiless = asked == Some("HEAD") || (asked.is_some() && matches!(head.status(), 204 | 304));
        let framing = match (coding, length) {
            _ if bodiless => Framing::Empty,
            (Some(_), Some(_)) => return Err(wrong("both a length and a coding")),
            (Some("chunked"), None) if head.start.contains("HTTP/1.1") => Framing::Chunked,
            (Some(_), None) => return Err(wrong("a coding that may not be")),
            (None, Some(length)) => Framing::Length(length),
            (None, None) if asked.is_none() => Framing::Empty,
            (None, None) => Framing::UntilClose,
        };
        self.trailers.clear();
        self.reading = match framing {
            Framing::Empty | Framing::Length(0) => Reading::Nothing,
            Framing::Length(length) => Reading::Length(length),
            Framing::Chunked => Reading::ChunkSize(false),
            Framing::UntilClose => Reading::UntilClose,
        };
        Ok(framing)
    }

    /// Gives a piece of the body to `take`; false at its end.
    pub(crate) fn body_piece(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let left = match self.reading {
                Reading::Nothing => return Ok(false),
                Reading::Length(left) | Reading::Chunk(left) => left,
                Reading::UntilClose => u64::MAX,
                Reading::ChunkSize(behind) => {
                    self.chunk_size(behind)?;
                    continue;
                }
            };
            if self.unread().is_empty() {
                if self.reading == Reading::UntilClose {
                    if !self.fill()? {
                        self.reading = Reading::Nothing;
                        return Ok(false);
                    }
                } else {
                    self.need("a body")?;
                }
            }
            let n = self.unread().len().min(most).min(usize::try_from(left).unwrap_or(usize::MAX));
            take(&self.buffer[self.start..self.start + n]);
            self.start += n;
            let left = left - n as u64;
            self.reading = match self.reading {
                Reading::Length(_) if left == 0 => Reading::Nothing,
                Reading::Length(_) => Reading::Length(left),
                Reading::Chunk(_) if left == 0 => Reading::ChunkSize(true),
                Reading::Chunk(_) => Reading::Chunk(left),
                other => other,
            };
            return Ok(true);
        }
    }

    fn chunk_size(&mut self, behind: bool) -> io::Result<()> {
        let wrong = |what: String| io::Error::new(ErrorKind::InvalidData, what);
        if behind {
            let line = self.line()?;
            if !line.is_empty() {
                return Err(wrong(format!("`{line}` behind a chunk")));
            }
        }
        let line = self.line()?;
        let size = u64::from_str_radix(&line, 16).map_err(|_| wrong(format!("`{line}` is no chunk's size")))?;
        self.reading = if size > 0 { Reading::Chunk(size) } else { Reading::Nothing };
        if size == 0 { self.read_trailers() } else { Ok(()) }
    }

    fn read_trailers(&mut self) -> io::Result<()> {
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(());
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(io::Error::new(ErrorKind::InvalidData, format!("`{line}` is no trailer")));
            };
            self.trailers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Exactly so many bytes of the body.
    pub(crate) fn body(&mut self, length: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < length {
            let more = self.body_piece(length - body.len(), |piece| body.extend_from_slice(piece));
            assert!(more.unwrap(), "the body ended behind `{}`", body.escape_ascii());
        }
        body
    }

    /// The rest of the body, in `into`, which keeps what came when the body breaks off.
    pub(crate) fn rest(&mut self, into: &mut Vec<u8>) -> io::Result<Vec<(String, String)>> {
        while self.body_piece(usize::MAX, |piece| into.extend_from_slice(piece))? {}
        Ok(std::mem::take(&mut self.trailers))
    }

    /// A whole request; `None` when the peer has closed.
    pub(crate) fn try_request(&mut self) -> io::Result<Option<Message>> {
        let Some((head, framing)) = self.request_head()? else { return Ok(None) };
        let mut body = Vec::new();
        let trailers = self.rest(&mut body)?;
        Ok(Some(Message { head, framing, body, trailers, interim: Vec::new() }))
    }

    pub(crate) fn request(&mut self) -> Message {
        self.try_request().unwrap_or_else(|error| panic!("no request: {error}")).unwrap_or_else(|| panic!("no request"))
    }

    /// A whole response to a request of this method.
    pub(crate) fn try_response(&mut self, method: &str) -> io::Result<Message> {
        let (head, framing, interim) = self.response_head(method)?;
        let mut body = Vec::new();
        let trailers = self.rest(&mut body)?;
        Ok(Message { head, framing, body, trailers, interim })
    }

    pub(crate) fn response(&mut self, method: &str) -> Message {
        self.try_response(method).unwrap_or_else(|error| panic!("no whole response: {error}"))
    }
}

/// A server of bare bytes: gives each connection to `serve`, on a thread of its own, and closes it then. Gives its address.
pub(crate) fn serve(serve: impl Fn(&mut Wire) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(&mut Wire::new(stream)));
        }
    });
    address
}

/// A GET of HTTP/1.1 for a tunnel, as bytes.
pub(crate) fn get(tunnel: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {tunnel}.localhost\r\n\r\n")
}

/// A POST with a body of a length, as bytes.
pub(crate) fn post(tunnel: &str, target: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: {tunnel}.localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// A response of HTTP/1.1 with a body of a length, as bytes.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A chunk, as bytes.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}
