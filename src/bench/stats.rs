//! What a list of figures says, and whether two lists say different things.
//!
//! The middle is the median, because times have long tails. Its interval is the percentile
//! bootstrap's: samples as long as the list are drawn from it with replacement, and 95 in 100 of
//! their medians lie in the interval. The draws are the same for as many figures, so that a report
//! that is drawn again says the same. Fewer than [`FEW`] figures carry no interval, and no
//! percentile that would be one figure's: the maximum stands for it. Nothing is thrown away;
//! figures far from the rest are counted.

use serde::{Deserialize, Serialize};

/// Under so many figures there is a median and a range, and nothing else.
pub const FEW: usize = 20;
/// From so many figures the 99th percentile is one.
pub const MANY: usize = 100;
/// Medians that are drawn for an interval.
const DRAWS: usize = 2_000;

/// From one figure to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub from: f64,
    /// The upper end.
    pub to: f64,
}

impl Interval {
    /// Whether it has this figure in it.
    pub fn contains(&self, figure: f64) -> bool {
        (self.from..=self.to).contains(&figure)
    }
}

/// What can be said of a list of figures, in their unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// Where the median lies with 95 %; `None` for few figures.
    pub interval: Option<Interval>,
    /// A twentieth is larger; `None` for few figures.
    pub p95: Option<f64>,
    /// A hundredth is larger; `None` under [`MANY`] figures.
    pub p99: Option<f64>,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Figures that are further from the quartiles than one and a half times their distance
    /// (Tukey's fences).
    pub outliers: usize,
}

impl Summary {
    /// Of figures in any order. `None` if there are none, or one is no number.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let sorted = sorted(figures)?;
        let count = sorted.len();
        let interval = (count >= FEW).then(|| percentiles(&medians(&sorted, &mut Draws::new(&sorted))));
        let (low, high) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        let reach = 1.5 * (high - low);
        let fences = Interval { from: low - reach, to: high + reach };
        Some(Self {
            count,
            median: median(&sorted),
            interval,
            p95: (count >= FEW).then(|| quantile(&sorted, 0.95)),
            p99: (count >= MANY).then(|| quantile(&sorted, 0.99)),
            min: sorted[0],
            max: sorted[count - 1],
            outliers: sorted.iter().filter(|figure| !fences.contains(**figure)).count(),
        })
    }

    /// The smallest and the largest.
    pub fn range(&self) -> Interval {
        Interval { from: self.min, to: self.max }
    }
}

/// How two lists of figures compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The first one's median, divided by the second one's.
    pub value: f64,
    /// Where it lies: with 95 %, or anywhere within both ranges for few figures.
    pub interval: Interval,
}

impl Ratio {
    /// `None` if a list is empty, or the second one's figures are not all above 0.
    pub fn of(figures: &[f64], base: &[f64]) -> Option<Self> {
        let (figures, base) = (sorted(figures)?, sorted(base)?);
        if base[0] <= 0.0 {
            return None;
        }
        let value = median(&figures) / median(&base);
        let interval = if figures.len().min(base.len()) < FEW {
            Interval { from: figures[0] / base[base.len() - 1], to: figures[figures.len() - 1] / base[0] }
        } else {
            let mut draws = Draws::new(&figures);
            let (above, below) = (medians(&figures, &mut draws), medians(&base, &mut draws));
            percentiles(&above.iter().zip(below).map(|(above, below)| above / below).collect::<Vec<_>>())
        };
        Some(Self { value, interval })
    }

    /// Whether the difference is inside the noise.
    pub fn is_tie(&self) -> bool {
        self.interval.contains(1.0)
    }
}

/// The median alone, which takes no draws. `None` as with [`Summary::of`].
pub fn median_of(figures: &[f64]) -> Option<f64> {
    sorted(figures).map(|sorted| median(&sorted))
}

fn sorted(figures: &[f64]) -> Option<Vec<f64>> {
    if figures.is_empty() || figures.iter().any(|figure| !figure.is_finite()) {
        return None;
    }
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

fn median(sorted: &[f64]) -> f64 {
    quantile(sorted, 0.5)
}

/// Between the two nearest figures in proportion, as R and NumPy have it by default.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the list")]
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

fn percentiles(figures: &[f64]) -> Interval {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    Interval { from: quantile(&sorted, 0.025), to: quantile(&sorted, 0.975) }
}

/// The medians of [`DRAWS`] samples.
fn medians(sorted: &[f64], draws: &mut Draws) -> Vec<f64> {
    let mut picks = vec![0; sorted.len()];
    let mut sample = vec![0.0; sorted.len()];
    (0..DRAWS)
        .map(|_| {
            picks.fill_with(|| draws.index(sorted.len()));
            // The figures are in order, so their indices may be sorted in their place.
            picks.sort_unstable();
            sample.iter_mut().zip(&picks).for_each(|(figure, pick)| *figure = sorted[*pick]);
            median(&sample)
        })
        .collect()
}

/// Numbers that look random, by splitmix64, and are the same for as many figures.
struct Draws(u64);

impl Draws {
    fn new(figures: &[f64]) -> Self {
        // Not by what they are: one that comes back from a file may differ in its last bit.
        Self(figures.len() as u64)
    }

    fn index(&mut self, len: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        // The high half of the product: as even as 64 bits make it.
        let high = (u128::from(x) * len as u128) >> 64;
        usize::try_from(high).expect("below len")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` figures of an exponential distribution with this mean, above `least`.
    fn exponential(draws: &mut Draws, count: usize, least: f64, mean: f64) -> Vec<f64> {
        let unit = |draws: &mut Draws| (draws.index(1 << 30) as f64 + 0.5) / f64::from(1 << 30);
        (0..count).map(|_| least - mean * unit(draws).ln()).collect()
    }

    #[test]
    fn an_order_has_a_median_quartiles_and_outliers() {
        let figures: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&figures).unwrap();
        assert_eq!((summary.count, summary.median, summary.min, summary.max), (100, 50.5, 1.0, 100.0));
        assert!((summary.p95.unwrap() - 95.05).abs() < 1e-9 && (summary.p99.unwrap() - 99.01).abs() < 1e-9);
        assert_eq!(summary.outliers, 0);
        let summary = Summary::of(&[figures, vec![1000.0, -900.0]].concat()).unwrap();
        assert_eq!((summary.outliers, summary.max), (2, 1000.0));
    }

    #[test]
    fn few_figures_have_a_median_and_a_range() {
        let summary = Summary::of(&[3.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!((summary.median, summary.range()), (2.5, Interval { from: 1.0, to: 9.0 }));
        assert_eq!((summary.interval, summary.p95, summary.p99), (None, None, None));
        let twenty = Summary::of(&[1.0; FEW]).unwrap();
        assert_eq!((twenty.interval, twenty.p95), (Some(Interval { from: 1.0, to: 1.0 }), Some(1.0)));
        assert_eq!(twenty.p99, None);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ninety_five_intervals_in_a_hundred_have_the_true_median_in_them() {
        let mut draws = Draws(7);
        let truth = 10.0 + 2.0 * std::f64::consts::LN_2;
        let hits = (0..200)
            .filter(|_| {
                let figures = exponential(&mut draws, 30, 10.0, 2.0);
                Summary::of(&figures).unwrap().interval.unwrap().contains(truth)
            })
            .count();
        // 190 expected; the standard deviation is 3, and the percentile bootstrap is a little
        // narrow for so few.
        assert!((176..=199).contains(&hits), "{hits} of 200");
    }

    #[test]
    fn a_difference_inside_the_noise_is_a_tie_and_one_outside_is_none() {
        let mut draws = Draws(1);
        let mut ratio = |count, factor: f64| {
            let figures: Vec<f64> = exponential(&mut draws, count, 10.0, 2.0);
            let base: Vec<f64> =
                exponential(&mut draws, count, 10.0, 2.0).iter().map(|figure| figure / factor).collect();
            Ratio::of(&figures, &base).unwrap()
        };
        let ties = (0..100).filter(|_| ratio(30, 1.0).is_tie()).count();
        assert!(ties >= 88, "{ties} of 100 equal pairs are ties");
        let ties = (0..100).filter(|_| ratio(30, 1.5).is_tie()).count();
        assert_eq!(ties, 0, "half as long again is no tie");
        assert!((ratio(1000, 1.5).value - 1.5).abs() < 0.1);
        // Few figures are told apart where their ranges are.
        assert!(Ratio::of(&[1.0, 2.0], &[1.5, 3.0]).unwrap().is_tie());
        assert!(!Ratio::of(&[1.0, 2.0], &[2.5, 3.0]).unwrap().is_tie());
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::of(&[], &[1.0]), None);
    }

    #[test]
    fn the_same_figures_say_the_same_in_any_order() {
        let mut draws = Draws(3);
        let mut figures = exponential(&mut draws, 25, 1.0, 1.0);
        let before = Summary::of(&figures);
        figures.reverse();
        assert_eq!(Summary::of(&figures), before);
    }
}
