//! The readers of whole messages: what polls carry.

use ptth_proto::wire::comet::{self, Message, Notation, Style};
use ptth_proto::wire::fields::{is_token, is_value};
use ptth_proto::wire::head::Target;
use ptth_proto::wire::message::{Ask, Malformed, Pairs};
use ptth_proto::wire::packed::{self, Form};

/// Bytes as a message of the COMET fallback: what is read keeps to the grammar of HTTP; whatever was written before its last
/// byte is none; and written in each notation it is read as the same again.
pub fn comet(data: &[u8]) {
    let (read, taken, first) = (comet::read(data), comet::looks_like_reply(data), comet::first_id(data));
    let (message, notation) = match read {
        Ok(read) => read,
        Err(Malformed::Cut) => return,
        Err(_) => return assert!(!taken),
    };
    let trimmed = data.trim_ascii();
    for length in some_of(trimmed.len()) {
        match comet::read(&trimmed[..length]) {
            Ok((Message::Nothing, None)) => assert!(trimmed[..length].trim_ascii().is_empty()),
            other => assert_eq!(other, Err(Malformed::Cut)),
        }
    }
    match &message {
        Message::Nothing => return assert!(taken && notation.is_none()),
        Message::Ask(ask) => {
            assert!(!taken);
            ask_is_one(ask);
        }
        Message::Reply(reply) => {
            assert!(taken && is_value(&reply.reason) && (200..600).contains(&reply.status));
            assert!(first.is_none_or(|id| id == reply.id.as_bytes()));
            fields_are_some(&reply.fields);
        }
    }
    for (notation, base64) in [(Notation::Json, true), (Notation::Json, false), (Notation::Python, false)] {
        let (out, style) = (write(&message, Style { notation, base64 }), Style { notation, base64 });
        if out.is_empty() {
            assert!(style == Style::default() && std::str::from_utf8(body_of(&message)).is_err());
            continue;
        }
        let (again, in_which) = comet::read(&out).unwrap();
        assert_eq!(in_which, Some(notation));
        match notation {
            Notation::Python => assert_eq!(again, message),
            Notation::Json => assert_eq!(in_letters(again, base64), in_letters(message.clone(), base64)),
        }
    }
}

/// The message in the letters of ISO-8859-1, where JSON has no other way to say it.
fn in_letters(mut message: Message, base64: bool) -> Message {
    let letters = |text: &mut Vec<u8>| {
        if std::str::from_utf8(text).is_err() {
            *text = text.iter().copied().map(char::from).collect::<String>().into_bytes();
        }
    };
    let fields = match &mut message {
        Message::Reply(reply) => {
            letters(&mut reply.reason);
            &mut reply.fields
        }
        Message::Ask(ask) => &mut ask.fields,
        Message::Nothing => return message,
    };
    if !base64 {
        fields.iter_mut().for_each(|(_, value)| letters(value));
    }
    message
}

fn body_of(message: &Message) -> &[u8] {
    match message {
        Message::Ask(it) => &it.body,
        Message::Reply(it) => &it.body,
        Message::Nothing => b"",
    }
}

fn write(message: &Message, style: Style) -> Vec<u8> {
    let mut out = Vec::new();
    let done = match message {
        Message::Ask(it) => {
            comet::write_ask(&mut out, style, &it.id, &it.method, &it.target, pairs(&it.fields), &it.body)
        }
        Message::Reply(it) => {
            comet::write_reply(&mut out, style, &it.id, it.status, &it.reason, pairs(&it.fields), &it.body)
        }
        Message::Nothing => {
            comet::write_nothing(&mut out);
            Ok(())
        }
    };
    assert_eq!(done.is_err(), out.is_empty());
    out
}

/// Bytes as the answer to a poll of the `ptth` dialect, and as the head of a response to it: the same promises.
pub fn packed(data: &[u8]) {
    if let Ok(asks) = packed::read_asks(data) {
        for length in some_of(data.len()) {
            assert_eq!(packed::read_asks(&data[..length]), Err(Malformed::Cut));
        }
        asks.iter().for_each(ask_is_one);
        assert_eq!(packed::read_asks(&write_asks(&asks, Form::Full)), Ok(asks.clone()));
        for ask in asks {
            let stock = write_asks(std::slice::from_ref(&ask), Form::Stock);
            let Ok(again) = packed::read_asks(&stock) else {
                assert!(stock.len() == 1 && (!ask.body.is_empty() || !matches!(&ask.method[..], b"GET" | b"HEAD")));
                continue;
            };
            assert_eq!((&again[0].id, &again[0].method, &again[0].target), (&ask.id, &ask.method, &ask.target));
            assert_eq!(write_asks(&again, Form::Stock), stock);
        }
    }
    if let Ok((status, fields)) = packed::read_head(data) {
        for length in some_of(data.len()) {
            assert_eq!(packed::read_head(&data[..length]), Err(Malformed::Cut));
        }
        assert!((200..600).contains(&status));
        fields_are_some(&fields);
        let (full, lost) = write_head(status, &fields, Form::Full);
        assert_eq!((packed::read_head(&full), lost), (Ok((status, fields.clone())), 0));
        let (stock, _) = write_head(status, &fields, Form::Stock);
        let (nearest, fields) = packed::read_head(&stock).unwrap();
        assert_eq!(nearest, packed::nearest(status));
        assert_eq!(write_head(nearest, &fields, Form::Stock), (stock, 0));
    }
}

fn write_asks(asks: &[Ask], form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    packed::write_array(&mut out, asks.len());
    for it in asks {
        let before = out.len();
        let done = packed::write_ask(&mut out, form, &it.id, &it.method, &it.target, pairs(&it.fields), &it.body);
        assert_eq!(done.is_err(), out.len() == before);
    }
    out
}

fn write_head(status: u16, fields: &Pairs, form: Form) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let lost = packed::write_head(&mut out, form, status, pairs(fields));
    (out, lost)
}

fn pairs(fields: &Pairs) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    fields.iter().map(|(name, value)| (&name[..], &value[..]))
}

fn ask_is_one(ask: &Ask) {
    assert!(is_token(&ask.method) && Target::of(&ask.method, &ask.target).is_some());
    assert!(!ask.id.is_empty() && ask.id.bytes().all(|byte| byte.is_ascii_graphic()));
    fields_are_some(&ask.fields);
}

fn fields_are_some(fields: &Pairs) {
    for (name, value) in fields {
        assert!(is_token(name) && is_value(value));
        assert_eq!(value.trim_ascii(), &value[..]);
    }
}

/// Lengths below the whole one: all, or of a long one so many that it stays quick.
fn some_of(whole: usize) -> impl Iterator<Item = usize> {
    (0..whole).step_by(1 + whole / 64)
}
