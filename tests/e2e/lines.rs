//! Several requests on one link (`docs/links.md`): each visitor has its own answer, nobody waits for somebody else's slow one, and
//! the upstream is asked once. Either side is tried against bare bytes, and both together under a mixed load.

mod agent;
mod mixed;
mod relay;

use std::collections::HashSet;
use std::sync::{Condvar, Mutex};

use crate::support::locked;

/// What upstreams wait for before they answer, and what they have answered.
#[derive(Default)]
struct Gate {
    open: Mutex<HashSet<String>>,
    news: Condvar,
    answered: Mutex<Vec<String>>,
}

impl Gate {
    fn open(&self, target: &str) {
        locked(&self.open).insert(target.to_owned());
        self.news.notify_all();
    }

    fn wait(&self, target: &str) {
        let open = locked(&self.open);
        drop(self.news.wait_while(open, |open| !open.contains(target)));
    }
}
