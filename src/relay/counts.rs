//! What a relay counts: plain numbers that only grow, and how much there is of something at the moment. Each worker has its own.

use std::fmt;

use crate::answer::Code;

macro_rules! counts {
    ($($(#[$doc:meta])* $field:ident = $name:literal;)*) => {
        /// What was counted.
        #[derive(Clone, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $field: u64,)*
            /// Answers of our own, and answers that were cut off, by the name of their code.
            pub answers: Vec<(&'static str, u64)>,
        }

        impl Counts {
            /// Adds what another worker has counted.
            pub fn add(&mut self, other: &Counts) {
                $(self.$field += other.$field;)*
                for (name, count) in &other.answers {
                    *self.answer(name) += count;
                }
            }
        }

        impl fmt::Display for Counts {
            /// NAME=N for each, those of codes behind the others.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, concat!($name, "={} "), self.$field)?;)*
                f.write_str("answers:")?;
                self.answers.iter().try_for_each(|(name, count)| write!(f, " {name}={count}"))
            }
        }
    };
}

counts! {
    /// Connections that came in.
    connections = "connections";
    /// Those of visitors that are there.
    connections_now = "connections-now";
    /// Idle ones that were closed for others.
    closed_idle = "closed-idle";
    /// Those that were too many, and closed without a word.
    dropped = "dropped";
    /// Requests that are over.
    requests = "requests";
    /// Those that are under way.
    requests_now = "requests-now";
    /// Those among them that wait for a link.
    waiting = "waiting";
    /// Bytes in memory, in buffers and messages.
    buffered = "buffered";
    /// Bytes of requests' bodies.
    bytes_in = "bytes-in";
    /// Bytes of answers' bodies.
    bytes_out = "bytes-out";
}

impl Counts {
    /// One more answer of this code.
    pub fn told(&mut self, code: Code) {
        *self.answer(code.name) += 1;
    }

    fn answer(&mut self, name: &'static str) -> &mut u64 {
        let at = self.answers.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.answers.push((name, 0));
            self.answers.len() - 1
        });
        &mut self.answers[at].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_added_up() {
        let mut all = Counts { requests: 1, ..Counts::default() };
        all.told(Code::NO_LINK);
        let mut other = Counts { requests: 2, bytes_in: 7, ..Counts::default() };
        other.told(Code::RELAY_BUSY);
        other.told(Code::NO_LINK);
        all.add(&other);
        let text = all.to_string();
        assert!(text.contains(" requests=3 ") && text.contains(" bytes-in=7 "), "{text}");
        assert!(text.ends_with(" answers: no-link=2 relay-busy=1"), "{text}");
    }
}
