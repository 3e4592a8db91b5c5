//! The bodies of the fuzz targets with the bytes of all fixtures, and with what chance makes of them. A second or two;
//! `PTTH_FUZZ=n` makes it n rounds, `PTTH_SEED=n` begins elsewhere.

#[path = "../../proto/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::{env, fs, iter};

use ptth_proto::wire::message::from_base64;

use crate::bytes::{LOW_LIMITS, STARTS};
use crate::{ops, pair};
use common::messages::Block;
use common::random::Random;
use common::{Side, escape};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 8] = [
    ("head", crate::head),
    ("chunk", crate::chunk),
    ("upgrade", crate::upgrade),
    ("conn_bytes", crate::conn_bytes),
    ("conn_ops", crate::conn_ops),
    ("pair", crate::pair),
    ("comet", crate::comet),
    ("packed", crate::packed),
];

/// Words that mean something to one reader or another.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b": ",
    b",",
    b";",
    b"0",
    b"0\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 \r\n",
    b"HTTP/1.1 100 \r\n\r\n",
    b"HTTP/1.1 204 \r\n\r\n",
    b"GET / HTTP/1.1\r\n",
    b"HEAD / HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n",
    b"Host: a.example\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: Upgrade\r\n",
    b"Upgrade: PTTH/1.0\r\n",
    b"User-Agent: Ruby\r\n",
];

/// The same for the readers of messages.
const PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"(",
    b",)",
    b",",
    b":",
    b"\"",
    b"'",
    b"\\",
    b"\\x80",
    b"\\ud83d\\ude00",
    b"\\U0001f600",
    b"u'",
    b"b\"",
    b"None",
    b"null",
    b"7L",
    b"-1.5e3",
    b"\"message-id\": ",
    b"\"status\": 200, ",
    b"'method': 'POST', ",
    b"\"encoding\": \"base64\", ",
    b", \"base64\"]",
    b"\x80",
    b"\x81\x00\xc0",
    b"\x81\x01\xc0",
    b"\x90",
    b"\x91",
    b"\x92",
    b"\x93",
    b"\x94",
    b"\xa1a",
    b"\xa4POST",
    b"\xc0",
    b"\xc4\x01",
    b"\xc6\x00\x00\x00\x00",
    b"\xcc\xe9",
    b"\xcf\x00\x00\x00\x00\x00\x00\x00\xc8",
    b"\xd9\x01",
    b"\xdc\x00\x02",
    b"\xdd\xff\xff\xff\xff",
    b"\xde\x00\x01",
];

#[test]
fn every_fixture_and_what_chance_makes_of_it() {
    let seeds = TARGETS.map(|(name, _)| seeds(name));
    for (target, seeds) in TARGETS.iter().zip(&seeds) {
        seeds.iter().for_each(|input| try_one(*target, input));
    }
    let mut random = Random::new(number("PTTH_SEED").unwrap_or(1));
    for _ in 0..number("PTTH_FUZZ").unwrap_or(30_000) {
        for (target, seeds) in TARGETS.iter().zip(&seeds) {
            let input = match target.0 {
                "conn_ops" => {
                    let length = random.below(200);
                    operations(&mut random, length)
                }
                "pair" => {
                    let length = random.below(200);
                    steps(&mut random, length)
                }
                "comet" | "packed" => mutated(seeds, PIECES, &mut random),
                _ => mutated(seeds, WORDS, &mut random),
            };
            try_one(*target, &input);
        }
    }
}

/// The fuzzer begins where these tests do: `PTTH_CORPUS=write` puts the seeds where cargo-fuzz looks for them.
#[test]
fn every_target_has_seeds() {
    let write = env::var("PTTH_CORPUS").is_ok_and(|what| what == "write");
    for (name, _) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() > 20, "{name} has {} seeds", seeds.len());
        if write {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            fs::create_dir_all(&folder).unwrap();
            for (number, seed) in seeds.iter().enumerate() {
                fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
            }
        }
    }
}

/// `PTTH_FOUND=fuzz/artifacts/TARGET/crash-…` tries what the fuzzer has found, and prints it in the notation of the fixtures.
#[test]
fn what_was_found() {
    let Some(path) = env::var_os("PTTH_FOUND") else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let name = path.parent().and_then(Path::file_name).unwrap();
    let target = TARGETS.into_iter().find(|(target, _)| name == *target).expect("in a folder named by a target");
    try_one(target, &fs::read(&path).unwrap());
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// What a target begins with: the bytes of all fixtures that are something to it, in the form in which it takes them.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut seeds = BTreeSet::new();
    match target {
        "comet" | "packed" => seeds.extend(common::messages::load().into_iter().map(message)),
        "conn_ops" => {
            let mut random = Random::new(0);
            seeds.extend((0..100).map(|length| operations(&mut random, length)));
        }
        "pair" => {
            let mut random = Random::new(0);
            seeds.extend((0..200).map(|length| steps(&mut random, length)));
        }
        "conn_bytes" => {
            for bytes in conversations() {
                seeds.extend((0..STARTS).map(|start| [&[start, 1, 2], &bytes[..]].concat()));
                seeds.insert([&[LOW_LIMITS, 1, 2], &bytes[..]].concat());
            }
        }
        // A message may begin at every end of a head, and so may a body.
        _ => {
            for bytes in conversations() {
                let ends = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"\r\n\r\n")).map(|at| at + 4);
                seeds.extend(iter::once(0).chain(ends).map(|at| bytes[at..].to_vec()));
            }
        }
    }
    seeds.into_iter().collect()
}

/// What each side says in the transcripts, and what is refused. The few that are long for the sake of a limit are not here: a
/// fuzzer does better with short ones.
fn conversations() -> impl Iterator<Item = Vec<u8>> {
    let all = ["transcripts", "refuse"].into_iter().flat_map(common::load);
    let sides = all.flat_map(|it| [Side::Dialling, Side::Listening].map(|side| it.bytes_of(side)));
    sides.filter(|bytes| bytes.len() < 4000)
}

fn message(block: Block) -> Vec<u8> {
    if block.is_base64 { from_base64(&block.bytes).expect("base64") } else { block.bytes }
}

/// Says which bytes broke a promise.
#[allow(clippy::print_stderr, reason = "only when a test fails, and there it belongs")]
fn try_one((name, target): Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("{name}: {}", escape(input));
        resume_unwind(panic);
    }
}

/// A fixture with some of its bytes changed, cut out, doubled, or replaced by those of another one.
fn mutated(corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below(bytes.len() + 1 - at).min(random.below(60));
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.bytes(1)[0],
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at..end, other[from..].iter().copied().take(400));
            }
            _ => drop(bytes.splice(at..end, words[random.below(words.len())].iter().copied())),
        }
    }
    bytes.truncate(20_000);
    bytes
}

/// Operations that lead further than those by mere chance: often what was said is also delivered.
fn operations(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Half of the time the connection is turned first, whatever the two know of each other.
    if random.once_in(2) {
        bytes.extend([0, random.below(4) as u8, 8 << 1, 0, 1 << 1 | 1, 0, 8 << 1 | 1, 0]);
    }
    for _ in 0..length {
        let side = random.below(2) as u8;
        bytes.extend([(random.below(usize::from(ops::OPERATIONS)) as u8) << 1 | side, random.bytes(1)[0]]);
        if random.once_in(2) {
            bytes.extend([8 << 1 | side, 0]);
        }
    }
    bytes
}

/// Steps of visitors, relay, agent and upstream: what was said often goes on by itself, and seldom anything breaks.
fn steps(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let faults = random.once_in(2);
    for _ in 0..length {
        let what = random.below(usize::from(if faults { pair::OPERATIONS } else { pair::FAIR })) as u8;
        bytes.push(what);
        bytes.extend(random.bytes(2));
    }
    bytes
}
