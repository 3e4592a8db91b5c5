//! A relay of several event loops is one relay: which of them a visitor or a link came to, nobody can tell.

use std::sync::mpsc;
use std::thread;

use crate::support::link::{link, link_lines};
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Wire, get, ok};
use crate::support::{Agent, PATIENCE, Part, Relay, carries, eventually, relay_command};

fn relay(args: &[&str]) -> Relay {
    Relay::start(&[&["--workers", "4"], args].concat())
}

#[test]
fn a_visitor_of_any_worker_finds_the_only_link() {
    let relay = relay(&[]);
    let mut link = link(&relay, "demo");
    for n in 0..100 {
        let mut visitor = relay.visitor();
        visitor.send(get("demo", &format!("/{n}")));
        assert_eq!(link.request().head.target(), format!("/{n}"));
        link.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
        // Once more on the same connection, which may live elsewhere now.
        visitor.send(get("demo", "/again"));
        assert_eq!(link.request().head.target(), "/again");
        link.send(ok("again"));
        assert_eq!(visitor.response("GET").text(), "again");
    }
}

#[test]
fn there_is_a_worker_for_each_core() {
    let relay = Relay::run(&mut relay_command(&["--listen", "127.0.0.1:0"]));
    let cores = thread::available_parallelism().unwrap().get().min(8).to_string();
    // The first one has the thread that the process began with. Those that are being started are waited for.
    eventually("a thread for each core", || (relay.program.status_of("Threads") == cores).then_some(()));
}

#[test]
fn two_links_serve_the_visitors_of_eight_workers() {
    let upstream = Upstream::saying("fine");
    // Whoever is forgotten on a worker without a link is so for longer than anybody waits here.
    let relay = Relay::start(&["--workers", "8", "--timeout", "link=1h"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "2..2"]);
    let mut visitors: Vec<Wire> = (0..64).map(|_| relay.visitor()).collect();
    for round in 0..3 {
        for (number, visitor) in visitors.iter_mut().enumerate() {
            // Some that may share a link, and some that may not.
            let request = get("demo", &format!("/{number}"));
            visitor.send(if number % 3 == round { request.replacen("GET", "DELETE", 1) } else { request });
        }
        for visitor in &mut visitors {
            assert_eq!(visitor.response("GET").text(), "fine", "round {round}");
        }
    }
    assert_eq!(upstream.requests().len(), 3 * visitors.len());
}

#[test]
fn a_visitor_whose_tunnels_are_on_different_workers_reaches_them_all() {
    let relay = relay(&[]);
    let names = ["a", "b", "c", "d", "e", "f"];
    let links: Vec<_> = names
        .iter()
        .map(|name| {
            let mut link = link(&relay, name);
            thread::spawn(move || {
                while let Ok(Some(request)) = link.try_request() {
                    link.send(ok(request.head.get("Host").unwrap()));
                }
            })
        })
        .collect();
    let mut visitor = relay.visitor();
    for round in 0..10 {
        // Sent ahead, so that some of it has to move with the connection.
        visitor.send(names.map(|name| get(name, "/")).concat());
        for name in names {
            assert_eq!(visitor.response("GET").text(), format!("{name}.localhost"), "round {round}");
        }
    }
    drop(relay);
    links.into_iter().for_each(|link| link.join().unwrap());
}

#[test]
fn requests_that_wait_anywhere_are_served_by_a_link_that_comes_anywhere() {
    let relay = relay(&["--timeout", "link=60s"]);
    let mut visitors: Vec<Wire> = (0..20).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send(get("demo", "/"));
    }
    // Bodies that were on their way before anybody had a link for them, too.
    let mut sender = relay.visitor();
    let body = "b".repeat(200_000);
    let mut writer = sender.writer();
    let request = crate::support::wire::post("demo", "/body", &body);
    let sending = thread::spawn(move || std::io::Write::write_all(&mut writer, request.as_bytes()).unwrap());
    let mut link = link(&relay, "demo");
    for _ in 0..=visitors.len() {
        let request = link.request();
        assert_eq!(request.body.len(), if request.head.method() == "POST" { body.len() } else { 0 });
        link.send(ok("fine"));
    }
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "fine");
    }
    assert_eq!(sender.response("POST").text(), "fine");
    sending.join().unwrap();
}

/// Its links may be on other workers than they.
#[test]
fn an_agent_is_told_of_all_who_wait_on_whatever_worker() {
    const WAIT: usize = 38;
    let relay = relay(&["--timeout", "link=60s"]);
    let (told, heard) = mpsc::channel();
    for _ in 0..2 {
        let (mut link, told) = (link_lines(&relay, "demo", 1), told.clone());
        thread::spawn(move || {
            while let Ok(Some(request)) = link.try_request() {
                if let Some(wanted) =
                    request.head.all("Ptth-Accept").iter().find_map(|word| word.strip_prefix("wanted="))
                {
                    assert_eq!(request.head.start, "OPTIONS * HTTP/1.1");
                    let _ = told.send(wanted.parse::<usize>().unwrap());
                }
            }
        });
    }
    let mut visitors: Vec<Wire> = (0..2 + WAIT).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send("DELETE / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    }
    let mut most = 0;
    while most < WAIT {
        most = heard.recv_timeout(PATIENCE).expect("word of all who wait").max(most);
    }
    // A crowd that gathers is taken to be a quarter larger.
    assert!(most <= WAIT + WAIT / 4, "{most}");
}

#[test]
fn the_tunnel_is_up_once_and_down_once() {
    let upstream = Upstream::saying("fine");
    let relay = relay(&[]);
    let mut agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "8..16"]);
    for _ in 0..50 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    agent.program.kill();
    relay.log().wait_for("tunnel `demo` is down");
    assert_eq!((relay.log().count("is up"), relay.log().count("is down")), (1, 1));
}

#[test]
fn a_tunnel_without_an_agent_is_a_503_on_every_worker() {
    let relay = relay(&["--timeout", "link=200ms"]);
    drop(link(&relay, "demo"));
    let mut visitors: Vec<Wire> = (0..20).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send(get("demo", "/"));
    }
    for visitor in &mut visitors {
        let answer = visitor.response("GET");
        assert!(matches!(answer.code().as_str(), "no-link" | "link-lost"), "{}", answer.text());
    }
}

#[test]
fn links_of_one_name_share_the_load_across_workers() {
    let relay = relay(&[]);
    let (tell, told) = mpsc::channel();
    for n in 0..8 {
        let mut link = link(&relay, "demo");
        let tell = tell.clone();
        thread::spawn(move || {
            while let Ok(Some(_)) = link.try_request() {
                tell.send(n).unwrap();
                link.send(ok("fine"));
            }
        });
    }
    let mut shares = [0; 8];
    for _ in 0..200 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
        shares[told.recv_timeout(PATIENCE).unwrap()] += 1;
    }
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

#[test]
fn visitors_that_left_leave_nothing_behind_on_any_worker() {
    let relay = relay(&["--timeout", "link=60s"]);
    assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    let files = relay.program.open_files();
    let mut visitors: Vec<Wire> = (0..100).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send(get("demo", "/gone"));
    }
    drop(visitors);
    relay.log().wait_for_count(100, " demo GET /gone 499 ");
    let mut link = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/here"));
    assert_eq!(link.request().head.target(), "/here");
    link.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
    drop((link, visitor));
    relay.program.wait_for_files(files);
}

#[test]
fn all_workers_stop_together_and_finish_what_they_have_begun() {
    let (step, steps) = mpsc::channel::<()>();
    let steps = std::sync::Mutex::new(steps);
    let upstream = Upstream::start(move |asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ");
        let _ = crate::support::locked(&steps).recv_timeout(PATIENCE);
        asked.wire.send("whole");
        After::Keep
    });
    let mut relay = relay(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut busy: Vec<Wire> = (0..8).map(|_| relay.visitor()).collect();
    for visitor in &mut busy {
        visitor.send(get("demo", "/"));
        if carries(Part::ComingResponse) {
            assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
            assert_eq!(visitor.body(5), b"half ");
        }
    }
    eventually("eight requests", || (upstream.requests().len() == 8).then_some(()));
    relay.program.terminate();
    relay.log().wait_for("stopping");
    drop(step);
    for visitor in &mut busy {
        if carries(Part::ComingResponse) {
            assert_eq!(visitor.body(5), b"whole");
        } else {
            assert_eq!(visitor.response("GET").text(), "half whole");
        }
        visitor.expect_end();
    }
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn an_address_in_use_is_noticed_before_it_is_shared() {
    let first = relay(&[]);
    let listen = format!("127.0.0.1:{}", first.port);
    let args = ["--listen", &listen, "--workers", "4"];
    let mut second = crate::support::Program::start(&mut crate::support::relay_command(&args));
    assert_eq!(second.exit_code(), 1);
    second.log.wait_for("another program listens there");
}
