//! Every input in `fixtures/refuse/` is refused for the reason that its file gives, whole, byte by byte and at every cut; and
//! a server can still say so.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;
mod replay;

use common::{Naming, Refusal, Side, Transcript, escape};
use ptth_proto::conn::{Body, Closing};
use ptth_proto::error::CloseReason;
use ptth_proto::role::Role;
use replay::{Cut, End, Step, length_of, play, rehearse};

/// Inputs beyond this size are cut at some places only.
const LONG: usize = 4096;

#[test]
fn every_input_is_refused_at_every_cut() {
    for transcript in common::load("refuse") {
        let _naming = Naming(transcript.name.clone());
        let refusal = transcript.refusal.as_ref().unwrap_or_else(|| panic!("the file has no !refuse"));
        // The side that reads the last bytes is the one that refuses them.
        let side = transcript.last_speaker().other();
        let script = rehearse(&transcript).script_of(side);
        let length = length_of(&script);
        let cuts = (1..length).filter(|at| length < LONG || *at < 300 || length - at < 300 || at % 997 == 0);
        for cut in [Cut::Nowhere, Cut::Everywhere].into_iter().chain(cuts.map(Cut::At)) {
            let mut end = play(side, &script, cut);
            check(&transcript, refusal, side, &mut end, &format!("cut {cut:?}"));
        }
    }
}

fn check(transcript: &Transcript, refusal: &Refusal, side: Side, end: &mut End, how: &str) {
    let name = &transcript.name;
    let show = |events: &[Vec<u8>]| events.iter().map(|event| escape(event)).collect::<Vec<_>>().join("\n");
    let Some(error) = end.error else { panic!("{name}, {how}: not refused; after\n{}", show(&end.heard)) };
    assert_eq!(error.code(), refusal.code, "{name}, {how}: {error:?}");

    // Bytes behind an offer are found at once, or only behind the offer if they come later.
    if refusal.code == "bytes-behind-offer" && end.heard.last().is_some_and(|event| event.starts_with(b"offer ")) {
        end.heard.pop();
    }
    assert_eq!(show(&end.heard), show(&transcript.expected_from(side.other())), "{name}, {how}");

    // The error is repeated, whatever comes.
    for input in [&b""[..], b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"] {
        assert_eq!(end.conn.recv(end.now, input, &mut end.head, &end.config), Err(error));
    }
    assert_eq!(end.conn.eof(end.now, 0), Err(error));
    assert!(!end.conn.is_idle() && !end.conn.wants_read());
    assert_eq!(end.conn.close_reason(), Some(CloseReason::Failed(error)));

    end.out.clear();
    let (conn, out, now) = (&mut end.conn, &mut end.out, end.now);
    if conn.role() == Some(Role::Client) {
        assert_eq!(refusal.status, None, "{name}: a client has nobody to tell");
        assert_eq!(conn.closing(), Some(Closing::Flush));
        assert!(conn.send_response(now, out, (400, b""), Body::None, |_| {}).is_err());
        return;
    }
    assert_eq!(error.status(), refusal.status, "{name}, {how}");
    assert_eq!(conn.closing(), None, "{name}, {how}: the driver still has a choice");
    let Some(status) = refusal.status else { return };
    assert!(conn.can_respond(), "{name}, {how}");
    conn.send_response(now, out, (status, b"No"), Body::Length(4), |_| {}).unwrap();
    conn.send_data(now, b"why\n", out).unwrap();
    conn.send_end(now, None, out).unwrap();
    let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwhy\n");
    assert_eq!(escape(out), escape(head.as_bytes()), "{name}, {how}");
    assert_eq!(conn.closing(), Some(Closing::Linger), "{name}, {how}");
    assert_eq!(conn.close_reason(), Some(CloseReason::Failed(error)));
    // What still comes is thrown away.
    assert_eq!(conn.recv(now, b"more", &mut end.head, &end.config), Ok((4, None)));
    assert_eq!(conn.eof(now, 0), Ok(None));
    assert_eq!(conn.closing(), Some(Closing::Flush));
}

/// Tests against a running relay send only what the dialling side sends, and need all of it in the file.
#[test]
fn each_file_stands_for_itself() {
    for transcript in common::load("refuse") {
        let _naming = Naming(transcript.name.clone());
        let refusal = transcript.refusal.clone().unwrap();
        assert!(refusal.status.is_none_or(|status| (400..600).contains(&status)));
        let by_visitor = !transcript.name.starts_with("response-") && !transcript.name.starts_with("link-");
        if by_visitor {
            assert_eq!(transcript.last_speaker(), Side::Dialling);
            assert!(transcript.bytes_of(Side::Listening).is_empty());
            assert!(!transcript.bytes_of(Side::Dialling).is_empty());
        }
        let script = rehearse(&transcript).script_of(transcript.last_speaker().other());
        assert!(script.iter().any(|step| matches!(step, Step::Feed(_) | Step::Eof)));
    }
}
