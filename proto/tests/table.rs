//! Prints the whole table of legal moves, and of the moves that follow by themselves, and compares it with
//! `fixtures/states.txt`. A change of the rules is then seen as a change of that page. `make fixtures` writes it anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;

use std::fmt::Write as _;
use std::{env, fs};

use ptth_proto::http::exchange::{Exchange, MOVES, Move, PHASES, Phase, forced, next};
use ptth_proto::role::Role;

#[test]
fn the_table_is_the_one_in_the_fixtures() {
    let printed = print();
    let path = common::fixtures().join("states.txt");
    if env::var_os("PTTH_FIXTURES").is_some_and(|value| value == "write") {
        fs::write(&path, &printed).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    for (number, (kept, printed)) in kept.lines().zip(printed.lines()).enumerate() {
        assert_eq!(kept, printed, "line {} of fixtures/states.txt; PTTH_FIXTURES=write makes it anew", number + 1);
    }
    assert_eq!(kept.lines().count(), printed.lines().count());
}

fn print() -> String {
    let mut page = String::from(
        "The rules of one exchange, printed from proto/src/http/exchange.rs by proto/tests/table.rs.\n\n\
         A row is the phase that a side is in, a column the move that it makes, the entry the phase it is in then.\n\
         Where there is none, it may not.\n",
    );
    for role in [Role::Client, Role::Server] {
        writeln!(page, "\n{}\n", name(role)).unwrap();
        let row = |first: &str, entries: &[String]| {
            let cells: String = entries.iter().map(|entry| format!("{entry:<14}")).collect();
            format!("  {first:<12}{}", cells.trim_end()).trim_end().to_owned() + "\n"
        };
        page += &row("", &MOVES.map(|movement| format!("{movement:?}")));
        for phase in PHASES {
            let entries =
                MOVES.map(|movement| next(role, phase, movement).map_or(".".to_owned(), |p| format!("{p:?}")));
            page += &row(&format!("{phase:?}"), &entries);
        }
    }
    page += "\nWhat follows by itself, until nothing more does. A pair is the client's phase and the server's.\n";
    for (keep, offered) in [(true, false), (true, true), (false, false), (false, true)] {
        let kept = if keep { "kept" } else { "not kept" };
        let offer = if offered { "an upgrade is offered" } else { "nothing is offered" };
        writeln!(page, "\n{kept}, {offer}\n").unwrap();
        for client in PHASES {
            for server in PHASES {
                // Phases of the other side.
                if client == Phase::Answering || server == Phase::MightSwitch {
                    continue;
                }
                let after = settled(client, server, keep, offered);
                if after != (client, server) {
                    let before = format!("{client:?}, {server:?}");
                    writeln!(page, "  {before:<24} becomes  {:?}, {:?}", after.0, after.1).unwrap();
                }
            }
        }
    }
    page
}

/// The forced moves until they rest. There must be no circle.
fn settled(client: Phase, server: Phase, keep: bool, mut offered: bool) -> (Phase, Phase) {
    let mut now = (client, server);
    for _ in 0..PHASES.len() {
        let then = forced(now.0, now.1, keep, offered);
        if then == now {
            return now;
        }
        offered &= then.0 == Phase::MightSwitch;
        now = then;
    }
    panic!("{client:?} and {server:?} never rest");
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Client => "The client",
        Role::Server => "The server",
    }
}

/// What the page can't show: nothing but the table changes a phase. Every walk of five moves by either side does as it says.
#[test]
fn an_exchange_keeps_to_the_table() {
    walk(Exchange::default(), 5);
    let mut offered = Exchange::default();
    offered.offer();
    walk(offered, 5);
    let mut once = Exchange::default();
    once.do_not_keep();
    walk(once, 5);
}

fn walk(exchange: Exchange, left: u32) {
    if left == 0 {
        return;
    }
    for role in [Role::Client, Role::Server] {
        for movement in MOVES {
            let mut after = exchange;
            let done = after.make(role, movement);
            // A 101 needs an offer, which stands in the other side's phase.
            let unasked = movement == Move::Switch && exchange.phase(Role::Client) != Phase::MightSwitch;
            let expected = next(role, exchange.phase(role), movement).filter(|_| !unasked);
            assert_eq!(done.is_ok(), expected.is_some(), "{exchange:?} {role:?} {movement:?}");
            match expected {
                None => assert_eq!(after, exchange, "a refused move has changed something"),
                Some(_) => walk(after, left - 1),
            }
        }
    }
}
