//! Axes: a range, round ticks in it, and numbers with units as people write them.

/// How the values of an axis or column are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Three decimals.
    Loss,
    /// k, M, B: parameters, tokens.
    Count,
    /// kB, MB, GB of 1000.
    Bytes,
    /// Per second; k from ten thousand.
    Rate,
}

impl Unit {
    /// A value as a table shows it: three digits that count, losses to three decimals.
    pub fn show(self, value: f64) -> String {
        if self == Unit::Loss {
            return format!("{value:.3}");
        }
        let (factor, prefix) = self.prefix(value);
        let scaled = value / factor;
        let decimals = if scaled >= 99.95 || factor == 1.0 && self != Unit::Rate {
            0
        } else if scaled >= 9.995 {
            1
        } else {
            2
        };
        join(&format!("{scaled:.decimals$}"), prefix)
    }

    /// A tick's value, given the distance between ticks: all the decimals that tell it from the next.
    fn show_tick(self, value: f64, step: f64, scale: f64) -> String {
        let (factor, prefix) = self.prefix(scale);
        let decimals = (-((step / factor).log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
        let text = format!("{:.decimals$}", value / factor);
        if value == 0.0 { "0".into() } else { join(&text, prefix) }
    }

    fn prefix(self, value: f64) -> (f64, &'static str) {
        let names: [&str; 5] = match self {
            Unit::Loss => return (1.0, ""),
            Unit::Count => ["", "k", "M", "B", "T"],
            Unit::Bytes => ["B", "kB", "MB", "GB", "TB"],
            Unit::Rate if value < 1e4 => return (1.0, ""),
            Unit::Rate => ["", "k", "M", "B", "T"],
        };
        // A value that rounds up to a thousand takes the next prefix.
        let steps = (1..5).take_while(|&step| value >= 999.5 * 1000f64.powi(step - 1)).count();
        (1000f64.powi(steps as i32), names[steps])
    }
}

fn join(number: &str, prefix: &str) -> String {
    if prefix.is_empty() { number.to_string() } else { format!("{number}\u{a0}{prefix}") }
}

/// A range of values drawn along a line, linear or logarithmic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    unit: Unit,
    /// Value and label, rising.
    pub(crate) ticks: Vec<(f64, String)>,
}

/// As many ticks as a small chart has room for.
const TICKS: usize = 6;
/// A wider ratio than this is drawn logarithmically.
const LOG_FROM_RATIO: f64 = 8.0;

impl Axis {
    /// An axis for `values`, finite and not empty; logarithmic where `may_be_log` and they span a wide ratio.
    pub(crate) fn of(values: &[f64], unit: Unit, may_be_log: bool) -> Axis {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if may_be_log && low > 0.0 && high / low >= LOG_FROM_RATIO {
            return Axis::logarithmic(low, high, unit);
        }
        let pad = match high > low {
            true => (high - low) * 0.12,
            false if high == 0.0 => 1.0,
            false => high.abs() * 0.1,
        };
        Axis::linear(if low >= 0.0 { (low - pad).max(0.0) } else { low - pad }, high + pad, unit)
    }

    /// An axis from exactly 0 to `high`.
    pub(crate) fn from_zero(high: f64, unit: Unit) -> Axis {
        Axis::linear(0.0, if high > 0.0 { high } else { 1.0 }, unit)
    }

    fn linear(low: f64, high: f64, unit: Unit) -> Axis {
        let power = 10f64.powf(((high - low) / TICKS as f64).log10().floor());
        let range = |step: f64| ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        let fits = |step: &f64| range(*step).1 - range(*step).0 < TICKS as i64;
        let step = [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(fits).unwrap_or(10.0 * power);
        let (first, last) = range(step);
        let scale = last as f64 * step;
        let ticks =
            (first..=last).map(|n| (n as f64 * step, unit.show_tick(n as f64 * step, step, scale))).collect();
        Axis { low, high, log: false, unit, ticks }
    }

    /// The axis begun and ended at ticks, so that no curve runs below the lowest number. For linear axes.
    pub(crate) fn with_whole_ticks(mut self) -> Axis {
        let step = match self.ticks.as_slice() {
            [first, second, ..] if !self.log => second.0 - first.0,
            _ => return self,
        };
        let unit = self.unit;
        let (first, last) = ((self.low / step + 1e-9).floor(), (self.high / step - 1e-9).ceil());
        let scale = last * step;
        self.ticks = (first as i64..=last as i64)
            .map(|n| (n as f64 * step, unit.show_tick(n as f64 * step, step, scale)))
            .collect();
        (self.low, self.high) = (first * step, scale);
        self
    }

    fn logarithmic(low: f64, high: f64, unit: Unit) -> Axis {
        let pad = (high / low).powf(0.1);
        let (low, high) = (low / pad, high * pad);
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let within = |mantissas: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|n| mantissas.iter().map(move |m| m * 10f64.powi(n)));
            all.filter(|value| (low..=high).contains(value)).collect()
        };
        let candidates = [within(&[1.0, 2.0, 5.0]), within(&[1.0, 3.0]), within(&[1.0])];
        let mut values =
            candidates.iter().find(|values| values.len() <= TICKS).unwrap_or(&candidates[2]).clone();
        let thin = values.len().div_ceil(TICKS);
        values = values.into_iter().step_by(thin).collect();
        let ticks = values.into_iter().map(|value| (value, unit.show_tick(value, value, value))).collect();
        Axis { low, high, log: true, unit, ticks }
    }

    /// Where `value` lies, 0 to 1 within the range.
    pub(crate) fn position(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    /// Whether distances stand for ratios.
    pub(crate) fn is_log(&self) -> bool {
        self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(values: &[f64], unit: Unit, log: bool, want: Expect) {
        let axis = Axis::of(values, unit, log);
        let labels: Vec<String> = axis.ticks.iter().map(|(_, label)| label.replace('\u{a0}', " ")).collect();
        want.assert_eq(&labels.join(" | "));
        for (value, _) in &axis.ticks {
            assert!((-1e-6..=1.0 + 1e-6).contains(&axis.position(*value)));
        }
        for value in values {
            assert!((0.0..=1.0).contains(&axis.position(*value)));
        }
    }

    #[test]
    fn ticks_are_round_and_tell_each_other_apart() {
        check(&[3.21, 3.48, 3.9], Unit::Loss, false, expect!["3.2 | 3.4 | 3.6 | 3.8"]);
        check(
            &[3.4501, 3.4503],
            Unit::Loss,
            false,
            expect!["3.45010 | 3.45015 | 3.45020 | 3.45025 | 3.45030"],
        );
        check(&[4.2e6, 8.1e6], Unit::Count, true, expect!["4 M | 5 M | 6 M | 7 M | 8 M"]);
        check(&[4.2e6, 135e6, 1.1e9], Unit::Count, true, expect!["3 M | 10 M | 30 M | 100 M | 300 M | 1 B"]);
        check(&[8.4e6, 270e6], Unit::Bytes, true, expect!["10 MB | 20 MB | 50 MB | 100 MB | 200 MB"]);
        check(&[120.0, 121.0, 500.0], Unit::Rate, true, expect!["100 | 200 | 300 | 400 | 500"]);
        check(&[7.0], Unit::Rate, true, expect!["6.5 | 7.0 | 7.5"]);
        check(&[0.0], Unit::Count, true, expect!["0 | 0.2 | 0.4 | 0.6 | 0.8 | 1.0"]);
        check(&[1.0, 1e14], Unit::Count, true, expect!["0.1 | 100 | 100 k | 100 M | 100 B | 100 T"]);
    }

    #[test]
    fn an_axis_of_whole_ticks_holds_its_values_between_numbers() {
        let axis = Axis::of(&[3.79, 4.2, 8.41], Unit::Loss, false).with_whole_ticks();
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, label)| label.as_str()).collect();
        expect!["3 4 5 6 7 8 9"].assert_eq(&labels.join(" "));
        assert!(axis.position(3.0).abs() < 1e-9 && (axis.position(9.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn values_keep_three_digits() {
        let shown = [
            Unit::Loss.show(3.21456),
            Unit::Count.show(4_213_760.0),
            Unit::Count.show(135e6),
            Unit::Count.show(12.0),
            Unit::Bytes.show(999_700.0),
            Unit::Bytes.show(8_421_000.0),
            Unit::Rate.show(1234.5),
            Unit::Rate.show(56_789.0),
            Unit::Rate.show(2.71),
        ];
        expect!["3.215 4.21_M 135_M 12 1.00_MB 8.42_MB 1234 56.8_k 2.71"]
            .assert_eq(&shown.join(" ").replace('\u{a0}', "_"));
    }

    proptest::proptest! {
        #[test]
        fn any_values_get_some_ticks_within_the_range(
            values in proptest::collection::vec(1e-3f64..1e15, 1..6), log in proptest::bool::ANY,
        ) {
            let axis = Axis::of(&values, Unit::Count, log);
            proptest::prop_assert!((1..=11).contains(&axis.ticks.len()), "{:?}", axis);
            let mut labels: Vec<&String> = axis.ticks.iter().map(|(_, label)| label).collect();
            labels.sort();
            labels.dedup();
            proptest::prop_assert_eq!(labels.len(), axis.ticks.len());
        }
    }
}
