//! Every transcript in `fixtures/transcripts/`, played whole, byte by byte and at every single cut, as if recorded by either
//! end.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;
mod replay;

use common::{Item, Naming, Side, Transcript, escape};
use replay::{Cut, End, length_of, play, rehearse, role_of};

#[test]
fn every_transcript_at_every_cut_by_either_end() {
    for transcript in common::load("transcripts") {
        let _naming = Naming(transcript.name.clone());
        let both = rehearse(&transcript);
        for side in [Side::Dialling, Side::Listening] {
            let script = both.script_of(side);
            let rehearsed = if side == Side::Dialling { &both.dialling } else { &both.listening };
            check(&transcript, side, rehearsed, "rehearsal");
            let cuts = [Cut::Nowhere, Cut::Everywhere].into_iter().chain((1..length_of(&script)).map(Cut::At));
            for cut in cuts {
                let end = play(side, &script, cut);
                let how = format!("{cut:?}");
                check(&transcript, side, &end, &how);
                assert_eq!(end.fields, rehearsed.fields, "{} read by {side:?}, cut {how}", transcript.name);
            }
        }
    }
}

fn check(transcript: &Transcript, side: Side, end: &End, how: &str) {
    let what = format!("{} read by {side:?}, cut {how}", transcript.name);
    let show = |events: &[Vec<u8>]| events.iter().map(|event| escape(event)).collect::<Vec<_>>().join("\n");
    assert_eq!(end.error, None, "{what}: after\n{}", show(&end.heard));
    assert_eq!(show(&end.heard), show(&transcript.expected_from(side.other())), "{what}");
    assert_eq!(escape(&end.input), "", "{what}: left over");
    let turned = transcript.expected_from(Side::Listening).contains(&b"turned".to_vec());
    if let Some(role) = end.conn.role() {
        assert_eq!(role, role_of(side, turned), "{what}");
    }
}

/// The line of the format's description that is easiest to break: every byte is found again in the text of its line.
#[test]
fn what_is_escaped_is_found_again() {
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(common::unescape(&escape(&all)), Ok(all.clone()));
    let text = format!(">{}\\\n>a\\\\\n!close >\n", escape(&all));
    let transcript = common::parse("all", &text).unwrap();
    let expected = [&all[..], b"a\\\r\n"].concat();
    assert_eq!(transcript.items, [Item::Bytes(Side::Dialling, expected), Item::Close(Side::Dialling)]);
    assert!(common::parse("bad", "hello").is_err());
    assert!(common::parse("bad", ">\\q").is_err());
    assert!(common::parse("bad", "!nothing").is_err());
}
