//! Messages of polls: those in `fixtures/messages/`, at every cut too; what chance makes, there and back; and what another
//! reader of JSON says to ours.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;

use std::slice::from_ref;

use common::random::Random;
use common::{Naming, escape};
use ptth_proto::wire::comet::{self, Message, Notation, Style};
use ptth_proto::wire::message::{Ask, Malformed, Pairs, Reply, Unsendable, from_base64, to_base64};
use ptth_proto::wire::packed::{self, Form};
use serde_json::Value;

const JSON: Style = Style { notation: Notation::Json, base64: false };
const JSON_AND_BASE64: Style = Style { notation: Notation::Json, base64: true };
const PYTHON: Style = Style { notation: Notation::Python, base64: false };

/// One block of a file, read.
struct Fixture {
    /// Its file and line.
    place: String,
    /// The reader that it is for.
    reader: fn(&[u8]) -> Result<Read, Malformed>,
    bytes: Vec<u8>,
    /// What it reads as, or why it is refused.
    expected: String,
    /// Whether what it reads as is written as these bytes.
    exact: bool,
}

/// What any of the three readers gives.
#[derive(Debug, PartialEq)]
enum Read {
    Comet(Message, Option<Notation>),
    Asks(Vec<Ask>),
    Head(u16, Pairs),
}

fn read_comet(bytes: &[u8]) -> Result<Read, Malformed> {
    comet::read(bytes).map(|(message, notation)| Read::Comet(message, notation))
}

fn read_asks(bytes: &[u8]) -> Result<Read, Malformed> {
    packed::read_asks(bytes).map(Read::Asks)
}

fn read_head(bytes: &[u8]) -> Result<Read, Malformed> {
    packed::read_head(bytes).map(|(status, fields)| Read::Head(status, fields))
}

fn load() -> Vec<Fixture> {
    let all = common::messages::load().into_iter().map(|block| {
        let reader = match &block.place {
            name if name.starts_with("comet") => read_comet,
            name if name.starts_with("packed-asks") => read_asks,
            name if name.starts_with("packed-heads") => read_head,
            name => panic!("{name}: for which reader?"),
        };
        let bytes = if block.is_base64 { from_base64(&block.bytes).unwrap() } else { block.bytes };
        Fixture { place: block.place, reader, bytes, expected: block.expected, exact: block.exact }
    });
    all.collect()
}

/// In the words of the fixtures.
fn describe(read: &Result<Read, Malformed>) -> String {
    let mut text = String::new();
    let mut line = |parts: &[&[u8]]| {
        text.push_str(&escape(&parts.concat()));
        text.push('\n');
    };
    let rest = |line: &mut dyn FnMut(&[&[u8]]), fields: &Pairs, body: &[u8]| {
        for (name, value) in fields {
            line(&[b"field ", name, b": ", value]);
        }
        if !body.is_empty() {
            line(&[b"body ", body]);
        }
    };
    let ask = |line: &mut dyn FnMut(&[&[u8]]), ask: &Ask| {
        line(&[b"ask ", ask.id.as_bytes(), b" ", &ask.method, b" ", &ask.target]);
        rest(line, &ask.fields, &ask.body);
    };
    match read {
        Err(error) => line(&[b"wrong ", error.code().as_bytes()]),
        Ok(Read::Comet(message, notation)) => {
            match notation {
                Some(Notation::Json) => line(&[b"notation json"]),
                Some(Notation::Python) => line(&[b"notation python"]),
                None => {}
            }
            match message {
                Message::Nothing => line(&[b"nothing"]),
                Message::Ask(it) => ask(&mut line, it),
                Message::Reply(it) => {
                    line(&[b"reply ", it.id.as_bytes(), b" ", it.status.to_string().as_bytes(), b" ", &it.reason]);
                    rest(&mut line, &it.fields, &it.body);
                }
            }
        }
        Ok(Read::Asks(asks)) if asks.is_empty() => line(&[b"nothing"]),
        Ok(Read::Asks(asks)) => asks.iter().for_each(|it| ask(&mut line, it)),
        Ok(Read::Head(status, fields)) => {
            line(&[b"head ", status.to_string().as_bytes()]);
            rest(&mut line, fields, b"");
        }
    }
    text
}

/// The bytes of what was read, in each way in which they may be written.
fn write(read: &Read) -> Vec<Vec<u8>> {
    let forms = [Form::Stock, Form::Full];
    match read {
        Read::Comet(message, notation) => {
            vec![write_comet(message, Style { notation: notation.unwrap_or_default(), base64: true }).unwrap()]
        }
        Read::Asks(asks) => forms.into_iter().filter_map(|form| write_asks(asks, form).ok()).collect(),
        Read::Head(status, fields) => forms.into_iter().map(|form| write_head(*status, fields, form).0).collect(),
    }
}

fn pairs(fields: &Pairs) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    fields.iter().map(|(name, value)| (&name[..], &value[..]))
}

fn write_comet(message: &Message, style: Style) -> Result<Vec<u8>, Unsendable> {
    let mut out = b"before".to_vec();
    let done = match message {
        Message::Nothing => {
            comet::write_nothing(&mut out);
            Ok(())
        }
        Message::Ask(it) => {
            comet::write_ask(&mut out, style, &it.id, &it.method, &it.target, pairs(&it.fields), &it.body)
        }
        Message::Reply(it) => {
            comet::write_reply(&mut out, style, &it.id, it.status, &it.reason, pairs(&it.fields), &it.body)
        }
    };
    written(out, done)
}

fn write_asks(asks: &[Ask], form: Form) -> Result<Vec<u8>, Unsendable> {
    let mut out = Vec::new();
    packed::write_array(&mut out, asks.len());
    for it in asks {
        let mut one = b"before".to_vec();
        let done = packed::write_ask(&mut one, form, &it.id, &it.method, &it.target, pairs(&it.fields), &it.body);
        out.extend(written(one, done)?);
    }
    Ok(out)
}

fn write_head(status: u16, fields: &Pairs, form: Form) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let lost = packed::write_head(&mut out, form, status, pairs(fields));
    (out, lost)
}

/// What was there before stays, and nothing is added to it when it could not be written.
fn written(mut out: Vec<u8>, done: Result<(), Unsendable>) -> Result<Vec<u8>, Unsendable> {
    assert!(out.starts_with(b"before"));
    out.drain(..6);
    assert!(done.is_ok() || out.is_empty());
    done.map(|()| out)
}

#[test]
fn every_fixture_reads_as_it_says() {
    for fixture in load() {
        let _naming = Naming(fixture.place.clone());
        let read = (fixture.reader)(&fixture.bytes);
        assert_eq!(describe(&read), fixture.expected, "{}", fixture.place);
        let Ok(read) = read else { continue };
        let again = write(&read);
        assert!(again.iter().any(|bytes| (fixture.reader)(bytes).as_ref() == Ok(&read)), "{}", fixture.place);
        if fixture.exact {
            let texts: Vec<_> = again.iter().map(|bytes| escape(bytes)).collect();
            assert!(texts.contains(&escape(&fixture.bytes)), "{}: written as\n{}", fixture.place, texts.join("\n"));
        }
    }
}

#[test]
fn every_cut_of_a_fixture_is_no_message() {
    for fixture in load() {
        let _naming = Naming(fixture.place.clone());
        let whole = (fixture.reader)(&fixture.bytes);
        for cut in 0..fixture.bytes.len() {
            let piece = &fixture.bytes[..cut];
            match (fixture.reader)(piece) {
                // No byte at all is a message, and white space alone.
                Ok(Read::Comet(Message::Nothing, None)) => assert_eq!(piece.trim_ascii(), b""),
                // What stands behind an end may be cut off.
                Ok(read) if whole != Err(Malformed::Trailing) => assert_eq!(Ok(read), whole),
                Err(error) if whole.is_ok() => assert_eq!(error, Malformed::Cut, "{}", escape(piece)),
                _ => {}
            }
        }
    }
}

#[test]
fn base64_of_a_recorded_head_is_written_as_it_was() {
    let recorded: Vec<_> = common::messages::load().into_iter().filter(|block| block.is_base64).collect();
    assert!(recorded.len() > 9);
    for block in recorded {
        let (status, fields) = packed::read_head(&from_base64(&block.bytes).unwrap()).unwrap();
        assert_eq!(to_base64(&write_head(status, &fields, Form::Stock).0).as_bytes(), block.bytes);
    }
}

#[test]
fn a_poll_is_told_from_a_visitors_json() {
    for (text, reply) in [
        ("", true),
        (" {}\r\n", true),
        (r#"{"message-id": "1", "status": 200}"#, true),
        (r#"{"status": 200, "message-id": "1"}"#, true),
        ("{'message-id': 'xxx', 'http-version': 'PTTH/1.0', 'status': 200, 'body': 'cut o", true),
        (r#"{"message-id": "1", "headers": ["#, true),
        (r#"{"message-id":"#, true),
        (r#"{"message-id""#, false),
        ("{", false),
        (r#"{"message-id": "1", "method": "GET", "request-uri": "/"}"#, false),
        (r#"{"message-id": "1", "text": "hello"}"#, false),
        (r#"{"text": "hello", "message-id": "1", "status": 20"#, false),
        (r#"{"message-id": "1", "status": 200} {"#, false),
        (r#"{"event": "click"}"#, false),
        ("[]", false),
        ("a=b", false),
    ] {
        assert_eq!(comet::looks_like_reply(text.as_bytes()), reply, "{text}");
    }
    for fixture in load().into_iter().filter(|fixture| fixture.expected.contains("reply xxx")) {
        for cut in b"{'message-id':".len()..=fixture.bytes.len() {
            assert!(comet::looks_like_reply(&fixture.bytes[..cut]), "{}", escape(&fixture.bytes[..cut]));
        }
    }
}

#[test]
fn the_id_at_the_beginning_of_what_is_too_long() {
    for (text, id) in [
        (r#" {"message-id": "1-a", "body": "cut o"#, Some("1-a")),
        ("{'message-id': u'1-a'", Some("1-a")),
        (r#"{"message-id": "1-"#, None),
        (r#"{"message-id": 1"#, None),
        (r#"{"body": "", "message-id": "1-a"}"#, None),
        ("{}", None),
        ("", None),
    ] {
        assert_eq!(comet::first_id(text.as_bytes()), id.map(Vec::from), "{text}");
    }
}

fn ask() -> Ask {
    let fields = vec![(b"Host".to_vec(), b"a.example".to_vec())];
    Ask { id: "1".to_owned(), method: b"GET".to_vec(), target: b"/".to_vec(), fields, body: Vec::new() }
}

#[test]
fn what_a_peer_cannot_read_is_not_written() {
    let binary = Ask { body: b"\xff".to_vec(), ..ask() };
    let comet = |ask: &Ask, style| write_comet(&Message::Ask(ask.clone()), style).map(|_| ());
    assert_eq!(comet(&binary, JSON), Err(Unsendable::BinaryBody));
    assert_eq!(comet(&binary, JSON_AND_BASE64), Ok(()));
    assert_eq!(comet(&binary, PYTHON), Ok(()));
    let reply =
        Message::Reply(Reply { id: "1".to_owned(), status: 200, body: binary.body.clone(), ..Reply::default() });
    assert_eq!(write_comet(&reply, JSON), Err(Unsendable::BinaryBody));

    let stock = |ask: &Ask| write_asks(from_ref(ask), Form::Stock).map(|_| ());
    assert_eq!(stock(&ask()), Ok(()));
    assert_eq!(stock(&binary), Err(Unsendable::RequestBody));
    for method in ["POST", "PUT", "get", "OPTIONS", "DELETE"] {
        assert_eq!(stock(&Ask { method: method.into(), ..ask() }), Err(Unsendable::Method), "{method}");
    }
}

#[test]
fn what_is_no_message_is_not_written() {
    let with = |name: &str, value: &str| Ask { fields: vec![(name.into(), value.into())], ..ask() };
    for (wrong, why) in [
        (Ask { id: String::new(), ..ask() }, Unsendable::Id),
        (Ask { id: "a\n".to_owned(), ..ask() }, Unsendable::Id),
        (Ask { id: "a".repeat(129), ..ask() }, Unsendable::Id),
        (Ask { method: b"G T".to_vec(), ..ask() }, Unsendable::Method),
        (Ask { target: b"/ b".to_vec(), ..ask() }, Unsendable::Target),
        (Ask { target: b"*".to_vec(), ..ask() }, Unsendable::Target),
        (with("A", "b\r\nC: d"), Unsendable::Field),
        (with("A:", "b"), Unsendable::Field),
    ] {
        for style in [JSON, JSON_AND_BASE64, PYTHON] {
            assert_eq!(write_comet(&Message::Ask(wrong.clone()), style), Err(why), "{wrong:?}");
        }
        for form in [Form::Stock, Form::Full] {
            assert_eq!(write_asks(from_ref(&wrong), form), Err(why), "{wrong:?}");
        }
    }
    for status in [0, 100, 101, 199, 600, 65535] {
        let reply = Message::Reply(Reply { id: "1".to_owned(), status, ..Reply::default() });
        assert_eq!(write_comet(&reply, JSON), Err(Unsendable::Status));
        let (head, _) = write_head(status, &Pairs::new(), Form::Full);
        assert_eq!(packed::read_head(&head), Ok((500, Pairs::new())));
    }
    // A reason is only words: one that can't be sent is left out.
    let reply = Reply { id: "1".to_owned(), status: 200, reason: b"O\r\nK".to_vec(), ..Reply::default() };
    let bytes = write_comet(&Message::Reply(reply), JSON).unwrap();
    assert!(escape(&bytes).contains(r#""reason": """#));
}

#[test]
fn latin_letters_in_json() {
    let fields = vec![(b"X-Latin".to_vec(), b"caf\xe9".to_vec())];
    let latin = Message::Ask(Ask { fields, ..ask() });
    let text = |style| String::from_utf8(write_comet(&latin, style).unwrap()).unwrap();
    assert!(text(JSON).contains(r#"[["X-Latin", "café"]]"#));
    assert!(text(JSON_AND_BASE64).contains(r#"[["X-Latin", "Y2Fm6Q==", "base64"]]"#));
    assert!(text(PYTHON).contains(r"[['X-Latin','caf\xe9']]"));
}

#[test]
fn names_with_several_values_in_the_stock_form() {
    let fields: Pairs = [
        ("Accept", "a"),
        ("Cookie", "a=1"),
        ("ACCEPT", "b"),
        ("Set-Cookie", "a=1"),
        ("cookie", "b=2"),
        ("X", ""),
        ("set-cookie", "b=2"),
        ("Set-Cookie", "c=3"),
        ("accept", ""),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    let joined: Pairs = [("accept", "a, b"), ("cookie", "a=1; b=2"), ("set-cookie", "a=1"), ("x", "")]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    let asks = write_asks(&[Ask { fields: fields.clone(), ..ask() }], Form::Stock).unwrap();
    assert_eq!(packed::read_asks(&asks).unwrap()[0].fields, joined);
    let (head, lost) = write_head(200, &fields, Form::Stock);
    assert_eq!((packed::read_head(&head), lost), (Ok((200, joined)), 2));
    let (head, lost) = write_head(200, &fields, Form::Full);
    assert_eq!((packed::read_head(&head), lost), (Ok((200, fields)), 0));

    let bad: Pairs = [("A", "b"), ("C:", "d"), ("E", "f\r\n")].map(|(name, value)| (name.into(), value.into())).into();
    for form in [Form::Stock, Form::Full] {
        let (head, lost) = write_head(200, &bad, form);
        assert_eq!((packed::read_head(&head).unwrap().1.len(), lost), (1, 2));
    }
}

#[test]
fn each_status_has_a_nearest_one() {
    const STOCK: [u16; 11] = [200, 204, 206, 304, 307, 400, 403, 404, 405, 416, 500];
    for status in 0..1000 {
        let nearest = packed::nearest(status);
        assert!(STOCK.contains(&nearest));
        assert_eq!(packed::nearest(nearest), nearest);
        assert!(nearest / 100 == status / 100 || nearest == 500, "{status}");
        let (head, _) = write_head(status, &Pairs::new(), Form::Stock);
        assert_eq!(packed::read_head(&head), Ok((nearest, Pairs::new())));
    }
    assert_eq!(STOCK.map(packed::nearest), STOCK);
    for (status, nearest) in [
        (201, 200),
        (203, 200),
        (205, 204),
        (207, 200),
        (300, 307),
        (301, 307),
        (303, 307),
        (308, 307),
        (401, 403),
        (402, 403),
        (407, 403),
        (451, 403),
        (410, 404),
        (418, 400),
        (429, 400),
        (501, 500),
        (599, 500),
    ] {
        assert_eq!(packed::nearest(status), nearest, "{status}");
    }
}

#[test]
fn limits_of_counts() {
    let many = |count| Ask { fields: vec![(b"A".to_vec(), b"b".to_vec()); count], ..ask() };
    for (count, good) in [(256, true), (257, false)] {
        let expected = if good { Ok(count) } else { Err(Malformed::TooMany) };
        for style in [JSON, PYTHON] {
            let bytes = write_comet(&Message::Ask(many(count)), style).unwrap();
            let read = comet::read(&bytes).map(|(message, _)| match message {
                Message::Ask(it) => it.fields.len(),
                other => panic!("{other:?}"),
            });
            assert_eq!(read, expected);
        }
        let bytes = write_asks(&[many(count)], Form::Full).unwrap();
        assert_eq!(packed::read_asks(&bytes).map(|asks| asks[0].fields.len()), expected);
        let (head, _) = write_head(200, &many(count).fields, Form::Full);
        assert_eq!(packed::read_head(&head).map(|(_, fields)| fields.len()), expected);
    }
    for (count, good) in [(1024, true), (1025, false)] {
        let bytes = write_asks(&vec![ask(); count], Form::Stock).unwrap();
        let expected = if good { Ok(count) } else { Err(Malformed::TooMany) };
        assert_eq!(packed::read_asks(&bytes).map(|asks| asks.len()), expected);
    }
}

/// Lengths around those at which MessagePack takes another tag.
#[test]
fn every_width_of_a_length() {
    for length in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 70_000] {
        let fields = vec![(b"a".to_vec(), vec![0xe9; length])];
        let target = [b"/", &vec![b'a'; length][..]].concat();
        let stock = Ask { fields, target, ..ask() };
        let bytes = write_asks(from_ref(&stock), Form::Stock).unwrap();
        assert_eq!(packed::read_asks(&bytes), Ok(vec![stock.clone()]));
        let full = Ask { body: vec![0; length], ..stock };
        let bytes = write_asks(from_ref(&full), Form::Full).unwrap();
        assert_eq!(packed::read_asks(&bytes), Ok(vec![full]));
    }
}

const NAMES: [&str; 7] = ["Host", "accept", "X-A", "Set-Cookie", "Cookie", "Content-Length", "!#$%&'*+-.^_`|~"];

/// A message that a visitor, an agent or chance could have made.
fn any_ask(random: &mut Random) -> Ask {
    let methods = ["GET", "HEAD", "POST", "OPTIONS", "X'\""];
    let targets = ["/", "/a?b='c'&d=\"e\"", "/%20\\", "http://a.example/x"];
    let mut method = methods[random.below(4)].as_bytes().to_vec();
    if random.once_in(8) {
        method = b"M'X".to_vec();
    }
    let target = targets[random.below(targets.len())].as_bytes().to_vec();
    Ask { id: any_id(random), method, target, fields: any_fields(random), body: any_body(random) }
}

fn any_reply(random: &mut Random) -> Reply {
    let reasons: [&[u8]; 4] = [b"", b"OK", b"It's \"so\"", b"\xe9t\xc3\xa9\\"];
    let (status, reason) = (200 + random.below(400) as u16, reasons[random.below(4)].to_vec());
    Reply { id: any_id(random), status, reason, fields: any_fields(random), body: any_body(random) }
}

fn any_id(random: &mut Random) -> String {
    (0..1 + random.below(40)).map(|_| char::from(b'!' + random.below(94) as u8)).collect()
}

fn any_fields(random: &mut Random) -> Pairs {
    let mut fields = Pairs::new();
    for _ in 0..random.below(20) {
        let name = NAMES[random.below(NAMES.len())].as_bytes().to_vec();
        let length = random.below(40);
        let mut value = random.bytes(length);
        value.retain(|byte| (0x20..0x7f).contains(byte) || *byte >= 0x80 || *byte == b'\t');
        fields.push((name, value.trim_ascii().to_vec()));
    }
    fields
}

fn any_body(random: &mut Random) -> Vec<u8> {
    let length = random.below(300);
    match random.below(4) {
        0 => Vec::new(),
        1 => random.bytes(length),
        2 => random.bytes(length).into_iter().map(|byte| byte & 0x7f).collect(),
        _ => random.bytes(length).into_iter().map(char::from).collect::<String>().into_bytes(),
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let mut random = Random::new(1);
    for _ in 0..5_000 {
        let ask = any_ask(&mut random);
        let reply = any_reply(&mut random);
        for message in [Message::Ask(ask.clone()), Message::Reply(reply.clone())] {
            for (style, notation) in [(JSON_AND_BASE64, Notation::Json), (PYTHON, Notation::Python)] {
                let mut expected = message.clone();
                // Nothing is said of how the bytes of a reason go, and nobody needs to know.
                if let (Message::Reply(reply), Notation::Json) = (&mut expected, notation)
                    && String::from_utf8(reply.reason.clone()).is_err()
                {
                    reply.reason = reply.reason.iter().copied().map(char::from).collect::<String>().into_bytes();
                }
                let bytes = write_comet(&message, style).unwrap();
                assert_eq!(comet::read(&bytes), Ok((expected, Some(notation))), "{}", escape(&bytes));
            }
            if let Ok(bytes) = write_comet(&message, JSON) {
                let again = comet::read(&bytes).unwrap().0;
                assert_eq!(body_of(&again), body_of(&message));
                json_agrees(&bytes);
            }
            json_agrees(&write_comet(&message, JSON_AND_BASE64).unwrap());
        }

        let asks = vec![ask.clone(), any_ask(&mut random)];
        let bytes = write_asks(&asks, Form::Full).unwrap();
        assert_eq!(packed::read_asks(&bytes), Ok(asks));
        if let Ok(bytes) = write_asks(from_ref(&ask), Form::Stock) {
            let again = packed::read_asks(&bytes).unwrap().remove(0);
            assert_eq!((&again.id, &again.method, &again.target), (&ask.id, &ask.method, &ask.target));
            // What was joined once stays so.
            assert_eq!(write_asks(&[again], Form::Stock), Ok(bytes));
        }
        let (head, lost) = write_head(reply.status, &reply.fields, Form::Full);
        assert_eq!((packed::read_head(&head), lost), (Ok((reply.status, reply.fields.clone())), 0));
        let (head, _) = write_head(reply.status, &reply.fields, Form::Stock);
        let (status, fields) = packed::read_head(&head).unwrap();
        assert_eq!(write_head(status, &fields, Form::Stock), (head, 0));
    }
}

fn body_of(message: &Message) -> &[u8] {
    match message {
        Message::Ask(it) => &it.body,
        Message::Reply(it) => &it.body,
        Message::Nothing => b"",
    }
}

/// What serde_json reads as an object, our reader reads as the same one or has a reason that is no matter of notation.
fn json_agrees(bytes: &[u8]) {
    let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else { return };
    let (message, _) = match comet::read(bytes) {
        Ok(read) => read,
        Err(error @ (Malformed::Cut | Malformed::Syntax | Malformed::Trailing)) => {
            panic!("{error}: {}", escape(bytes))
        }
        Err(_) => return,
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let member = |name: &str| object.get(name).map(text).unwrap_or_default();
    let (id, fields, body) = match &message {
        Message::Nothing => return assert!(object.is_empty()),
        Message::Ask(it) => {
            assert_eq!((member("method"), member("request-uri")), (lossless(&it.method), lossless(&it.target)));
            (&it.id, &it.fields, &it.body)
        }
        Message::Reply(it) => {
            assert_eq!(member("status"), it.status.to_string());
            (&it.id, &it.fields, &it.body)
        }
    };
    assert_eq!(&member("message-id"), id);
    let decoded = |text: String, base64: bool| {
        if base64 { from_base64(text.as_bytes()).unwrap() } else { text.into_bytes() }
    };
    assert_eq!(&decoded(member("body"), member("encoding") == "base64"), body);
    let expected: Pairs = match object.get("headers") {
        Some(Value::Array(list)) => {
            let pair = |pair: &Value| {
                let value = decoded(text(&pair[1]), pair.get(2).is_some());
                (text(&pair[0]).into_bytes(), value.trim_ascii().to_vec())
            };
            list.iter().map(pair).collect()
        }
        // Its order is gone there.
        Some(Value::Object(_)) => return,
        _ => Pairs::new(),
    };
    assert_eq!(fields, &expected, "{}", escape(bytes));
}

fn lossless(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn another_reader_of_json_agrees() {
    let mut random = Random::new(2);
    let fixtures: Vec<_> = load().into_iter().filter(|fixture| fixture.place.starts_with("comet")).collect();
    for fixture in &fixtures {
        json_agrees(&fixture.bytes);
    }
    for _ in 0..20_000 {
        // Any members, in any order and layout.
        let mut members = Vec::new();
        for name in ["message-id", "http-version", "status", "method", "request-uri", "reason", "headers", "body", "x"]
        {
            if !random.once_in(3) {
                members.insert(random.below(members.len() + 1), (name, any_value(name, &mut random)));
            }
        }
        let object = Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        let mut text =
            if random.once_in(2) { object.to_string() } else { serde_json::to_string_pretty(&object).unwrap() };
        json_agrees(text.as_bytes());
        // And with one byte changed, where only one of the two may fail, and which one is known.
        let at = random.below(text.len());
        if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
            let with = ["\"", "\\", ",", "{", "}", "[", "]", ":", "0", "-", ".", "e", "'", "u", " ", ""];
            text.replace_range(at..at + 1, with[random.below(with.len())]);
        }
        json_agrees(text.as_bytes());
    }
}

fn any_value(name: &str, random: &mut Random) -> Value {
    match (name, random.below(8)) {
        ("status", 0..7) => Value::from(200 + random.below(400)),
        ("message-id", 0..7) => Value::from(any_id(random)),
        ("method", 0..7) => Value::from("GET"),
        ("request-uri", 0..7) => Value::from("/"),
        ("headers", 0..7) => {
            let fields = (0..random.below(4)).map(|_| vec![Value::from("a"), Value::from(random.below(99))]);
            Value::from(fields.map(Value::from).collect::<Vec<_>>())
        }
        (_, 0) => Value::Null,
        (_, 1) => Value::from(random.once_in(2)),
        (_, 2) => Value::from(random.next() as f64 / 1e6),
        (_, 3) => Value::from(-(random.below(99) as i64)),
        (_, 4) => Value::from((0..random.below(3)).map(|_| any_value("", random)).collect::<Vec<_>>()),
        (_, 5) => Value::Object((0..random.below(3)).map(|i| (i.to_string(), any_value("", random))).collect()),
        _ => Value::from(any_body(random).into_iter().map(char::from).collect::<String>()),
    }
}

/// Memory and time that are in no proportion to the bytes are what a stranger would look for.
#[test]
fn much_of_little() {
    let deep = |open: &str| format!("{{\"message-id\": \"1\", \"status\": 200, \"x\": {}", open.repeat(1_000_000));
    for open in ["[", "{\"a\":", "(", "[(", "{(("] {
        assert_eq!(comet::read(deep(open).as_bytes()), Err(Malformed::Deep));
    }
    let wide = format!("{{\"message-id\": \"1\", \"status\": 200, \"x\": [{}0]}}", "0,".repeat(1_000_000));
    assert!(comet::read(wide.as_bytes()).is_ok());
    let mut arrays = vec![0x91; 1_000_000];
    assert_eq!(packed::read_asks(&arrays), Err(Malformed::Syntax));
    arrays.splice(..0, [0xdd, 0, 0x0f, 0xff, 0xff]);
    assert_eq!(packed::read_asks(&arrays), Err(Malformed::Cut));
}
