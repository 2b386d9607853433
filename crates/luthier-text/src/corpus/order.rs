//! The order in which windows are visited: a new shuffle each epoch, the same for the same seed everywhere.
//!
//! Fisher and Yates' shuffle with SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
//! generators") as the source of numbers and Lemire's multiplication for ranges (arXiv:1805.10941, without its
//! rejection step: the bias is below count/2^64). The order depends on seed, epoch and count alone.

use serde::{Deserialize, Serialize};

/// SplitMix64's output function.
pub(super) fn mix(mut state: u64) -> u64 {
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// How far a run is: what has to be saved to go on exactly there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Full passes over the data that are done.
    pub epoch: u64,
    /// Items of this pass that are done.
    pub index: u64,
}

/// An endless walk over `count` items, shuffled anew each epoch.
#[derive(Debug, Clone)]
pub struct Order {
    count: usize,
    seed: u64,
    position: Position,
    /// Items in the order of the current epoch.
    shuffled: Vec<u32>,
}

impl Order {
    /// Starts, or goes on, at `position`. `count` must be above zero and fit 32 bits, `position.index` below it
    /// or equal.
    pub fn new(count: usize, seed: u64, position: Position) -> Order {
        assert!(count > 0 && u32::try_from(count).is_ok(), "wanted 1 to 2^32-1 items, came {count}");
        let mut order = Order { count, seed, position, shuffled: Vec::new() };
        order.shuffle();
        order
    }

    /// Where the walk is: give it to [`Order::new`] to go on.
    pub fn position(&self) -> Position {
        self.position
    }

    fn shuffle(&mut self) {
        self.shuffled = (0..self.count as u32).collect();
        let mut state = mix(self.seed ^ mix(self.position.epoch));
        for last in (1..self.count).rev() {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let chosen = (u128::from(mix(state)) * (last as u128 + 1)) >> 64;
            self.shuffled.swap(last, chosen as usize);
        }
    }
}

impl Iterator for Order {
    type Item = usize;

    /// The next item; never ends.
    fn next(&mut self) -> Option<usize> {
        if self.position.index >= self.count as u64 {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
            self.shuffle();
        }
        let item = self.shuffled[self.position.index as usize];
        self.position.index += 1;
        Some(item as usize)
    }
}
