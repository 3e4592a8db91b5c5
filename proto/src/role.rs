//! Which side of an exchange we speak for.

use core::ops::Not;

/// A side of an HTTP exchange. It is a value and not a type, because a reversed connection changes sides in mid-life: the
/// turn after `101 Switching Protocols` is `!role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sends requests.
    Client,
    /// Answers them.
    Server,
}

impl Not for Role {
    type Output = Role;

    fn not(self) -> Role {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}
