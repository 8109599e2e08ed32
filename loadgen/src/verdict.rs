//! Several rounds of the same in one number with its spread, and who of two is ahead.

/// The numbers of one target at one work.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How many.
    pub rounds: usize,
}

/// Two targets at one work, where less is better.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Verdict {
    /// The first needs less: by this factor.
    Ahead(f64),
    /// The first needs more: the other's part of it.
    Behind(f64),
    /// Their rounds overlap, so the factor may be chance.
    WithinNoise(f64),
}

impl Sample {
    /// Of some numbers; nothing of none.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, least, most, rounds: sorted.len() })
    }
}

impl Verdict {
    /// How `ours` stands beside `other`. One round each says nothing about noise and so is always within it.
    #[must_use]
    pub fn of(ours: &Sample, other: &Sample) -> Self {
        let ratio = if ours.median > 0.0 { other.median / ours.median } else { f64::INFINITY };
        let single = ours.rounds.min(other.rounds) < 2;
        if !single && ours.most < other.least {
            Self::Ahead(ratio)
        } else if !single && other.most < ours.least {
            Self::Behind(ratio)
        } else {
            Self::WithinNoise(ratio)
        }
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.rounds == 1 {
            return write!(f, "{}", digits(self.median));
        }
        write!(f, "{} ({} … {})", digits(self.median), digits(self.least), digits(self.most))
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ahead(ratio) | Self::Behind(ratio) => write!(f, "{ratio:.2}×"),
            Self::WithinNoise(ratio) => write!(f, "{ratio:.2}×, within the noise"),
        }
    }
}

/// Three digits that count.
#[must_use]
pub fn digits(value: f64) -> String {
    match value.abs() {
        below_ten if below_ten < 10.0 => format!("{value:.2}"),
        below_hundred if below_hundred < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_do_not_overlap_give_a_verdict_and_others_do_not() {
        let sample = |numbers: [f64; 3]| Sample::of(numbers).unwrap();
        let ours = sample([1.0, 1.1, 0.9]);
        assert_eq!(ours, Sample { median: 1.0, least: 0.9, most: 1.1, rounds: 3 });
        assert_eq!(Verdict::of(&ours, &sample([1.5, 1.2, 1.4])), Verdict::Ahead(1.4));
        assert_eq!(Verdict::of(&ours, &sample([0.5, 0.6, 0.8])), Verdict::Behind(0.6));
        assert_eq!(Verdict::of(&ours, &sample([1.05, 1.5, 1.6])), Verdict::WithinNoise(1.5));
        let once = Sample::of([2.0]).unwrap();
        assert_eq!(Verdict::of(&once, &Sample::of([4.0]).unwrap()), Verdict::WithinNoise(2.0));
        assert_eq!(Sample::of([]), None);
        assert_eq!(Sample::of([4.0, 1.0]).unwrap().median, 2.5);
    }
}
