//! Lines of Unicode blocks.

const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What stands for several values that share a column.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    Mean,
    Least,
    Greatest,
}

/// Values made as many as there are columns; where there is none, a column is empty.
pub(super) fn fit(values: &[Option<f64>], columns: usize, of: Of) -> Vec<Option<f64>> {
    let column = |index: usize| {
        let from = index * values.len() / columns;
        let to = ((index + 1) * values.len() / columns).max(from + 1);
        let some = values.get(from..to.min(values.len()))?.iter().copied().flatten();
        let some: Vec<f64> = some.collect();
        match of {
            Of::Mean if some.is_empty() => None,
            Of::Mean => Some(some.iter().sum::<f64>() / some.len() as f64),
            Of::Least => some.into_iter().min_by(f64::total_cmp),
            Of::Greatest => some.into_iter().max_by(f64::total_cmp),
        }
    };
    (0..columns).map(column).collect()
}

/// Columns of blocks in `height` rows, the top first. A value at `low` or below has the smallest
/// block, so that it can be told from none.
pub(super) fn rows(values: &[Option<f64>], height: usize, low: f64, high: f64) -> Vec<String> {
    let eighths = |value: f64| {
        let part = if high > low { (value - low) / (high - low) } else { 1.0 };
        // At most 8 times the height, so the cast is exact.
        ((part.clamp(0.0, 1.0) * (height * 8) as f64).round() as usize).max(1)
    };
    let row = |row: usize| {
        let below = (height - 1 - row) * 8;
        let block = |value: &Option<f64>| {
            BLOCKS[value.map_or(0, |value| eighths(value).saturating_sub(below).min(8))]
        };
        values.iter().map(block).collect()
    };
    (0..height).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fills_its_column_from_below() {
        let values = [Some(0.0), Some(0.5), Some(1.0), None];
        assert_eq!(rows(&values, 1, 0.0, 1.0), ["▁▄█ "]);
        assert_eq!(rows(&values, 2, 0.0, 1.0), ["  █ ", "▁██ "]);
    }

    #[test]
    fn values_out_of_scale_stay_within_it() {
        assert_eq!(rows(&[Some(-1.0), Some(9.0), Some(f64::NAN)], 1, 0.0, 1.0), ["▁█▁"]);
        assert_eq!(rows(&[Some(3.0)], 1, 3.0, 3.0), ["█"]);
    }

    #[test]
    fn columns_that_share_values_keep_what_was_asked_for() {
        let values: Vec<_> = [1.0, 3.0, 5.0, 5.0].map(Some).to_vec();
        assert_eq!(fit(&values, 2, Of::Mean), [Some(2.0), Some(5.0)]);
        assert_eq!(fit(&values, 2, Of::Least), [Some(1.0), Some(5.0)]);
        assert_eq!(fit(&values, 2, Of::Greatest), [Some(3.0), Some(5.0)]);
        assert_eq!(fit(&[None, Some(1.0)], 1, Of::Mean), [Some(1.0)]);
    }

    #[test]
    fn few_values_are_stretched() {
        let stretched = fit(&[Some(1.0), None], 4, Of::Mean);
        assert_eq!(stretched, [Some(1.0), Some(1.0), None, None]);
        assert_eq!(fit(&[], 2, Of::Greatest), [None, None]);
    }
}
