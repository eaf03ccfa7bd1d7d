//! Medians and quartiles: what a run of repetitions is reduced to.

/// A set of figures by its quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub count: usize,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
}

/// The value below which a share `q` of the sorted `values` lies, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = position.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// The quartiles of `values`; nothing for no values.
pub fn summary(values: &[f64]) -> Option<Summary> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(Summary {
        count: sorted.len(),
        p25: quantile(&sorted, 0.25),
        median: quantile(&sorted, 0.5),
        p75: quantile(&sorted, 0.75),
    })
}

/// The quartiles of `ours[i] / rival[i]`: each repetition is compared with its own neighbour in
/// time, so that a machine that slows down during the run does not shift the ratio.
pub fn ratio(ours: &[f64], rival: &[f64]) -> Option<Summary> {
    let ratios: Vec<f64> =
        ours.iter().zip(rival).filter(|(_, rival)| **rival > 0.0).map(|(a, b)| a / b).collect();
    summary(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_known_sets() {
        assert_eq!(summary(&[]), None);
        let one = summary(&[3.0]).unwrap();
        assert_eq!((one.count, one.p25, one.median, one.p75), (1, 3.0, 3.0, 3.0));
        let even = summary(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((even.p25, even.median, even.p75), (1.75, 2.5, 3.25));
        let odd = summary(&[9.0, 1.0, 5.0, 3.0, 7.0]).unwrap();
        assert_eq!((odd.p25, odd.median, odd.p75), (3.0, 5.0, 7.0));
    }

    #[test]
    fn a_ratio_is_taken_pair_by_pair() {
        // The machine becomes ten times slower half way: the medians' ratio would be 1, but every
        // pair says one half.
        let ours = [1.0, 1.0, 10.0, 10.0];
        let rival = [2.0, 2.0, 20.0, 20.0];
        assert_eq!(ratio(&ours, &rival).unwrap().median, 0.5);
        assert_eq!(ratio(&ours, &[]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
        assert_eq!(ratio(&[1.0, 2.0, 3.0], &[1.0]).unwrap().count, 1);
    }
}
