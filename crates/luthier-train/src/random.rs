//! Seeded pseudo-random numbers: SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195).
//!
//! Every draw of a run comes from a stream keyed by (seed, purpose, counter), so that the state after any number of
//! steps is the counter itself and a resumed run draws what an undisturbed one does.

/// What a stream of numbers is for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of windows within one epoch.
    Order = 1,
    /// What an objective draws once for all sequences of a step.
    Step = 2,
    /// What an objective draws for one sequence.
    Sequence = 3,
    /// What an objective draws for a validation window.
    Validation = 4,
    /// The first values of an adapter.
    Adapter = 5,
}

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of one purpose and counter under a seed.
    pub fn new(seed: u64, purpose: Purpose, counter: u64) -> Random {
        let keyed = mix(seed ^ mix(purpose as u64)).wrapping_add(counter);
        Random { state: mix(keyed) }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Uniform in `0..n`, without bias (Lemire 2019, arXiv:1805.10941); 0 for n = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if (product as u64) >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Uniform in [0, 1) in steps of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_sequence() {
        // Java's SplittableRandom reference: state 1234567 gives these first three outputs.
        let mut random = Random { state: 1_234_567 };
        let drawn = [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn shuffles_to_a_permutation_and_stays_below() {
        let mut random = Random::new(3, Purpose::Order, 0);
        let mut items: Vec<u32> = (0..100).collect();
        random.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert!((0..1000).all(|_| random.unit() < 1.0));
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_counter() {
        let first = |seed, purpose, counter| Random::new(seed, purpose, counter).next_u64();
        let base = first(1, Purpose::Order, 0);
        assert_ne!(base, first(2, Purpose::Order, 0));
        assert_ne!(base, first(1, Purpose::Step, 0));
        assert_ne!(base, first(1, Purpose::Order, 1));
        assert_eq!(base, first(1, Purpose::Order, 0));
    }
}
