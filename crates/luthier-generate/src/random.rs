//! Random numbers of our own, so that a seed gives the same continuation with every version and on every machine.
//!
//! xoshiro256++ 1.0 (Blackman and Vigna, <https://prng.di.unimi.it/xoshiro256plusplus.c>, public domain), its state
//! the first four numbers of SplitMix64 from the seed, as its authors advise.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Random {
        let mut split_mix = seed;
        let state = std::array::from_fn(|_| {
            split_mix = split_mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = split_mix;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Random { state }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Uniform in 0..1, a multiple of 2^-53.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_algorithm() {
        // State 1, 2, 3, 4 by hand: (1 + 4) rotl 23 = 5 << 23 = 41943040, + 1 = 41943041.
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!(random.next_u64(), 41_943_041);
        // Then s2 = 3^1 = 2, s3 = 4^2 = 6, s1 = 2^2 = 0, s0 = 1^6 = 7, s2 ^= 2<<17, s3 = 6 rotl 45.
        assert_eq!(random.state, [7, 0, 2 ^ (2 << 17), 6 << 45]);
        // SplitMix64's first number from 0, as its author publishes it.
        assert_eq!(Random::new(0).state[0], 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn is_uniform_enough() {
        let mut random = Random::new(7);
        let mean = (0..10_000).map(|_| random.next_f64()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
