//! The polls of agents: who may hold one, and until there is a message for it. With the first of them the agent is there, and counts
//! as a link of its tunnel; with the last one, and its last message, it has gone.

use std::time::Duration;

use mio::Token;
use ptth_proto::http::framing::Framing;
use ptth_proto::wire::comet::Notation;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;

use super::{Carriage, Charge, Coming, POLL, Poll, Wish, give_leave, say, to_front};
use crate::answer::{Answer, Code};
use crate::bridge::{Claim, Order, stopping, take_bodiless};
use crate::net::addr::Remote;
use crate::net::name::TunnelName;
use crate::peer::Seat;
use crate::reactor::Core;
use crate::relay::agents::refusal;
use crate::relay::registry::{Taken, Waiting};
use crate::relay::{DOWN_AFTER, Relay, is_free};

impl Relay {
    /// An agent polls, maybe with an answer in the same request.
    pub(in crate::relay) fn polled(
        &mut self,
        core: &mut Core,
        token: Token,
        name: TunnelName,
        carriage: Carriage,
        framing: Framing,
        orders: &mut Vec<Order>,
    ) -> Claim {
        let who = match self.access.admit(&core.head, name.as_str()) {
            Ok(who) => who,
            Err(denied) => return Claim::Refuse(refusal(denied, name.as_str())),
        };
        if self.workers.are_several() {
            let home = self.workers.home(name.as_str());
            if home != self.workers.me() {
                return self.pass(core, token, home, framing, Some((name, carriage)));
            }
        }
        let hold = core.config.deadlines.poll.min(patience(&core.head));
        let wish = Wish { name, carriage, notation: None, who, hold };
        if !matches!(framing, Framing::Empty | Framing::Length(0)) {
            if matches!(carriage, Carriage::Packed(_)) {
                return Claim::Refuse(Answer::new(Code::BAD_MESSAGE, "A poll of this dialect has no body."));
            }
            give_leave(core, token);
            let head = Box::new(std::mem::take(&mut core.head));
            self.take_in(core, token, Coming::Whole(wish, head, Vec::new(), Charge::None));
            return Claim::Taken;
        }
        take_bodiless(core, token, framing);
        match self.hold_poll(core, token, wish, orders) {
            Some(refusal) => Claim::Refuse(refusal),
            None => Claim::Taken,
        }
    }

    /// Holds a poll, or refuses it. One that won't wait is due in this turn, when what waits for it was brought to it.
    pub(super) fn hold_poll(
        &mut self,
        core: &mut Core,
        token: Token,
        wish: Wish,
        orders: &mut Vec<Order>,
    ) -> Option<Answer> {
        let Wish { name, mut carriage, notation, who, hold } = wish;
        let (now, most) = (core.now, core.config.limits.links);
        let peer = core.peer(token)?;
        let (remote, has_hung_up) = (peer.remote, peer.has_hung_up());
        if self.queues.stopping {
            return Some(stopping());
        }
        if has_hung_up {
            // It is gone, most likely: no message is to be lost on it. If only its side is closed, it may poll again.
            say_nothing(core, token, carriage);
            to_front(core, token, orders);
            return None;
        }
        let Some(tunnel) = self.tunnels.claim(name.as_str()) else {
            let text = "This relay has as many tunnels as it may have.";
            return Some(Answer::new(Code::TOO_MANY_TUNNELS, text));
        };
        peer.seat = Seat::Own;
        peer.key = POLL;
        core.touch(token);
        let mail = self.tunnels.mail(tunnel)?;
        if let Carriage::Comet(style) = &mut carriage {
            // Who knows base64 is of today, and needs no guess.
            let guess = if style.base64 { Notation::Json } else { mail.notation };
            style.notation = notation.unwrap_or(guess);
        }
        self.queues.polls.insert(token, Poll { tunnel, carriage, who, until: now + hold });
        mail.queue.poll(now, token, hold);
        if !std::mem::replace(&mut mail.present, true) {
            self.agent_came(core, tunnel, carriage, remote);
        }
        let mail = self.tunnels.mail(tunnel)?;
        if mail.queue.polls() > most
            && let Some(first) = mail.queue.take_poll()
        {
            self.let_poll_go(core, first, orders);
        }
        self.serve(core, tunnel, orders);
        self.look_who_is_there(core, tunnel);
        None
    }

    /// An agent has come whose tunnel had none that polls.
    fn agent_came(&mut self, core: &mut Core, tunnel: usize, carriage: Carriage, remote: Remote) {
        let taken = self.tunnels.add_link(tunnel, |link| is_free(core, link));
        if let Taken::InPlaceOf(link) = taken {
            core.drop_peer(link);
        }
        let name = self.tunnels.name(tunnel);
        if self.workers.are_several() {
            self.workers.link_here(name);
        }
        if taken == Taken::First && self.workers.is_up(name) {
            let how = match carriage {
                Carriage::Comet(_) => "COMET",
                Carriage::Packed(_) => "ptth-relay",
            };
            log::info!("tunnel `{name}` is up: an agent polls from {remote} ({how})");
        }
    }

    /// Looks whether an agent of the tunnel is still there: it has a poll here, or a message, or there is one for it.
    pub(super) fn look_who_is_there(&mut self, core: &mut Core, tunnel: usize) {
        let Some(mail) = self.tunnels.mail(tunnel) else { return };
        if !mail.present || mail.queue.polls() > 0 || mail.messages > 0 {
            return;
        }
        mail.present = false;
        if self.workers.are_several() {
            self.workers.link_gone(self.tunnels.name(tunnel));
        }
        if self.tunnels.remove_link(tunnel, |link| is_free(core, link)) {
            core.set_timer(DOWN_AFTER, tunnel);
        }
    }

    /// Brings messages to polls, and requests that wait to where messages are made of them.
    pub(super) fn serve(&mut self, core: &mut Core, tunnel: usize, orders: &mut Vec<Order>) {
        while let Some((poll, far)) = self.tunnels.mail(tunnel).and_then(|mail| mail.queue.pair()) {
            self.hand_out(core, poll, far, orders);
        }
        while self.has_poll(tunnel)
            && let Some(Waiting { id, .. }) = self.tunnels.next_waiting(tunnel, None)
        {
            self.waits_no_more(tunnel);
            let near = self.open_pipe(core, tunnel);
            orders.push(Order::Attach(id, near));
        }
        if self.workers.are_several() && self.has_poll(tunnel) {
            self.workers.offer(self.tunnels.name(tunnel));
        }
        self.arm(core, tunnel);
    }

    /// Whether a message would have a poll to go to.
    pub(in crate::relay) fn has_poll(&mut self, tunnel: usize) -> bool {
        self.polls(tunnel) > 0
    }

    /// How many polls wait for one.
    pub(in crate::relay) fn polls(&mut self, tunnel: usize) -> usize {
        self.tunnels.mail(tunnel).map_or(0, |mail| mail.queue.polls())
    }

    /// Answers a poll for which there is nothing, and holds it no more.
    pub(super) fn let_poll_go(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        let Some(poll) = self.queues.polls.remove(&token) else { return };
        say_nothing(core, token, poll.carriage);
        to_front(core, token, orders);
    }

    /// Something is new on a connection on which a poll is held: it can only be its end.
    pub(in crate::relay) fn step_poll(&mut self, core: &mut Core, token: Token) {
        if core.peer(token).is_some_and(|peer| peer.has_hung_up()) {
            core.drop_peer(token);
        }
    }
}

/// Answers a poll for which there is nothing.
fn say_nothing(core: &mut Core, token: Token, carriage: Carriage) {
    match carriage {
        Carriage::Comet(_) => say(core, token, carriage, 200, &[b"{}"]),
        Carriage::Packed(_) => say(core, token, carriage, 204, &[]),
    };
}

/// How long a poll is to be held at most, if its sender says so (RFC 7240 §4.3): an agent that only wants to know whether it may
/// poll says that it won't wait.
fn patience(head: &Head) -> Duration {
    let wait = head.fields.list(Name::Prefer).find_map(|preference| {
        let (name, value) = preference.split_at_checked(5)?;
        let seconds = name.eq_ignore_ascii_case(b"wait=").then_some(value)?;
        std::str::from_utf8(seconds).ok()?.parse().ok()
    });
    wait.map_or(Duration::MAX, Duration::from_secs)
}
