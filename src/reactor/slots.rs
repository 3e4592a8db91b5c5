//! A table whose places are used again and whose tokens are not: an event for a connection that is gone finds nobody, even
//! when another one has its place by then.

use mio::Token;

/// Bits of a token that name the place; the others count its tenants.
const PLACE_BITS: u32 = usize::BITS / 2;
/// The generations that fit beside them, with room above for tokens that are none of ours.
const GENERATIONS: u32 = u32::MAX >> (u32::BITS - PLACE_BITS + 2);

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values found by token.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// The token that the next [`Slots::insert`] will give.
    pub fn next_token(&self) -> Token {
        match self.free.last() {
            Some(place) => token(*place, self.slots[*place].generation),
            None => token(self.slots.len(), 0),
        }
    }

    /// Puts a value in a free place.
    pub fn insert(&mut self, value: T) -> Token {
        let at = self.next_token();
        match self.free.pop() {
            Some(place) => self.slots[place].value = Some(value),
            None => self.slots.push(Slot { generation: 0, value: Some(value) }),
        }
        at
    }

    fn slot(&self, token: Token) -> Option<usize> {
        let place = token.0 & ((1 << PLACE_BITS) - 1);
        let slot = self.slots.get(place)?;
        (slot.generation == (token.0 >> PLACE_BITS) as u32).then_some(place)
    }

    /// The value of a token that is still valid.
    pub fn get(&self, token: Token) -> Option<&T> {
        self.slot(token).and_then(|place| self.slots[place].value.as_ref())
    }

    /// The value of a token that is still valid.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        self.slot(token).and_then(|place| self.slots[place].value.as_mut())
    }

    /// Two values at once. `None` when either token is stale or both are the same.
    pub fn pair_mut(&mut self, a: Token, b: Token) -> Option<(&mut T, &mut T)> {
        let (a, b) = (self.slot(a)?, self.slot(b)?);
        let [a, b] = self.slots.get_disjoint_mut([a, b]).ok()?;
        Some((a.value.as_mut()?, b.value.as_mut()?))
    }

    /// Takes a value out; its token is stale from now on.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let place = self.slot(token)?;
        let value = self.slots[place].value.take()?;
        self.slots[place].generation = self.slots[place].generation.wrapping_add(1) & GENERATIONS;
        self.free.push(place);
        Some(value)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values with their tokens.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(place, slot)| slot.value.as_ref().map(|value| (token(place, slot.generation), value)))
    }

    /// All values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }
}

fn token(place: usize, generation: u32) -> Token {
    Token(place | (generation as usize) << PLACE_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_and_its_token_is_not() {
        let mut slots = Slots::default();
        let a = slots.insert('a');
        let b = slots.insert('b');
        assert_eq!(slots.pair_mut(a, b), Some((&mut 'a', &mut 'b')));
        assert_eq!(slots.pair_mut(a, a), None);
        assert_eq!(slots.remove(a), Some('a'));
        assert_eq!(slots.remove(a), None);
        let next = slots.next_token();
        let c = slots.insert('c');
        assert_eq!(c, next);
        assert_ne!(c, a);
        assert_eq!((slots.get(a), slots.get(c), slots.len()), (None, Some(&'c'), 2));
    }
}
