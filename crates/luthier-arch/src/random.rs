//! Seeded pseudo-random numbers for weights: SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), begun from
//! a tensor's name, so that no tensor's numbers depend on which others there are.

/// What the state grows by from one number to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a of a name, its start changed by a seed.
pub fn hash(name: &str, seed: u64) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// SplitMix64's output function.
pub fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Of 64 bits the first 53, as a number from 0 to 1 (left out).
pub fn fraction(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Numbers one after another.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of a state.
    pub fn new(state: u64) -> Stream {
        Stream(state)
    }

    /// The stream of a name and a seed.
    pub fn named(name: &str, seed: u64) -> Stream {
        Stream(hash(name, seed))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// The number at place `at` from 0, whatever was drawn before.
    pub fn bits_at(&self, at: u64) -> u64 {
        mix(self.0.wrapping_add((at + 1).wrapping_mul(STEP)))
    }

    /// Evenly from 0 to 1 (left out).
    pub fn uniform(&mut self) -> f64 {
        fraction(self.bits())
    }

    /// Radius and angle of Box-Muller: the radius times the angle's cosine, and times its sine, are two independent normal
    /// numbers of deviation 1.
    pub fn polar(&mut self) -> (f64, f64) {
        // Never 0, of which a logarithm is taken.
        let mut above_zero = || ((self.bits() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        let radius = (-2.0 * above_zero().ln()).sqrt();
        (radius, std::f64::consts::TAU * above_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_its_authors() {
        let mut stream = Stream::new(0);
        // The first numbers from 0, as the authors' program gives them.
        let wanted = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert_eq!([0, 1, 2].map(|at| stream.bits_at(at)), wanted);
        assert_eq!(wanted.map(|_| stream.bits()), wanted);
    }
}
